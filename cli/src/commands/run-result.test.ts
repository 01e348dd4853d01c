/** The result of a run, where files that it is made from are damaged. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { LocalFaceTrainJob } from '../local/process-executor.ts';
import { parsedJob } from '../testing/parsed-job.ts';
import { makeKeptResult, makeRunResult, summary } from './run-result.ts';

const job = parsedJob();

let out: string;
beforeEach(async () => {
  out = await mkdtemp(join(tmpdir(), 'facetrain-result-'));
  await mkdir(join(out, 'int7'));
});
afterEach(() => rm(out, { recursive: true }));

const paths = () => ({
  out,
  state: join(out, '.facetrain'),
  checkpoints: join(out, 'checkpoints'),
  sharesCheckpoints: false,
  artifact: join(out, 'int7'),
  quantizeJob: 'faces-quantize',
});

test('a failed job says why, whatever is left in its folder', async () => {
  const message = 'PodFailed: faces-0-0 failed: no space left';
  const failed = {
    status: { attempt: 0, conditions: [{ type: 'Failed', status: 'True', message }] },
    failure: { exitCode: 2 },
    quantizeJob: undefined,
  } as unknown as LocalFaceTrainJob;
  for (const content of ['{"job": ', 'null', '{"schemaVersion": 1}']) {
    await writeFile(join(out, 'train-report.json'), content);
    const result = makeRunResult(job, failed, paths(), 0, 1);
    assert.deepEqual([result.phase, result.exitCode, result.message], ['Failed', 2, message], content);
    assert.deepEqual([result.train, result.curves], [undefined, undefined], content);
  }
  // It had done steps.
  await mkdir(join(out, 'tensorboard'));
  assert.match(summary(makeRunResult(job, failed, paths(), 0, 1)), /^ +Curves +\S+\/tensorboard: of the steps until/m);
});

test('a run without a quantization succeeds beside a damaged artifact', async () => {
  for (const content of ['{"kind": ', 'null', '{"kind": "facetrain-int7"}']) {
    await writeFile(join(out, 'int7', 'manifest.json'), content);
    const { phase, artifact } = makeKeptResult(job, paths());
    assert.deepEqual([phase, artifact], ['Succeeded', undefined], content);
  }
});

test('a training that has collapsed succeeds with a warning', () => {
  const { evaluation: _, ...kept } = makeKeptResult(job, paths());
  const figures = { set: 'lfw', pairs: 600, accuracy: 0.5, std: 0 };
  assert.match(summary({ ...kept, evaluation: [{ ...figures, alike: true }] }), /^ +Warning +the model hardly tells/m);
  assert.doesNotMatch(summary({ ...kept, evaluation: [figures] }), /Warning/);
});

test('the report of a missed gate is named; one of an earlier run is not', async () => {
  await mkdir(join(out, 'int7', 'rejected'), { recursive: true });
  for (const name of ['train-report.html', 'int7/report.html', 'int7/rejected/report.html'])
    await writeFile(join(out, name), 'report');
  const ended = (exitCode: number, quantizeJob: object | undefined) =>
    ({
      status: { attempt: 0, conditions: [{ type: 'Failed', status: 'True', message: 'GateFailed' }] },
      failure: { exitCode },
      quantizeJob,
    }) as unknown as LocalFaceTrainJob;
  const [training, quantization] = [join(out, 'train-report.html'), join(out, 'int7', 'rejected', 'report.html')];
  for (const { local, reports } of [
    { local: ended(3, {}), reports: [training, quantization] },
    { local: ended(2, {}), reports: [training] },
    { local: ended(2, undefined), reports: [training] },
  ]) {
    const result = makeRunResult(job, local, paths(), 0, 1);
    assert.deepEqual(result.reports, reports);
    assert.match(summary(result), new RegExp(`Reports +${reports.join(', ')}\n`));
  }
});
