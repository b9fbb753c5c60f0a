package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	radiusv1 "antiphon.dev/examples/delivery-radius/gen/radius/v1"
)

const method = "/radius.v1.RadiusService/SetRadius"

// change is a request and what became of it.
type change struct {
	record  *kgo.Record
	headers map[string][]byte
	request *radiusv1.SetRadiusRequest

	status                codes.Code
	previous, radius, nth int32
}

// read never fails: a request that can't be read is one that gets an error.
func read(record *kgo.Record) *change {
	c := &change{record: record, headers: map[string][]byte{}, request: &radiusv1.SetRadiusRequest{}}
	for _, header := range record.Headers {
		c.headers[header.Key] = header.Value
	}
	if string(c.headers["grpc-method"]) != method {
		c.status = codes.Unimplemented
		return c
	}
	if err := proto.Unmarshal(record.Value, c.request); err != nil || c.request.GetRadiusM() > 100_000 {
		c.status = codes.InvalidArgument
		return c
	}
	if millis, err := strconv.ParseInt(string(c.headers["grpc-deadline"]), 10, 64); err == nil && time.Now().After(time.UnixMilli(millis)) {
		c.status = codes.DeadlineExceeded // Nobody waits; not applied, and said so in the log.
	}
	return c
}

// decide is the rule of the business, on what the shop is now.
func (c *change) decide(shop *shop) {
	switch {
	case c.status != codes.OK:
	case shop == nil:
		c.status = codes.NotFound
	case shop.closed:
		c.status = codes.FailedPrecondition
	default:
		shop.changes++
		c.previous, c.radius, c.nth = shop.radius, int32(c.request.GetRadiusM()), shop.changes
		shop.radius, shop.changed = c.radius, true
	}
}

func (c *change) words() string {
	switch c.status {
	case codes.NotFound:
		return fmt.Sprintf("there is no shop %d", c.request.GetShopId())
	case codes.FailedPrecondition:
		return fmt.Sprintf("shop %d is closed", c.request.GetShopId())
	case codes.DeadlineExceeded:
		return "the deadline had passed; the radius was not changed"
	default:
		return "the request could not be read"
	}
}

func (w *worker) reply(c *change, replies *sync.WaitGroup) {
	correlation, topic := c.headers["kafka_correlationId"], string(c.headers["kafka_replyTopic"])
	if correlation == nil || topic == "" {
		return
	}
	record := &kgo.Record{Topic: topic, Key: c.record.Key, Value: []byte{}}
	if partition := c.headers["kafka_replyPartition"]; len(partition) == 4 {
		record.Partition = int32(binary.BigEndian.Uint32(partition))
	}
	record.Headers = append(record.Headers, kgo.RecordHeader{Key: "kafka_correlationId", Value: correlation})
	if c.status == codes.OK {
		value, err := proto.Marshal(&radiusv1.SetRadiusReply{
			ShopId: c.request.GetShopId(), RadiusM: uint32(c.radius), PreviousRadiusM: uint32(c.previous), Change: uint32(c.nth),
		})
		if err != nil {
			slog.Error("reply lost", "error", err)
			w.repliesLost.Add(1)
			return
		}
		record.Value = value
	} else {
		record.Headers = append(record.Headers,
			kgo.RecordHeader{Key: "grpc-status", Value: strconv.AppendInt(nil, int64(c.status), 10)},
			kgo.RecordHeader{Key: "grpc-message", Value: []byte(url.PathEscape(c.words()))})
	}
	replies.Add(1)
	w.client.Produce(context.Background(), record, func(_ *kgo.Record, err error) {
		defer replies.Done()
		if err != nil {
			// The change stands; to make it again would be worse than a lost reply.
			w.repliesLost.Add(1)
			slog.Error("reply lost", "topic", topic, "error", err)
		}
	})
}
