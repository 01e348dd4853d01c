/** `kubectl facetrain fetch` against a real API server and a real object store (versitygw). The kubelet is played. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { ARTIFACT, OUTPUT } from '@facetrain/api';
import { faceTrainJobs, pods } from '@facetrain/operator/controllers/resources';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { ObjectTarget } from '@facetrain/trainer/checkpoint/object-target';
import { serveFiles } from '@facetrain/trainer/program/file-server';
import { digestBytes } from '@facetrain/trainer/storage/digest';
import { ObjectFence } from '@facetrain/trainer/storage/object-fence';
import { ObjectStore } from '@facetrain/trainer/storage/object-store';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '@facetrain/trainer/testing/s3-server';
import { manifestOf, writeFiles } from '@facetrain/trainer/testing/small-checkpoint';
import { freePorts } from '../../../hack/lib/free-ports.mjs';
import { StatusLine } from '../terminal-output.ts';
import { Cluster } from './cluster.ts';
import { fetchResults } from './fetch.ts';

const PROGRAM = join(import.meta.dirname, '..', 'kubectl-facetrain.ts');
const NAMESPACE = 'fetch';
/** Larger than what a connection buffers. */
const MODEL = Buffer.alloc(8 * 2 ** 20, 'model');

let plane: ControlPlane;
let kubeconfig: string;
let server: S3Server;
before(async () => {
  Object.assign(process.env, AWS_ENVIRONMENT);
  [plane, server] = await Promise.all([ControlPlane.start(), startS3Server('faces')]);
  await plane.installCrds();
  await plane.createNamespace(NAMESPACE);
  kubeconfig = await plane.kubeconfig();
});
after(() => Promise.all([plane?.stop(), server?.stop()]));

function folderFor(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'facetrain-fetch-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function run(t: TestContext, ...args: string[]) {
  const child = spawn(process.execPath, [PROGRAM, ...args, '-n', NAMESPACE], {
    env: { ...process.env, KUBECONFIG: kubeconfig },
  });
  t.after(() => void child.kill('SIGKILL'));
  const printed = { stdout: '', stderr: '' };
  child.stdout.on('data', (data) => (printed.stdout += String(data)));
  child.stderr.on('data', (data) => (printed.stderr += String(data)));
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { code, ...printed };
}

const create = (name: string, uri: string, spec: object = {}, s3?: object) =>
  plane.client.create(faceTrainJobs, NAMESPACE, {
    apiVersion: faceTrainJobs.apiVersion,
    kind: 'FaceTrainJob',
    metadata: { name },
    spec: {
      dataset: { uri: 'pvc://data' },
      model: { backbone: 'mobilefacenet' },
      output: { uri, ...(s3 && { s3 }) },
      globalBatchSize: 8,
      ...spec,
    },
  });

/** A job whose results are to be in the store, at `s3://faces/NAME`. */
const createStored = (name: string, endpoint = server.endpoint, spec: object = {}) =>
  create(name, `s3://faces/${name}`, spec, { endpoint, region: 'us-east-1', forcePathStyle: true });

const REPORT = { model: { ...digestBytes(MODEL), path: OUTPUT.model, parameters: 1, embeddingDim: 1 } };
const SCALES = Buffer.from('scales');
const INT7 = { kind: 'facetrain-int7', files: { 'scales.json': digestBytes(SCALES) } };

async function withStore<T>(name: string, work: (store: ObjectStore) => Promise<T>): Promise<T> {
  const store = new ObjectStore({ ...server.address(`s3://faces/${name}`), credentials: null });
  try {
    return await work(store);
  } finally {
    store.close();
  }
}

/** Checkpoints of these steps. */
const writeCheckpoints = (name: string, ...steps: number[]) =>
  withStore(`${name}/${OUTPUT.checkpoints}`, async (store) => {
    const fence = await ObjectFence.claim(store, { name, uid: 'u', attempt: 0, start: randomUUID() });
    const target = new ObjectTarget(fence);
    for (const step of steps) {
      const checkpoint = { step, job: name, rows: Buffer.from(String(step).padStart(8)) };
      await writeFiles(target, checkpoint);
      await target.complete(manifestOf(checkpoint));
    }
    return fence;
  });

