// A worker that takes payments: requests from Kafka, money from a third party.
package main

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	paymentsv1 "antiphon.dev/examples/payments/gen/shop/payments/v1"
	"antiphon.dev/examples/workers/go/kafkagrpc"
)

// Requests at once: at 1,000 a second this is as many as the third party has
// under way when it takes a second and a half for each.
const parallel = 1_500

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	server, err := kafkagrpc.NewServer(kafkagrpc.Config{
		Brokers:  cmp.Or(os.Getenv("KAFKA_BOOTSTRAP"), "127.0.0.1:9092"),
		Group:    cmp.Or(os.Getenv("KAFKA_GROUP"), "payments"),
		Instance: os.Getenv("KAFKA_INSTANCE"),
		Topic:    "payment_request",
		Parallel: parallel,
	})
	if err == nil {
		party := newThirdParty(cmp.Or(os.Getenv("THIRD_PARTY"), "http://127.0.0.1:8090"))
		paymentsv1.RegisterPaymentServiceServer(server, payments{party: party})
		err = server.Run(ctx)
	}
	if err != nil {
		slog.Error("the worker ended", "error", err)
		os.Exit(1)
	}
}
