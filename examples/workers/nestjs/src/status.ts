// Errors as gRPC has them: google.rpc.Status with details, in three headers.
import { RpcException } from '@nestjs/microservices'
import protobuf from 'protobufjs'

export const Code = {
  INVALID_ARGUMENT: 3,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14
} as const

type Detail = [name: string, fields: object]

// What we use of googleapis' google/rpc/{status,error_details}.proto.
const { root } = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest {
    message FieldViolation { string field = 1; string description = 2; }
    repeated FieldViolation field_violations = 1;
  }`)
const Status = root.lookupType('google.rpc.Status')

/** What the gRPC caller shall get; code and text even without our filter. */
export class Refused extends RpcException {
  readonly details: Detail[]

  constructor(readonly code: number, message: string, ...details: Detail[]) {
    super({ code, message })
    this.details = details
  }
}

export function badField(field: string, description: string) {
  return new Refused(
    Code.INVALID_ARGUMENT,
    `${field}: ${description}`,
    ['BadRequest', { fieldViolations: [{ field, description }] }],
    ['ErrorInfo', { reason: 'FIELD_INVALID', domain: 'payments.example', metadata: { field } }]
  )
}

/** The reply headers that say an error; whatever was not meant for the caller is INTERNAL. */
export function errorHeaders(error: unknown): Record<string, string> {
  const refused = error instanceof Refused ? error : new Refused(Code.INTERNAL, `${error}`)
  const headers: Record<string, string> = {
    'grpc-status': String(refused.code),
    'grpc-message': encodeURIComponent(refused.message)
  }
  if (refused.details.length > 0) {
    const details = refused.details.map(([name, fields]) => {
      const type = root.lookupType(`google.rpc.${name}`)
      return { typeUrl: `type.googleapis.com/google.rpc.${name}`, value: type.encode(fields).finish() }
    })
    const status = Status.encode({ code: refused.code, message: refused.message, details }).finish()
    headers['grpc-status-details-bin'] = Buffer.from(status).toString('base64')
  }
  return headers
}
