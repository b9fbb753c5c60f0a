// Answers payments.v1.PaymentService over Kafka.
//
// Each partition is a lane: its requests are handled one after the other, so
// those with one key keep their order, and lanes go on beside each other. An
// offset is committed once the reply is acknowledged.
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { Consumer, Producer } from '@platformatic/kafka'
import { methods } from './payments.js'
import { Refused, code, errorHeaders } from './status.js'

const bootstrapBrokers = (process.env.KAFKA_BOOTSTRAP ?? '127.0.0.1:9092').split(',')
const groupId = process.env.KAFKA_GROUP ?? 'payments'
const topic = process.env.KAFKA_TOPIC ?? 'payment_request'

const IN_WORK_MAX = 500
const ANSWERS_KEPT_MAX = 10_000
const COMMIT_TRIES_MAX = 5
const WORTH_ANOTHER_TRY = new Set([code.RESOURCE_EXHAUSTED, code.ABORTED, code.UNAVAILABLE].map(String))

const log = (word, fields) =>
  console.log(word + Object.entries(fields).map(([name, value]) => ` ${name}=${value}`).join(''))

const producer = new Producer({ clientId: 'payments-worker', bootstrapBrokers, acks: -1, retries: 5, retryDelay: 200 })
const consumer = new Consumer({
  clientId: 'payments-worker',
  bootstrapBrokers,
  groupId,
  sessionTimeout: 10_000,
  heartbeatInterval: 1_000,
  rebalanceTimeout: 20_000,
  maxWaitTime: 500,
  deserializers: { headerKey: name => name.toString() }
})

// ---- one request -------------------------------------------------------------

const count = { handled: 0, errors: 0, skipped: 0, replies_lost: 0 }
const answers = new Map() // by idempotency key, the oldest first

async function handle(record) {
  const header = name => record.headers.get(name)?.toString()
  const place = `topic=${record.topic} partition=${record.partition} offset=${record.offset}`
  const lateMs = Date.now() - Number(header('grpc-deadline') ?? Infinity)
  if (lateMs > 0 || record.headers.has('antiphon-cancel')) {
    count.skipped++ // Nobody waits any longer.
    log(`skipped ${place}`, { late_ms: lateMs })
    return
  }
  const answer = await oncePerKey(header('idempotency-key'), header('grpc-method'), record.value)
  count.handled++
  log(`handled ${place}`, { key: record.key, status: answer.headers['grpc-status'] ?? 0, repeat: answer.repeat ?? false })
  await reply(record, answer)
}

/** A request whose idempotency key was seen gets the answer that was kept. A
 *  worker that must not forget keeps them in its database, with what it did. */
async function oncePerKey(key, method, payload) {
  if (key === undefined) return answerTo(method, payload)
  const name = `${method} ${key}`
  const digest = createHash('sha256').update(payload).digest('hex')
  const kept = answers.get(name)
  if (kept && kept.digest !== digest) {
    return refusal(new Refused(code.INVALID_ARGUMENT, 'this idempotency-key was sent with another message before'))
  }
  if (kept) return { ...kept.answer, repeat: true }
  const answer = await answerTo(method, payload)
  if (!WORTH_ANOTHER_TRY.has(answer.headers['grpc-status'])) {
    answers.set(name, { digest, answer })
    if (answers.size > ANSWERS_KEPT_MAX) answers.delete(answers.keys().next().value)
  }
  return answer
}

// ANCHOR: answer
async function answerTo(method, payload) {
  try {
    const call = methods.get(method)
    if (!call) throw new Refused(code.UNIMPLEMENTED, `this worker does not serve ${method}`)
    return { value: await call(payload ?? Buffer.alloc(0)), headers: {} }
  } catch (error) {
    return refusal(error)
  }
}
// ANCHOR_END: answer

function refusal(error) {
  count.errors++
  if (!(error instanceof Refused)) console.error(error)
  return { value: Buffer.alloc(0), headers: errorHeaders(error) }
}

