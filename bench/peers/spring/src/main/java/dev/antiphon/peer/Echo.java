package dev.antiphon.peer;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.concurrent.TimeUnit;

import io.grpc.BindableService;
import io.grpc.Context;
import io.grpc.MethodDescriptor;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.kafka.requestreply.KafkaReplyTimeoutException;
import org.springframework.kafka.requestreply.ReplyingKafkaTemplate;
import org.springframework.stereotype.Component;

/** A call is a record and the reply to it; no thread waits in between. */
@Component
class Echo implements BindableService {
	private static final MethodDescriptor<byte[], byte[]> METHOD = MethodDescriptor.<byte[], byte[]>newBuilder()
			.setType(MethodDescriptor.MethodType.UNARY)
			.setFullMethodName("echo.v1.EchoService/Echo")
			.setRequestMarshaller(new Raw())
			.setResponseMarshaller(new Raw())
			.build();
	private static final byte[] PATH = "/echo.v1.EchoService/Echo".getBytes(StandardCharsets.UTF_8);
	private static final byte[] OK = "0".getBytes(StandardCharsets.UTF_8);

	private final ReplyingKafkaTemplate<byte[], byte[], byte[]> template;
	private final String topic;

	Echo(ReplyingKafkaTemplate<byte[], byte[], byte[]> template, @Value("${peer.topic}") String topic) {
		this.template = template;
		this.topic = topic;
	}

	@Override
	public ServerServiceDefinition bindService() {
		return ServerServiceDefinition.builder("echo.v1.EchoService")
				.addMethod(METHOD, ServerCalls.asyncUnaryCall(this::echo))
				.build();
	}

	private void echo(byte[] request, StreamObserver<byte[]> caller) {
		var record = new ProducerRecord<byte[], byte[]>(topic, request);
		record.headers().add("grpc-method", PATH);
		var deadline = Context.current().getDeadline();
		var timeout = deadline == null ? null : Duration.ofNanos(Math.max(0, deadline.timeRemaining(TimeUnit.NANOSECONDS)));
		var exchange = template.sendAndReceive(record, timeout);
		// Without this a request that could not be sent shows as a time-out.
		exchange.getSendFuture().whenComplete((sent, error) -> {
			if (error != null) {
				exchange.completeExceptionally(error);
			}
		});
		exchange.whenComplete((reply, error) -> answer(caller, reply, error));
	}

	private static void answer(StreamObserver<byte[]> caller, ConsumerRecord<byte[], byte[]> reply, Throwable error) {
		if (error != null) {
			var status = error instanceof KafkaReplyTimeoutException ? Status.DEADLINE_EXCEEDED : Status.UNAVAILABLE;
			caller.onError(status.withDescription(error.getMessage()).asRuntimeException());
			return;
		}
		var status = reply.headers().lastHeader("grpc-status");
		if (status != null && !java.util.Arrays.equals(status.value(), OK)) {
			caller.onError(Status.UNKNOWN.asRuntimeException());
			return;
		}
		caller.onNext(reply.value());
		caller.onCompleted();
	}
}
