import { createHash } from 'node:crypto'
import { type CallHandler, type ExecutionContext, Injectable, Logger, type NestInterceptor, type OnApplicationShutdown } from '@nestjs/common'
import { KafkaContext } from '@nestjs/microservices'
import { EMPTY, Observable, of, tap, throwError } from 'rxjs'
import { Code, Refused } from './status.js'

const ANSWERS_KEPT_MAX = 10_000
const WORTH_ANOTHER_TRY = new Set<number>([Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.UNAVAILABLE])

/** Passes over requests that nobody waits for any longer, and counts. */
@Injectable()
export class RequestInterceptor implements NestInterceptor, OnApplicationShutdown {
  private readonly logger = new Logger(RequestInterceptor.name)
  private handled = 0
  private errors = 0
  private skipped = 0

  intercept(context: ExecutionContext, next: CallHandler): Observable<unknown> {
    const kafka = context.switchToRpc().getContext<KafkaContext>()
    const { headers = {}, offset } = kafka.getMessage()
    const place = `topic=${kafka.getTopic()} partition=${kafka.getPartition()} offset=${offset}`
    const lateMs = Date.now() - Number(headers['grpc-deadline'] ?? Infinity)
    if (lateMs > 0 || 'antiphon-cancel' in headers) {
      this.skipped++
      this.logger.log(`skipped ${place} late_ms=${lateMs}`)
      return EMPTY
    }
    const done = (words: string) => {
      this.handled++
      this.logger.log(`handled ${place} ${words}`)
    }
    return next.handle().pipe(
      tap({
        next: () => done('status=0'),
        error: error => {
          this.errors++
          done(`status=${error instanceof Refused ? error.code : Code.INTERNAL}`)
        }
      })
    )
  }

  onApplicationShutdown() {
    this.logger.log(`stopped handled=${this.handled} errors=${this.errors} skipped=${this.skipped}`)
  }
}

interface Answer { key: unknown; value: object | null; headers: object }
interface Kept { digest: string; answer?: Answer; refused?: Refused }

/** Nest adds the headers of one reply to the object that it is given. */
const copy = (answer: Answer): Answer => ({ ...answer, headers: { ...answer.headers } })

/**
 * A request whose idempotency key was seen gets the answer that was kept. A
 * worker that must not forget keeps them in its database, with what it did.
 */
@Injectable()
export class IdempotencyInterceptor implements NestInterceptor {
  private readonly answers = new Map<string, Kept>()

  intercept(context: ExecutionContext, next: CallHandler<Answer>): Observable<unknown> {
    const kafka = context.switchToRpc().getContext<KafkaContext>()
    const { headers = {} } = kafka.getMessage()
    if (headers['idempotency-key'] === undefined) return next.handle()
    const name = `${headers['grpc-method']} ${headers['idempotency-key']}`
    const data = context.switchToRpc().getData<Buffer | object>()
    const digest = createHash('sha256').update(Buffer.isBuffer(data) ? data : JSON.stringify(data)).digest('hex')
    const kept = this.answers.get(name)
    if (kept && kept.digest !== digest) {
      const words = 'this idempotency-key was sent with another message before'
      return throwError(() => new Refused(Code.INVALID_ARGUMENT, words))
    }
    if (kept) return kept.refused ? throwError(() => kept.refused) : of(copy(kept.answer!))
    return next.handle().pipe(
      tap({
        next: answer => this.keep(name, { digest, answer: copy(answer) }),
        error: error => {
          if (error instanceof Refused && !WORTH_ANOTHER_TRY.has(error.code)) this.keep(name, { digest, refused: error })
        }
      })
    )
  }

  private keep(name: string, kept: Kept) {
    this.answers.set(name, kept)
    if (this.answers.size > ANSWERS_KEPT_MAX) this.answers.delete(this.answers.keys().next().value!)
  }
}
