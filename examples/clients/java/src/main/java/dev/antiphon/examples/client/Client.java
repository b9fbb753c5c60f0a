package dev.antiphon.examples.client;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.ErrorInfo;
import com.google.rpc.LocalizedMessage;
import dev.antiphon.examples.payments.v1.PayReply;
import dev.antiphon.examples.payments.v1.PayRequest;
import dev.antiphon.examples.payments.v1.PaymentServiceGrpc;
import dev.antiphon.examples.payments.v1.PaymentServiceGrpc.PaymentServiceBlockingStub;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.reflection.v1.ServerReflectionGrpc;
import io.grpc.reflection.v1.ServerReflectionRequest;
import io.grpc.reflection.v1.ServerReflectionResponse;
import io.grpc.reflection.v1.ServiceResponse;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Calls payments.v1.PaymentService through Antiphon with grpc-java.
 *
 * <pre>java -jar target/client-java.jar [--json] [HOST:PORT]</pre>
 *
 * To the caller it is a gRPC server like any other; nothing here knows of Kafka but the names of the antiphon-*
 * trailers.
 */
public final class Client {
  private static final Duration PATIENCE = Duration.ofSeconds(20);
  private static final int PARALLEL_CALLS = 100;
  private static final Metadata.Key<String> IDEMPOTENCY_KEY =
      Metadata.Key.of("idempotency-key", Metadata.ASCII_STRING_MARSHALLER);

  private final String run = UUID.randomUUID().toString().substring(0, 8);
  private final ManagedChannel channel;

  private Client(ManagedChannel channel) {
    this.channel = channel;
  }

  private PayRequest.Builder order(String kind) {
    return PayRequest.newBuilder().setOrderId(kind + "-" + run).setAmountMinor(1250).setCurrency("EUR");
  }

  /** A deadline is a moment, so every call gets a stub of its own. */
  private PaymentServiceBlockingStub payments() {
    return PaymentServiceGrpc.newBlockingStub(channel).withDeadlineAfter(PATIENCE);
  }

  /** A call, its reply and its trailers. */
  private Map<String, Object> pay() {
    var trailers = new AtomicReference<Metadata>();
    var capture = MetadataUtils.newCaptureMetadataInterceptor(new AtomicReference<>(), trailers);
    PayReply reply = payments().withInterceptors(capture).pay(order("order").build());
    return fields(
        "order_id", reply.getOrderId(),
        "payment_id", reply.getPaymentId(),
        "state", reply.getState().name(),
        "trailers", antiphonTrailers(trailers.get()));
  }

  /** An error of the business, with its google.rpc details. */
  private Map<String, Object> refused(PayRequest request) throws InvalidProtocolBufferException {
    try {
      payments().pay(request);
    } catch (StatusRuntimeException e) {
      com.google.rpc.Status status = StatusProto.fromThrowable(e);
      var details = new ArrayList<Object>();
      for (Any detail : status.getDetailsList()) {
        // To act on one kind: if (detail.is(ErrorInfo.class)) detail.unpack(ErrorInfo.class)...
        details.add(unpacked(detail));
      }
      return fields(
          "code", e.getStatus().getCode().name(), "message", e.getStatus().getDescription(), "details", details);
    }
    throw new IllegalStateException("the payment was taken");
  }

  private static JsonObject unpacked(Any detail) throws InvalidProtocolBufferException {
    var types = JsonFormat.TypeRegistry.newBuilder()
        .add(ErrorInfo.getDescriptor())
        .add(LocalizedMessage.getDescriptor())
        .build();
    String text = JsonFormat.printer().usingTypeRegistry(types).print(detail);
    JsonObject fields = JsonParser.parseString(text).getAsJsonObject();
    String url = fields.remove("@type").getAsString();
    fields.addProperty("type", url.substring(url.lastIndexOf('/') + 1));
    return fields;
  }

  /** The same call twice: executed once, and the second says so. */
  private Map<String, Object> idempotency() {
    var key = new Metadata();
    key.put(IDEMPOTENCY_KEY, "key-" + run);
    var attach = MetadataUtils.newAttachHeadersInterceptor(key);
    var trailers = new AtomicReference<Metadata>();
    var capture = MetadataUtils.newCaptureMetadataInterceptor(new AtomicReference<>(), trailers);
    PayReply first = payments().withInterceptors(attach).pay(order("once").build());
    PayReply second = payments().withInterceptors(attach, capture).pay(order("once").build());
    return fields(
        "first", first.getPaymentId(),
        "second", second.getPaymentId(),
        "answered", antiphonTrailers(trailers.get()).get("antiphon-idempotency"));
  }

