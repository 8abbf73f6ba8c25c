// What users of E2B's JavaScript SDK do, one scenario a run: `node scenarios.mjs "the name"`.
// CLIENTS names the folder whose node_modules holds the SDK.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

const sdk = await import(pathToFileURL(join(process.env.CLIENTS, 'node_modules/e2b/dist/index.mjs')))
const { AuthenticationError, CommandExitError, FileNotFoundError, NotFoundError, Sandbox, SandboxError, TimeoutError } = sdk

const scenarios = new Map()
const made = []

function scenario(name, body) {
  scenarios.set(name, body)
}

async function create(options = {}) {
  const sandbox = await Sandbox.create('base', { timeoutMs: 60_000, ...options })
  made.push(sandbox)
  return sandbox
}

async function until(probe, what) {
  for (const deadline = Date.now() + 15_000; Date.now() < deadline; await pause(20)) {
    const found = await probe()
    if (found) return found
  }
  assert.fail(`it did not happen within 15 s: ${what}`)
}

async function listed(paginator) {
  const found = []
  while (paginator.hasNext) found.push(...(await paginator.nextItems()))
  return found
}

async function get(url, headers) {
  const request = http.get(url, { headers })
  const [response] = await once(request, 'response')
  const chunks = []
  for await (const chunk of response) chunks.push(chunk)
  return { status: response.statusCode, body: Buffer.concat(chunks).toString() }
}

scenario('a template is built from files, commands and a service', async () => {
  const { Template, waitForPort } = sdk
  const folder = mkdtempSync(join(tmpdir(), 'template-'))
  try {
    mkdirSync(join(folder, 'app/inner'), { recursive: true })
    writeFileSync(join(folder, 'app/inner/data'), 'data')
    const template = Template({ fileContextPath: folder })
      .fromBaseImage()
      .setEnvs({ FOO: 'bar' })
      .copy('app', '/srv/app')
      .runCmd('echo $FOO > ~/index.html')
      .setStartCmd('python3 -m http.server 8000', waitForPort(8000))
    const heard = []
    await Template.build(template, 'js-built:v1', { onBuildLogs: (entry) => void heard.push(entry.message) })
    assert.ok(heard.some((line) => line.includes('COPY app /srv/app')))
    assert.equal(await Template.exists('js-built'), true)
    const sandbox = await Sandbox.create('js-built:v1')
    made.push(sandbox)
    const done = await sandbox.commands.run('cat /srv/app/inner/data; curl -s localhost:8000/index.html')
    assert.equal(done.stdout, 'databar\n')
    const failing = Template().fromBaseImage().runCmd('exit 7')
    await assert.rejects(Template.build(failing, 'js-failing'), /failed to run command 'exit 7': exit status 7/)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

scenario('a command gives its output, its errors and its exit code', async () => {
  const sandbox = await create({ envs: { GREETING: 'hello' } })
  const seen = []
  const done = await sandbox.commands.run('echo $GREETING $MORE; echo oops >&2; pwd', {
    envs: { MORE: 'world' },
    cwd: '/tmp',
    onStdout: (text) => void seen.push(text),
  })
  assert.deepEqual([done.exitCode, done.stdout, done.stderr], [0, 'hello world\n/tmp\n', 'oops\n'])
  assert.equal(seen.join(''), done.stdout)
  assert.equal((await sandbox.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
  await assert.rejects(sandbox.commands.run('echo out; exit 3'), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout], [3, 'out\n'])
    return true
  })
})

scenario('a background command is listed, joined and killed', async () => {
  const sandbox = await create()
  const sleeper = await sandbox.commands.run('sleep 60', { background: true })
  assert.deepEqual((await sandbox.commands.list()).map((each) => each.pid), [sleeper.pid])
  const joined = await sandbox.commands.connect(sleeper.pid)
  assert.equal(await sleeper.kill(), true)
  await assert.rejects(joined.wait(), CommandExitError)
  assert.equal(await sandbox.commands.kill(sleeper.pid + 1000), false)
  await assert.rejects(sandbox.commands.connect(sleeper.pid + 1000), NotFoundError)
})

scenario('a command reads what it is sent until its input is closed', async () => {
  const sandbox = await create()
  const reader = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(reader.pid, 'one\n')
  await sandbox.commands.sendStdin(reader.pid, 'zwei ü\n')
  await sandbox.commands.closeStdin(reader.pid)
  assert.equal((await reader.wait()).stdout, 'one\nzwei ü\n')
})

scenario('a command that takes too long is ended with a timeout', async () => {
  const sandbox = await create()
  await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 400 }), TimeoutError)
  await until(async () => (await sandbox.commands.list()).length === 0, 'the command is gone')
})