test('a checkpoint of a store: the newest, or that of a step; the same again changes nothing', async (t) => {
  const to = join(folderFor(t), 'to');
  await createStored('checkpoints');
  const fence = await writeCheckpoints('checkpoints', 10, 20);
  const newest = await run(t, 'fetch', 'checkpoints', 'checkpoint', '--to', to);
  assert.equal(newest.code, 0, newest.stderr);
  const folder = join(to, 'checkpoints', 'step-0000000020');
  assert.equal(
    newest.stdout,
    `The checkpoint of step 20 of checkpoints is in ${folder}: ` +
      'backbone.safetensors, rows-0000000000.safetensors, manifest.json\n',
  );
  assert.equal(readFileSync(join(folder, 'rows-0000000000.safetensors')).subarray(2).toString(), '      20');
  assert.deepEqual(readdirSync(to), ['checkpoints']);

  const again = await run(t, 'fetch', 'checkpoints', 'checkpoint', '--to', to, '--json');
  assert.equal((JSON.parse(again.stdout) as { wasThere: boolean }).wasThere, true, again.stderr);
  const older = await run(t, 'fetch', 'checkpoints', 'checkpoint', '--to', to, '--step', '10');
  assert.match(older.stdout, /^The checkpoint of step 10 .* is in .*step-0000000010:/);
  const missing = await run(t, 'fetch', 'checkpoints', 'checkpoint', '--to', to, '--step', '11');
  assert.deepEqual(
    [missing.code, missing.stderr],
    [2, 's3://faces/checkpoints/checkpoints: no checkpoint of step 11; --step 20, 10\n'],
  );

  // Bytes that the writer did not write: nothing of them gets a name.
  await withStore('checkpoints/checkpoints', async (store) => {
    await store.put(`step-0000000010/${fence.suffix}/rows-0000000000.safetensors`, Buffer.alloc(10));
  });
  const other = join(folderFor(t), 'other');
  const damaged = await run(t, 'fetch', 'checkpoints', 'checkpoint', '--to', other, '--step', '10');
  assert.equal(damaged.code, 2);
  assert.match(damaged.stderr, /rows-0000000000\.safetensors: the digest [0-9a-f]{64}.*as the manifest says/);
  assert(!existsSync(join(other, 'checkpoints')));
});

test('a model of which the copy was killed goes on where it was, and is there whole or not at all', async (t) => {
  const to = join(folderFor(t), 'to');
  await withStore('killed', async (store) => {
    await store.put(OUTPUT.model, MODEL);
    await store.put(OUTPUT.trainReport, Buffer.from(JSON.stringify(REPORT)));
  });
  const ranges: string[] = [];
  let isWhole = false;
  const proxy = await server.proxy('faces', ({ key, range, body, response }) => {
    if (!key.endsWith(OUTPUT.model)) return void response.end(body);
    ranges.push(range);
    if (isWhole) return void response.end(body);
    response.write(body.subarray(0, body.length / 2)); // and nothing more
  });
  t.after(() => proxy.close());
  await createStored('killed', proxy.endpoint);
  const child = spawn(process.execPath, [PROGRAM, 'fetch', 'killed', '--to', to, '-n', NAMESPACE], {
    env: { ...process.env, KUBECONFIG: kubeconfig },
  });
  t.after(() => void child.kill('SIGKILL'));
  const partial = join(to, '.fetch', 'model', 'model');
  const bytes = () =>
    existsSync(partial) ? readdirSync(partial).map((name) => readFileSync(join(partial, name))) : [];
  await eventually(() => assert.equal(bytes()[0]?.length, MODEL.length / 2), 60_000);
  child.kill('SIGKILL');
  assert.deepEqual(readdirSync(to), ['.fetch']);

  isWhole = true;
  const second = await run(t, 'fetch', 'killed', '--to', to);
  assert.equal(second.code, 0, second.stderr);
  assert.deepEqual(ranges, ['', `bytes=${MODEL.length / 2}-`]);
  assert(readFileSync(join(to, OUTPUT.model)).equals(MODEL));
  assert.deepEqual(readdirSync(to).sort(), ['model', 'train-report.json']);

  writeFileSync(join(to, OUTPUT.model), 'of somebody else');
  const changed = await run(t, 'fetch', 'killed', '--to', to);
  assert.equal(changed.code, 2);
  assert.match(changed.stderr, /a result that was changed .*; another folder, by --to\n$/);
  assert.equal(readFileSync(join(to, OUTPUT.model), 'utf8'), 'of somebody else');
});

test('a store that only the cluster knows is read through another endpoint', async (t) => {
  const to = join(folderFor(t), 'to');
  await withStore('inside', async (store) => {
    await store.put(OUTPUT.model, MODEL);
    await store.put(OUTPUT.trainReport, Buffer.from(JSON.stringify(REPORT)));
  });
  await createStored('inside', 'http://s3.object-store.svc.cluster.invalid:7070');
  const unknown = await run(t, 'fetch', 'inside', '--to', to);
  assert.equal(unknown.code, 2, unknown.stderr);
  assert.match(unknown.stderr, /host name \S+ does not resolve .*an S3 server by a name that is known here/);
  const { code, stderr } = await run(t, 'fetch', 'inside', '--to', to, '--endpoint', server.endpoint);
  assert.equal(code, 0, stderr);
  assert(readFileSync(join(to, OUTPUT.model)).equals(MODEL));
});

/** An address of this machine that the API server connects to: it refuses those of the loopback. */
const ownAddress = () =>
  Object.values(networkInterfaces())
    .flat()
    .find((one) => one && !one.internal && one.family === 'IPv4')?.address;

