/** `kubectl facetrain` as its users call it, against a real API server with the operator. The kubelet is played. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { faceTrainJobs, pods } from '@facetrain/operator/controllers/resources';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { TestNamespace } from '@facetrain/operator/testing/operator-harness';

const PROGRAM = join(import.meta.dirname, '..', 'kubectl-facetrain.ts');

let plane: ControlPlane;
let kubeconfig: string;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
  kubeconfig = await plane.kubeconfig();
});
after(() => plane?.stop());

interface Running {
  child: ChildProcess;
  /** What it has printed so far: result, and words for people. */
  printed: { stdout: string; stderr: string };
  ended: Promise<{ code: number | null; stdout: string; stderr: string }>;
}

function start(t: TestContext, ...args: string[]): Running {
  const child = spawn(process.execPath, [PROGRAM, ...args], { env: { ...process.env, KUBECONFIG: kubeconfig } });
  t.after(() => void child.kill('SIGKILL'));
  const printed = { stdout: '', stderr: '' };
  child.stdout.on('data', (data) => (printed.stdout += String(data)));
  child.stderr.on('data', (data) => (printed.stderr += String(data)));
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  return { child, printed, ended: ended.then((code) => ({ code, ...printed })) };
}
const run = (t: TestContext, ...args: string[]) => start(t, ...args).ended;

/** The result of a command that must succeed. */
async function printed(t: TestContext, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(t, ...args);
  assert.equal(code, 0, stderr);
  return stdout;
}

const PROGRESS = {
  step: 60,
  totalSteps: 200,
  epoch: 1.5,
  percent: 30,
  imagesPerSecond: 40,
  loss: 9.5,
  activity: 7,
  lastHeartbeatTime: '2026-01-01T00:00:00Z',
};

test('status shows pods of each attempt and why a job waits; top shows a line for each job', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'status');
  await ns.applyFaceTrainJob('faces');
  await ns.applyFaceTrainJob('paused', { suspend: true });
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.setPodStatus('faces-0-1', 'Failed', { exitCode: 1 });
  await eventually(async () => assert((await ns.names(pods)).includes('faces-1-1')));
  await ns.schedule('faces-1-0', 'node-1');
  await ns.setPodStatus('faces-1-0', 'Running');
  await ns.schedule('faces-1-1', 'node-2');
  await ns.setPodStatus('faces-1-1', 'Pending', { waiting: { reason: 'ImagePullBackOff', message: 'no such image' } });
  await eventually(async () => assert.match((await ns.conditionText('faces', 'Ready'))!, /^ImagePullBackOff: /));
  await ns.patch(faceTrainJobs, 'faces', { status: { progress: PROGRESS } }, 'status');

  const tree = await printed(t, 'status', 'faces', '-n', 'status');
  assert.match(
    tree,
    /^FaceTrainJob faces {2}(Pending|Restarting)\n├─ not ready: ImagePullBackOff: 1 of 2 pods are ready; faces-1-1 /,
  );
  assert.match(tree, /\[#{9}-{21}\] 30 %, step 60 of 200 epoch 1\.5, loss 9\.50, 40 images\/s\n/);
  assert.match(tree, /restarts: 1 that count, 0 by others; the last: ProcessFailed: rank 1 left with exit code 1/);
  const [first, second] = [tree.indexOf('attempt 1'), tree.indexOf('attempt 0')];
  assert(first !== -1 && first < second, tree);
  assert.match(tree.slice(first, second), /faces-1-0 \(rank 0\) {2}Running, ready {2}node-1\n/);
  assert.match(
    tree.slice(first, second),
    /faces-1-1 \(rank 1\) {2}Pending, ImagePullBackOff: no such image {2}node-2\n/,
  );
  assert.match(tree.slice(second), /faces-0-1 \(rank 1\) {2}Failed, exit code 1\n/);
  assert.match(tree, /ago {2}Restarting: ProcessFailed: rank 1 left/);

  const top = await printed(t, 'top', '-n', 'status');
  assert.match(top, /^NAME +PHASE +READY +STEP +DONE /);
  assert.match(top, /\nfaces +\S+ +1\/2 +60\/200 +30 % +40 +9\.50 +1 +ImagePullBackOff: /);
  assert.match(top, /\npaused +Suspended +0\/2 /);
  assert.equal(await printed(t, 'status', '-n', 'status'), top);
  const { job, pods: shown } = JSON.parse(await printed(t, 'status', 'faces', '-n', 'status', '--json')) as Record<
    string,
    never[]
  >;
  assert.deepEqual([(job as unknown as { kind: string }).kind, shown!.length], ['FaceTrainJob', 3]);
});

