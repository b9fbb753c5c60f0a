import { setTimeout as sleep } from 'node:timers/promises'
import { Injectable } from '@nestjs/common'
import type Long from 'long'
import { Code, Refused, badField } from './status.js'

export const State = { APPROVED: 1, DECLINED: 2, REFUNDED: 3 } as const
const SLOW_MS = 3000

export interface PayRequest { orderId: string; amountMinor: Long; currency: string }
export interface PayReply { orderId?: string; paymentId?: string; state?: number }
export interface RefundRequest extends PayRequest { paymentId: string }

/** The service: methods that return a reply or throw. Knows nothing of Kafka. */
@Injectable()
export class PaymentsService {
  async pay(request: PayRequest): Promise<PayReply | null> {
    const { orderId, amountMinor, currency } = request
    if (orderId.startsWith('null-')) return null
    if (orderId.startsWith('empty-')) return {}
    const state = await decide(request, State.APPROVED)
    return { orderId, paymentId: orderId.startsWith('echo-') ? currency : `pay-${orderId}-${amountMinor}`, state }
  }

  async refund(request: RefundRequest): Promise<PayReply> {
    const state = await decide(request, State.REFUNDED)
    return { orderId: request.orderId, paymentId: request.paymentId, state }
  }
}

/** The sample's rules: examples/workers/README.md lists them. */
async function decide({ orderId, amountMinor, currency }: PayRequest, granted: number) {
  if (!amountMinor.greaterThan(0)) throw badField('amount_minor', 'must be above zero')
  if (currency === 'XXX') {
    const why = { reason: 'CURRENCY_NOT_SUPPORTED', domain: 'payments.example', metadata: { currency } }
    throw new Refused(Code.FAILED_PRECONDITION, `currency ${currency} is not supported`, ['ErrorInfo', why])
  }
  if (orderId.startsWith('slow-')) await sleep(SLOW_MS)
  if (orderId.startsWith('crash-')) throw new Error(`the handler broke on order ${orderId}`)
  return orderId.startsWith('declined-') ? State.DECLINED : granted
}
