package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	paymentsv1 "antiphon.dev/examples/workers/go/gen/payments/v1"
)

const slow = 3 * time.Second

// payments is the service, written as for grpc-go. It knows nothing of Kafka.
type payments struct {
	paymentsv1.UnimplementedPaymentServiceServer
}

func (payments) Pay(ctx context.Context, request *paymentsv1.PayRequest) (*paymentsv1.PayReply, error) {
	orderID := request.GetOrderId()
	switch {
	case strings.HasPrefix(orderID, "null-"):
		return nil, nil
	case strings.HasPrefix(orderID, "empty-"):
		return &paymentsv1.PayReply{}, nil
	}
	state, err := decide(ctx, request, paymentsv1.PaymentState_PAYMENT_STATE_APPROVED)
	if err != nil {
		return nil, err
	}
	paymentID := fmt.Sprintf("pay-%s-%d", orderID, request.GetAmountMinor())
	if strings.HasPrefix(orderID, "echo-") {
		paymentID = request.GetCurrency()
	}
	return &paymentsv1.PayReply{OrderId: orderID, PaymentId: paymentID, State: state}, nil
}

func (payments) Refund(ctx context.Context, request *paymentsv1.RefundRequest) (*paymentsv1.RefundReply, error) {
	state, err := decide(ctx, request, paymentsv1.PaymentState_PAYMENT_STATE_REFUNDED)
	if err != nil {
		return nil, err
	}
	return &paymentsv1.RefundReply{OrderId: request.GetOrderId(), PaymentId: request.GetPaymentId(), State: state}, nil
}

type payment interface {
	GetOrderId() string
	GetAmountMinor() int64
	GetCurrency() string
}

// decide has the sample's rules: examples/workers/README.md lists them.
func decide(ctx context.Context, request payment, granted paymentsv1.PaymentState) (paymentsv1.PaymentState, error) {
	orderID := request.GetOrderId()
	if request.GetAmountMinor() <= 0 {
		return 0, badField("amount_minor", "must be above zero")
	}
	if currency := request.GetCurrency(); currency == "XXX" {
		return 0, refused(codes.FailedPrecondition, "currency XXX is not supported", &errdetails.ErrorInfo{
			Reason: "CURRENCY_NOT_SUPPORTED", Domain: "payments.example", Metadata: map[string]string{"currency": currency},
		})
	}
	switch {
	case strings.HasPrefix(orderID, "slow-"):
		select { // The caller's deadline ends the work, too.
		case <-time.After(slow):
		case <-ctx.Done():
			return 0, status.FromContextError(ctx.Err()).Err()
		}
	case strings.HasPrefix(orderID, "crash-"):
		panic("the handler broke on order " + orderID)
	case strings.HasPrefix(orderID, "declined-"):
		return paymentsv1.PaymentState_PAYMENT_STATE_DECLINED, nil
	}
	return granted, nil
}

func badField(field, description string) error {
	violation := &errdetails.BadRequest_FieldViolation{Field: field, Description: description}
	return refused(codes.InvalidArgument, field+": "+description,
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{violation}},
		&errdetails.ErrorInfo{Reason: "FIELD_INVALID", Domain: "payments.example", Metadata: map[string]string{"field": field}},
	)
}

func refused(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	with, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return with.Err()
}
