package dev.antiphon.examples.worker;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.MessageLite;
import com.google.rpc.Code;
import dev.antiphon.examples.payments.v1.PayRequest;
import dev.antiphon.examples.payments.v1.RefundRequest;
import org.springframework.kafka.annotation.KafkaListener;
import org.springframework.messaging.handler.annotation.Header;
import org.springframework.messaging.handler.annotation.SendTo;
import org.springframework.stereotype.Component;

/**
 * Requests in, replies out. {@code @SendTo} without a name answers where the
 * request's headers say, under its correlation id and key. What is thrown goes
 * to {@link GrpcErrorHandler}; for null Spring sends nothing at all.
 */
@Component
class PaymentListener {

    private final Payments payments;
    private final Answers answers;

    PaymentListener(Payments payments, Answers answers) {
        this.payments = payments;
        this.answers = answers;
    }

    // ANCHOR: listener
    @KafkaListener(topics = "${worker.topic}", errorHandler = "${worker.error-handler}")
    @SendTo
    byte[] onRequest(
            byte[] payload,
            @Header("grpc-method") String method,
            @Header(name = "idempotency-key", required = false) String idempotencyKey) {
        return answers.once(method, idempotencyKey, payload, () -> {
            MessageLite reply = answer(method, payload);
            return reply == null ? null : reply.toByteArray();
        });
    }
    // ANCHOR_END: listener

    private MessageLite answer(String method, byte[] payload) {
        try {
            return switch (method) {
                case "/payments.v1.PaymentService/Pay" -> payments.pay(PayRequest.parseFrom(payload));
                case "/payments.v1.PaymentService/Refund" -> payments.refund(RefundRequest.parseFrom(payload));
                default -> throw new Refused(Code.UNIMPLEMENTED, "this worker does not serve " + method);
            };
        } catch (InvalidProtocolBufferException broken) {
            throw new Refused(Code.INVALID_ARGUMENT, "the request does not decode: " + broken.getMessage());
        }
    }
}
