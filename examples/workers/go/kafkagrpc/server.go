// Package kafkagrpc serves generated gRPC services over Kafka request-reply
// instead of HTTP/2. Copy it into your project.
//
// The partitions of a poll are handled beside each other, the requests of one
// partition one after the other, so those with one key keep their order.
// Offsets are committed once the replies are acknowledged, and a rebalance waits
// until then.
package kafkagrpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
)

const (
	pollRecordsMax  = 500
	recordBytesMax  = 4 << 20
	deliveryTimeout = 30 * time.Second
	commitTimeout   = 10 * time.Second
)

// Config says where requests come from.
type Config struct {
	Brokers string // HOST:PORT[,...]
	Group   string
	Topic   string
}

// Server is a grpc.ServiceRegistrar whose calls come from a Kafka topic.
type Server struct {
	client  *kgo.Client
	methods map[string]method
	answers *answers

	handled, failed, skipped, repliesLost atomic.Int64
}

type method struct {
	desc grpc.MethodDesc
	impl any
}

// NewServer connects to nothing yet.
func NewServer(config Config) (*Server, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(config.Brokers, ",")...),
		kgo.ConsumerGroup(config.Group),
		kgo.ConsumeTopics(config.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(10*time.Second),
		kgo.HeartbeatInterval(time.Second),
		kgo.FetchMaxWait(500*time.Millisecond),
		// Commits are ours, and partitions stay until the batch at hand is done.
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) {
			slog.Info("assigned", "partitions", got)
		}),
		// The request names the reply's partition.
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(recordBytesMax),
		kgo.RecordDeliveryTimeout(deliveryTimeout),
		// A reply topic that is gone belonged to a gateway that is gone.
		kgo.UnknownTopicRetries(2),
	)
	if err != nil {
		return nil, err
	}
	return &Server{client: client, methods: map[string]method{}, answers: newAnswers()}, nil
}

// RegisterService is called by generated code.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, one := range desc.Methods {
		s.methods["/"+desc.ServiceName+"/"+one.MethodName] = method{one, impl}
	}
}

// Run serves until ctx is done, then finishes the requests at hand.
func (s *Server) Run(ctx context.Context) error {
	defer s.client.CloseAllowingRebalance()
	for {
		fetches := s.client.PollRecords(ctx, pollRecordsMax)
		if ctx.Err() != nil {
			slog.Info(fmt.Sprintf("stopped handled=%d errors=%d skipped=%d replies_lost=%d",
				s.handled.Load(), s.failed.Load(), s.skipped.Load(), s.repliesLost.Load()))
			return nil
		}
		for _, failed := range fetches.Errors() {
			// The client tries again after these; only what it can't mend ends us.
			if errors.Is(failed.Err, kgo.ErrClientClosed) || !kerr.IsRetriable(failed.Err) && errors.As(failed.Err, new(*kerr.Error)) {
				return failed.Err
			}
			slog.Warn("fetch", "topic", failed.Topic, "partition", failed.Partition, "error", failed.Err)
		}
		s.handleBatch(fetches)
		s.commit(fetches.Records())
		s.client.AllowRebalance()
	}
}

func (s *Server) handleBatch(fetches kgo.Fetches) {
	var lanes, replies sync.WaitGroup
	fetches.EachPartition(func(partition kgo.FetchTopicPartition) {
		lanes.Go(func() {
			for _, record := range partition.Records {
				s.handle(record, &replies)
			}
		})
	})
	lanes.Wait()
	replies.Wait()
}

func (s *Server) commit(records []*kgo.Record) {
	if len(records) == 0 {
		return
	}
	// Also while stopping: what is done must not be done again.
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	if err := s.client.CommitRecords(ctx, records...); err != nil {
		slog.Warn("commit; requests may come twice", "error", err)
	}
}
