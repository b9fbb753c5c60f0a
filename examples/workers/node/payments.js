// payments.v1.PaymentService, as any Node service would have it: methods that
// return a reply or throw. Nothing here knows of Kafka.
import { fileURLToPath } from 'node:url'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import protobuf from 'protobufjs'
import { Refused, badField, code } from './status.js'

const PROTO_DIR = process.env.PROTO_DIR ?? fileURLToPath(new URL('../../../proto', import.meta.url))
const SLOW_MS = 3000

const root = new protobuf.Root()
root.resolvePath = (_origin, file) =>
  file.startsWith('google/protobuf/') ? fileURLToPath(import.meta.resolve(`protobufjs/${file}`)) : join(PROTO_DIR, file)
await root.load('payments/v1/payments.proto')
const service = root.lookupService('payments.v1.PaymentService').resolveAll()
const State = root.lookupEnum('payments.v1.PaymentState').values

const handlers = {
  async Pay(request) {
    if (request.orderId.startsWith('null-')) return null
    if (request.orderId.startsWith('empty-')) return {}
    const state = await decide(request, State.PAYMENT_STATE_APPROVED)
    const echoed = request.orderId.startsWith('echo-')
    return {
      orderId: request.orderId,
      paymentId: echoed ? request.currency : `pay-${request.orderId}-${request.amountMinor}`,
      state
    }
  },

  async Refund(request) {
    const state = await decide(request, State.PAYMENT_STATE_REFUNDED)
    return { orderId: request.orderId, paymentId: request.paymentId, state }
  }
}

/** The sample's rules: examples/workers/README.md lists them. */
async function decide({ orderId, amountMinor, currency }, granted) {
  if (amountMinor <= 0) throw badField('amount_minor', 'must be above zero')
  if (currency === 'XXX') {
    const reason = { reason: 'CURRENCY_NOT_SUPPORTED', domain: 'payments.example', metadata: { currency } }
    throw new Refused(code.FAILED_PRECONDITION, `currency ${currency} is not supported`, ['ErrorInfo', reason])
  }
  if (orderId.startsWith('slow-')) await sleep(SLOW_MS)
  if (orderId.startsWith('crash-')) throw new Error(`the handler broke on order ${orderId}`)
  return orderId.startsWith('declined-') ? State.PAYMENT_STATE_DECLINED : granted
}

/** Handlers by the `grpc-method` header; each takes and returns encoded messages. */
export const methods = new Map(
  Object.entries(handlers).map(([name, handle]) => {
    const { resolvedRequestType, resolvedResponseType } = service.methods[name]
    const call = async payload => {
      const reply = await handle(decode(resolvedRequestType, payload))
      // An empty message is a value of 0 bytes; null is a tombstone.
      return reply === null ? null : Buffer.from(resolvedResponseType.encode(reply).finish())
    }
    return [`/payments.v1.PaymentService/${name}`, call]
  })
)

function decode(type, payload) {
  try {
    return type.decode(payload)
  } catch (error) {
    throw new Refused(code.INVALID_ARGUMENT, `the request does not decode: ${error.message}`)
  }
}
