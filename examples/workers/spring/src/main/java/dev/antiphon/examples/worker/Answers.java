package dev.antiphon.examples.worker;

import com.google.rpc.Code;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.function.Supplier;
import org.springframework.stereotype.Component;

/**
 * What was answered under an idempotency key; the oldest are forgotten first. A
 * worker that must not forget keeps them in its database, with what it did.
 */
@Component
class Answers {

    private static final int ANSWERS_KEPT_MAX = 10_000;
    private static final Set<Integer> WORTH_ANOTHER_TRY =
            Set.of(Code.RESOURCE_EXHAUSTED_VALUE, Code.ABORTED_VALUE, Code.UNAVAILABLE_VALUE);

    private record Kept(int digest, byte[] value, Refused refusal) {}

    private final Map<String, Kept> kept = new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Kept> eldest) {
            return size() > ANSWERS_KEPT_MAX;
        }
    };

    /** The kept answer, or that of the call. */
    byte[] once(String method, String key, byte[] payload, Supplier<byte[]> call) {
        if (key == null) {
            return call.get();
        }
        String name = method + " " + key;
        Kept found;
        synchronized (kept) {
            found = kept.get(name);
        }
        if (found == null) {
            found = keep(name, payload, call);
        } else if (found.digest() != Arrays.hashCode(payload)) {
            throw new Refused(Code.INVALID_ARGUMENT, "this idempotency-key was sent with another message before");
        }
        if (found.refusal() != null) {
            throw found.refusal();
        }
        return found.value();
    }

    private Kept keep(String name, byte[] payload, Supplier<byte[]> call) {
        Kept answer;
        try {
            answer = new Kept(Arrays.hashCode(payload), call.get(), null);
        } catch (Refused refusal) {
            if (WORTH_ANOTHER_TRY.contains(refusal.status().getCode())) {
                throw refusal;
            }
            answer = new Kept(Arrays.hashCode(payload), null, refusal);
        }
        synchronized (kept) {
            kept.put(name, answer);
        }
        return answer;
    }
}
