// Errors as gRPC has them: google.rpc.Status with details, in three headers.
import protobuf from 'protobufjs'

export const code = {
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14
}

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

/** What the gRPC caller shall get. */
export class Refused extends Error {
  /** @param details pairs of a message's name in google.rpc and its fields */
  constructor(code, message, ...details) {
    super(message)
    this.code = code
    this.details = details
  }
}

export function badField(field, description) {
  return new Refused(
    code.INVALID_ARGUMENT,
    `${field}: ${description}`,
    ['BadRequest', { fieldViolations: [{ field, description }] }],
    ['ErrorInfo', { reason: 'FIELD_INVALID', domain: 'payments.example', metadata: { field } }]
  )
}

/** The reply headers that say an error; whatever was not meant for the caller is INTERNAL. */
export function errorHeaders(error) {
  const refused = error instanceof Refused ? error : new Refused(code.INTERNAL, `${error}`)
  const headers = {
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
