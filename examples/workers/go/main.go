// A worker that answers payments.v1.PaymentService over Kafka.
package main

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	paymentsv1 "antiphon.dev/examples/workers/go/gen/payments/v1"
	"antiphon.dev/examples/workers/go/kafkagrpc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	// ANCHOR: server
	server, err := kafkagrpc.NewServer(kafkagrpc.Config{
		Brokers: cmp.Or(os.Getenv("KAFKA_BOOTSTRAP"), "127.0.0.1:9092"),
		Group:   cmp.Or(os.Getenv("KAFKA_GROUP"), "payments"),
		Topic:   cmp.Or(os.Getenv("KAFKA_TOPIC"), "payment_request"),
	})
	if err == nil {
		// As with a gRPC server: the same interface, the same generated code.
		paymentsv1.RegisterPaymentServiceServer(server, payments{})
		err = server.Run(ctx)
	}
	// ANCHOR_END: server
	if err != nil {
		slog.Error("the worker ended", "error", err)
		os.Exit(1)
	}
}
