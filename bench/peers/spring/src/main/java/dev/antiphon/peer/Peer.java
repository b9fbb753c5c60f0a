package dev.antiphon.peer;

import java.time.Duration;

import org.apache.kafka.clients.admin.NewTopic;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;
import org.springframework.kafka.config.TopicBuilder;
import org.springframework.kafka.core.ConsumerFactory;
import org.springframework.kafka.core.ProducerFactory;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.KafkaMessageListenerContainer;
import org.springframework.kafka.requestreply.ReplyingKafkaTemplate;
import org.springframework.kafka.support.TopicPartitionOffset;
import org.springframework.kafka.support.TopicPartitionOffset.SeekPosition;

/**
 * A gateway as one would build it on Spring Boot: grpc-java in front,
 * {@link ReplyingKafkaTemplate} behind, set up as its reference advises. Serves
 * echo.v1.EchoService for comparison with Antiphon.
 */
@SpringBootApplication
public class Peer {
	public static void main(String[] arguments) {
		SpringApplication.run(Peer.class, arguments);
	}

	@Bean
	NewTopic replyTopic(@Value("${peer.reply-topic}") String name) {
		return TopicBuilder.name(name).partitions(1).build();
	}

	/** An assigned partition: no group, and so no rebalance. */
	@Bean
	KafkaMessageListenerContainer<byte[], byte[]> replies(ConsumerFactory<byte[], byte[]> factory, NewTopic replyTopic) {
		var properties = new ContainerProperties(new TopicPartitionOffset(replyTopic.name(), 0, SeekPosition.BEGINNING));
		properties.setGroupId(replyTopic.name());
		var container = new KafkaMessageListenerContainer<>(factory, properties);
		container.setAutoStartup(false);
		return container;
	}

	@Bean
	ReplyingKafkaTemplate<byte[], byte[], byte[]> template(ProducerFactory<byte[], byte[]> factory,
			KafkaMessageListenerContainer<byte[], byte[]> replies) {
		var template = new ReplyingKafkaTemplate<>(factory, replies);
		template.setSharedReplyTopic(true);
		template.setDefaultReplyTimeout(Duration.ofSeconds(10));
		return template;
	}
}
