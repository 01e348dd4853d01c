import assert from 'node:assert/strict';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { pino } from 'pino';
import { eventually } from '../testing/eventually.ts';
import { ApiError } from './api-error.ts';
import { Client, WATCH_SILENCE_MILLISECONDS } from './client.ts';
import { EventRecorder } from './event-recorder.ts';
import { mergePatch } from './merge-patch.ts';
import { defineResource } from './resource.ts';

const things = defineResource('example.dev/v1', 'things');

async function serve(
  t: { after(end: () => Promise<void>): void },
  answer: (request: IncomingMessage & { body: string }, response: ServerResponse, count: number) => unknown,
) {
  const sockets = new Set<Socket>();
  let count = 0;
  const server = createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    await answer(Object.assign(request, { body }), response, ++count);
  });
  server.on('connection', (socket) => sockets.add(socket));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const codes: (number | string)[] = [];
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/prefix`;
  const client = new Client({
    server: url,
    onResponse: (_method, code) => codes.push(code),
  });
  t.after(async () => {
    await client.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return { client, url, sockets, codes };
}

const recorderOptions = { controller: 'c', instance: 'i', log: pino({ level: 'silent' }) };
const subjectNamed = (uid: string) => ({ apiVersion: 'v1', kind: 'Thing', namespace: 'n', name: 'a', uid });
const object = { metadata: { name: 'a', namespace: 'n', uid: 'u', resourceVersion: '1', creationTimestamp: '' } };

test('a client apart does not wait for the connections that others have taken', async (t) => {
  const { client } = await serve(t, ({ url }, response) => {
    if (url!.endsWith('/a')) response.end(JSON.stringify(object)); // the others get no answer
  });
  const apart = client.apart();
  const waiting = Array.from({ length: 40 }, () => client.get(things, 'n', 'b').catch(() => {}));
  await apart.get(things, 'n', 'a');
  await Promise.all([apart.close(), client.close(), ...waiting]);
});

test('requests and watches go through the proxy', async (t) => {
  const { client: direct } = await serve(t, () => assert.fail('a request past the proxy'));
  const seen: string[] = [];
  const proxy = createServer((request, response) => {
    seen.push(request.url!);
    response.end(request.url!.includes('watch') ? '{"type":"BOOKMARK","object":{}}\n' : JSON.stringify(object));
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const uri = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const client = new Client({ server: 'http://k.example/prefix', proxy: uri });
  t.after(async () => {
    await Promise.all([client.close(), direct.close()]);
    proxy.close();
  });
  await client.get(things, 'n', 'a');
  for await (const { type } of client.watch(things, 'n', {}, AbortSignal.timeout(10_000)))
    assert.equal(type, 'BOOKMARK');
  assert.deepEqual(seen, [
    'http://k.example/prefix/apis/example.dev/v1/namespaces/n/things/a',
    'http://k.example/prefix/apis/example.dev/v1/namespaces/n/things?watch=true',
  ]);
});

/** RFC 1928, without authentication, to IPv4 addresses. */
function socksProxy() {
  return createTcpServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      socket.write(Buffer.from([5, 0]));
      socket.once('data', (request) => {
        const target = connect(request.readUInt16BE(8), request.subarray(4, 8).join('.'), () => {
          socket.write(Buffer.from([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]));
          socket.pipe(target).pipe(socket);
        });
        target.on('error', () => socket.destroy());
        socket.on('close', () => target.destroy());
      });
    });
  });
}

test('every request has the time limits of its kind, also through a SOCKS proxy', async (t) => {
  const limits: (number | null)[][] = [];
  const note = (message: unknown) => {
    const { request } = message as { request: { headersTimeout: number | null; bodyTimeout: number | null } };
    limits.push([request.headersTimeout, request.bodyTimeout]);
  };
  subscribe('undici:request:create', note);
  t.after(() => unsubscribe('undici:request:create', note));
  const socks = socksProxy();
  await new Promise<void>((resolve) => socks.listen(0, '127.0.0.1', resolve));
  const proxy = `socks5://127.0.0.1:${(socks.address() as AddressInfo).port}`;
  const { client: direct, url, codes } = await serve(t, (_request, response) => response.end(JSON.stringify(object)));
  const proxied = new Client({ server: url, proxy, onResponse: (_method, code) => codes.push(code) });
  t.after(async () => {
    await proxied.close();
    socks.close();
  });
  for (const client of [direct, proxied]) {
    limits.length = 0;
    const signal = AbortSignal.timeout(60_000);
    await client.get(things, 'n', 'a');
    // What is answered is no line of a watch.
    for await (const _ of client.watch(things, 'n', {}, signal)) break;
    for await (const _ of client.stream('/log', {}, signal)) break;
    assert.deepEqual(limits, [
      [60_000, 60_000],
      [60_000, WATCH_SILENCE_MILLISECONDS],
      [60_000, 0],
    ]);
  }
  assert.deepEqual(codes, [200, 200, 200, 200, 200, 200]);
});

