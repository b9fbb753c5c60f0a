package main

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/encoding/protowire"
)

const shops = 997

// request is a call's message, and how to tell that a reply is its own.
type request struct {
	path, key string
	message   []byte
	isOwn     func(reply []byte) bool
	// The idempotency key it always has; empty: one only if it is repeated.
	once string
	// The reply's field that the account wants to see; 0 for none.
	shown protowire.Number
	// When its caller goes away; 0 for never.
	cancelAfter time.Duration
}

// newRequest writes the few fields by their numbers in proto/, so that no
// generated code is needed.
func newRequest(kind, run string, number int) request {
	var m []byte
	switch kind {
	case "checkout", "transfer", "notify":
		return newScenarioRequest(kind, run, number)
	case "pay":
		order := fmt.Sprintf("%s-%d", run, number)
		m = text(m, 1, order)
		m = integer(m, 2, uint64(number+1))
		m = text(m, 3, "EUR")
		own := fmt.Sprintf("pay-%s-%d", order, number+1)
		return request{path: "/payments.v1.PaymentService/Pay", key: order, message: m, isOwn: func(reply []byte) bool {
			texts, _ := fields(reply)
			return texts[1] == order && texts[2] == own
		}}
	case "radius":
		shop, radius := uint64(number%shops), uint64(number+1)
		m = integer(m, 1, shop)
		m = integer(m, 2, radius)
		return request{path: "/delivery.v1.DeliveryRadiusService/SetRadius", key: strconv.FormatUint(shop, 10), message: m, isOwn: func(reply []byte) bool {
			_, integers := fields(reply)
			return integers[1] == shop && integers[2] == radius
		}}
	default:
		payload := fmt.Sprintf("%s-%d", run, number)
		return request{path: "/echo.v1.EchoService/Echo", key: payload, message: text(m, 1, payload), isOwn: func(reply []byte) bool {
			texts, _ := fields(reply)
			return texts[1] == payload
		}}
	}
}

func text(m []byte, field protowire.Number, value string) []byte {
	return protowire.AppendString(protowire.AppendTag(m, field, protowire.BytesType), value)
}

func integer(m []byte, field protowire.Number, value uint64) []byte {
	if value == 0 {
		return m
	}
	return protowire.AppendVarint(protowire.AppendTag(m, field, protowire.VarintType), value)
}

// fields reads a flat message; what is broken in it ends it.
func fields(m []byte) (map[protowire.Number]string, map[protowire.Number]uint64) {
	texts, integers := map[protowire.Number]string{}, map[protowire.Number]uint64{}
	for len(m) > 0 {
		field, kind, n := protowire.ConsumeTag(m)
		if n < 0 {
			break
		}
		m = m[n:]
		switch kind {
		case protowire.BytesType:
			value, n := protowire.ConsumeString(m)
			if n < 0 {
				return texts, integers
			}
			texts[field], m = value, m[n:]
		case protowire.VarintType:
			value, n := protowire.ConsumeVarint(m)
			if n < 0 {
				return texts, integers
			}
			integers[field], m = value, m[n:]
		default:
			n := protowire.ConsumeFieldValue(field, kind, m)
			if n < 0 {
				return texts, integers
			}
			m = m[n:]
		}
	}
	return texts, integers
}

// raw hands bytes through as they are.
type raw struct{}

var _ encoding.Codec = raw{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
