/** Commands of kubectl that the documentation gives, on a real API server. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { faceTrainJobs, pods } from '@facetrain/operator/controllers/resources';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { root, tools } from '../../hack/lib/paths.mjs';

const GUIDE = readFileSync(join(root, 'docs', 'kubernetes.md'), 'utf8');

let plane: ControlPlane;
let kubeconfig: string;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
  kubeconfig = await plane.kubeconfig();
});
after(() => plane?.stop());

/** The command of the guide that begins with these words, with its continuation lines. */
function commandOf(start: string): string {
  const lines = GUIDE.split('\n');
  const first = lines.findIndex((line) => line.trimStart().startsWith(start));
  assert(first >= 0, `the guide has no command "${start}"`);
  let end = first;
  while (/(&&|\|\||\\)$/.test(lines[end]!)) end += 1;
  return lines.slice(first, end + 1).join('\n');
}

/** Runs a command of the guide by a shell, in a namespace. */
function run(command: string, namespace: string): Promise<{ code: number; output: string }> {
  const env = { ...process.env, PATH: `${tools}:${process.env.PATH}`, KUBECONFIG: kubeconfig };
  const inNamespace = command.replaceAll('kubectl ', `kubectl -n ${namespace} `);
  return new Promise((resolve) =>
    execFile('sh', ['-c', inNamespace], { env }, (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, output: stdout + stderr }),
    ),
  );
}

async function endedJob(namespace: string, outcome: 'Succeeded' | 'Failed'): Promise<void> {
  await plane.createNamespace(namespace);
  await plane.client.create(faceTrainJobs, namespace, {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name: 'faces' },
    spec: {
      dataset: { uri: 'pvc://data' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: 'pvc://out' },
      trainers: { resources: { requests: { cpu: 0.5 } } },
    },
  });
  const time = '2026-01-01T00:00:00Z';
  const condition = { type: outcome, status: 'True', reason: outcome, message: '', lastTransitionTime: time };
  await plane.client.patch(
    faceTrainJobs,
    namespace,
    'faces',
    { status: { phase: outcome, completionTime: time, conditions: [condition] } },
    'status',
  );
}

test('waiting for the end of a job ends when the job fails, too, and tells which by its exit code', async () => {
  const wait = commandOf('kubectl wait ftj/faces');
  await endedJob('well', 'Succeeded');
  assert.equal((await run(wait, 'well')).code, 0);
  await endedJob('badly', 'Failed');
  const { code, output } = await run(wait, 'badly');
  assert.equal(code, 1, output);
  assert.match(output, /condition met\n(.|\n)*condition not met/);
});

test('the logs of a gang of more pods than kubectl follows by default', async () => {
  await plane.createNamespace('gang');
  for (let rank = 0; rank < 6; rank++)
    await plane.client.create(pods, 'gang', {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: `faces-0-${rank}`, labels: { 'facetrain.dev/job-name': 'faces' } },
      spec: { nodeName: 'nowhere', containers: [{ name: 'facetrain', image: 'x' }] },
    });
  // There is no kubelet to give the logs, so both commands fail; only the bare one for the number of pods.
  const limit = /maximum allowed concurrency/;
  const { output } = await run(`${commandOf('kubectl logs -f')} --pod-running-timeout=1s`, 'gang');
  assert.doesNotMatch(output, limit);
  assert.match((await run('kubectl logs -f -l facetrain.dev/job-name=faces', 'gang')).output, limit);
});
