package kafkagrpc

import (
	"crypto/sha256"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const answersKeptMax = 10_000

// answers remembers what was answered under an idempotency key; the oldest are
// forgotten first. A worker that must not forget keeps them in its database,
// together with what it did.
type answers struct {
	mutex sync.Mutex
	kept  map[string]keptAnswer
	order []string
}

type keptAnswer struct {
	digest [sha256.Size]byte
	answer answer
}

func newAnswers() *answers { return &answers{kept: map[string]keptAnswer{}} }

func (a *answers) find(method, key string, payload []byte) (answer, bool) {
	if key == "" {
		return answer{}, false
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	kept, found := a.kept[method+" "+key]
	if found && kept.digest != sha256.Sum256(payload) {
		words := "this idempotency-key was sent with another message before"
		return answer{value: []byte{}, status: status.New(codes.InvalidArgument, words)}, true
	}
	return kept.answer, found
}

func (a *answers) keep(method, key string, payload []byte, given answer) {
	switch given.status.Code() {
	case codes.ResourceExhausted, codes.Aborted, codes.Unavailable, codes.DeadlineExceeded:
		return // The same request may be tried again.
	}
	if key == "" {
		return
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	name := method + " " + key
	if _, known := a.kept[name]; !known {
		a.order = append(a.order, name)
	}
	a.kept[name] = keptAnswer{sha256.Sum256(payload), given}
	if len(a.order) > answersKeptMax {
		delete(a.kept, a.order[0])
		a.order = a.order[1:]
	}
}
