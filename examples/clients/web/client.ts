// Calls payments.v1.PaymentService through Antiphon from a page, by gRPC-Web.
//
// The gateway serves it on its gRPC port to the origins that
// grpc.web_origins names; nothing stands between the page and the gateway.
import { createRegistry, toJson, type JsonObject } from '@bufbuild/protobuf'
import { Code, ConnectError, createClient, type CallOptions } from '@connectrpc/connect'
import { createGrpcWebTransport } from '@connectrpc/connect-web'
import { ErrorInfoSchema, LocalizedMessageSchema } from './gen/google/rpc/error_details_pb.js'
import { ServerReflection } from './gen/grpc/reflection/v1/reflection_pb.js'
import { Health, HealthCheckResponse_ServingStatus } from './gen/health/v1/health_pb.js'
import { PaymentService, PaymentState } from './gen/payments/v1/payments_pb.js'

const baseUrl = new URL(location.href).searchParams.get('gateway') ?? 'http://127.0.0.1:50051'
const transport = createGrpcWebTransport({ baseUrl, defaultTimeoutMs: 20_000 })
const payments = createClient(PaymentService, transport)
// What the details of errors may hold.
const details = createRegistry(ErrorInfoSchema, LocalizedMessageSchema)
const run = crypto.randomUUID().slice(0, 8)

type Result = Record<string, unknown>

function order(kind: string, { currency = 'EUR', amountMinor = 1250n } = {}) {
  return { orderId: `${kind}-${run}`, amountMinor, currency }
}

/** What is known of the request: whether it was sent, and where it is. */
function antiphonTrailers(trailers: Headers) {
  return Object.fromEntries([...trailers].filter(([name]) => name.startsWith('antiphon-')))
}

/** The code as the gRPC specification writes it. */
function codeName(code: Code) {
  return Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase()
}

async function failure(call: Promise<unknown>) {
  try {
    await call
  } catch (error) {
    return ConnectError.from(error)
  }
  throw new Error('the call did not fail')
}

// ANCHOR: pay
/** A call, its reply and its trailers. */
async function pay(): Promise<Result> {
  let trailers = new Headers()
  const reply = await payments.pay(order('order'), { onTrailer: got => (trailers = got) })
  return {
    order_id: reply.orderId,
    payment_id: reply.paymentId,
    state: `PAYMENT_STATE_${PaymentState[reply.state]}`,
    trailers: antiphonTrailers(trailers)
  }
}
// ANCHOR_END: pay

/** An error of the business, with its google.rpc details. */
async function refused(request: ReturnType<typeof order>): Promise<Result> {
  const error = await failure(payments.pay(request))
  return {
    code: codeName(error.code),
    message: error.rawMessage,
    // To act on one kind: const [info] = error.findDetails(ErrorInfoSchema).
    details: error.findDetails(details).map(detail => ({
      type: detail.$typeName,
      ...(toJson(details.getMessage(detail.$typeName)!, detail) as JsonObject)
    }))
  }
}

/** The same call twice: executed once, and the second says so. */
async function idempotency(): Promise<Result> {
  let trailers = new Headers()
  const options: CallOptions = { headers: { 'idempotency-key': `key-${run}` }, onTrailer: got => (trailers = got) }
  const first = await payments.pay(order('once'), options)
  const second = await payments.pay(order('once'), options)
  return {
    first: first.paymentId,
    second: second.paymentId,
    answered: antiphonTrailers(trailers)['antiphon-idempotency']
  }
}

/** Many calls at once. The browser makes six connections and queues the rest. */
async function parallel(calls = 100): Promise<Result> {
  const requests = Array.from({ length: calls }, (_, at) =>
    order(`parallel-${at + 1}`, { amountMinor: BigInt(at + 1) })
  )
  const replies = await Promise.all(requests.map(request => payments.pay(request)))
  return {
    replies: replies.map((reply, at) => ({
      asked: requests[at].orderId,
      order_id: reply.orderId,
      payment_id: reply.paymentId
    }))
  }
}

/**
 * Reflection is a stream in both directions, which gRPC-Web does not have. What
 * a page can ask is the health of a service that it knows.
 */
async function reflection(): Promise<Result> {
  async function* listServices() {
    yield { messageRequest: { case: 'listServices', value: '' } as const }
  }
  const stream = createClient(ServerReflection, transport).serverReflectionInfo(listServices())
  const error = await failure(stream[Symbol.asyncIterator]().next())
  const health = await createClient(Health, transport).check({ service: PaymentService.typeName })
  return {
    impossible: error.rawMessage,
    health: HealthCheckResponse_ServingStatus[health.status]
  }
}

/** The sample worker takes 3 s for this order. */
async function deadline(timeoutMs = 500): Promise<Result> {
  const started = performance.now()
  const error = await failure(payments.pay(order('slow'), { timeoutMs }))
  return {
    code: codeName(error.code),
    deadline_ms: timeoutMs,
    ms: Math.round(performance.now() - started),
    trailers: antiphonTrailers(error.metadata)
  }
}

function show(name: string, result: Result) {
  document.querySelector('#results')!.append(`${name}: ${JSON.stringify(result, null, 2)}\n`)
  // For headless.js.
  console.log(JSON.stringify({ case: name, ...result }))
}

async function main() {
  show('pay', await pay())
  show('error', await refused(order('order', { currency: 'XXX' })))
  show('non_ascii', await refused(order('refused')))
  show('idempotency', await idempotency())
  show('reflection', await reflection())
  show('parallel', await parallel())
  // Last: the sample worker does one thing after the other.
  show('deadline', await deadline())
}

main().then(
  () => (document.title = 'done'),
  error => {
    document.querySelector('#results')!.append(`failed: ${error}\n`)
    document.title = 'failed'
    console.error(error)
  }
)
