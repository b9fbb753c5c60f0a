package dev.antiphon.examples.worker;

import com.google.rpc.Code;
import com.google.rpc.Status;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.kafka.listener.KafkaListenerErrorHandler;
import org.springframework.kafka.listener.ListenerExecutionFailedException;
import org.springframework.kafka.support.KafkaHeaders;
import org.springframework.messaging.Message;
import org.springframework.messaging.support.MessageBuilder;
import org.springframework.stereotype.Component;

/**
 * Answers whatever a listener throws, so that the caller hears of it at once.
 * Without it Spring tries ten times, gives up, and sends nothing: the caller
 * waits until its deadline.
 */
@Component("grpcErrorHandler")
class GrpcErrorHandler implements KafkaListenerErrorHandler {

    private static final Logger log = LoggerFactory.getLogger(GrpcErrorHandler.class);

    // ANCHOR: errors
    @Override
    public Object handleError(Message<?> request, ListenerExecutionFailedException failure) {
        Throwable cause = failure.getCause() == null ? failure : failure.getCause();
        Status status = status(cause);
        if (!(cause instanceof Refused)) {
            log.error("the handler failed", cause);
        }
        // Spring adds the topic, the partition and the correlation id to a
        // Message, but not the key.
        MessageBuilder<byte[]> reply = MessageBuilder.withPayload(new byte[0])
                .setHeader(KafkaHeaders.KEY, request.getHeaders().get(KafkaHeaders.RECEIVED_KEY))
                .setHeader("grpc-status", ascii(Integer.toString(status.getCode())))
                .setHeader("grpc-message", ascii(percentEncoded(status.getMessage())));
        if (status.getDetailsCount() > 0) {
            reply.setHeader("grpc-status-details-bin", Base64.getEncoder().encode(status.toByteArray()));
        }
        return reply.build();
    }
    // ANCHOR_END: errors

    static Status status(Throwable cause) {
        if (cause instanceof Refused refused) {
            return refused.status();
        }
        return Status.newBuilder().setCode(Code.INTERNAL_VALUE).setMessage(cause.toString()).build();
    }

    private static String percentEncoded(String message) {
        return URLEncoder.encode(message, StandardCharsets.UTF_8).replace("+", "%20");
    }

    /** Bytes, since strings may go out as JSON, with quotes. */
    private static byte[] ascii(String text) {
        return text.getBytes(StandardCharsets.US_ASCII);
    }
}
