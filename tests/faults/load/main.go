// A steady stream of calls from a process of its own: open loop, so a slow
// answer never holds the next call up.
//
// Writes one JSON line per call to --out when it is over, and a line of running
// counts to standard output every second. Ends by itself after --seconds, or
// when its standard input is closed, and then waits for the calls under way.
//
// In Go because a burst of some thousand replies at once, which is what the end
// of most faults looks like, must not wait for the one who measures.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// A gateway allows 1,000 streams a connection; calls must not queue up in the client.
	callsPerChannel = 800
	// The caller's own patience beyond the deadline: a gateway that does not
	// keep the deadline shows.
	guard          = 5 * time.Second
	retryPause     = 200 * time.Millisecond
	connectTimeout = 20 * time.Second
)

type addresses []string

func (a *addresses) String() string         { return fmt.Sprint(*a) }
func (a *addresses) Set(value string) error { *a = append(*a, value); return nil }

type options struct {
	gateways     addresses
	out, run     string
	kind         string
	rate         float64
	seconds      float64
	deadline     float64
	retrySeconds float64
	radiusEvery  int
	refundEvery  int
	repeatEvery  int
	first        int
	calls        int
	inFlight     int
	retryOn      string
	careless     bool
}

// line is one call, as the account reads it.
type line struct {
	N        int     `json:"n"`
	Kind     string  `json:"kind"`
	Key      string  `json:"key"`
	Due      float64 `json:"due"` // Unix seconds; when it was to be sent
	Attempts int     `json:"attempts"`
	// How often the library itself sent it again: a stream that was refused
	// counts as never seen, and is repeated without a word.
	Resent  int     `json:"resent,omitempty"`
	Sent    float64 `json:"sent"` // Unix seconds
	Code    string  `json:"code"`
	Words   string  `json:"words,omitempty"`
	Wrong   bool    `json:"wrong"`
	Seconds float64 `json:"seconds"`
	// Of the last attempt, seconds beyond the deadline.
	Beyond  float64 `json:"beyond"`
	Cid     *string `json:"cid"`
	Outcome *string `json:"outcome"`
	Record  *string `json:"record,omitempty"`
	Repeat  *string `json:"repeat,omitempty"` // what it was to the gateway: joined or kept
	// What the account wants to see of the reply.
	Shown string `json:"shown,omitempty"`
	// Seconds that the worker says a third party took, over all attempts.
	ThirdParty float64 `json:"third_party,omitempty"`
	// How late this process's own timers were around the end of the call.
	Lag float64 `json:"lag"`

	ended time.Time
}

type caller struct {
	options
	channels []*grpc.ClientConn
	lag      *lagMeter

	mutex  sync.Mutex
	lines  []*line
	counts map[string]int
	paid   []*line // What may be refunded.
}

func main() {
	var o options
	flag.Var(&o.gateways, "gateway", "HOST:PORT; may be repeated")
	flag.StringVar(&o.out, "out", "", "file of the calls")
	flag.StringVar(&o.run, "run", "", "begins every key")
	flag.StringVar(&o.kind, "kind", "pay", "pay, radius, echo or mixed; of the scenarios checkout, transfer or notify")
	flag.Float64Var(&o.rate, "rate", 500, "calls a second")
	flag.Float64Var(&o.seconds, "seconds", 600, "")
	flag.Float64Var(&o.deadline, "deadline", 10, "seconds, as the gateway is configured")
	flag.Float64Var(&o.retrySeconds, "retry-seconds", 0, "repeat under an idempotency key for so long")
	flag.IntVar(&o.radiusEvery, "radius-every", 0, "every so many calls are SetRadius")
	flag.IntVar(&o.refundEvery, "refund-every", 0, "every so many calls give an earlier payment back")
	flag.IntVar(&o.repeatEvery, "repeat-every", 0, "every so many calls are made twice at once, under one idempotency key")
	flag.IntVar(&o.calls, "calls", 1<<31, "at most so many")
	flag.IntVar(&o.inFlight, "in-flight", 0, "calls that may be under way; default: what rate and deadline may come to")
	flag.StringVar(&o.retryOn, "retry-on", "UNAVAILABLE,DEADLINE_EXCEEDED,CANCELLED,UNKNOWN", "codes after which a call is repeated")
	flag.BoolVar(&o.careless, "careless", false, "repeat without an idempotency key")
	flag.IntVar(&o.first, "first", 0, "number of the first call")
	flag.Parse()
	if len(o.gateways) == 0 || o.out == "" || o.run == "" || flag.NArg() != 0 {
		flag.Usage()
		os.Exit(64)
	}
	c := &caller{options: o, counts: map[string]int{}, lag: newLagMeter()}
	if err := c.connect(); err != nil {
		log.Fatal(err)
	}
	c.drive()
	if err := c.write(); err != nil {
		log.Fatal(err)
	}
}

