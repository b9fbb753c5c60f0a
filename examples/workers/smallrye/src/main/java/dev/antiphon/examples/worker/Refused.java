package dev.antiphon.examples.worker;

import com.google.protobuf.Any;
import com.google.rpc.Code;
import com.google.rpc.Status;
import java.util.List;

/** A business error: what the gRPC caller shall get. */
class Refused extends RuntimeException {

    private final Status status;

    Refused(Code code, String message, Any... details) {
        super(message);
        this.status = Status.newBuilder()
                .setCode(code.getNumber())
                .setMessage(message)
                .addAllDetails(List.of(details))
                .build();
    }

    Status status() {
        return status;
    }
}