test('status, top and logs know QuantizeJobs that no training has made', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'quantizations');
  await ns.applyQuantizeJob('small');
  await ns.waitForPods('small-0-quantizer');
  await ns.setPodStatus('small-0-quantizer', 'Pending', { waiting: { reason: 'ImagePullBackOff', message: 'none' } });
  await eventually(async () => {
    const tree = await printed(t, 'status', 'small', '-n', 'quantizations');
    assert.match(tree, /^QuantizeJob small {2}Pending\n├─ not ready: PersistentVolumeClaimNotFound: /);
    assert.match(tree, /├─ attempt 0\n│ {2}└─ small-0-quantizer \(rank 0\) {2}Pending, ImagePullBackOff: none\n/);
  });
  const top = await printed(t, 'top', '-n', 'quantizations');
  assert.match(
    top,
    /^no FaceTrainJob .*\n\nQUANTIZEJOB +PHASE +RESTARTS +WHY\nsmall +Pending +0 +PersistentVolumeClaimNotFound: /,
  );
  const { stderr } = await run(t, 'logs', 'small', '-n', 'quantizations', '--attempt', '7');
  assert.match(stderr, /QuantizeJob small: no pod of quantizer of attempt 7; there are pods of rank 0 of attempt 0/);
});

test('suspend, resume and restart change the job, and a restart begins the next attempt', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'change');
  await ns.applyFaceTrainJob('faces', { trainers: { replicas: 1 } });
  await ns.waitForPods('faces-0-0');
  assert.match(await printed(t, 'suspend', 'faces', '-n', 'change'), /^FaceTrainJob faces suspended; its pods write a/);
  assert.equal(await printed(t, 'suspend', 'faces', '-n', 'change'), 'FaceTrainJob faces is suspended\n');
  await ns.waitForPods();
  assert.equal(await printed(t, 'resume', 'faces', '-n', 'change'), 'FaceTrainJob faces resumed\n');
  await ns.waitForPods('faces-1-0');
  assert.match(await printed(t, 'restart', 'faces', '-n', 'change'), /restarts from its newest checkpoint\n$/);
  await ns.waitForPods('faces-2-0');
  assert.equal((await ns.statusOf('faces')).restarts, undefined);

  await ns.setPodStatus('faces-2-0', 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase('faces', 'Succeeded');
  const { code, stderr } = await run(t, 'suspend', 'faces', '-n', 'change');
  assert.deepEqual(
    [code, stderr],
    [2, 'FaceTrainJob faces: has ended (Succeeded); apply it again under another name\n'],
  );
});

test('progress follows the status until the job ends, and says how', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'progress');
  await ns.applyFaceTrainJob('faces', { trainers: { replicas: 1 }, failurePolicy: { maxRestarts: 0 } });
  await ns.waitForPods('faces-0-0');
  const following = start(t, 'progress', 'faces', '-n', 'progress');
  await eventually(() => assert.match(following.printed.stderr, /Pending: .*0 of 1 pods are ready/));
  await ns.patch(faceTrainJobs, 'faces', { status: { progress: PROGRESS } }, 'status');
  await ns.setPodStatus('faces-0-0', 'Running');
  await eventually(() => assert.match(following.printed.stderr, /Running: \[#{9}-{21}\] 30 %, step 60 of 200/));
  await ns.setPodStatus('faces-0-0', 'Failed', { exitCode: 1 });
  const { code, stdout } = await following.ended;
  assert.equal(code, 1);
  assert.match(stdout, /^FaceTrainJob faces Failed: .*rank 0 left with exit code 1/);
});

test('plan reads the job from the cluster', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'plan');
  await ns.applyFaceTrainJob('faces', { suspend: true });
  const text = await printed(t, 'plan', 'faces', '-n', 'plan', '--classes', '1000');
  assert.match(text, /^faces: 1,000 identities, 64 pictures a step, 2 x CPU/);
  const { code, stderr } = await run(t, 'plan', 'faces', '-n', 'plan');
  assert.equal(code, 2);
  assert.match(stderr, /model\.numClasses: absent, .*--classes/);
});