func (c *caller) connect() error {
	underWay := c.rate * (c.deadline + guard.Seconds())
	if c.inFlight > 0 {
		underWay = float64(c.inFlight)
	}
	perGateway := int(underWay/callsPerChannel) + 1
	params := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
		MinConnectTimeout: time.Second,
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	// Neighbouring calls go to different gateways.
	for i := 0; i < perGateway; i++ {
		for _, address := range c.gateways {
			channel, err := grpc.NewClient("passthrough:///"+address,
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithConnectParams(params), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
				grpc.WithStatsHandler(resends{}),
				grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
			if err != nil {
				return err
			}
			channel.Connect()
			for state := channel.GetState(); state != connectivity.Ready; state = channel.GetState() {
				if !channel.WaitForStateChange(ctx, state) {
					return fmt.Errorf("no connection to %s within %s", address, connectTimeout)
				}
			}
			c.channels = append(c.channels, channel)
		}
	}
	return nil
}

func (c *caller) drive() {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	fmt.Println("started")
	began, number := time.Now(), 0
	telling := time.NewTicker(time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	var underWay sync.WaitGroup
	for over := false; !over && time.Since(began).Seconds() < c.seconds && number < c.calls; {
		for due := min(int(time.Since(began).Seconds()*c.rate), c.calls); number < due; number++ {
			// Measured from here: a call that is made late has waited.
			moment := began.Add(time.Duration(float64(number) / c.rate * float64(time.Second)))
			times := 1
			if c.repeatEvery > 0 && number%c.repeatEvery == 0 {
				times = 2
			}
			this := c.first + number
			for range times {
				underWay.Go(func() { c.call(this, moment) })
			}
		}
		select {
		case <-ended:
			over = true
		case <-telling.C:
			c.tell(number)
		case <-tick.C:
		}
	}
	underWay.Wait()
	c.tell(number)
}

func (c *caller) call(number int, due time.Time) {
	kind, request := c.request(number)
	started := time.Now()
	l := &line{N: number, Kind: kind, Key: request.key, Sent: unix(started), Due: unix(due)}
	for {
		channel := c.channels[(number+l.Attempts)%len(c.channels)] // A repeat goes to the next one.
		l.Attempts++
		c.attempt(channel, request, l)
		again := slices.Contains(strings.Split(c.retryOn, ","), l.Code)
		if c.retrySeconds == 0 || !again || time.Since(started).Seconds() >= c.retrySeconds {
			break
		}
		time.Sleep(retryPause)
	}
	l.Seconds = l.ended.Sub(started).Seconds()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.lines = append(c.lines, l)
	c.counts[l.Code]++
	if l.Wrong {
		c.counts["wrong"]++
	}
	if l.Code == "OK" && kind == "checkout" {
		c.paid = append(c.paid, l)
	}
}

func (c *caller) request(number int) (string, request) {
	kind := c.kind
	if kind == "mixed" {
		return newMixedRequest(c.run, number)
	}
	if c.radiusEvery > 0 && number%c.radiusEvery == 0 {
		kind = "radius"
	}
	if c.refundEvery > 0 && number%c.refundEvery == 0 {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		if len(c.paid) > 0 { // Each once.
			paid := c.paid[0]
			c.paid = c.paid[1:]
			return "refund", newRefund(paid.Key, paid.Shown)
		}
	}
	return kind, newRequest(kind, c.run, number)
}

func (c *caller) attempt(channel *grpc.ClientConn, request request, l *line) {
	began := time.Now()
	// The gateway holds the deadline by its own configuration (timeout_max), so
	// what is measured here is its clock and not this client's timer.
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.deadline*float64(time.Second))+guard)
	defer cancel()
	if request.cancelAfter > 0 {
		defer time.AfterFunc(request.cancelAfter, cancel).Stop()
	}
	ctx = context.WithValue(ctx, resends{}, l)
	if request.once != "" && !c.careless {
		ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", request.once)
	} else if c.retrySeconds > 0 && !c.careless {
		ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", fmt.Sprintf("%s-%d", c.run, l.N))
	}
	var reply []byte
	var trailers metadata.MD
	err := channel.Invoke(ctx, request.path, request.message, &reply, grpc.Trailer(&trailers))
	l.ended = time.Now()
	l.Beyond = l.ended.Sub(began).Seconds() - c.deadline
	if err == nil {
		l.Code, l.Words, l.Wrong = "OK", "", !request.isOwn(reply)
		texts, _ := fields(reply)
		l.Shown = texts[request.shown]
	} else {
		l.Code, l.Words, l.Wrong = codeName(status.Code(err)), status.Convert(err).Message(), false
	}
	l.Cid, l.Outcome = first(trailers, "antiphon-correlation-id"), first(trailers, "antiphon-outcome")
	l.Record, l.Repeat = first(trailers, "antiphon-record"), first(trailers, "antiphon-idempotency")
	if took := first(trailers, "third-party-us"); took != nil {
		if micros, err := strconv.ParseInt(*took, 10, 64); err == nil {
			l.ThirdParty += float64(micros) / 1e6
		}
	}
}

func first(trailers metadata.MD, name string) *string {
	if values := trailers.Get(name); len(values) > 0 {
		return &values[0]
	}
	return nil
}

func (c *caller) tell(sent int) {
	c.mutex.Lock()
	c.counts["sent"] = sent
	words, err := json.Marshal(c.counts)
	c.mutex.Unlock()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(words))
}

func (c *caller) write() error {
	file, err := os.Create(c.out)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(file)
	encoder := json.NewEncoder(out)
	for _, l := range c.lines {
		l.Lag = c.lag.around(l.ended)
		if err := encoder.Encode(l); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return file.Close()
}

func unix(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// codeName is the code as the gRPC specification writes it.
func codeName(code codes.Code) string {
	names := [...]string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
		"ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
		"OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
	if int(code) < len(names) {
		return names[code]
	}
	return code.String()
}
