import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { freePorts } from '../../hack/lib/free-ports.mjs';
import { faceTrainJobs, pods } from './controllers/resources.ts';
import { leases } from './runtime/leader-election.ts';
import { ControlPlane } from './testing/control-plane.ts';
import { eventually } from './testing/eventually.ts';
import { FaultProxy } from './testing/fault-proxy.ts';

const program = join(import.meta.dirname, 'main.ts');

const refusals: Record<string, { args: string[]; want: RegExp }> = {
  'no image': { args: [], want: /--image: missing/ },
  'a count that is not positive': {
    args: ['--image', 'i', '--lease-namespace', 'none', '--workers', '0'],
    want: /--workers: 0; must be a whole number from 1 to 256/,
  },
  'no namespace for the lease': { args: ['--image', 'i'], want: /--lease-namespace: missing/ },
  'an unknown option': { args: ['--imagine', 'i'], want: /--imagine/ },
};
for (const [name, { args, want }] of Object.entries(refusals)) {
  test(`refused: ${name}`, () => {
    const { status, stderr } = spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' });
    assert.equal(status, 2, stderr);
    assert.match(stderr, want);
  });
}

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

const jobNamed = (name: string) => ({
  apiVersion: 'facetrain.dev/v1alpha1',
  kind: 'FaceTrainJob',
  metadata: { name },
  spec: {
    dataset: { uri: 's3://data/faces' },
    model: { backbone: 'mobilefacenet' },
    output: { uri: 'hostpath:///out' },
    globalBatchSize: 64,
    trainers: { replicas: 1 },
  },
});

const connections: Record<string, () => Promise<{ args: string[]; env: Record<string, string> }>> = {
  'with a kubeconfig': async () => ({
    args: ['--kubeconfig', await plane.kubeconfig(), '--lease-namespace', 'default'],
    env: {},
  }),
  "with a pod's service account": async () => {
    const { folder, env } = await plane.serviceAccount('default');
    return { args: ['--service-account', folder], env };
  },
};
for (const [name, connection] of Object.entries(connections))
  test(`runs ${name} in one namespace, and stops in order at SIGTERM`, async (t) => {
    const namespace = `runs-${Object.keys(connections).indexOf(name)}`;
    await plane.createNamespace(namespace);
    const { args: connectionArgs, env } = await connection();
    // The developer's own cluster must not be used.
    const { KUBECONFIG: _, ...inherited } = process.env;
    const args = ['--image', 'registry.example/trainer:1', '--namespace', namespace, ...connectionArgs];
    const child = spawn(process.execPath, [program, ...args, '--health-port', String((await freePorts(1))[0])], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...inherited, ...env },
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += String(chunk)));
    t.after(async () => void child.kill('SIGKILL'));
    await plane.client.create(faceTrainJobs, namespace, jobNamed('faces'));
    await eventually(async () =>
      assert.equal((await plane.client.list(pods, namespace, {})).items?.length ?? 0, 1, output),
    );
    const exit = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
    child.kill('SIGTERM');
    assert.equal(await exit, 0, output);
    const lines = output
      .trim()
      .split('\n')
      .map(
        (line) =>
          JSON.parse(line) as {
            msg: string;
            controller?: string;
            reconcileID?: string;
            uid?: string;
            attempt?: number;
          },
      );
    const order = ['leading', 'stopping', 'lease given back', 'stopped'].map((message) =>
      lines.findIndex(({ msg }) => msg === message),
    );
    assert.deepEqual(
      order,
      [...order].sort((a, b) => a - b),
      output,
    );
    assert(!order.includes(-1), output);
    const line = lines.find(({ controller }) => controller === 'facetrainjob');
    assert(line?.reconcileID && line.uid && line.attempt === 0, output);
  });

test('a leader frozen for longer than its lease writes nothing when it wakes, and ends with code 1', async (t) => {
  await plane.createNamespace('frozen');
  const proxy = await FaultProxy.start(plane.server, plane.ca);
  t.after(() => proxy.close());
  // While it is frozen, the next try of a create falls due.
  proxy.fail('POST', /\/pods(\?|$)/, 429, { times: 10_000, headers: { 'retry-after': '0.1' } });
  const args = ['--image', 'registry.example/trainer:1', '--namespace', 'frozen', '--lease-namespace', 'frozen'];
  const { KUBECONFIG: _, ...env } = process.env;
  const more = ['--lease-seconds', '3', '--health-port', String((await freePorts(1))[0]), '--kubeconfig'];
  const child = spawn(process.execPath, [program, ...args, ...more, await plane.kubeconfig(proxy.server)], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env,
  });
  t.after(() => void child.kill('SIGKILL'));
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += String(chunk)));
  const exit = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
  await plane.client.create(faceTrainJobs, 'frozen', jobNamed('faces'));
  await eventually(() =>
    assert(
      proxy.writes.some(({ code }) => code === 429),
      output,
    ),
  );

  child.kill('SIGSTOP');
  const { spec } = await plane.client.get(leases, 'frozen', 'facetrain-operator');
  await delay(1000 * spec!.leaseDurationSeconds!);
  await plane.client.patch(leases, 'frozen', 'facetrain-operator', { spec: { holderIdentity: 'another' } });
  const before = proxy.writes.length;
  child.kill('SIGCONT');
  assert.equal(await exit, 1, output);
  assert.deepEqual(proxy.writes.slice(before), []);
  assert.match(output, /lease (was not|\S+ could not be) renewed for 2.25 s/);
});
