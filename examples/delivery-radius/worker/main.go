// A worker that applies changes of delivery radius to PostgreSQL.
//
// Every poll becomes one transaction for each partition in it, and only then the
// replies go out: what a caller is told is what has been committed. How far a
// partition has been applied stands in the database and moves in the same
// transaction, so that a request which comes again, after a crash or at another
// worker, is not applied again but answered as it was the first time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	pollRecordsMax  = 8_000
	transactionMax  = 30 * time.Second
	deliveryTimeout = 30 * time.Second
	commitTimeout   = 10 * time.Second
	databaseConns   = 4
)

type options struct{ brokers, group, topic, database string }

type worker struct {
	client   *kgo.Client
	database *pgxpool.Pool

	applied, repeated, transactions, repliesLost atomic.Int64
}

func main() {
	var o options
	flag.StringVar(&o.brokers, "brokers", "127.0.0.1:9092", "HOST:PORT[,...]")
	flag.StringVar(&o.group, "group", "radius", "consumer group")
	flag.StringVar(&o.topic, "topic", "shop_radius_request", "request topic")
	flag.StringVar(&o.database, "database", "", "URL of the database")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		slog.Error("the worker ended", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	config, err := pgxpool.ParseConfig(o.database)
	if err != nil {
		return err
	}
	config.MaxConns = databaseConns
	database, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer database.Close()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(o.brokers, ",")...),
		kgo.ConsumerGroup(o.group),
		kgo.ConsumeTopics(o.topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(6*time.Second),
		kgo.HeartbeatInterval(time.Second),
		kgo.FetchMaxWait(500*time.Millisecond),
		// Commits are ours, and partitions stay until the poll at hand is done.
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) {
			slog.Info("assigned", "partitions", got)
		}),
		// The request names the reply's partition.
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(2*pollRecordsMax),
		kgo.RecordDeliveryTimeout(deliveryTimeout),
		// A reply topic that is gone belonged to a gateway that is gone.
		kgo.UnknownTopicRetries(2),
	)
	if err != nil {
		return err
	}
	w := &worker{client: client, database: database}
	defer client.CloseAllowingRebalance()
	return w.serve(ctx)
}

func (w *worker) serve(ctx context.Context) error {
	for {
		fetches := w.client.PollRecords(ctx, pollRecordsMax)
		if ctx.Err() != nil {
			slog.Info(fmt.Sprintf("stopped applied=%d repeated=%d transactions=%d replies_lost=%d",
				w.applied.Load(), w.repeated.Load(), w.transactions.Load(), w.repliesLost.Load()))
			return nil
		}
		for _, failed := range fetches.Errors() {
			// The client tries again after these; only what it can't mend ends us.
			if errors.Is(failed.Err, kgo.ErrClientClosed) || !kerr.IsRetriable(failed.Err) && errors.As(failed.Err, new(*kerr.Error)) {
				return failed.Err
			}
			slog.Warn("fetch", "topic", failed.Topic, "partition", failed.Partition, "error", failed.Err)
		}
		if err := w.handle(fetches); err != nil {
			return err // Not committed: the next worker begins here.
		}
		w.client.AllowRebalance()
	}
}

// handle applies and answers a poll, partitions beside each other.
func (w *worker) handle(fetches kgo.Fetches) error {
	var lanes, replies sync.WaitGroup
	var mutex sync.Mutex
	var failed error
	fetches.EachPartition(func(partition kgo.FetchTopicPartition) {
		if len(partition.Records) == 0 {
			return
		}
		lanes.Go(func() {
			if err := w.handlePartition(partition, &replies); err != nil {
				mutex.Lock()
				failed = errors.Join(failed, fmt.Errorf("partition %d: %w", partition.Partition, err))
				mutex.Unlock()
			}
		})
	})
	lanes.Wait()
	replies.Wait()
	if failed != nil {
		return failed
	}
	records := fetches.Records()
	if len(records) == 0 {
		return nil
	}
	// Also while stopping: what is done must not come again.
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	if err := w.client.CommitRecords(ctx, records...); err != nil {
		slog.Warn("commit; requests come again, and are answered as they were", "error", err)
	}
	return nil
}

func (w *worker) handlePartition(partition kgo.FetchTopicPartition, replies *sync.WaitGroup) error {
	ctx, cancel := context.WithTimeout(context.Background(), transactionMax)
	defer cancel()
	changes := make([]*change, len(partition.Records))
	for i, record := range partition.Records {
		changes[i] = read(record)
	}
	repeated, err := w.apply(ctx, partition.Partition, changes)
	if err != nil {
		return err
	}
	w.transactions.Add(1)
	w.repeated.Add(int64(repeated))
	w.applied.Add(int64(len(changes) - repeated))
	for _, change := range changes {
		w.reply(change, replies)
	}
	return nil
}
