// Calls payments.v1.PaymentService through Antiphon with grpc-go.
//
//	go run . [-json] [HOST:PORT]
//
// To the caller it is a gRPC server like any other; nothing here knows of
// Kafka but the names of the antiphon-* trailers.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // the details' types
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	paymentsv1 "antiphon.dev/examples/clients/go/gen/payments/v1"
)

const (
	patience      = 20 * time.Second
	parallelCalls = 100
)

var run = rand.Text()[:8]

type result map[string]any

type client struct {
	connection *grpc.ClientConn
	payments   paymentsv1.PaymentServiceClient
}

func order(kind string, amount int64, currency string) *paymentsv1.PayRequest {
	return &paymentsv1.PayRequest{OrderId: kind + "-" + run, AmountMinor: amount, Currency: currency}
}

// antiphonTrailers tell what is known of the request: whether it was sent, and
// where it is.
func antiphonTrailers(trailer metadata.MD) map[string]string {
	found := map[string]string{}
	for name, values := range trailer {
		if strings.HasPrefix(name, "antiphon-") {
			found[name] = values[0]
		}
	}
	return found
}

// pay is a call, its reply and its trailers.
func (c client) pay(ctx context.Context) (result, error) {
	var trailer metadata.MD
	reply, err := c.payments.Pay(ctx, order("order", 1250, "EUR"), grpc.Trailer(&trailer))
	return result{
		"order_id":   reply.GetOrderId(),
		"payment_id": reply.GetPaymentId(),
		"state":      reply.GetState().String(),
		"trailers":   antiphonTrailers(trailer),
	}, err
}

// refused is an error of the business, with its google.rpc details.
func (c client) refused(ctx context.Context, request *paymentsv1.PayRequest) (result, error) {
	_, err := c.payments.Pay(ctx, request)
	refusal, isStatus := status.FromError(err)
	if err == nil || !isStatus {
		return nil, fmt.Errorf("the payment was not refused: %w", err)
	}
	details := []any{}
	for _, detail := range refusal.Details() {
		// To act on one kind: if info, ok := detail.(*errdetails.ErrorInfo); ok {...}
		switch detail := detail.(type) {
		case proto.Message:
			details = append(details, fields(detail))
		case error:
			return nil, detail
		}
	}
	return result{"code": code.Code(refusal.Code()).String(), "message": refusal.Message(), "details": details}, nil
}

func fields(message proto.Message) map[string]any {
	named := map[string]any{}
	text, err := protojson.Marshal(message)
	if err = errors.Join(err, json.Unmarshal(text, &named)); err != nil {
		log.Panic(err)
	}
	named["type"] = message.ProtoReflect().Descriptor().FullName()
	return named
}

// idempotency is the same call twice: executed once, and the second says so.
func (c client) idempotency(ctx context.Context) (result, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "idempotency-key", "key-"+run)
	first, err := c.payments.Pay(ctx, order("once", 1250, "EUR"))
	if err != nil {
		return nil, err
	}
	var trailer metadata.MD
	second, err := c.payments.Pay(ctx, order("once", 1250, "EUR"), grpc.Trailer(&trailer))
	return result{
		"first":    first.GetPaymentId(),
		"second":   second.GetPaymentId(),
		"answered": antiphonTrailers(trailer)["antiphon-idempotency"],
	}, err
}

// parallel is many calls at once over one connection.
func (c client) parallel(ctx context.Context) (result, error) {
	type answer struct {
		reply result
		err   error
	}
	answers := make(chan answer, parallelCalls)
	for number := range parallelCalls {
		request := order(fmt.Sprintf("parallel-%d", number+1), int64(number+1), "EUR")
		go func() {
			reply, err := c.payments.Pay(ctx, request)
			answers <- answer{result{
				"asked": request.OrderId, "order_id": reply.GetOrderId(), "payment_id": reply.GetPaymentId(),
			}, err}
		}()
	}
	var replies []result
	var failures error
	for range parallelCalls {
		answer := <-answers
		replies = append(replies, answer.reply)
		failures = errors.Join(failures, answer.err)
	}
	return result{"replies": replies}, failures
}

// reflection lists the services, asked of the server itself.
func (c client) reflection(ctx context.Context) (result, error) {
	stream, err := grpc_reflection_v1.NewServerReflectionClient(c.connection).ServerReflectionInfo(ctx)
	if err != nil {
		return nil, err
	}
	request := &grpc_reflection_v1.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
	}
	if err := errors.Join(stream.Send(request), stream.CloseSend()); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	var services []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		services = append(services, service.GetName())
	}
	return result{"services": services}, err
}

// deadline is a call that takes too long: the sample worker takes 3 s for this
// order.
func (c client) deadline(ctx context.Context) (result, error) {
	const allowed = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, allowed)
	defer cancel()
	var trailer metadata.MD
	started := time.Now()
	_, err := c.payments.Pay(ctx, order("slow", 1250, "EUR"), grpc.Trailer(&trailer))
	return result{
		"code":        code.Code(status.Code(err)).String(),
		"deadline_ms": allowed.Milliseconds(),
		"ms":          time.Since(started).Milliseconds(),
		"trailers":    antiphonTrailers(trailer),
	}, nil
}

func main() {
	asJSON := flag.Bool("json", false, "one line of JSON for each case")
	flag.Parse()

	connection, err := grpc.NewClient(
		cmp.Or(flag.Arg(0), "127.0.0.1:50051"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	c := client{connection, paymentsv1.NewPaymentServiceClient(connection)}

	for _, one := range []struct {
		name string
		run  func(context.Context) (result, error)
	}{
		{"pay", c.pay},
		{"error", func(ctx context.Context) (result, error) { return c.refused(ctx, order("order", 1250, "XXX")) }},
		{"non_ascii", func(ctx context.Context) (result, error) { return c.refused(ctx, order("refused", 1250, "EUR")) }},
		{"idempotency", c.idempotency},
		{"reflection", c.reflection},
		{"parallel", c.parallel},
		// Last: the sample worker does one thing after the other.
		{"deadline", c.deadline},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		found, err := one.run(ctx)
		cancel()
		if err != nil {
			log.Fatalf("%s: %v", one.name, err)
		}
		if !*asJSON {
			fmt.Printf("%s: %v\n", one.name, found)
			continue
		}
		found["case"] = one.name
		line, err := json.Marshal(found)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(line))
	}
}
