// A gateway as one would write it for Node: grpc-js in front, @platformatic/kafka
// behind, request-reply by hand. Serves echo.v1.EchoService for comparison with
// Antiphon; messages stay the bytes that they are, as they do there.
import { parseArgs } from 'node:util'
import { Server, ServerCredentials } from '@grpc/grpc-js'
import { Exchange } from './exchange.js'

const STOP_WITHIN_MS = 10_000

const { values: given } = parseArgs({
  options: {
    listen: { type: 'string', default: '127.0.0.1:0' },
    'bootstrap-servers': { type: 'string', default: '127.0.0.1:9092' },
    topic: { type: 'string', default: 'echo.v1.EchoService' }
  }
})

const same = bytes => bytes
const echo = {
  Echo: {
    path: '/echo.v1.EchoService/Echo',
    requestStream: false,
    responseStream: false,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same
  }
}

const exchange = new Exchange(given['bootstrap-servers'].split(','), given.topic)
await exchange.start()

const server = new Server()
server.addService(echo, {
  Echo: (call, answer) => exchange.call(echo.Echo.path, call, answer)
})
const port = await new Promise((resolve, reject) => {
  server.bindAsync(given.listen, ServerCredentials.createInsecure(), (error, port) => error ? reject(error) : resolve(port))
})
console.log(`node peer ready grpc=${given.listen.replace(/:\d+$/, '')}:${port}`)

async function stop () {
  const cut = setTimeout(() => server.forceShutdown(), STOP_WITHIN_MS)
  await new Promise(resolve => server.tryShutdown(resolve))
  clearTimeout(cut)
  await exchange.stop()
  process.exit(0)
}
process.once('SIGTERM', stop)
process.once('SIGINT', stop)
