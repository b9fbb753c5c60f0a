// Opens the page in a headless Chromium and prints what it finds.
//
//   npm run build && node headless.js [--json] [--port 8080] [HOST:PORT]
//
// The page is served here, at http://127.0.0.1:8080, which has to be among the
// gateway's grpc.web_origins. CHROMIUM names another browser.
import { createReadStream } from 'node:fs'
import { createServer } from 'node:http'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { chromium } from 'playwright-core'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean' }, port: { type: 'string', default: '8080' } }
})
const gateway = `http://${positionals[0] ?? '127.0.0.1:50051'}`
const PATIENCE_MS = 60_000

const FILES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/dist/client.js': ['dist/client.js', 'text/javascript; charset=utf-8']
}
const server = createServer((request, response) => {
  const [file, type] = FILES[new URL(request.url, 'http://page').pathname] ?? []
  if (!file) return response.writeHead(404).end()
  response.writeHead(200, { 'content-type': type })
  createReadStream(fileURLToPath(new URL(file, import.meta.url))).pipe(response)
})
server.listen(Number(values.port), '127.0.0.1')
await once(server, 'listening')

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  // As root, which containers are, there is no sandbox.
  chromiumSandbox: process.getuid() !== 0,
  args: ['--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
})
let failed = false
try {
  const page = await browser.newPage()
  page.on('pageerror', error => console.error(error))
  page.on('console', message => {
    const text = message.text()
    if (message.type() !== 'log') console.error(text)
    else if (values.json) console.log(text)
    else console.log(JSON.parse(text))
  })
  if (values.json) console.log(JSON.stringify({ case: 'browser', version: browser.version() }))
  await page.goto(`http://127.0.0.1:${values.port}/?gateway=${encodeURIComponent(gateway)}`)
  await page.waitForFunction(() => ['done', 'failed'].includes(document.title), undefined, { timeout: PATIENCE_MS })
  failed = (await page.title()) === 'failed'
} finally {
  await browser.close()
  server.close()
}
process.exitCode = failed ? 1 : 0
