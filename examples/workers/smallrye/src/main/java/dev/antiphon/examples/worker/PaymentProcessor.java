package dev.antiphon.examples.worker;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.MessageLite;
import com.google.rpc.Code;
import com.google.rpc.Status;
import dev.antiphon.examples.payments.v1.PayRequest;
import dev.antiphon.examples.payments.v1.RefundRequest;
import io.smallrye.common.annotation.Blocking;
import io.smallrye.reactive.messaging.kafka.api.IncomingKafkaRecordMetadata;
import io.smallrye.reactive.messaging.kafka.api.OutgoingKafkaRecordMetadata;
import jakarta.annotation.PreDestroy;
import jakarta.enterprise.context.ApplicationScoped;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.eclipse.microprofile.config.inject.ConfigProperty;
import org.eclipse.microprofile.reactive.messaging.Acknowledgment;
import org.eclipse.microprofile.reactive.messaging.Incoming;
import org.eclipse.microprofile.reactive.messaging.Message;
import org.eclipse.microprofile.reactive.messaging.Outgoing;
import org.jboss.logging.Logger;

/**
 * Requests in, replies out. The outgoing channel answers where the request's
 * headers say, under its correlation id; once the reply is acknowledged, so is
 * the request.
 */
@ApplicationScoped
public class PaymentProcessor {

    private static final Logger log = Logger.getLogger(PaymentProcessor.class);

    private final Payments payments;
    private final Answers answers;
    private final boolean answerErrors;
    private final AtomicLong handled = new AtomicLong();
    private final AtomicLong failed = new AtomicLong();
    private final AtomicLong skipped = new AtomicLong();

    PaymentProcessor(
            Payments payments, Answers answers, @ConfigProperty(name = "worker.answer-errors") boolean answerErrors) {
        this.payments = payments;
        this.answers = answers;
        this.answerErrors = answerErrors;
    }

    // ANCHOR: processor
    @Incoming("requests")
    @Outgoing("replies")
    @Blocking
    @Acknowledgment(Acknowledgment.Strategy.MANUAL)
    public Message<byte[]> onRequest(Message<byte[]> request) {
        IncomingKafkaRecordMetadata<?, ?> record = request.getMetadata(IncomingKafkaRecordMetadata.class).orElseThrow();
        String place = "topic=%s partition=%d offset=%d"
                .formatted(record.getTopic(), record.getPartition(), record.getOffset());
        long lateMs = lateMs(text(record.getHeaders(), "grpc-deadline"));
        if (lateMs > 0 || record.getHeaders().lastHeader("antiphon-cancel") != null) {
            skipped.incrementAndGet();
            log.infof("skipped %s late_ms=%d", place, lateMs);
            request.ack();
            return null;
        }
        Headers headers = new RecordHeaders();
        byte[] value;
        try {
            value = answer(record.getHeaders(), request.getPayload(), headers);
        } catch (RuntimeException unanswered) {
            // What this method throws would end its channel.
            request.nack(unanswered);
            return null;
        }
        handled.incrementAndGet();
        log.infof("handled %s key=%s", place, record.getKey());
        if (value == null) {
            request.ack();
            return null;
        }
        // What the caller's infrastructure sent along goes back; the gateway's
        // allow-list decides.
        for (Header header : record.getHeaders()) {
            if (header.key().startsWith("x-")) {
                headers.add(header);
            }
        }
        var metadata = OutgoingKafkaRecordMetadata.builder().withKey(record.getKey()).withHeaders(headers).build();
        return request.withPayload(value).addMetadata(metadata);
    }
    // ANCHOR_END: processor

    /** The reply's value; whatever is thrown becomes headers and an empty value. */
    private byte[] answer(Headers request, byte[] payload, Headers reply) {
        try {
            String method = text(request, "grpc-method");
            return answers.once(method, text(request, "idempotency-key"), payload, () -> {
                MessageLite message = call(method, payload);
                return message == null ? null : message.toByteArray();
            });
        } catch (RuntimeException cause) {
            failed.incrementAndGet();
            if (!answerErrors) {
                throw cause;
            }
            if (!(cause instanceof Refused)) {
                log.error("the handler failed", cause);
            }
            Status status = cause instanceof Refused refused
                    ? refused.status()
                    : Status.newBuilder().setCode(Code.INTERNAL_VALUE).setMessage(cause.toString()).build();
            addStatus(reply, status);
            return new byte[0];
        }
    }

    private MessageLite call(String method, byte[] payload) {
        try {
            return switch (method == null ? "" : method) {
                case "/payments.v1.PaymentService/Pay" -> payments.pay(PayRequest.parseFrom(payload));
                case "/payments.v1.PaymentService/Refund" -> payments.refund(RefundRequest.parseFrom(payload));
                default -> throw new Refused(Code.UNIMPLEMENTED, "this worker does not serve " + method);
            };
        } catch (InvalidProtocolBufferException broken) {
            throw new Refused(Code.INVALID_ARGUMENT, "the request does not decode: " + broken.getMessage());
        }
    }

    // ANCHOR: status
    private static void addStatus(Headers reply, Status status) {
        String message = URLEncoder.encode(status.getMessage(), StandardCharsets.UTF_8).replace("+", "%20");
        reply.add("grpc-status", Integer.toString(status.getCode()).getBytes(StandardCharsets.US_ASCII));
        reply.add("grpc-message", message.getBytes(StandardCharsets.US_ASCII));
        if (status.getDetailsCount() > 0) {
            reply.add("grpc-status-details-bin", Base64.getEncoder().encode(status.toByteArray()));
        }
    }
    // ANCHOR_END: status

    private static String text(Headers headers, String name) {
        Header header = headers.lastHeader(name);
        return header == null || header.value() == null ? null : new String(header.value(), StandardCharsets.UTF_8);
    }

    private static long lateMs(String deadline) {
        try {
            return deadline == null ? 0 : System.currentTimeMillis() - Long.parseLong(deadline);
        } catch (NumberFormatException noDeadline) {
            return 0;
        }
    }

    @PreDestroy
    void report() {
        log.infof("stopped handled=%s errors=%s skipped=%s", handled, failed, skipped);
    }
}
