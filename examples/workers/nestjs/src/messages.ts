// Encoded messages in, encoded messages out.
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import protobuf from 'protobufjs'
import { Code, Refused } from './status.js'

const PROTO_DIR = process.env.PROTO_DIR ?? fileURLToPath(new URL('../../../../proto', import.meta.url))

const root = new protobuf.Root()
root.resolvePath = (_origin, file) =>
  file.startsWith('google/protobuf/') ? fileURLToPath(import.meta.resolve(`protobufjs/${file}`)) : join(PROTO_DIR, file)
await root.load('payments/v1/payments.proto')
const service = root.lookupService('payments.v1.PaymentService').resolveAll()

/** `service[name]` as a function of bytes. An empty message is a Buffer of 0 bytes; null stays null. */
export function overBytes<Request>(name: string, handle: (request: Request) => Promise<object | null>) {
  const { resolvedRequestType, resolvedResponseType } = (service as protobuf.Service).methods[name]!
  return async (payload: Buffer): Promise<Buffer | null> => {
    const reply = await handle(decode(resolvedRequestType!, payload) as unknown as Request)
    return reply === null ? null : Buffer.from(resolvedResponseType!.encode(reply).finish())
  }
}

function decode(type: protobuf.Type, payload: Buffer) {
  try {
    return type.decode(payload)
  } catch (error) {
    throw new Refused(Code.INVALID_ARGUMENT, `the request does not decode: ${(error as Error).message}`)
  }
}
