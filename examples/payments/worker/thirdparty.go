package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	attemptsMax = 3
	pause       = 20 * time.Millisecond // doubles with every attempt
	answerBytes = 64 << 10
	// The third party's own limit is below this; the caller's deadline does not
	// cut what has begun, since then nobody would know what became of it.
	patience = 30 * time.Second
)

// errSilent: no answer, or one that says nothing about the payment.
var errSilent = errors.New("the third party does not answer")

type thirdParty struct {
	base   string
	client http.Client
}

type order struct {
	Reference   string `json:"reference"`
	OrderID     string `json:"order_id"`
	AmountMinor int64  `json:"amount_minor,omitempty"`
	Currency    string `json:"currency,omitempty"`
	ChargeID    string `json:"charge_id,omitempty"`
}

type entry struct {
	ID          string `json:"id"`
	State       string `json:"state"`
	OrderID     string `json:"order_id"`
	AmountMinor int64  `json:"amount_minor"`
	ChargeID    string `json:"charge_id"`
}

func newThirdParty(base string) *thirdParty {
	transport := &http.Transport{MaxIdleConns: parallel, MaxIdleConnsPerHost: parallel, IdleConnTimeout: time.Minute}
	return &thirdParty{base: base, client: http.Client{Transport: transport, Timeout: patience}}
}

// ask sends it, and again under the same reference if there is no answer, as
// long as the caller waits. The duration is what the third party took.
func (t *thirdParty) ask(ctx context.Context, path string, what order) (entry, time.Duration, error) {
	body, err := json.Marshal(what)
	if err != nil {
		return entry{}, 0, err
	}
	var took time.Duration
	for attempt := 0; ; attempt++ {
		began := time.Now()
		found, err := t.post(path, body)
		took += time.Since(began)
		if !errors.Is(err, errSilent) || attempt+1 == attemptsMax {
			return found, took, err
		}
		select {
		case <-time.After(pause << attempt):
		case <-ctx.Done():
			return entry{}, took, err
		}
	}
}

func (t *thirdParty) post(path string, body []byte) (entry, error) {
	answer, err := t.client.Post(t.base+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return entry{}, fmt.Errorf("%w: %w", errSilent, err)
	}
	defer answer.Body.Close()
	words, err := io.ReadAll(io.LimitReader(answer.Body, answerBytes))
	switch {
	case err != nil:
		return entry{}, fmt.Errorf("%w: %w", errSilent, err)
	case answer.StatusCode >= 500:
		return entry{}, fmt.Errorf("%w: %s", errSilent, answer.Status)
	case answer.StatusCode != http.StatusOK:
		return entry{}, fmt.Errorf("the third party refuses: %s: %s", answer.Status, words)
	}
	var found entry
	if err := json.Unmarshal(words, &found); err != nil {
		return entry{}, fmt.Errorf("the third party's answer: %w", err)
	}
	return found, nil
}
