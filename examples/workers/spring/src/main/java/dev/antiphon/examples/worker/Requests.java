package dev.antiphon.examples.worker;

import jakarta.annotation.PreDestroy;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.header.Header;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.kafka.listener.RecordInterceptor;
import org.springframework.stereotype.Component;

/** Passes over requests that nobody waits for any longer, and counts. */
@Component
class Requests implements RecordInterceptor<Object, Object> {

    private static final Logger log = LoggerFactory.getLogger(Requests.class);
    private static final String SKIPPED = "worker-skipped";

    private final AtomicLong handled = new AtomicLong();
    private final AtomicLong failed = new AtomicLong();
    private final AtomicLong skipped = new AtomicLong();

    @Override
    public ConsumerRecord<Object, Object> intercept(
            ConsumerRecord<Object, Object> request, Consumer<Object, Object> consumer) {
        long lateMs = lateMs(request);
        if (lateMs <= 0 && request.headers().lastHeader("antiphon-cancel") == null) {
            return request;
        }
        skipped.incrementAndGet();
        log.info("skipped topic={} partition={} offset={} late_ms={}",
                request.topic(), request.partition(), request.offset(), lateMs);
        request.headers().add(SKIPPED, null);
        return null;
    }

    @Override
    public void success(ConsumerRecord<Object, Object> request, Consumer<Object, Object> consumer) {
        // Spring calls this for the records that were turned away, too.
        if (request.headers().lastHeader(SKIPPED) != null) {
            return;
        }
        handled.incrementAndGet();
        log.info("handled topic={} partition={} offset={} key={}",
                request.topic(), request.partition(), request.offset(), request.key());
    }

    @Override
    public void failure(ConsumerRecord<Object, Object> request, Exception cause, Consumer<Object, Object> consumer) {
        failed.incrementAndGet();
    }

    private static long lateMs(ConsumerRecord<?, ?> request) {
        Header deadline = request.headers().lastHeader("grpc-deadline");
        if (deadline == null) {
            return 0;
        }
        try {
            String millis = new String(deadline.value(), StandardCharsets.US_ASCII);
            return System.currentTimeMillis() - Long.parseLong(millis);
        } catch (NumberFormatException noDeadline) {
            return 0;
        }
    }

    @PreDestroy
    void report() {
        log.info("stopped handled={} errors={} skipped={}", handled, failed, skipped);
    }
}
