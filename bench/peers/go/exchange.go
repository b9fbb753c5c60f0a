package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// shards of the map of pending calls, so that its lock is no bottleneck.
	shards = 64
	// callTimeout is for callers that set no deadline.
	callTimeout = 10 * time.Second
)

// answer is what a call waits for.
type answer struct {
	value []byte
	err   error
}

type shard struct {
	sync.Mutex
	calls map[uint64]chan answer
}

// exchange sends requests and finds the call that each reply is for.
type exchange struct {
	producer   *kgo.Client
	consumer   *kgo.Client
	topic      string
	replyTopic []byte
	instance   [8]byte
	sequence   atomic.Uint64
	pending    [shards]shard
	reading    sync.WaitGroup
}

func newExchange(ctx context.Context, bootstrap []string, topic string) (*exchange, error) {
	e := &exchange{topic: topic}
	if _, err := rand.Read(e.instance[:]); err != nil {
		return nil, err
	}
	e.replyTopic = []byte("peer.go." + hex.EncodeToString(e.instance[:]))
	for n := range e.pending {
		e.pending[n].calls = make(map[uint64]chan answer)
	}
	var err error
	// acks=all and the idempotent producer are franz-go's defaults. So is a
	// linger of 10 ms, which a caller that waits would feel; without it what
	// queues behind requests under way goes as one batch.
	e.producer, err = kgo.NewClient(kgo.SeedBrokers(bootstrap...), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0), kgo.DefaultProduceTopic(topic))
	if err != nil {
		return nil, err
	}
	if err := e.makeReplyTopic(ctx); err != nil {
		return nil, err
	}
	// The topic is new: its start is where the first reply will be.
	e.consumer, err = kgo.NewClient(kgo.SeedBrokers(bootstrap...), kgo.ConsumePartitions(
		map[string]map[int32]kgo.Offset{string(e.replyTopic): {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return nil, err
	}
	if err := e.consumer.Ping(ctx); err != nil {
		return nil, err
	}
	e.reading.Go(e.read)
	return e, nil
}

func (e *exchange) makeReplyTopic(ctx context.Context) error {
	made, err := kadm.NewClient(e.producer).CreateTopic(ctx, 1, -1, nil, string(e.replyTopic))
	if err == nil {
		err = made.Err
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("topic %s: %w", e.replyTopic, err)
	}
	return nil
}

func (e *exchange) close() {
	e.consumer.Close()
	e.reading.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	if _, err := kadm.NewClient(e.producer).DeleteTopic(ctx, string(e.replyTopic)); err != nil {
		log.Printf("topic %s could not be deleted: %v", e.replyTopic, err)
	}
	e.producer.Close()
}

func (e *exchange) call(ctx context.Context, method string, request []byte) ([]byte, error) {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	number := e.sequence.Add(1)
	shard := &e.pending[number%shards]
	done := make(chan answer, 1)
	shard.Lock()
	shard.calls[number] = done
	shard.Unlock()
	// A reply takes the call; what ends otherwise has to be taken here.
	defer e.take(number)

	id := make([]byte, 16)
	copy(id, e.instance[:])
	binary.BigEndian.PutUint64(id[8:], number)
	e.producer.Produce(ctx, &kgo.Record{
		Value: request,
		Headers: []kgo.RecordHeader{
			{Key: "kafka_correlationId", Value: id},
			{Key: "kafka_replyTopic", Value: e.replyTopic},
			{Key: "grpc-method", Value: []byte(method)},
		},
	}, func(_ *kgo.Record, err error) {
		if err == nil {
			return
		}
		if done := e.take(number); done != nil {
			done <- answer{err: status.Error(codes.Unavailable, err.Error())}
		}
	})
	select {
	case answer := <-done:
		return answer.value, answer.err
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// take removes a call that is pending; nil where there is none.
func (e *exchange) take(number uint64) chan answer {
	shard := &e.pending[number%shards]
	shard.Lock()
	defer shard.Unlock()
	done := shard.calls[number]
	delete(shard.calls, number)
	return done
}

func (e *exchange) read() {
	for {
		fetches := e.consumer.PollFetches(context.Background())
		if fetches.IsClientClosed() {
			return
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			log.Printf("%s/%d: %v", topic, partition, err)
		})
		fetches.EachRecord(e.resolve)
	}
}

func (e *exchange) resolve(record *kgo.Record) {
	var number uint64
	answer := answer{value: record.Value}
	for _, header := range record.Headers {
		switch header.Key {
		case "kafka_correlationId":
			if len(header.Value) == 16 && [8]byte(header.Value[:8]) == e.instance {
				number = binary.BigEndian.Uint64(header.Value[8:])
			}
		case "grpc-status":
			if string(header.Value) != "0" {
				answer.err = status.Error(codes.Unknown, "the worker's status is "+string(header.Value))
			}
		}
	}
	if done := e.take(number); done != nil {
		done <- answer
	}
}
