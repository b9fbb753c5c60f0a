package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

type order struct {
	Reference   string `json:"reference"`
	OrderID     string `json:"order_id"`
	AmountMinor int64  `json:"amount_minor"`
	Currency    string `json:"currency"`
	ChargeID    string `json:"charge_id"`
}

// entry is what happened under one reference.
type entry struct {
	Reference   string `json:"reference"`
	ID          string `json:"id"`
	Kind        string `json:"kind"`  // charge, refund or void
	State       string `json:"state"` // approved, declined, refunded or void
	OrderID     string `json:"order_id"`
	AmountMinor int64  `json:"amount_minor"`
	ChargeID    string `json:"charge_id,omitempty"`
	// How often it was asked for again.
	Repeats int `json:"repeats"`

	settled chan struct{} // closed once there is a state, or none will come
}

// behaviour of the third party; shares are of one.
type behaviour struct {
	MedianMS float64 `json:"median_ms"`
	Sigma    float64 `json:"sigma"` // of the logarithm: 0.4 makes a p99 of 2.5 medians
	MaxMS    float64 `json:"max_ms"`
	Declined float64 `json:"declined"` // answers "declined"
	Refused  float64 `json:"refused"`  // 503, and nothing was done
	Dropped  float64 `json:"dropped"`  // done, and the connection closed without a word
	Hung     float64 `json:"hung"`     // done, and the answer comes after HangMS
	HangMS   float64 `json:"hang_ms"`
}

type mood struct {
	wait, hang     time.Duration
	refuses, drops bool
}

type ledger struct {
	mutex     sync.Mutex
	behaviour behaviour
	entries   map[string]*entry // by reference
	order     []*entry          // settled, as they were
}

func newLedger() *ledger { return &ledger{entries: map[string]*entry{}} }

func (l *ledger) behave(wanted behaviour) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.behaviour = wanted
}

func (l *ledger) mood() mood {
	l.mutex.Lock()
	b := l.behaviour
	l.mutex.Unlock()
	millis := min(b.MedianMS*math.Exp(b.Sigma*rand.NormFloat64()), b.MaxMS)
	m := mood{wait: time.Duration(millis * float64(time.Millisecond))}
	switch luck := rand.Float64(); {
	case luck < b.Refused:
		m.refuses = true
	case luck < b.Refused+b.Dropped:
		m.drops = true
	case luck < b.Refused+b.Dropped+b.Hung:
		m.hang = time.Duration(b.HangMS * float64(time.Millisecond))
	}
	return m
}

// enter finds what is known under the reference, or makes it the caller's own
// to settle or to leave.
func (l *ledger) enter(reference string) (*entry, bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if found, known := l.entries[reference]; known {
		found.Repeats++
		return found, true
	}
	own := &entry{Reference: reference, settled: make(chan struct{})}
	l.entries[reference] = own
	return own, false
}

// leave: nothing was done, and the reference is free again.
func (l *ledger) leave(reference string, own *entry) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	delete(l.entries, reference)
	close(own.settled)
}

func (l *ledger) settle(own, result *entry) entry {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	own.ID, own.Kind, own.State = result.ID, result.Kind, result.State
	own.OrderID, own.AmountMinor, own.ChargeID = result.OrderID, result.AmountMinor, result.ChargeID
	l.order = append(l.order, own)
	close(own.settled)
	return *own
}

func (l *ledger) copyOf(one *entry) entry {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return *one
}

func (l *ledger) all() []entry {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	copies := make([]entry, len(l.order))
	for i, one := range l.order {
		copies[i] = *one
	}
	return copies
}

func (l *ledger) charge(asked order) *entry {
	l.mutex.Lock()
	declined := rand.Float64() < l.behaviour.Declined
	number := len(l.order)
	l.mutex.Unlock()
	state := "approved"
	if declined {
		state = "declined"
	}
	return &entry{
		ID: fmt.Sprintf("ch-%d-%s", number, asked.OrderID), Kind: "charge", State: state,
		OrderID: asked.OrderID, AmountMinor: asked.AmountMinor,
	}
}

func (l *ledger) refund(asked order) *entry {
	return &entry{ID: "re-" + asked.OrderID, Kind: "refund", State: "refunded", OrderID: asked.OrderID, ChargeID: asked.ChargeID}
}
