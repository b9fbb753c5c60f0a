package main

import (
	"fmt"
	"time"
)

const (
	mixedEvery  = 100
	joinedEvery = 50
	cancelAfter = 300 * time.Millisecond
	// Beyond what the gateway of truth.py takes.
	largeBytes = 100_000
)

// mixed says what is to become of a call: of every hundred so many. The worker
// of truth.py reads it from the beginning of the payload.
var mixed = []struct {
	kind  string
	share int
}{
	{"answered", 60}, {"keyed", 14}, {"failed", 6}, {"silent", 3}, {"late", 3}, {"cancelled", 4},
	{"twice", 3}, {"garbage", 2}, {"large", 1}, {"malformed", 1}, {"unknown", 1}, {"homeless", 2},
}

// newMixedRequest spreads the kinds over each hundred.
func newMixedRequest(run string, number int) (string, request) {
	kind, left := "", number*37%mixedEvery
	for _, one := range mixed {
		if kind = one.kind; left < one.share {
			break
		}
		left -= one.share
	}
	name := fmt.Sprintf("%s:%s-%d", kind, run, number)
	switch kind {
	case "keyed": // More at once than their method takes.
		own := newRequest("pay", kind+":"+run, number)
		own.once = name
		return kind, own
	case "malformed":
		return kind, request{path: "/payments.v1.PaymentService/Refund", key: name, message: []byte{0xff, 0xff, 0xff}, isOwn: never}
	case "homeless":
		return kind, newRequest("radius", run, number)
	}
	whole := newRequest("echo", kind+":"+run, number)
	switch kind {
	case "unknown":
		whole.path = "/echo.v1.EchoService/Whisper"
	case "large":
		whole.message = text(nil, 1, string(make([]byte, largeBytes)))
	case "cancelled":
		whole.cancelAfter = cancelAfter
	case "answered":
		if number%joinedEvery == 0 { // Made twice at once, with --repeat-every.
			whole.once = name
		}
	}
	return kind, whole
}

func never([]byte) bool { return false }
