package dev.antiphon.examples.worker;

import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.Code;
import com.google.rpc.ErrorInfo;
import dev.antiphon.examples.payments.v1.PayReply;
import dev.antiphon.examples.payments.v1.PayRequest;
import dev.antiphon.examples.payments.v1.PaymentState;
import dev.antiphon.examples.payments.v1.RefundReply;
import dev.antiphon.examples.payments.v1.RefundRequest;
import jakarta.enterprise.context.ApplicationScoped;

/** The service: methods that return a reply or throw. Knows nothing of Kafka. */
@ApplicationScoped
class Payments {

    private static final long SLOW_MS = 3_000;

    PayReply pay(PayRequest request) {
        String orderId = request.getOrderId();
        if (orderId.startsWith("null-")) {
            return null;
        }
        if (orderId.startsWith("empty-")) {
            return PayReply.getDefaultInstance();
        }
        PaymentState state = decide(orderId, request.getAmountMinor(), request.getCurrency(),
                PaymentState.PAYMENT_STATE_APPROVED);
        String paymentId = orderId.startsWith("echo-")
                ? request.getCurrency()
                : "pay-" + orderId + "-" + request.getAmountMinor();
        return PayReply.newBuilder().setOrderId(orderId).setPaymentId(paymentId).setState(state).build();
    }

    RefundReply refund(RefundRequest request) {
        PaymentState state = decide(request.getOrderId(), request.getAmountMinor(), request.getCurrency(),
                PaymentState.PAYMENT_STATE_REFUNDED);
        return RefundReply.newBuilder()
                .setOrderId(request.getOrderId())
                .setPaymentId(request.getPaymentId())
                .setState(state)
                .build();
    }

    /** The sample's rules: examples/workers/README.md lists them. */
    private static PaymentState decide(String orderId, long amountMinor, String currency, PaymentState granted) {
        if (amountMinor <= 0) {
            throw badField("amount_minor", "must be above zero");
        }
        if (currency.equals("XXX")) {
            ErrorInfo why = ErrorInfo.newBuilder()
                    .setReason("CURRENCY_NOT_SUPPORTED")
                    .setDomain("payments.example")
                    .putMetadata("currency", currency)
                    .build();
            throw new Refused(Code.FAILED_PRECONDITION, "currency XXX is not supported", Any.pack(why));
        }
        if (orderId.startsWith("slow-")) {
            sleep();
        }
        if (orderId.startsWith("crash-")) {
            throw new IllegalStateException("the handler broke on order " + orderId);
        }
        return orderId.startsWith("declined-") ? PaymentState.PAYMENT_STATE_DECLINED : granted;
    }

    private static Refused badField(String field, String description) {
        BadRequest request = BadRequest.newBuilder()
                .addFieldViolations(BadRequest.FieldViolation.newBuilder()
                        .setField(field)
                        .setDescription(description))
                .build();
        ErrorInfo why = ErrorInfo.newBuilder()
                .setReason("FIELD_INVALID")
                .setDomain("payments.example")
                .putMetadata("field", field)
                .build();
        return new Refused(Code.INVALID_ARGUMENT, field + ": " + description, Any.pack(request), Any.pack(why));
    }

    private static void sleep() {
        try {
            Thread.sleep(SLOW_MS);
        } catch (InterruptedException stopping) {
            Thread.currentThread().interrupt();
        }
    }
}
