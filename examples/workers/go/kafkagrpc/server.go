// Package kafkagrpc serves generated gRPC services over Kafka request-reply
// instead of HTTP/2. Copy it into your project.
//
// The partitions of a poll are handled beside each other, the requests of one
// partition one after the other, so those with one key keep their order. With
// Config.Parallel only those with one key wait for each other. Offsets are
// committed once the replies are acknowledged, and a rebalance waits until then.
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
	// How long partitions that go wait for what is under way. What takes longer
	// is handled again by their next worker, who knows it by its idempotency key.
	settleTimeout = 3 * time.Second
	drainTimeout  = 30 * time.Second
)

// Config says where requests come from.
type Config struct {
	Brokers string // HOST:PORT[,...]
	Group   string
	Topic   string
	// Requests handled at once, of which those with one key keep their order. 0:
	// one of each partition.
	Parallel int
	// Names this worker for good (group.instance.id): started again, it goes on
	// with its partitions at once, and no other worker waits. Empty: no name.
	Instance string
}

// Server is a grpc.ServiceRegistrar whose calls come from a Kafka topic.
type Server struct {
	client  *kgo.Client
	methods map[string]method
	answers *answers
	keyed   *keyed // nil without Parallel

	handled, failed, skipped, repliesLost atomic.Int64
}

type method struct {
	desc grpc.MethodDesc
	impl any
}

// NewServer connects to nothing yet.
func NewServer(config Config) (*Server, error) {
	s := &Server{methods: map[string]method{}, answers: newAnswers()}
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(config.Brokers, ",")...),
		kgo.ConsumerGroup(config.Group),
		kgo.ConsumeTopics(config.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(10 * time.Second),
		kgo.HeartbeatInterval(time.Second),
		kgo.FetchMaxWait(500 * time.Millisecond),
		// Partitions stay until the batch at hand is done, or on its way.
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) {
			slog.Info("assigned", "partitions", got)
		}),
		kgo.RecordPartitioner(replyPartitioner{kgo.StickyKeyPartitioner(nil)}),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(recordBytesMax),
		kgo.RecordDeliveryTimeout(deliveryTimeout),
		// A reply topic that is gone belonged to a gateway that is gone.
		kgo.UnknownTopicRetries(2),
	}
	if config.Parallel > 0 {
		s.keyed = newKeyed(config.Parallel, s.handleOne, func(record *kgo.Record) { s.client.MarkCommitRecords(record) })
		options = append(options, kgo.AutoCommitMarks(), kgo.AutoCommitInterval(time.Second),
			kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) { s.settle(gone, settleTimeout) }),
			kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, gone map[string][]int32) { s.keyed.forget(gone) }))
	} else {
		options = append(options, kgo.DisableAutoCommit()) // Commits are ours.
	}
	if config.Instance != "" {
		options = append(options, kgo.InstanceID(config.Instance))
	}
	client, err := kgo.NewClient(options...)
	s.client = client
	return s, err
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
			if s.keyed != nil {
				s.settle(s.keyed.all(), drainTimeout)
			}
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
		if s.keyed != nil {
			fetches.EachRecord(s.keyed.start)
		} else {
			s.handleBatch(fetches)
			s.commit(fetches.Records())
		}
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

func (s *Server) handleOne(record *kgo.Record) {
	var replies sync.WaitGroup
	s.handle(record, &replies)
	replies.Wait()
}

// settle waits for what is under way on partitions that go to another worker,
// so that nothing is handled twice, and commits how far they are.
func (s *Server) settle(partitions map[string][]int32, limit time.Duration) {
	s.keyed.settle(partitions, limit)
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	if err := s.client.CommitMarkedOffsets(ctx); err != nil {
		slog.Warn("commit; requests may come twice", "error", err)
	}
	s.keyed.forget(partitions)
}

// replyPartitioner takes the partition that the request names for its reply,
// and one by the key where it names none.
type replyPartitioner struct{ byKey kgo.Partitioner }

const anyPartition = -1

func (p replyPartitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return replyTopicPartitioner{p.byKey.ForTopic(topic)}
}

type replyTopicPartitioner struct{ kgo.TopicPartitioner }

func (replyTopicPartitioner) RequiresConsistency(*kgo.Record) bool { return true }

func (p replyTopicPartitioner) Partition(record *kgo.Record, partitions int) int {
	if record.Partition != anyPartition {
		return int(record.Partition)
	}
	return p.TopicPartitioner.Partition(record, partitions)
}
