import { type ArgumentsHost, Catch, Logger, type RpcExceptionFilter } from '@nestjs/common'
import { KafkaContext } from '@nestjs/microservices'
import { of } from 'rxjs'
import { Refused, errorHeaders } from './status.js'

/**
 * Answers whatever a handler throws with code, text and details. Without it
 * Nest answers in its own way, in `kafka_nest-err`: "Internal server error" and
 * no more.
 */
// ANCHOR: filter
@Catch()
export class GrpcExceptionFilter implements RpcExceptionFilter {
  private readonly logger = new Logger(GrpcExceptionFilter.name)

  catch(error: unknown, host: ArgumentsHost) {
    if (!(error instanceof Refused)) this.logger.error(error)
    const { key } = host.switchToRpc().getContext<KafkaContext>().getMessage()
    return of({ key, value: Buffer.alloc(0), headers: errorHeaders(error) })
  }
}
// ANCHOR_END: filter