  /** Many calls at once over one connection. */
  private Map<String, Object> parallel() throws Exception {
    var stub = PaymentServiceGrpc.newFutureStub(channel).withDeadlineAfter(PATIENCE);
    var requests = new ArrayList<PayRequest>();
    for (int number = 1; number <= PARALLEL_CALLS; number++) {
      requests.add(order("parallel-" + number).setAmountMinor(number).build());
    }
    var calls = requests.stream().map(stub::pay).toList();
    var replies = new ArrayList<Object>();
    for (int at = 0; at < PARALLEL_CALLS; at++) {
      PayReply reply = calls.get(at).get();
      replies.add(fields(
          "asked", requests.get(at).getOrderId(),
          "order_id", reply.getOrderId(),
          "payment_id", reply.getPaymentId()));
    }
    return fields("replies", replies);
  }

  /** The services, asked of the server itself. */
  private Map<String, Object> reflection() throws Exception {
    var answered = new CompletableFuture<List<String>>();
    StreamObserver<ServerReflectionRequest> requests = ServerReflectionGrpc.newStub(channel)
        .withDeadlineAfter(PATIENCE)
        .serverReflectionInfo(new StreamObserver<>() {
          @Override
          public void onNext(ServerReflectionResponse answer) {
            var services = answer.getListServicesResponse().getServiceList();
            answered.complete(services.stream().map(ServiceResponse::getName).toList());
          }

          @Override
          public void onError(Throwable error) {
            answered.completeExceptionally(error);
          }

          @Override
          public void onCompleted() {
            answered.completeExceptionally(new IllegalStateException("no answer"));
          }
        });
    requests.onNext(ServerReflectionRequest.newBuilder().setListServices("").build());
    requests.onCompleted();
    return fields("services", answered.get());
  }

  /** The sample worker takes 3 s for this order. */
  private Map<String, Object> deadline() {
    var allowed = Duration.ofMillis(500);
    long started = System.nanoTime();
    try {
      PaymentServiceGrpc.newBlockingStub(channel).withDeadlineAfter(allowed).pay(order("slow").build());
    } catch (StatusRuntimeException e) {
      return fields(
          "code", e.getStatus().getCode().name(),
          "deadline_ms", allowed.toMillis(),
          "ms", TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - started),
          "trailers", antiphonTrailers(e.getTrailers()));
    }
    throw new IllegalStateException("the payment was taken in time");
  }

  /** What is known of the request: whether it was sent, and where it is. */
  private static Map<String, String> antiphonTrailers(Metadata trailers) {
    var found = new TreeMap<String, String>();
    if (trailers == null) { // The channel's own deadline passed first.
      return found;
    }
    for (String name : trailers.keys()) {
      if (name.startsWith("antiphon-")) {
        found.put(name, trailers.get(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER)));
      }
    }
    return found;
  }

  private static Map<String, Object> fields(Object... namesAndValues) {
    var fields = new LinkedHashMap<String, Object>();
    for (int at = 0; at < namesAndValues.length; at += 2) {
      fields.put((String) namesAndValues[at], namesAndValues[at + 1]);
    }
    return fields;
  }

  public static void main(String[] arguments) throws Exception {
    var places = new ArrayList<>(List.of(arguments));
    boolean asJson = places.remove("--json");
    String address = places.isEmpty() ? "127.0.0.1:50051" : places.get(0);

    ManagedChannel channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    try {
      var client = new Client(channel);
      show(asJson, "pay", client.pay());
      show(asJson, "error", client.refused(client.order("order").setCurrency("XXX").build()));
      show(asJson, "non_ascii", client.refused(client.order("refused").build()));
      show(asJson, "idempotency", client.idempotency());
      show(asJson, "reflection", client.reflection());
      show(asJson, "parallel", client.parallel());
      // Last: the sample worker does one thing after the other.
      show(asJson, "deadline", client.deadline());
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void show(boolean asJson, String name, Map<String, Object> result) {
    var out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    if (asJson) {
      var line = fields("case", name);
      line.putAll(result);
      out.println(new Gson().toJson(line));
    } else {
      out.println(name + ": " + new GsonBuilder().setPrettyPrinting().create().toJson(result));
    }
  }
}