test('many requests share a few connections', async (t) => {
  const { client, sockets } = await serve(t, (request, response) =>
    response.end(JSON.stringify({ ...object, url: request.url })),
  );
  for (let count = 0; count < 20; count++)
    assert.equal(
      ((await client.get(things, 'n', 'a')) as unknown as { url: string }).url,
      '/prefix/apis/example.dev/v1/namespaces/n/things/a',
    );
  // Two, not one: undici opens a second connection while it still reads the end of an answer.
  assert(sockets.size <= 2, `${sockets.size} connections`);
  await Promise.all(Array.from({ length: 200 }, () => client.get(things, 'n', 'a')));
  assert(sockets.size <= 32, `${sockets.size} connections`);
});

test('unknown fields are sent and received unchanged', async (t) => {
  const { client } = await serve(t, (request, response) => response.end(request.body));
  const sent = { ...object, spec: { schedulingGroup: { podGroupName: 'g' }, 'x-anything': [1, null] } };
  assert.deepEqual(await client.create(things, 'n', sent), sent);
});

test('429 and 5xx with Retry-After are tried again, other errors are not', async (t) => {
  const { client, codes } = await serve(t, (_request, response, count) => {
    if (count === 1) response.writeHead(429, { 'retry-after': '0' }).end();
    else if (count === 2) response.writeHead(503, { 'retry-after': '0' }).end();
    else if (count === 3) response.end(JSON.stringify(object));
    else response.writeHead(500).end('oh no');
  });
  assert.deepEqual(await client.create(things, 'n', object), object);
  await assert.rejects(client.create(things, 'n', object), { name: 'ApiError', status: 500, serverMessage: 'oh no' });
  assert.deepEqual(codes, [429, 503, 200, 500]);
});

test('once the guard refuses, nothing is sent: no waiting request and no further try', async (t) => {
  const held: ServerResponse[] = [];
  let received = 0;
  const { client } = await serve(t, (request, response) => {
    received++;
    if (request.url!.endsWith('/busy')) response.writeHead(429, { 'retry-after': '0.2' }).end();
    else held.push(response);
  });
  const over = new AbortController();
  let isOver = false;
  const check = () => {
    if (isOver) throw new Error('no longer the leader');
  };
  const guarded = client.guardedBy({ signal: over.signal, check });
  const refusal = { message: 'no longer the leader' };
  const retried = assert.rejects(guarded.patch(things, 'n', 'busy', object), refusal);
  await eventually(() => assert.equal(received, 1));
  // There are 16 connections, so one waits.
  const creates = Array.from({ length: 17 }, () => guarded.create(things, 'n', object));
  const outcomes = Promise.allSettled(creates);
  await eventually(() => assert.equal(held.length, 16));
  isOver = true;
  const before = received;
  // The answers come before the signal, as in a process that wakes: they free connections.
  for (const response of held.splice(0, 8)) response.end(JSON.stringify(object));
  await retried;
  await assert.rejects(creates[16]!, refusal);
  over.abort();
  const failed = (await outcomes).filter((outcome) => outcome.status === 'rejected');
  assert.deepEqual(
    failed.map(({ reason }) => (reason as Error).message),
    Array<string>(9).fill(refusal.message),
  );
  assert.equal(received, before);
  isOver = false;
});

test('an error has the reason and the message of the server', async (t) => {
  const { client } = await serve(t, (_request, response) =>
    response
      .writeHead(409)
      .end(
        JSON.stringify({ kind: 'Status', reason: 'AlreadyExists', message: 'things "a" already exists', code: 409 }),
      ),
  );
  await assert.rejects(
    client.create(things, 'n', object),
    (error: unknown) =>
      error instanceof ApiError &&
      error.reason === 'AlreadyExists' &&
      error.serverMessage === 'things "a" already exists',
  );
});

