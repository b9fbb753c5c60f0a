import { type KafkaContext, ServerKafka } from '@nestjs/microservices'

/**
 * Nest's Kafka server, which commits a request once its reply is acknowledged.
 * As it comes, it has kafkajs commit when the handler has ended, while the reply
 * is still on its way. Goes with `run: { autoCommit: false }`.
 */
export class AcknowledgedServerKafka extends ServerKafka {
  override async sendMessage(...reply: Parameters<ServerKafka['sendMessage']>) {
    const sent = await super.sendMessage(...reply)
    const context = reply[4] as KafkaContext
    const offset = String(BigInt(context.getMessage().offset) + 1n)
    await this.consumer!.commitOffsets([{ topic: context.getTopic(), partition: context.getPartition(), offset }])
    return sent
  }
}
