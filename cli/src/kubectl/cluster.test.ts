import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Cluster } from './cluster.ts';

test('what a proxy answers in place of the API server is said once', async (t) => {
  const proxy = createServer();
  proxy.on('connect', (_request, socket) => socket.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n'));
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-cluster-'));
  const kubeconfig = join(folder, 'config');
  const uri = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const config = {
    'current-context': 'c',
    contexts: [{ name: 'c', context: { cluster: 'k', user: 'u' } }],
    users: [{ name: 'u', user: { token: 't' } }],
    clusters: [{ name: 'k', cluster: { server: 'https://k8s.example:6443', 'proxy-url': uri } }],
  };
  await writeFile(kubeconfig, JSON.stringify(config));
  const cluster = await Cluster.open({ kubeconfig });
  t.after(async () => {
    await cluster.close();
    proxy.close();
    await rm(folder, { recursive: true });
  });
  const error = (await cluster.jobs().catch((thrown: unknown) => thrown)) as Error;
  assert.equal(
    error.message,
    'context c (https://k8s.example:6443): cannot be reached: Proxy response (407) !== 200 when HTTP Tunneling; ' +
      'choose by --context',
  );
  // The program puts the errors of all its commands into words.
  assert.equal(cluster.words('the API server', error), error);
});