scenario('two hundred commands at once all answer', async () => {
  const sandbox = await create()
  const numbers = Array.from({ length: 200 }, (_, number) => number)
  const done = await Promise.all(numbers.map((number) => sandbox.commands.run(`echo ${number}`)))
  assert.deepEqual(done.map((each) => each.stdout), numbers.map((number) => `${number}\n`))
})

scenario('files are written and read in every form', async () => {
  const { files } = await create()
  const text = 'line\nü€😀\n'
  const written = await files.write('notes/a b.txt', text)
  assert.deepEqual([written.path, written.name, written.type], ['/home/user/notes/a b.txt', 'a b.txt', 'file'])
  assert.equal(await files.read('notes/a b.txt'), text)
  assert.equal(Buffer.from(await files.read('notes/a b.txt', { format: 'bytes' })).toString(), text)
  assert.equal(await (await files.read('notes/a b.txt', { format: 'blob' })).text(), text)
  const large = Buffer.alloc(5_000_000, 'firkin')
  await files.write('blob', new Blob([large]))
  await files.write('stream', new Blob([large]).stream())
  await files.write('packed', new Blob([large]), { gzip: true })
  await files.write('octets', new Blob([large]), { useOctetStream: true })
  for (const name of ['blob', 'stream', 'packed', 'octets']) {
    const chunks = []
    for await (const chunk of await files.read(name, { format: 'stream' })) chunks.push(chunk)
    assert.ok(Buffer.concat(chunks).equals(large), name)
  }
  const many = await files.write([{ path: 'm/1', data: 'one' }, { path: '/tmp/m2', data: new Blob(['two']) }])
  assert.deepEqual(many.map((each) => each.path), ['/home/user/m/1', '/tmp/m2'])
})

scenario('files are listed, described, moved and removed', async () => {
  const { files } = await create()
  await files.write('work/one', '1', { metadata: { author: 'me' } })
  assert.equal(await files.makeDir('work/deep/er'), true)
  assert.equal(await files.makeDir('work/deep/er'), false)
  assert.deepEqual((await files.list('work')).map((each) => [each.name, each.type]), [['deep', 'dir'], ['one', 'file']])
  const info = await files.getInfo('work/one')
  assert.deepEqual([info.size, info.permissions, info.owner, info.metadata], [1, '-rw-r--r--', 'user', { author: 'me' }])
  assert.equal((await files.rename('work/one', 'work/two')).path, '/home/user/work/two')
  assert.deepEqual([await files.exists('work/one'), await files.exists('work/two')], [false, true])
  await files.remove('work')
  await assert.rejects(files.read('work/two'), FileNotFoundError)
  await assert.rejects(files.list('work'), FileNotFoundError)
  await assert.rejects(files.write('x', 'y', { user: 'nobody-here' }), AuthenticationError)
})

scenario('a watcher tells of what happens below', async () => {
  const { files } = await create()
  await files.makeDir('watched')
  const seen = []
  const watcher = await files.watchDir('watched', (event) => void seen.push(`${event.type} ${event.name}`), {
    recursive: true,
  })
  await files.makeDir('watched/inner')
  await files.write('watched/inner/file', 'x')
  await files.remove('watched/inner/file')
  await until(() => seen.includes('remove inner/file'), `a removal among ${seen}`)
  assert.ok(seen.includes('create inner') && seen.includes('write inner/file'), `${seen}`)
  await watcher.stop()
  await assert.rejects(files.watchDir('not-there', () => {}), FileNotFoundError)
})

scenario('a terminal is resized, interrupted and left', async () => {
  const sandbox = await create()
  let shown = ''
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => (shown += Buffer.from(data)) })
  const type = (text) => sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode(text))
  await sandbox.pty.resize(terminal.pid, { cols: 99, rows: 33 })
  await type('stty size\n')
  await until(() => shown.includes('33 99'), `the size in ${shown}`)
  await type(`sh -c 'printf "a%s\\n" wake; exec sleep 60'\n`)
  await until(() => shown.includes('awake'), `a program in ${shown}`)
  await type('\x03')
  await type('echo interrupted $?\n')
  await until(() => shown.includes('interrupted 130'), `the end of sleep in ${shown}`)
  await type('exit 0\n')
  assert.equal((await terminal.wait()).exitCode, 0)
  const other = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} })
  assert.equal(await sandbox.pty.kill(other.pid), true)
})