describe('a volume', () => {
  /** Plays the pod that reads the claim: what its command line would serve is `root`. */
  async function playPod(t: TestContext, root: string): Promise<void> {
    await eventually(async () => {
      const { items } = await plane.client.list(pods, NAMESPACE, {});
      const pod = items?.find(({ metadata }) => metadata.name.includes('-fetch-'));
      assert(pod);
      const { containers } = pod.spec as unknown as {
        containers: { args: string[]; env: { value: string }[]; ports: { containerPort: number }[] }[];
      };
      const [{ args, env, ports }] = containers as [(typeof containers)[0]];
      const served = await serveFiles(join(root, args[2]!), { port: ports[0]!.containerPort, token: env[0]!.value });
      t.after(() => served[Symbol.asyncDispose]());
      const status = { phase: 'Running', podIP: ownAddress(), podIPs: [{ ip: ownAddress() }] };
      await plane.client.patch(pods, NAMESPACE, pod.metadata.name, { status }, 'status');
    }, 60_000);
  }

  async function fetchFromVolume(t: TestContext, job: string, part: string | undefined, to: string, root: string) {
    const cluster = await Cluster.open({ kubeconfig, namespace: NAMESPACE });
    t.after(() => cluster.close());
    const [port] = await freePorts(1);
    const options = { to, port: port!, image: 'registry.example/trainer:1' };
    const fetched = fetchResults(cluster, job, part, options, new StatusLine(), new AbortController().signal);
    await Promise.race([playPod(t, root), fetched]);
    return fetched;
  }

  const skip = ownAddress() === undefined && 'this machine has no address that the API server connects to';

  test('is read through a pod, which is gone afterwards', { skip }, async (t) => {
    const folder = folderFor(t);
    const int7 = join(folder, 'results', 'out', OUTPUT.int7);
    mkdirSync(int7, { recursive: true });
    writeFileSync(join(int7, 'scales.json'), SCALES);
    writeFileSync(join(int7, ARTIFACT.manifest), JSON.stringify(INT7));
    await create('volume', 'pvc://claim/out', { quantize: {} });
    const to = join(folder, 'to');
    const { text } = await fetchFromVolume(t, 'volume', undefined, to, folder);
    assert.equal(text, `The INT7 model of volume is in ${join(to, 'int7')}: scales.json, manifest.json\n`);
    assert.deepEqual(readdirSync(join(to, 'int7')).sort(), ['manifest.json', 'scales.json']);
    await eventually(async () => assert.deepEqual((await plane.client.list(pods, NAMESPACE, {})).items ?? [], []));
  });

  test('without what is asked for, and without a pod that tells the image', { skip }, async (t) => {
    const folder = folderFor(t);
    mkdirSync(join(folder, 'results', 'empty', OUTPUT.checkpoints), { recursive: true });
    await create('empty', 'pvc://claim/empty');
    await assert.rejects(
      fetchFromVolume(t, 'empty', 'checkpoint', join(folder, 'to'), folder),
      /pvc:\/\/claim\/empty\/checkpoints: no checkpoint; one is there after its first interval/,
    );
    await eventually(async () => assert.deepEqual((await plane.client.list(pods, NAMESPACE, {})).items ?? [], []));
    const { code, stderr } = await run(t, 'fetch', 'empty');
    assert.deepEqual(
      [code, stderr],
      [
        2,
        'FaceTrainJob empty: it has no pods any more, which would tell the image; --image with the trainers’ image\n',
      ],
    );
  });
});

test('what is asked for wrongly is answered in words', async (t) => {
  await create('local', 'hostpath:///data/out');
  await createStored('nothing');
  const cases: [string[], RegExp][] = [
    [['local'], /^hostpath:\/\/\/data\/out: a folder of a node; pvc:\/\/ or s3:\/\/; copy it there by other means\n$/],
    [['local', 'int7'], /^FaceTrainJob local: has no spec\.quantize; model or checkpoint\n$/],
    [['local', 'modle'], /^part: modle; model, int7, checkpoint\n$/],
    [['volume', '--endpoint', 'http://s3:1'], /^--endpoint: http:\/\/s3:1 for pvc:\/\/.*; results in s3:\/\/\n$/],
    [['nothing', '--endpoint', 's3:9000'], /'--endpoint <url>' argument 's3:9000' is invalid\. Must be a URL/],
    [['nothing', '--step', '3'], /^--step: 3 with model; checkpoint\n$/],
    [['nothing'], /^s3:\/\/faces\/nothing\/train-report\.json: it is not there; a training that has ended\n$/],
    [['nothing', 'checkpoint'], /no checkpoint; one is there after its first interval\n$/],
  ];
  for (const [args, want] of cases) {
    const { code, stderr } = await run(t, 'fetch', ...args, '--to', join(folderFor(t), 'to'));
    assert.equal(code, 2, args.join(' '));
    assert.match(stderr, want);
  }
});
