// Fires the triggers: hundreds of thousands of calls, each for one shop.
//
// Two ways at the same time. Most shops are changed by three triggers at once,
// each going through its shops in an order of its own, at a gateway of its own.
// Every so-many-th shop belongs to callers that wait: they fire a shop's next
// trigger when the one before has been answered, each at another gateway.
//
// No call is ever repeated. Writes one CSV line for each call to --out, running
// counts to standard output as JSON lines, and a summary as the last of them.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	radiusv1 "antiphon.dev/examples/delivery-radius/gen/radius/v1"
)

const (
	triggers = 3
	// A gateway allows 1,000 streams a connection; calls must not queue up in the client.
	callsPerChannel = 800
	tellEvery       = 500 * time.Millisecond
)

var radii = [triggers]uint32{3000, 2000, 1000}

type options struct {
	gateways     []string
	shops        int
	chainedEvery int
	window       int
	chainWindow  int
	deadline     time.Duration
	seed         uint64
	out          string
}

// call is what is known of a call when it is over.
type call struct {
	sent, ended             time.Duration // since the start
	partition               int32
	offset                  int64
	code                    codes.Code
	outcome                 string
	gateway                 int8
	previous, radius, nth   uint32
	isOver, hasPlace, wrong bool
}

type callers struct {
	options
	began    time.Time
	channels [][]radiusv1.RadiusServiceClient // by gateway
	next     atomic.Uint64                    // spreads calls over a gateway's channels
	calls    [triggers][]call                 // by shop, which counts from 1

	done, failed [triggers]atomic.Int64
}

func main() {
	var o options
	var gateways string
	flag.StringVar(&gateways, "gateways", "", "HOST:PORT,...: one for each trigger")
	flag.IntVar(&o.shops, "shops", 300_000, "shops, numbered from 1")
	flag.IntVar(&o.chainedEvery, "chained-every", 5, "every so-many-th shop's callers wait for each reply")
	flag.IntVar(&o.window, "window", 1_500, "calls in flight for each trigger")
	flag.IntVar(&o.chainWindow, "chain-window", 1_000, "calls in flight of the callers that wait")
	flag.DurationVar(&o.deadline, "deadline", time.Minute, "of each call")
	flag.Uint64Var(&o.seed, "seed", 1, "chooses the orders")
	flag.StringVar(&o.out, "out", "", "file of the calls")
	flag.Parse()
	o.gateways = strings.Split(gateways, ",")
	if len(o.gateways) != triggers || o.out == "" || o.shops < 1 || o.chainedEvery < 2 {
		flag.Usage()
		os.Exit(64)
	}
	c := &callers{options: o}
	if err := c.connect(); err != nil {
		log.Fatal(err)
	}
	c.fire()
	if err := c.write(); err != nil {
		log.Fatal(err)
	}
}

func (c *callers) connect() error {
	perGateway := (c.window+c.chainWindow/triggers)/callsPerChannel + 1
	for _, address := range c.gateways {
		var channels []radiusv1.RadiusServiceClient
		for range perGateway {
			channel, err := grpc.NewClient("passthrough:///"+address,
				grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
			if err != nil {
				return err
			}
			channels = append(channels, radiusv1.NewRadiusServiceClient(channel))
		}
		c.channels = append(c.channels, channels)
	}
	for trigger := range triggers {
		c.calls[trigger] = make([]call, c.shops+1)
	}
	return nil
}

func (c *callers) isChained(shop int) bool { return shop%c.chainedEvery == 0 }

func (c *callers) fire() {
	var atOnce [triggers][]int
	var chained []int
	for shop := 1; shop <= c.shops; shop++ {
		if c.isChained(shop) {
			chained = append(chained, shop)
			continue
		}
		for trigger := range triggers {
			atOnce[trigger] = append(atOnce[trigger], shop)
		}
	}
	c.began = time.Now()
	var underWay sync.WaitGroup
	for trigger, shops := range atOnce {
		shuffle(shops, c.seed+uint64(trigger))
		spread(&underWay, c.window, shops, func(shop int) { c.call(trigger, trigger, shop) })
	}
	spread(&underWay, c.chainWindow, chained, func(shop int) {
		for trigger := range triggers {
			c.call(trigger, (shop+trigger)%triggers, shop)
		}
	})
	over := make(chan struct{})
	go func() {
		underWay.Wait()
		close(over)
	}()
	for tick := time.NewTicker(tellEvery); ; {
		select {
		case <-over:
			c.tell()
			return
		case <-tick.C:
			c.tell()
		}
	}
}

func shuffle(shops []int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 17))
	random.Shuffle(len(shops), func(i, j int) { shops[i], shops[j] = shops[j], shops[i] })
}

// spread lets so many go through the shops together.
func spread(underWay *sync.WaitGroup, width int, shops []int, do func(shop int)) {
	var place atomic.Int64
	for range width {
		underWay.Go(func() {
			for i := place.Add(1) - 1; i < int64(len(shops)); i = place.Add(1) - 1 {
				do(shops[i])
			}
		})
	}
}

func (c *callers) call(trigger, gateway, shop int) {
	channels := c.channels[gateway]
	channel := channels[c.next.Add(1)%uint64(len(channels))]
	request := &radiusv1.SetRadiusRequest{
		ShopId: uint64(shop), Trigger: radiusv1.Trigger(trigger + 1), TriggerSequence: uint32(trigger + 1), RadiusM: radii[trigger],
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.deadline)
	defer cancel()
	var trailer metadata.MD
	sent := time.Since(c.began)
	reply, err := channel.SetRadius(ctx, request, grpc.Trailer(&trailer))
	l := call{sent: sent, ended: time.Since(c.began), gateway: int8(gateway), code: status.Code(err), isOver: true, outcome: "none"}
	if values := trailer.Get("antiphon-outcome"); len(values) == 1 {
		l.outcome = values[0]
	}
	if values := trailer.Get("antiphon-record"); len(values) == 1 {
		parts := strings.Split(values[0], "/")
		if len(parts) == 3 {
			_, err := fmt.Sscanf(parts[1]+" "+parts[2], "%d %d", &l.partition, &l.offset)
			l.hasPlace = err == nil
		}
	}
	if err == nil {
		l.previous, l.radius, l.nth = reply.GetPreviousRadiusM(), reply.GetRadiusM(), reply.GetChange()
		l.wrong = reply.GetShopId() != uint64(shop)
	} else {
		c.failed[trigger].Add(1)
	}
	c.calls[trigger][shop] = l
	c.done[trigger].Add(1)
}

func (c *callers) tell() {
	line := map[string]any{"seconds": time.Since(c.began).Seconds()}
	var done, failed [triggers]int64
	for trigger := range triggers {
		done[trigger], failed[trigger] = c.done[trigger].Load(), c.failed[trigger].Load()
	}
	line["done"], line["failed"] = done, failed
	tell(line)
}

func tell(line map[string]any) {
	words, err := json.Marshal(line)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(words))
}