scenario('sandboxes are listed by metadata and in pages, the newest first', async () => {
  const metadata = { purpose: 'pages & more=ü' }
  const three = [await create({ metadata }), await create({ metadata }), await create({ metadata })]
  const pages = Sandbox.list({ query: { metadata }, limit: 2 })
  const first = await pages.nextItems()
  assert.deepEqual([first.length, pages.hasNext], [2, true])
  const all = [...first, ...(await listed(pages))]
  assert.deepEqual(all.map((each) => each.sandboxId), three.map((each) => each.sandboxId).reverse())
  assert.deepEqual(await listed(Sandbox.list({ query: { metadata: { purpose: 'other' } } })), [])
  const info = await three[0].getInfo()
  assert.deepEqual([info.state, info.templateId, info.metadata], ['running', 'base', metadata])
})

scenario('a sandbox ends at its timeout', async () => {
  const sandbox = await create()
  const before = await sandbox.getInfo()
  await sandbox.setTimeout(120_000)
  assert.ok((await sandbox.getInfo()).endAt - before.endAt > 50_000)
  await sandbox.setTimeout(300)
  await until(async () => !(await sandbox.isRunning()), 'the end')
  assert.equal(await sandbox.kill(), false)
  await assert.rejects(sandbox.getInfo(), NotFoundError)
})

scenario('a kill ends what runs and is told apart from other ends', async () => {
  const sandbox = await create()
  const running = assert.rejects(sandbox.commands.run('echo up; sleep 60', { onStdout: () => sandbox.kill() }), /was killed/)
  await running
  assert.equal(await sandbox.isRunning(), false)
  assert.equal(await sandbox.kill(), false)
  await assert.rejects(Sandbox.connect(sandbox.sandboxId), NotFoundError)
})

scenario('a second client connects by id', async () => {
  const sandbox = await create()
  await sandbox.files.write('here', 'same place')
  const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 60_000 })
  assert.equal(await again.files.read('here'), 'same place')
})

scenario('signed addresses let a file in and out, and expire', async () => {
  const sandbox = await create()
  const form = new FormData()
  form.append('file', 'file content')
  const sent = await fetch(await sandbox.uploadUrl('up.txt', { useSignatureExpiration: 60 }), { method: 'POST', body: form })
  assert.deepEqual([sent.status, await sent.json()], [200, [{ path: '/home/user/up.txt', name: 'up.txt', type: 'file' }]])
  const got = await fetch(await sandbox.downloadUrl('up.txt'))
  assert.deepEqual([got.status, await got.text()], [200, 'file content'])
  const late = await fetch(await sandbox.downloadUrl('up.txt', { useSignatureExpiration: -60 }))
  assert.deepEqual([late.status, await late.json()], [401, { code: 401, message: 'signature is already expired' }])
  const forged = await fetch((await sandbox.downloadUrl('up.txt')).replace('up.txt', '.bashrc'))
  assert.equal(forged.status, 401)
})

scenario('a service inside is reached by its host name and by headers', async () => {
  const sandbox = await create()
  await sandbox.files.write('site/index.html', 'from inside')
  const server = 'python3 -m http.server --directory site --bind 127.0.0.1 8000'
  await sandbox.commands.run(server, { background: true })
  const host = sandbox.getHost(8000)
  assert.equal(host, `8000-${sandbox.sandboxId}.${process.env.E2B_DOMAIN}`)
  const page = await until(async () => {
    const answer = await get(process.env.E2B_API_URL, { host })
    return answer.status === 200 && answer
  }, 'an answer of the service')
  assert.equal(page.body, 'from inside')
  const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '8000' }
  assert.equal(await (await fetch(process.env.E2B_API_URL, { headers })).text(), 'from inside')
  const closed = await get(process.env.E2B_API_URL, { host: sandbox.getHost(8001) })
  assert.equal(closed.status, 502)
  assert.deepEqual(JSON.parse(closed.body), {
    code: 502,
    message: 'The sandbox is running but port is not open',
    port: 8001,
    sandboxId: sandbox.sandboxId,
  })
})

