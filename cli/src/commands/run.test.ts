import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { TrainReport } from '@facetrain/api';
import { writeTinyJob } from '../testing/run-cli.ts';
import { run } from './run.ts';

test('a run refuses places in an object store, and --out replaces one', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'run-'));
  const file = join(folder, 'job.yaml');
  const refusal = async (fields: object, out?: string) => {
    const spec = { dataset: { uri: 'file:///nonexistent' }, model: { backbone: 'iresnet18' }, ...fields };
    const job = { apiVersion: 'facetrain.dev/v1alpha1', kind: 'FaceTrainJob', metadata: { name: 'faces' }, spec };
    await writeFile(file, JSON.stringify(job));
    const options = { file, fresh: false, trainOnly: true, signal: new AbortController().signal };
    return run({ ...options, ...(out !== undefined && { out }) }).then(
      ({ message }) => message ?? assert.fail('it succeeded'),
      (error: Error) => error.message,
    );
  };
  try {
    const output = { uri: 's3://models/faces', s3: { region: 'eu-west-1' } };
    assert.match(
      await refusal({ output }),
      /^spec\.output\.uri: s3:\/\/models\/faces; must be a folder of this machine/,
    );
    assert.match(
      await refusal({ output: { uri: 'file:///out' }, checkpoint: { uri: 's3://states/faces' } }),
      /^spec\.checkpoint\.uri: s3:\/\/states\/faces; "facetrain run" keeps checkpoints in a folder/,
    );
    // Its trainer starts, and finds no dataset.
    assert.match(await refusal({ output }, join(folder, 'out')), /\/nonexistent: cannot be read/);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('the ranks of a pod are processes of their own', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'run-'));
  try {
    const file = await writeTinyJob(folder, (spec) => {
      spec.trainers = { replicas: 1, ranksPerPod: 2, computeThreads: 1 };
    });
    const options = { file, fresh: false, trainOnly: true, signal: new AbortController().signal };
    const { phase, out } = await run(options);
    assert.equal(phase, 'Succeeded');
    const report = TrainReport.parse(JSON.parse(await readFile(join(out, 'train-report.json'), 'utf8')));
    assert.equal(report.trainers, 2);
  } finally {
    await rm(folder, { recursive: true });
  }
});
