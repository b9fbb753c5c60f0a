package kafkagrpc

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// answer is what becomes a reply record.
type answer struct {
	value   []byte // nil is a tombstone, an empty message is not
	status  *status.Status
	headers []kgo.RecordHeader
}

// handle answers one request; the reply's acknowledgement is waited for by
// whoever waits for replies.
func (s *Server) handle(record *kgo.Record, replies *sync.WaitGroup) {
	headers := map[string][]byte{}
	for _, header := range record.Headers {
		headers[header.Key] = header.Value
	}
	place := fmt.Sprintf("topic=%s partition=%d offset=%d", record.Topic, record.Partition, record.Offset)

	ctx := context.Background()
	if millis, err := strconv.ParseInt(string(headers["grpc-deadline"]), 10, 64); err == nil {
		deadline := time.UnixMilli(millis)
		if late := time.Since(deadline); late > 0 {
			s.skipped.Add(1) // Nobody waits any longer.
			slog.Info(fmt.Sprintf("skipped %s late_ms=%d", place, late.Milliseconds()))
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	if _, cancelled := headers["antiphon-cancel"]; cancelled {
		s.skipped.Add(1)
		return
	}

	name, key := string(headers["grpc-method"]), string(headers["idempotency-key"])
	given, repeat := s.answers.find(name, key, record.Value)
	if !repeat {
		given = s.call(ctx, name, record)
		s.answers.keep(name, key, record.Value, given)
	}
	s.handled.Add(1)
	if given.status.Code() != codes.OK {
		s.failed.Add(1)
	}
	slog.Info(fmt.Sprintf("handled %s key=%s status=%d repeat=%t", place, record.Key, given.status.Code(), repeat))
	s.reply(record, headers, given, replies)
}

// call runs the handler that generated code has registered.
func (s *Server) call(ctx context.Context, name string, record *kgo.Record) (given answer) {
	defer func() {
		if cause := recover(); cause != nil {
			slog.Error("panic", "method", name, "cause", cause, "stack", string(debug.Stack()))
			given = answer{value: []byte{}, status: status.Newf(codes.Internal, "panic: %v", cause)}
		}
	}()
	method, known := s.methods[name]
	if !known {
		return answer{value: []byte{}, status: status.Newf(codes.Unimplemented, "this worker does not serve %q", name)}
	}
	incoming := metadata.MD{}
	for _, header := range record.Headers {
		incoming.Append(header.Key, string(header.Value))
	}
	stream := &stream{method: name}
	// What the caller's infrastructure sent along goes back; the gateway's
	// allow-list decides.
	for _, header := range record.Headers {
		if strings.HasPrefix(header.Key, "x-") {
			stream.headers = append(stream.headers, header)
		}
	}
	ctx = grpc.NewContextWithServerTransportStream(metadata.NewIncomingContext(ctx, incoming), stream)
	decode := func(message any) error {
		if err := proto.Unmarshal(record.Value, message.(proto.Message)); err != nil {
			return status.Errorf(codes.InvalidArgument, "the request does not decode: %v", err)
		}
		return nil
	}
	reply, err := method.desc.Handler(method.impl, ctx, decode, nil)
	if err != nil {
		return answer{value: []byte{}, status: status.Convert(err), headers: stream.headers}
	}
	value, err := proto.Marshal(reply.(proto.Message)) // A nil reply becomes nil, so null.
	if err != nil {
		return answer{value: []byte{}, status: status.Convert(err), headers: stream.headers}
	}
	return answer{value: value, headers: stream.headers}
}

func (s *Server) reply(request *kgo.Record, headers map[string][]byte, given answer, replies *sync.WaitGroup) {
	correlation, topic := headers["kafka_correlationId"], string(headers["kafka_replyTopic"])
	if correlation == nil || topic == "" {
		return // One-way: nobody waits.
	}
	record := &kgo.Record{Topic: topic, Partition: anyPartition, Key: request.Key, Value: given.value}
	if partition := headers["kafka_replyPartition"]; len(partition) == 4 {
		record.Partition = int32(binary.BigEndian.Uint32(partition))
	}
	record.Headers = append(record.Headers, kgo.RecordHeader{Key: "kafka_correlationId", Value: correlation})
	record.Headers = append(record.Headers, given.headers...)
	record.Headers = append(record.Headers, statusHeaders(given.status)...)
	replies.Add(1)
	s.client.Produce(context.Background(), record, func(_ *kgo.Record, err error) {
		defer replies.Done()
		if err != nil {
			// The work is done; to do it again would be worse than a lost reply.
			s.repliesLost.Add(1)
			slog.Error("reply lost", "topic", topic, "error", err)
		}
	})
}

// statusHeaders says an error; success needs no words.
func statusHeaders(given *status.Status) []kgo.RecordHeader {
	if given.Code() == codes.OK {
		return nil
	}
	headers := []kgo.RecordHeader{
		{Key: "grpc-status", Value: strconv.AppendInt(nil, int64(given.Code()), 10)},
		{Key: "grpc-message", Value: []byte(url.PathEscape(given.Message()))},
	}
	if encoded, err := proto.Marshal(given.Proto()); err == nil && len(given.Proto().GetDetails()) > 0 {
		details := base64.StdEncoding.AppendEncode(nil, encoded)
		headers = append(headers, kgo.RecordHeader{Key: "grpc-status-details-bin", Value: details})
	}
	return headers
}

// stream lets handlers use grpc.SetHeader: its metadata become reply headers.
type stream struct {
	method  string
	mutex   sync.Mutex
	headers []kgo.RecordHeader
}

func (s *stream) Method() string { return s.method }

func (s *stream) SetHeader(pairs metadata.MD) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for key, values := range pairs {
		for _, value := range values {
			s.headers = append(s.headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
		}
	}
	return nil
}

func (s *stream) SendHeader(pairs metadata.MD) error { return s.SetHeader(pairs) }

func (s *stream) SetTrailer(pairs metadata.MD) error { return s.SetHeader(pairs) }