scenario('metrics have a point soon', async () => {
  const sandbox = await create()
  const [point] = await until(async () => {
    const points = await sandbox.getMetrics()
    return points.length > 0 && points
  }, 'a point')
  assert.ok(point.cpuCount > 0 && point.memTotal > 0 && point.diskTotal > 0)
})

scenario('a paused sandbox keeps its processes and its files', async () => {
  const sandbox = await create()
  const bootId = (await sandbox.commands.run('cat /proc/sys/kernel/random/boot_id')).stdout
  await sandbox.files.write('/tmp/kept', 'x')
  const counter = await sandbox.commands.run('while :; do sleep 0.05; done', { background: true })
  assert.equal(await sandbox.pause(), true)
  assert.equal(await sandbox.pause(), false)
  assert.equal(await sandbox.isRunning(), false)
  const paused = await listed(Sandbox.list({ query: { state: ['paused'] } }))
  assert.ok(paused.some((each) => each.sandboxId === sandbox.sandboxId))
  await sandbox.connect()
  assert.equal(await sandbox.isRunning(), true)
  assert.equal(await sandbox.files.read('/tmp/kept'), 'x')
  assert.deepEqual((await sandbox.commands.list()).map((each) => each.pid), [counter.pid])
  assert.equal((await sandbox.commands.run('cat /proc/sys/kernel/random/boot_id')).stdout, bootId)
})

scenario('a pause without memory keeps the files only', async () => {
  const sandbox = await create()
  const bootId = (await sandbox.commands.run('cat /proc/sys/kernel/random/boot_id')).stdout
  await sandbox.files.write('kept', 'x')
  await sandbox.commands.run('sleep 60', { background: true })
  await sandbox.pause({ keepMemory: false })
  await sandbox.connect()
  assert.equal(await sandbox.files.read('kept'), 'x')
  assert.deepEqual(await sandbox.commands.list(), [])
  assert.notEqual((await sandbox.commands.run('cat /proc/sys/kernel/random/boot_id')).stdout, bootId)
})

scenario('a sandbox pauses at its timeout and wakes for a request', async () => {
  const sandbox = await create({ timeoutMs: 1_000, lifecycle: { onTimeout: 'pause', autoResume: true } })
  await sandbox.files.write('kept', 'x')
  await until(async () => (await sandbox.getInfo()).state === 'paused', 'the pause')
  assert.equal(await sandbox.files.read('kept'), 'x')
  assert.equal((await sandbox.getInfo()).state, 'running')
})

scenario('a snapshot is listed, used as a template and deleted', async () => {
  const source = await create()
  await source.files.write('state', 'as it was')
  const snapshot = await source.createSnapshot()
  await source.files.write('state', 'changed since')
  const restored = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 })
  made.push(restored)
  assert.equal(await restored.files.read('state'), 'as it was')
  const own = await listed(Sandbox.listSnapshots({ sandboxId: source.sandboxId }))
  assert.deepEqual(own.map((each) => each.snapshotId), [snapshot.snapshotId])
  await restored.kill()
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
  await assert.rejects(Sandbox.create(snapshot.snapshotId), SandboxError)
})

scenario('forks go separate ways from the same place', async () => {
  const source = await create()
  await source.files.write('state', 'common')
  const forks = await source.fork({ count: 2 })
  made.push(...forks)
  assert.equal(new Set([source, ...forks].map((each) => each.sandboxId)).size, 3)
  await Promise.all(forks.map((each, index) => each.files.write('own', `${index}`)))
  const read = (each) => Promise.all([each.files.read('state'), each.files.read('own')])
  assert.deepEqual(await Promise.all(forks.map(read)), [['common', '0'], ['common', '1']])
  assert.equal(await source.files.exists('own'), false)
  const names = await Promise.all([source, ...forks].map((each) => each.commands.run('cat /etc/machine-id')))
  assert.equal(new Set(names.map((each) => each.stdout)).size, 3)
})

const body = scenarios.get(process.argv[2])
assert.ok(body, `no such scenario: ${process.argv[2]}`)
try {
  await body()
} finally {
  await Promise.all(made.map((each) => each.kill()))
}
process.exit(0) // the SDK keeps idle connections, and node waits for them
