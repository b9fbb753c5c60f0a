// Answers payments.v1.PaymentService over Kafka.
import 'reflect-metadata'
import { Module } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import type { MicroserviceOptions } from '@nestjs/microservices'
import { AcknowledgedServerKafka } from './acknowledged-server-kafka.js'
import { PaymentsController } from './payments.controller.js'
import { PaymentsService } from './payments.service.js'
import { settings } from './settings.js'

const PARTITIONS_AT_ONCE_MAX = 6

@Module({
  controllers: [PaymentsController],
  providers: [PaymentsService]
})
class WorkerModule {}

// ANCHOR: app
const app = await NestFactory.createMicroservice<MicroserviceOptions>(WorkerModule, {
  strategy: new AcknowledgedServerKafka({
    client: { clientId: 'payments-worker', brokers: settings.brokers },
    consumer: { groupId: settings.groupId, sessionTimeout: 10_000, heartbeatInterval: 1_000, maxWaitTimeInMs: 500 },
    // Nest would add "-server" to the group's name.
    postfixId: '',
    // Nest must not take protobuf for text; JSON it parses.
    parser: { keepBinary: !settings.json },
    subscribe: { fromBeginning: true },
    run: { autoCommit: false, partitionsConsumedConcurrently: PARTITIONS_AT_ONCE_MAX },
    // -1: all replicas.
    send: { acks: -1 }
  })
})
// ANCHOR_END: app
app.enableShutdownHooks()
await app.listen()
