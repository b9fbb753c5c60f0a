package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
)

// write saves every call as a line that PostgreSQL's COPY reads, and sums up.
func (c *callers) write() error {
	file, err := os.Create(c.out)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(file, 1<<20)
	codesSeen, latencies, wrong := map[string]int{}, []time.Duration{}, 0
	for trigger := range triggers {
		for shop := 1; shop <= c.shops; shop++ {
			one := c.calls[trigger][shop]
			if !one.isOver {
				continue // The check misses it.
			}
			codesSeen[one.code.String()]++
			latencies = append(latencies, one.ended-one.sent)
			if one.wrong {
				wrong++
			}
			place, reply := ",", ",,"
			if one.hasPlace {
				place = fmt.Sprintf("%d,%d", one.partition, one.offset)
			}
			if one.code == codes.OK {
				reply = fmt.Sprintf("%d,%d,%d", one.previous, one.radius, one.nth)
			}
			if _, err := fmt.Fprintf(out, "%d,%d,%t,%d,%d,%d,%d,%s,%s,%s\n", shop, trigger+1, c.isChained(shop), one.gateway,
				one.sent.Microseconds(), one.ended.Microseconds(), one.code, one.outcome, place, reply); err != nil {
				return err
			}
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	slices.Sort(latencies)
	at := func(share float64) float64 {
		if len(latencies) == 0 {
			return 0
		}
		return float64(latencies[int(share*float64(len(latencies)-1))].Microseconds()) / 1000
	}
	tell(map[string]any{"summary": map[string]any{
		"codes": codesSeen, "foreign_replies": wrong,
		"p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1),
	}})
	return nil
}