test('a watch yields whole lines, however the network splits them', async (t) => {
  const { client } = await serve(t, async (_request, response) => {
    const text = ['ä', 'b']
      .map((name) => `${JSON.stringify({ type: 'ADDED', object: { metadata: { name } } })}\n`)
      .join('');
    for (const byte of Buffer.from(text)) {
      response.write(Buffer.from([byte]));
      await new Promise(setImmediate);
    }
    response.end();
  });
  const found: string[] = [];
  for await (const line of client.watch(things, null, {}, new AbortController().signal))
    if (line.type === 'ADDED') found.push(line.object.metadata.name);
  assert.deepEqual(found, ['ä', 'b']);
});

test('an event that repeats becomes a series, and the events of one object are limited', async (t) => {
  const requests: { method: string; body: { note?: string; series?: { count: number } } }[] = [];
  const { client } = await serve(t, (request, response) => {
    requests.push({ method: request.method!, body: JSON.parse(request.body) as object });
    response.end(request.body);
  });
  const dropped: string[] = [];
  const recorder = new EventRecorder({ client, ...recorderOptions, onDrop: (cause) => dropped.push(cause) });
  const subject = subjectNamed('u');
  const content = { type: 'Normal' as const, reason: 'Made', action: 'Make', message: 'ü'.repeat(2000) };
  recorder.emit(subject, content);
  await recorder.flush();
  for (let count = 0; count < 3; count++) recorder.emit(subject, content);
  await recorder.flush();
  for (let count = 0; count < 36; count++) recorder.emit(subject, content);
  recorder.emit(subjectNamed('other'), content);
  await recorder.flush();
  assert.deepEqual(
    requests.map(({ method, body }) => [method, body.series?.count]),
    [
      ['POST', undefined],
      ['PATCH', 4],
      ['PATCH', 25],
      ['POST', undefined],
    ],
  );
  assert.deepEqual(dropped, Array(15).fill('rate'));
  assert(Buffer.byteLength(requests[0]!.body.note!) <= 1024 && !requests[0]!.body.note!.includes('\uFFFD'));
});

test('while the server does not answer, events wait in a queue of limited length', async () => {
  let sent = 0;
  const never = () => {
    sent++;
    return new Promise<never>(() => {});
  };
  const client = { create: never, patch: never };
  const dropped: string[] = [];
  const recorder = new EventRecorder({ client, ...recorderOptions, onDrop: (cause) => dropped.push(cause) });
  const content = { type: 'Normal' as const, reason: 'Made', action: 'Make', message: 'x' };
  for (let uid = 0; uid < 1200; uid++) recorder.emit(subjectNamed(String(uid)), content);
  assert.deepEqual(dropped, Array(200).fill('queue'));
  // Equal events are one.
  for (let count = 0; count < 10; count++) recorder.emit(subjectNamed('500'), content);
  assert.equal(dropped.length, 200);
  await recorder.flush(50);
  assert.equal(sent, 1);
});

test('events that the server refuses are counted, each of a series by itself', async () => {
  const refuse = async () => {
    throw new ApiError('POST', 403, 'Forbidden', 'the namespace is being terminated');
  };
  const dropped: string[] = [];
  const client = { create: refuse, patch: refuse };
  const recorder = new EventRecorder({ client, ...recorderOptions, onDrop: (cause) => dropped.push(cause) });
  const content = { type: 'Normal' as const, reason: 'Made', action: 'Make', message: 'x' };
  for (const name of ['a', 'b', 'b']) recorder.emit(subjectNamed(name), content);
  await recorder.flush();
  assert.deepEqual(dropped, ['error', 'error', 'error']);
});

test('a merge patch has the changed fields, and null for removed ones', () => {
  const before = { a: 1, gone: 2, deep: { same: [1], other: 1, gone: 3 } };
  assert.deepEqual(mergePatch(before, { a: 1, deep: { same: [1], other: 2 }, more: { x: 1 } }), {
    gone: null,
    deep: { other: 2, gone: null },
    more: { x: 1 },
  });
  assert.deepEqual(mergePatch(before, structuredClone(before)), {});
});
