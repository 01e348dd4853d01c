/** Copies from a volume, of which the pod and the API server are played, to a machine on which something is wrong. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ARTIFACT } from '@facetrain/api';
import { ApiError } from '@facetrain/operator/runtime/api-error';
import { digestBytes } from '@facetrain/trainer/storage/digest';
import { StatusLine } from '../terminal-output.ts';
import { Cluster } from './cluster.ts';
import { fetchResults } from './fetch.ts';

const SCALES = Buffer.from('scales');
const FILES: Record<string, Buffer> = {
  'scales.json': SCALES,
  [ARTIFACT.manifest]: Buffer.from(
    JSON.stringify({ kind: 'facetrain-int7', files: { 'scales.json': digestBytes(SCALES) } }),
  ),
};

const KUBECONFIG = JSON.stringify({
  'current-context': 'c',
  contexts: [{ name: 'c', context: { cluster: 'k', user: 'u' } }],
  clusters: [{ name: 'k', cluster: { server: 'https://k8s.example' } }],
  users: [{ name: 'u', user: { token: 'secret' } }],
});

/** @param answer the bytes of a file from a position on, as it is asked for the first, second … time */
async function play(t: TestContext, answer: (file: string, time: number, from: number) => Iterable<Buffer>) {
  const folder = mkdtempSync(join(tmpdir(), 'facetrain-volume-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const asked = new Map<string, number>();
  const pod = { metadata: { name: 'faces-fetch-1', uid: 'pod' }, status: { phase: 'Running' } };
  let deleted = 0;
  const kubeconfig = join(folder, 'config');
  writeFileSync(kubeconfig, KUBECONFIG);
  const cluster = await Cluster.open({ kubeconfig });
  await cluster.close();
  Object.assign(cluster, {
    job: async () => ({
      metadata: { name: 'faces', uid: 'job' },
      spec: { output: { uri: 'pvc://claim' }, quantize: {} },
    }),
    pods: async () => [],
    client: {
      create: async () => pod,
      get: async () => pod,
      delete: async () => deleted++,
      async *stream(path: string, { from = 0 }: { from?: number }) {
        const name = /\/proxy\/[0-9a-f]{32}\/(.*)$/.exec(path)![1]!;
        if (name === 'list') return void (yield Buffer.from('[]'));
        const time = (asked.get(name) ?? 0) + 1;
        asked.set(name, time);
        yield* answer(name.replace('files/', ''), time, from);
      },
    },
  });
  return {
    folder,
    asked,
    fetch: (to: string) =>
      fetchResults(cluster, 'faces', 'int7', { to, image: 'i' }, new StatusLine(), new AbortController().signal),
    deleted: () => deleted,
  };
}

test('a full disk and a folder that cannot be made are called so, at once, and the pod is deleted', async (t) => {
  const { folder, asked, fetch, deleted } = await play(t, (file) => [FILES[file]!]);
  const staging = join(folder, 'full', '.fetch', 'int7');
  mkdirSync(staging, { recursive: true });
  symlinkSync('/dev/full', join(staging, 'scales.json.partial'));
  await assert.rejects(fetch(join(folder, 'full')), { code: 'DiskFull' });
  assert.equal(asked.get('files/scales.json'), 1);
  assert(!existsSync(join(folder, 'full', 'int7')));

  writeFileSync(join(folder, 'file'), '');
  await assert.rejects(fetch(join(folder, 'file', 'to')), { code: 'StorageFailed', found: /ENOTDIR/ });
  assert.equal(deleted(), 2);
});

test('a connection that breaks is made again, from the bytes that are there', async (t) => {
  const positions: number[] = [];
  const { folder, fetch } = await play(t, (file, time, from) => {
    if (file !== 'scales.json') return [FILES[file]!];
    positions.push(from);
    return (function* () {
      yield SCALES.subarray(from, from + 2);
      if (time === 1) throw Object.assign(new Error('reset'), { code: 'ECONNRESET' });
      if (time === 2) throw new ApiError('GET', 503, undefined, 'no endpoint');
      yield SCALES.subarray(from + 2);
    })();
  });
  await fetch(folder);
  assert.deepEqual(positions, [0, 2, 4]);
  assert.deepEqual(readFileSync(join(folder, 'int7', 'scales.json')), SCALES);
});
