package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	paymentsv1 "antiphon.dev/examples/payments/gen/shop/payments/v1"
)

// payments is the service. It keeps nothing: what was paid, the third party
// knows, under the reference that it was given.
type payments struct {
	paymentsv1.UnimplementedPaymentServiceServer
	party *thirdParty
}

func (p payments) Pay(ctx context.Context, request *paymentsv1.PayRequest) (*paymentsv1.PayReply, error) {
	if request.GetOrderId() == "" || request.GetAmountMinor() <= 0 {
		return nil, status.Error(codes.InvalidArgument, "order_id must be set and amount_minor above zero")
	}
	entry, err := p.ask(ctx, "/charges", order{
		OrderID: request.GetOrderId(), AmountMinor: request.GetAmountMinor(), Currency: request.GetCurrency(),
	})
	if err != nil {
		return nil, err
	}
	return &paymentsv1.PayReply{OrderId: entry.OrderID, PaymentId: entry.ID, AmountMinor: entry.AmountMinor}, nil
}

func (p payments) Refund(ctx context.Context, request *paymentsv1.RefundRequest) (*paymentsv1.RefundReply, error) {
	if request.GetOrderId() == "" || request.GetPaymentId() == "" {
		return nil, status.Error(codes.InvalidArgument, "order_id and payment_id must be set")
	}
	entry, err := p.ask(ctx, "/refunds", order{OrderID: request.GetOrderId(), ChargeID: request.GetPaymentId()})
	if err != nil {
		return nil, err
	}
	return &paymentsv1.RefundReply{OrderId: entry.OrderID, PaymentId: entry.ChargeID}, nil
}

// ask has the third party do it, and tells the caller how long that took.
func (p payments) ask(ctx context.Context, path string, what order) (entry, error) {
	what.Reference = reference(ctx)
	found, took, err := p.party.ask(ctx, path, what)
	_ = grpc.SetHeader(ctx, metadata.Pairs("third-party-us", strconv.FormatInt(took.Microseconds(), 10)))
	switch {
	case errors.Is(err, errSilent):
		// It may have been done. The same reference finds out, so the caller may
		// try again under its key, and an operator may ask.
		return entry{}, status.Error(codes.Unavailable, err.Error())
	case err != nil:
		return entry{}, status.Error(codes.Internal, err.Error())
	case found.State == "declined" || found.State == "void":
		return entry{}, status.Error(codes.FailedPrecondition, "the third party says: "+found.State)
	}
	return found, nil
}

// reference names the payment at the third party: the caller's idempotency key,
// which stays the same however often the call is made, by whichever gateway it
// comes and whichever worker handles it. A call without one is always new.
func reference(ctx context.Context) string {
	for _, name := range []string{"idempotency-key", "kafka_correlationId"} {
		if values := metadata.ValueFromIncomingContext(ctx, name); len(values) > 0 {
			return values[0]
		}
	}
	return strconv.FormatInt(time.Now().UnixNano(), 10)
}
