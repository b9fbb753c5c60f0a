// Messages in, messages out: protobuf or JSON.
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

type Handle<Request> = (request: Request) => Promise<object | null>

const types = (name: string) => {
  const { resolvedRequestType, resolvedResponseType } = (service as protobuf.Service).methods[name]!
  return { request: resolvedRequestType!, reply: resolvedResponseType! }
}

/** `handle` as a function of bytes. An empty message is a Buffer of 0 bytes; null stays null. */
export function overBytes<Request>(name: string, handle: Handle<Request>) {
  const type = types(name)
  return async (payload: Buffer): Promise<Buffer | null> => {
    const reply = await handle(understood(() => type.request.decode(payload)) as Request)
    return reply === null ? null : Buffer.from(type.reply.encode(reply).finish())
  }
}

/** `handle` as a function of proto3 JSON, which Nest parses and writes. */
export function overJson<Request>(name: string, handle: Handle<Request>) {
  const type = types(name)
  return async (payload: object): Promise<object | null> => {
    const reply = await handle(understood(() => type.request.fromObject(payload)) as Request)
    return reply === null ? null : type.reply.toObject(type.reply.fromObject(reply), { longs: String, enums: String })
  }
}

function understood(decode: () => unknown) {
  try {
    return decode()
  } catch (error) {
    throw new Refused(Code.INVALID_ARGUMENT, `the request does not decode: ${(error as Error).message}`)
  }
}
