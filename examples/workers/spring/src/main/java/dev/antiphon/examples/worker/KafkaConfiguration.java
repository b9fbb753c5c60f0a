package dev.antiphon.examples.worker;

import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.boot.kafka.autoconfigure.ConcurrentKafkaListenerContainerFactoryConfigurer;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.kafka.config.ConcurrentKafkaListenerContainerFactory;
import org.springframework.kafka.core.ConsumerFactory;
import org.springframework.kafka.core.KafkaTemplate;
import org.springframework.kafka.core.ProducerFactory;
import org.springframework.kafka.listener.adapter.ReplyHeadersConfigurer;
import org.springframework.kafka.support.SendResult;
import org.springframework.messaging.Message;

@Configuration
class KafkaConfiguration {

    private static final Logger log = LoggerFactory.getLogger(KafkaConfiguration.class);
    private static final long REPLY_SECONDS_MAX = 40;

    /** Boot's container factory; what the caller's infrastructure sent along goes back. */
    @Bean
    ConcurrentKafkaListenerContainerFactory<?, ?> kafkaListenerContainerFactory(
            ConcurrentKafkaListenerContainerFactoryConfigurer boot, ConsumerFactory<Object, Object> consumers) {
        var factory = new ConcurrentKafkaListenerContainerFactory<Object, Object>();
        boot.configure(factory, consumers);
        ReplyHeadersConfigurer copied = (name, value) -> name.startsWith("x-");
        factory.setReplyHeadersConfigurer(copied);
        return factory;
    }

    /**
     * Sends replies, and waits for the acknowledgement: the listener container
     * itself neither waits nor hears of a reply that is lost, and would commit
     * the request all the same.
     */
    @Bean
    KafkaTemplate<?, ?> replyTemplate(ProducerFactory<Object, Object> producers) {
        return new KafkaTemplate<>(producers) {
            @Override
            public CompletableFuture<SendResult<Object, Object>> send(Message<?> reply) {
                try {
                    var sent = super.send(reply);
                    sent.get(REPLY_SECONDS_MAX, TimeUnit.SECONDS);
                    return sent;
                } catch (InterruptedException stopping) {
                    Thread.currentThread().interrupt();
                    return CompletableFuture.failedFuture(stopping);
                } catch (Exception lost) {
                    // The work is done; to do it again would be worse than a lost reply.
                    log.error("reply lost", lost);
                    return CompletableFuture.failedFuture(lost);
                }
            }
        };
    }
}