// ANCHOR: reply
async function reply(request, { value, headers }) {
  const correlation = request.headers.get('kafka_correlationId')
  const replyTopic = request.headers.get('kafka_replyTopic')
  if (!correlation || !replyTopic) return // One-way: nobody waits.
  const partition = request.headers.get('kafka_replyPartition')?.readInt32BE()
  // What the caller's infrastructure sent along goes back; the gateway's allow-list decides.
  const along = [...request.headers].filter(([name]) => name.startsWith('x-'))
  const all = new Map([['kafka_correlationId', correlation], ...along, ...Object.entries(headers)])
  const message = { topic: replyTopic.toString(), key: request.key, headers: buffers(all) }
  if (value !== null) message.value = value
  if (partition !== undefined) message.partition = partition
  try {
    await producer.send({ messages: [message] })
  } catch (error) {
    // The work is done; to do it again would be worse than a lost reply.
    count.replies_lost++
    console.error(`reply to ${replyTopic} lost:`, error)
  }
}
// ANCHOR_END: reply

const buffers = headers => new Map([...headers].map(([name, value]) => [Buffer.from(name), Buffer.from(value)]))

// ---- lanes and commits -------------------------------------------------------

const lanes = new Map() // by partition
let inWork = 0
let committing = Promise.resolve()
let commitQueued = false

const ours = partition =>
  consumer.assignments?.some(assigned => assigned.topic === topic && assigned.partitions.includes(partition))

consumer.on('consumer:group:join', () => {
  const held = consumer.assignments?.find(assigned => assigned.topic === topic)?.partitions ?? []
  log('assigned', { partitions: held.join(',') || 'none' })
  for (const [partition, lane] of lanes) {
    if (ours(partition)) continue
    lane.lost = true // What still waits in it is its new owner's.
    lanes.delete(partition)
  }
})

function take(record) {
  const { partition, offset } = record
  if (!ours(partition)) return
  if (!lanes.has(partition)) lanes.set(partition, { tail: Promise.resolve(), next: 0n, done: 0n, committed: 0n, lost: false })
  const lane = lanes.get(partition)
  // After every rebalance the client brings again what was not committed yet.
  if (offset < lane.next) return
  lane.next = offset + 1n
  inWork++
  lane.tail = lane.tail.then(async () => {
    if (!lane.lost) {
      await handle(record)
      lane.done = offset + 1n
      commitSoon()
    }
    inWork--
    consumer.emit('worker:done')
  })
}

/** One commit at a time, with all that is done by then. */
function commitSoon() {
  if (commitQueued) return
  commitQueued = true
  committing = committing.then(async () => {
    commitQueued = false
    const due = uncommitted().map(([partition, lane]) => ({ partition, lane, offset: lane.done }))
    const offsets = due.map(({ partition, offset }) => ({ topic, partition, offset, leaderEpoch: -1 }))
    try {
      if (due.length > 0) await consumer.commit({ offsets })
      for (const { lane, offset } of due) lane.committed = offset
    } catch (error) {
      // Such as a rebalance under way; the next commit has these offsets, too.
      console.error(`commit: ${error.message}; requests may come twice`)
    }
  })
}

const uncommitted = () => [...lanes].filter(([, lane]) => lane.done > lane.committed)

// ---- life --------------------------------------------------------------------

const stream = await consumer.consume({ topics: [topic], autocommit: false, mode: 'committed', fallbackMode: 'earliest' })

let stopping = false
const stop = () => {
  stopping = true
  stream.close()
}
process.once('SIGTERM', stop).once('SIGINT', stop)

for await (const record of stream) {
  if (stopping) break
  take(record)
  while (inWork >= IN_WORK_MAX) await once(consumer, 'worker:done')
}
await Promise.all([...lanes.values()].map(lane => lane.tail))
await committing
for (let tries = 0; uncommitted().length > 0 && tries < COMMIT_TRIES_MAX; tries++) {
  commitSoon()
  await committing
}
await consumer.close(true)
await producer.close()
log('stopped', count)