/** A kubelet that answers for the logs of all pods on its node, and the node. @returns the name of the node */
async function startKubelet(t: TestContext, logs: (path: string) => string): Promise<string> {
  const server = createServer(await plane.certificate(), (request, response) => response.end(logs(request.url!)));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => void server.close());
  const { port } = server.address() as AddressInfo;
  const node = { apiVersion: 'v1', kind: 'Node', metadata: { name: `node-${port}` } };
  await plane.client.post('/api/v1/nodes', node);
  const addresses = [{ type: 'InternalIP', address: '127.0.0.1' }];
  const status = { addresses, daemonEndpoints: { kubeletEndpoint: { Port: port } } };
  await plane.client.patch({ apiVersion: 'v1', plural: 'nodes' }, null, node.metadata.name, { status }, 'status');
  return node.metadata.name;
}

test('logs are those of the rank, and with -f those of its next attempts, until the job ends', async (t) => {
  const asked: string[] = [];
  const node = await startKubelet(t, (url) => {
    asked.push(url);
    return `${/timestamps=true/.test(url) ? '2026-01-01T00:00:00.000000000Z ' : ''}log of ${url.split('/')[3]}\n`;
  });
  const ns = await TestNamespace.open(t, plane, 'logs');
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  const following = start(t, 'logs', 'faces', '--rank', '1', '-f', '-n', 'logs');
  await eventually(() => assert.match(following.printed.stderr, /^faces-0-1: attempt 0; it has no node yet$/m));
  for (const pod of ['faces-0-0', 'faces-0-1']) await ns.schedule(pod, node);
  await ns.setAllPodStatuses('Running');
  await eventually(() => assert.equal(following.printed.stdout, 'log of faces-0-1\n', following.printed.stderr));
  assert.equal(await printed(t, 'logs', 'faces', '--rank', '1', '--tail', '5', '-n', 'logs'), 'log of faces-0-1\n');
  assert(
    asked.some((url) => /^\/containerLogs\/logs\/faces-0-1\/facetrain\?tailLines=5$/.test(url)),
    asked.join(' '),
  );

  // The other rank's container leaves, too: no kubelet ends it here.
  for (const pod of ['faces-0-1', 'faces-0-0']) await ns.setPodStatus(pod, 'Failed', { exitCode: 1 });
  await eventually(async () => assert((await ns.names(pods)).includes('faces-1-1')));
  for (const pod of ['faces-1-0', 'faces-1-1']) {
    await ns.schedule(pod, node);
    await ns.setPodStatus(pod, 'Running');
  }
  await eventually(() => assert.match(following.printed.stdout, /\nlog of faces-1-1\n$/));
  for (const pod of ['faces-1-0', 'faces-1-1']) await ns.setPodStatus(pod, 'Succeeded', { exitCode: 0 });
  const { code, stdout, stderr } = await following.ended;
  assert.deepEqual([code, stdout], [0, 'log of faces-0-1\nlog of faces-1-1\n'], stderr);

  const refused = await run(t, 'logs', 'faces', '--rank', '7', '-n', 'logs');
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /^FaceTrainJob faces: no pod of rank 7; there are pods of rank 0 of attempt 1, /);
});

