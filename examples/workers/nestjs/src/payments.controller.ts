import { Controller, UseFilters, UseInterceptors } from '@nestjs/common'
import { Ctx, KafkaContext, MessagePattern, Payload } from '@nestjs/microservices'
import { GrpcExceptionFilter } from './grpc-exception.filter.js'
import { IdempotencyInterceptor, RequestInterceptor } from './interceptors.js'
import { overBytes, overJson } from './messages.js'
import { type PayRequest, PaymentsService, type RefundRequest } from './payments.service.js'
import { settings } from './settings.js'
import { Code, Refused } from './status.js'

/** Requests in, replies out; Nest answers where the request's headers say. */
@Controller()
@UseFilters(...(settings.answerErrors ? [GrpcExceptionFilter] : []))
@UseInterceptors(RequestInterceptor, IdempotencyInterceptor)
export class PaymentsController {
  private readonly methods: Map<string, (payload: never) => Promise<object | null>>

  constructor(payments: PaymentsService) {
    const over = settings.json ? overJson : overBytes
    this.methods = new Map([
      ['/payments.v1.PaymentService/Pay', over('Pay', (request: PayRequest) => payments.pay(request))],
      ['/payments.v1.PaymentService/Refund', over('Refund', (request: RefundRequest) => payments.refund(request))]
    ])
  }

  // ANCHOR: handler
  @MessagePattern(settings.topic)
  async answer(@Payload() payload: Buffer | object, @Ctx() context: KafkaContext) {
    const { key, headers = {} } = context.getMessage()
    const method = this.methods.get(`${headers['grpc-method']}`)
    if (!method) throw new Refused(Code.UNIMPLEMENTED, `this worker does not serve ${headers['grpc-method']}`)
    // What the caller's infrastructure sent along goes back; the gateway's allow-list decides.
    const along = Object.entries(headers).filter(([name]) => name.startsWith('x-'))
    return { key, value: await method(payload as never), headers: Object.fromEntries(along) }
  }
  // ANCHOR_END: handler
}
