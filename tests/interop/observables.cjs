// A NestJS worker whose handler returns observables: echo.v1.EchoService/EchoMany,
// in JSON. The payload says what comes: "now 3" is three values at once, "slow 3"
// one every 20 ms, "fail 2" two and an error, "none" nothing, else one value.
// With the modules of examples/workers/nestjs, whose folder is the first argument.
const { createRequire } = require('node:module')
const load = createRequire(`${process.argv[2]}/package.json`)
load('reflect-metadata')
const { Controller, Module } = load('@nestjs/common')
const { NestFactory } = load('@nestjs/core')
const { MessagePattern, Payload, RpcException, Transport } = load('@nestjs/microservices')
const { EMPTY, concat, from, interval, map, take, throwError } = load('rxjs')

const encode = (text) => ({ payload: Buffer.from(String(text)).toString('base64') })
const atOnce = (count) => from(Array.from({ length: count }, (_, number) => encode(number)))
const oneByOne = (count) => interval(20).pipe(take(count), map(encode))
const failure = () => throwError(() => new RpcException({ code: 9, message: 'no more' }))

class Echoes {
  many (request) {
    const [how, count] = Buffer.from(request.payload, 'base64').toString().split(' ')
    switch (how) {
      case 'now': return atOnce(Number(count))
      case 'slow': return oneByOne(Number(count))
      case 'fail': return concat(atOnce(Number(count)), failure())
      case 'slowfail': return concat(oneByOne(Number(count)), failure())
      case 'none': return EMPTY
      default: return encode(how)
    }
  }
}

// Decorators by hand: there is nothing to compile.
const method = Object.getOwnPropertyDescriptor(Echoes.prototype, 'many')
MessagePattern(process.env.KAFKA_TOPIC)(Echoes.prototype, 'many', method)
Payload()(Echoes.prototype, 'many', 0)
Controller()(Echoes)
class Worker {}
Module({ controllers: [Echoes] })(Worker)

async function main () {
  const app = await NestFactory.createMicroservice(Worker, {
    transport: Transport.KAFKA,
    options: {
      client: { clientId: 'observables', brokers: process.env.KAFKA_BOOTSTRAP.split(',') },
      consumer: { groupId: process.env.KAFKA_GROUP },
      subscribe: { fromBeginning: true }
    }
  })
  await app.listen()
  console.log('listening')
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
