// Sends requests and finds the call that each reply is for.
import { randomBytes } from 'node:crypto'
import { status } from '@grpc/grpc-js'
import { Admin, Consumer, MessagesStreamModes, ProduceAcks, Producer, stringDeserializer, stringSerializer } from '@platformatic/kafka'

// For callers that set no deadline.
const CALL_TIMEOUT_MS = 10_000
const BATCH_RECORDS_MAX = 10_000

export class Exchange {
  #bootstrapBrokers
  #topic
  #instance = randomBytes(8).toString('hex')
  #replyTopic = `peer.node.${this.#instance}`
  #replyTopicBytes = Buffer.from(this.#replyTopic)
  #sequence = 0
  #pending = new Map()
  #queue = []
  #sending = false
  #partitions = 1
  #nextPartition = 0
  #producer
  #consumer
  #stream
  #methods = new Map()

  constructor (bootstrapBrokers, topic) {
    this.#bootstrapBrokers = bootstrapBrokers
    this.#topic = topic
  }

  async start () {
    const client = { clientId: 'node-peer', bootstrapBrokers: this.#bootstrapBrokers }
    const admin = new Admin(client)
    await admin.createTopics({ topics: [this.#replyTopic], partitions: 1, replicas: -1 })
    const metadata = await admin.metadata({ topics: [this.#topic, this.#replyTopic] })
    this.#partitions = metadata.topics.get(this.#topic).partitionsCount
    await admin.close()

    this.#producer = new Producer({ ...client, serializers: { headerKey: stringSerializer } })
    this.#consumer = new Consumer({
      ...client,
      groupId: this.#replyTopic,
      deserializers: { headerKey: stringDeserializer },
      autocommit: false,
      maxWaitTime: 500
    })
    // The topic is new: its start is where the first reply will be.
    this.#stream = await this.#consumer.consume({ topics: [this.#replyTopic], mode: MessagesStreamModes.EARLIEST })
    this.#stream.on('data', reply => this.#resolve(reply))
    this.#stream.on('error', error => console.error('replies:', error))
  }

  async stop () {
    await this.#stream.close()
    await this.#consumer.close(true)
    await this.#producer.close()
    const admin = new Admin({ clientId: 'node-peer', bootstrapBrokers: this.#bootstrapBrokers })
    await admin.deleteTopics({ topics: [this.#replyTopic] })
    await admin.close()
  }

  call (method, call, answer) {
    const id = `${this.#instance}-${this.#sequence++}`
    this.#pending.set(id, answer)
    // grpc-js cancels a call at its deadline.
    if (Number.isFinite(Number(call.getDeadline()))) {
      call.on('cancelled', () => this.#pending.delete(id))
    } else {
      const timer = setTimeout(() => this.#fail(id, status.DEADLINE_EXCEEDED, 'no reply'), CALL_TIMEOUT_MS)
      this.#pending.set(id, (error, value) => {
        clearTimeout(timer)
        answer(error, value)
      })
    }
    this.#queue.push({
      topic: this.#topic,
      partition: this.#nextPartition,
      value: call.request,
      headers: new Map([
        ['kafka_correlationId', Buffer.from(id)],
        ['kafka_replyTopic', this.#replyTopicBytes],
        ['grpc-method', this.#bytes(method)]
      ])
    })
    this.#nextPartition = (this.#nextPartition + 1) % this.#partitions
    if (!this.#sending) {
      this.#send()
    }
  }

  // The client makes a request of every send, so this does what producers in
  // other languages do by themselves: one send is under way, and what queues
  // behind it is the next.
  async #send () {
    this.#sending = true
    while (this.#queue.length > 0) {
      const messages = this.#queue.splice(0, BATCH_RECORDS_MAX)
      try {
        await this.#producer.send({ messages, acks: ProduceAcks.ALL })
      } catch (error) {
        for (const message of messages) {
          this.#fail(message.headers.get('kafka_correlationId').toString(), status.UNAVAILABLE, error.message)
        }
      }
    }
    this.#sending = false
  }

  #resolve (reply) {
    const id = reply.headers.get('kafka_correlationId')?.toString()
    const answer = this.#pending.get(id)
    if (!answer) {
      return
    }
    const code = reply.headers.get('grpc-status')?.toString() ?? '0'
    if (code !== '0') {
      this.#fail(id, status.UNKNOWN, `the worker's status is ${code}`)
      return
    }
    this.#pending.delete(id)
    answer(null, reply.value)
  }

  #fail (id, code, details) {
    const answer = this.#pending.get(id)
    this.#pending.delete(id)
    answer?.({ code, details })
  }

  #bytes (method) {
    if (!this.#methods.has(method)) {
      this.#methods.set(method, Buffer.from(method))
    }
    return this.#methods.get(method)
  }
}
