// Calls payments.v1.PaymentService through Antiphon with grpc-js.
//
//   node client.js [--json] [HOST:PORT]
//
// To the caller it is a gRPC server like any other; nothing here knows of Kafka
// but the names of the antiphon-* trailers.
import { randomBytes } from 'node:crypto'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'
import googleProtos from 'google-proto-files'

const options = parseArgs({ allowPositionals: true, options: { json: { type: 'boolean' } } })
const address = options.positionals[0] ?? '127.0.0.1:50051'

const here = dirname(fileURLToPath(import.meta.url))
const reflectionProtos = dirname(fileURLToPath(import.meta.resolve('@grpc/reflection')))
// Read when this starts; nothing is generated.
const protos = protoLoader.loadSync(
  ['payments/v1/payments.proto', 'google/rpc/status.proto', 'google/rpc/error_details.proto', 'grpc/reflection/v1/reflection.proto'],
  {
    includeDirs: [join(here, '../../../proto'), googleProtos.getProtoPath('..'), join(reflectionProtos, '../proto')],
    keepCase: true,
    longs: Number,
    enums: String,
    defaults: true,
    oneofs: true
  }
)
const { payments, grpc: services } = grpc.loadPackageDefinition(protos)
const credentials = grpc.credentials.createInsecure()
const client = new payments.v1.PaymentService(address, credentials)

const run = randomBytes(4).toString('hex')
const PATIENCE_MS = 20_000

function order(kind, { currency = 'EUR', amount_minor = 1250 } = {}) {
  return { order_id: `${kind}-${run}`, amount_minor, currency }
}

/** One call: its error or reply, and its trailers. */
function call(request, { metadata = new grpc.Metadata(), ms = PATIENCE_MS } = {}) {
  return new Promise(resolve => {
    let error, reply
    client
      .Pay(request, metadata, { deadline: Date.now() + ms }, (...ended) => ([error, reply] = ended))
      .on('status', status => setImmediate(() => resolve({ error, reply, trailers: status.metadata })))
  })
}

async function reply(request, options) {
  const ended = await call(request, options)
  if (ended.error) throw ended.error
  return ended
}

/** What is known of the request: whether it was sent, and where it is. */
function antiphonTrailers(metadata) {
  return Object.fromEntries(Object.entries(metadata.getMap()).filter(([name]) => name.startsWith('antiphon-')))
}

/** google.rpc.Status, which grpc-js leaves as bytes. */
function statusOf(error) {
  const [bytes] = error.metadata.get('grpc-status-details-bin')
  return decoded('google.rpc.Status', bytes)
}

function decoded(name, bytes) {
  return protos[name].deserialize(bytes)
}

/** A call, its reply and its trailers. */
async function pay() {
  const paid = await reply(order('order'))
  return { ...paid.reply, trailers: antiphonTrailers(paid.trailers) }
}

/** An error of the business, with its google.rpc details. */
async function refused(request) {
  const { error } = await call(request)
  if (!error) throw new Error('the payment was taken')
  const details = statusOf(error).details.map(({ type_url, value }) => {
    const type = type_url.split('/').pop()
    return { type, ...decoded(type, value) }
  })
  return { code: grpc.status[error.code], message: error.details, details }
}

/** The same call twice: executed once, and the second says so. */
async function idempotency() {
  const metadata = new grpc.Metadata()
  metadata.set('idempotency-key', `key-${run}`)
  const first = await reply(order('once'), { metadata })
  const second = await reply(order('once'), { metadata })
  return {
    first: first.reply.payment_id,
    second: second.reply.payment_id,
    answered: antiphonTrailers(second.trailers)['antiphon-idempotency']
  }
}

/** Many calls at once over one connection. */
async function parallel(calls = 100) {
  const requests = Array.from({ length: calls }, (_, at) => order(`parallel-${at + 1}`, { amount_minor: at + 1 }))
  const ended = await Promise.all(requests.map(request => reply(request)))
  const replies = ended.map(({ reply: { order_id, payment_id } }, at) => ({
    asked: requests[at].order_id,
    order_id,
    payment_id
  }))
  return { replies }
}

/** The services, asked of the server itself. */
async function reflection() {
  const reflecting = new services.reflection.v1.ServerReflection(address, credentials)
  const stream = reflecting.ServerReflectionInfo({ deadline: Date.now() + PATIENCE_MS })
  stream.end({ list_services: '' })
  const names = []
  for await (const answer of stream) {
    names.push(...answer.list_services_response.service.map(({ name }) => name))
  }
  reflecting.close()
  return { services: names }
}

/** The sample worker takes 3 s for this order. */
async function deadline(ms = 500) {
  const started = performance.now()
  const { error, trailers } = await call(order('slow'), { ms })
  return {
    code: grpc.status[error?.code ?? 0],
    deadline_ms: ms,
    ms: Math.round(performance.now() - started),
    trailers: antiphonTrailers(trailers)
  }
}

function show(name, result) {
  if (options.values.json) console.log(JSON.stringify({ case: name, ...result }))
  else console.log(`${name}:`, result)
}

show('pay', await pay())
show('error', await refused(order('order', { currency: 'XXX' })))
show('non_ascii', await refused(order('refused')))
show('idempotency', await idempotency())
show('reflection', await reflection())
show('parallel', await parallel())
// Last: the sample worker does one thing after the other.
show('deadline', await deadline())
client.close()
