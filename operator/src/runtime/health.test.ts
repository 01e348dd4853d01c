import assert from 'node:assert/strict';
import { networkInterfaces } from 'node:os';
import { test } from 'node:test';
import { Registry } from 'prom-client';
import { HealthServer } from './health.ts';

test('each probe fails by its own checks, names them, and recovers with them', async (t) => {
  const problems: Record<string, string | undefined> = { workers: undefined, Pod: 'not listed yet' };
  const check = (name: string) => () => problems[name];
  const server = new HealthServer({
    host: '127.0.0.1',
    port: 0,
    registry: new Registry(),
    alive: { workers: check('workers') },
    ready: { Pod: check('Pod'), Service: check('Service') },
  });
  const address = `http://127.0.0.1:${await server.listen()}`;
  t.after(() => server.close());
  const probe = async (path: string) => {
    const answer = await fetch(`${address}${path}`);
    return [answer.status, await answer.text()];
  };
  assert.deepEqual(await probe('/readyz'), [503, '[-]Pod not listed yet\n[+]Service ok\n']);
  assert.deepEqual(await probe('/healthz'), [200, '[+]workers ok\n']);
  Object.assign(problems, { Pod: undefined, workers: 'a reconcile has been running for 601 s' });
  assert.deepEqual(await probe('/readyz'), [200, '[+]Pod ok\n[+]Service ok\n']);
  assert.deepEqual(await probe('/healthz'), [503, '[-]workers a reconcile has been running for 601 s\n']);
});

test('without a host, IPv4 and IPv6 are answered', async (t) => {
  const server = new HealthServer({ port: 0, registry: new Registry(), alive: {}, ready: {} });
  const port = await server.listen();
  t.after(() => server.close());
  const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
    addresses?.some(({ address }) => address === '::1'),
  );
  if (!hasIpv6) t.diagnostic('::1 is not tested: this machine has no such address');
  for (const address of ['127.0.0.1', ...(hasIpv6 ? ['[::1]'] : [])])
    assert.equal((await fetch(`http://${address}:${port}/healthz`)).status, 200, address);
});

test('metrics that cannot be collected fail only their own request', async (t) => {
  const registry = new Registry();
  registry.metrics = () => Promise.reject(new Error('no'));
  const server = new HealthServer({ host: '127.0.0.1', port: 0, registry, alive: {}, ready: {} });
  const address = `http://127.0.0.1:${await server.listen()}`;
  t.after(() => server.close());
  assert.equal((await fetch(`${address}/metrics`)).status, 500);
  assert.equal((await fetch(`${address}/healthz`)).status, 200);
});

test('a port in use is an error at the start', async (t) => {
  const first = new HealthServer({ host: '127.0.0.1', port: 0, registry: new Registry(), alive: {}, ready: {} });
  const port = await first.listen();
  t.after(() => first.close());
  await assert.rejects(
    new HealthServer({ host: '127.0.0.1', port, registry: new Registry(), alive: {}, ready: {} }).listen(),
    { code: 'EADDRINUSE' },
  );
});
