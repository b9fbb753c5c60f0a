// Copies the request topic, as it is, to a CSV file: what the check compares
// everything else with.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	radiusv1 "antiphon.dev/examples/delivery-radius/gen/radius/v1"
)

const readMax = 3 * time.Minute

func main() {
	brokers := flag.String("brokers", "127.0.0.1:9092", "HOST:PORT[,...]")
	topic := flag.String("topic", "shop_radius_request", "what is read")
	out := flag.String("out", "", "file of the records")
	flag.Parse()
	if err := run(*brokers, *topic, *out); err != nil {
		log.Fatal(err)
	}
}

func run(brokers, topic, path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), readMax)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(8<<20))
	if err != nil {
		return err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	if err := ends.Error(); err != nil {
		return err
	}
	left := 0
	ends.Each(func(end kadm.ListedOffset) { left += int(end.Offset) })

	file, err := os.Create(path)
	if err != nil {
		return err
	}
	writer := bufio.NewWriterSize(file, 1<<20)
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("%d records before the end: %w", left, err)
		}
		for _, record := range fetches.Records() {
			request := &radiusv1.SetRadiusRequest{}
			if err := proto.Unmarshal(record.Value, request); err != nil {
				return fmt.Errorf("partition %d offset %d: %w", record.Partition, record.Offset, err)
			}
			if _, err := fmt.Fprintf(writer, "%d,%d,%q,%d,%d\n", record.Partition, record.Offset, record.Key, request.GetShopId(), request.GetTrigger()); err != nil {
				return err
			}
			left--
		}
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	return file.Close()
}