describe('what is typed wrong is answered in words', () => {
  const cases: Record<string, { args: string[]; env?: string; want: RegExp }> = {
    'a job that does not exist': {
      args: ['status', 'fases', '-n', 'wrong'],
      want: /^FaceTrainJob fases: not found in namespace wrong; there are faces; -n names another one\n$/,
    },
    'what is no name of a job': {
      args: ['status', '..', '-n', 'wrong'],
      want: /^FaceTrainJob \.\.: not found in namespace wrong; there are faces; -n names another one\n$/,
    },
    'an empty name': { args: ['progress', '', '-n', 'wrong'], want: /^FaceTrainJob : not found .* there are faces/ },
    'what is no name of a namespace': { args: ['top', '-n', 'a/b'], want: /^namespace: "a\/b"; lower-case letters, / },
    'a namespace without jobs': {
      args: ['logs', 'x', '-n', 'nowhere'],
      want: /not found in namespace nowhere; it has none/,
    },
    'a context that does not exist': {
      args: ['top', '--context', 'prod'],
      want: /^kubeconfig: .*no context prod; there are: c/,
    },
    'a kubeconfig that does not exist': {
      args: ['top', '--kubeconfig', '/nowhere'],
      want: /^kubeconfig: \/nowhere: no such file/,
    },
    'an unknown command': { args: ['sttus'], want: /unknown command 'sttus'/ },
    'a rank that is no number': { args: ['logs', 'faces', '-r', 'one'], want: /Must be a whole number from 0/ },
    'no job': { args: ['restart'], want: /missing required argument 'job'/ },
  };
  before(async () => {
    await plane.createNamespace('wrong');
    await plane.client.create(faceTrainJobs, 'wrong', {
      apiVersion: faceTrainJobs.apiVersion,
      kind: 'FaceTrainJob',
      metadata: { name: 'faces' },
      spec: {
        dataset: { uri: 'pvc://data' },
        model: { backbone: 'mobilefacenet' },
        output: { uri: 'pvc://data/out' },
        globalBatchSize: 8,
      },
    });
  });
  for (const [name, { args, want }] of Object.entries(cases))
    test(name, async (t) => {
      const { code, stdout, stderr } = await run(t, ...args);
      assert.deepEqual([code, stdout], [2, ''], stderr);
      assert.match(stderr, want);
    });

  test('a server that cannot be reached, and credentials that it refuses', async (t) => {
    const unreachable = await run(t, 'top', '--kubeconfig', await plane.kubeconfig('http://127.0.0.1:1'));
    assert.equal(unreachable.code, 2);
    assert.match(unreachable.stderr, /^context c \(http:\/\/127\.0\.0\.1:1\): cannot be reached: .*ECONNREFUSED/);
    const json = await run(t, 'top', '--json', '--kubeconfig', await plane.kubeconfig('http://127.0.0.1:1'));
    assert.equal((JSON.parse(json.stdout) as { error: { code: string } }).error.code, 'InvalidArgument');
  });
});

test('a user who may only look is told what is missing; a restart that may not begin changes nothing', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'guests');
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  const rbac = '/apis/rbac.authorization.k8s.io/v1/namespaces/guests';
  const accounts = '/api/v1/namespaces/guests/serviceaccounts';
  await plane.client.post(accounts, { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: 'guest' } });
  await plane.client.post(`${rbac}/roles`, {
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'Role',
    metadata: { name: 'guest' },
    rules: [{ apiGroups: ['facetrain.dev'], resources: ['facetrainjobs'], verbs: ['get', 'list'] }],
  });
  await plane.client.post(`${rbac}/rolebindings`, {
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'RoleBinding',
    metadata: { name: 'guest' },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'guest' },
    subjects: [{ kind: 'ServiceAccount', name: 'guest', namespace: 'guests' }],
  });
  const request = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 3_600 } };
  const { status } = await plane.client.post<{ status: { token: string } }>(`${accounts}/guest/token`, request);
  const config = JSON.parse(readFileSync(kubeconfig, 'utf8')) as { users: [{ user: object }] };
  config.users[0].user = { token: status.token };
  const file = join(mkdtempSync(join(tmpdir(), 'facetrain-guest-')), 'config');
  t.after(() => rmSync(dirname(file), { recursive: true, force: true }));
  writeFileSync(file, JSON.stringify(config));
  const asGuest = (...args: string[]) => run(t, ...args, '-n', 'guests', '--kubeconfig', file);
  // The API server's authorizer sees a new role a moment later.
  await eventually(async () => assert.equal((await asGuest('top')).code, 0), 60_000);
  for (const [args, want] of [
    [['status', 'faces'], /^pods: .*guest" cannot list resource "pods".*; ask for the permission\n$/],
    [['logs', 'faces'], /^pods: .*cannot list resource "pods".*; ask for the permission\n$/],
    [['restart', 'faces'], /^FaceTrainJob faces: .*cannot patch resource "facetrainjobs".*; ask for the permission\n$/],
  ] as const) {
    const { code, stderr } = await asGuest(...args);
    assert.equal(code, 2, stderr);
    assert.match(stderr, want);
  }
  assert.equal((await ns.get(faceTrainJobs, 'faces')).spec.suspend ?? false, false);
});
