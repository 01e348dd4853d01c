/** Inputs that cannot be used are found before an earlier run's files are removed; those of the quantization, too. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { type FaceTrainJob, FacetrainError } from '@facetrain/api';
import { writeSmallSet } from '@facetrain/trainer/testing/training-gang';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { parsedJob } from '../testing/parsed-job.ts';
import { checkInputs, checkQuantizationInputs } from './check-inputs.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-inputs-'));
});
afterEach(() => rm(folder, { recursive: true }));

const check = (...fields: Parameters<typeof makeJob>) =>
  checkInputs(makeJob(...fields), join(folder, 'state'), new AbortController().signal);

function makeJob(
  quantize?: Record<string, unknown>,
  sets: { name: string; uri: string; groups?: { uri: string } }[] = [],
  dataset = exampleFaces,
): FaceTrainJob {
  return parsedJob({
    dataset: { uri: `file://${dataset}` },
    model: { backbone: 'mobilefacenet' },
    output: { uri: `file://${folder}/out` },
    globalBatchSize: 8,
    trainers: { replicas: 1 },
    evaluation: { sets },
    ...(quantize && { quantize }),
  });
}

const here = (name: string) => ({ uri: `file://${join(folder, name)}` });
const lfw = { name: 'lfw', uri: `file://${join(exampleFaces, 'lfw-small.bin')}` };

test('inputs that are there pass', async () => {
  await check();
  await check({ calibration: { dataset: { uri: `file://${exampleFaces}` } }, evaluation: { sets: [lfw] } });
  await check({ gate: { maxAccuracyDrop: 0.01 } }, [lfw]);
});

test('inputs in an object store are not looked for', () =>
  check({
    calibration: { dataset: { uri: 's3://faces/calibration' } },
    evaluation: { sets: [{ name: 'lfw', uri: 's3://faces/lfw.bin' }] },
    gate: { maxAccuracyDrop: 0.01 },
  }));

const refusals: Record<string, { quantize: () => Record<string, unknown>; code: string; wantSubject: RegExp }> = {
  'no calibration dataset': {
    quantize: () => ({ calibration: { dataset: here('gone') } }),
    code: 'InvalidDataset',
    wantSubject: /gone/,
  },
  'no evaluation set': {
    quantize: () => ({ evaluation: { sets: [{ name: 'lfw', ...here('gone.bin') }] } }),
    code: 'InvalidVerificationSet',
    wantSubject: /gone\.bin/,
  },
  'a damaged evaluation set': {
    quantize: () => ({ evaluation: { sets: [{ name: 'lfw', ...here('cut.bin') }] } }),
    code: 'InvalidVerificationSet',
    wantSubject: /cut\.bin/,
  },
  'a pod template that cannot be used': {
    quantize: () => ({
      quantizer: { podTemplate: { spec: { volumes: [{ name: 'facetrain-config', emptyDir: {} }] } } },
    }),
    code: 'InvalidManifest',
    wantSubject: /faces/,
  },
  'a bound on accuracy without a set': {
    quantize: () => ({ gate: { maxAccuracyDrop: 0.01 } }),
    code: 'InvalidConfig',
    wantSubject: /gate\.maxAccuracyDrop/,
  },
};
for (const [name, { quantize, code, wantSubject }] of Object.entries(refusals)) {
  test(`of the quantization: ${name}`, async () => {
    await mkdir(join(folder, 'out'));
    await writeFile(join(folder, 'cut.bin'), 'cut');
    await assert.rejects(check(quantize()), (error) => {
      assert.ok(error instanceof FacetrainError, String(error));
      assert.equal(error.code, code);
      assert.match(error.subject, wantSubject);
      return true;
    });
  });
}

test('a bound on true accept rates needs a set with enough pairs, or one in an object store', async () => {
  const few = { name: 'few', uri: `file://${await writeSmallSet(join(folder, 'few.bin'), 5)}` };
  const gate = { maxTarDrop: 0.02 };
  const refused = { code: 'InvalidConfig', subject: 'gate.maxTarDrop' };
  await assert.rejects(check({ gate, evaluation: { sets: [few] } }), refused);
  await assert.rejects(check({ gate }, [few]), refused);
  await check({ gate, evaluation: { sets: [few, lfw] } });
  await check({ gate, evaluation: { sets: [few, { name: 'ijb', uri: 's3://faces/ijb.bin' }] } });
  await check({ evaluation: { sets: [few] } });
});

test('a bound on groups needs a set with groups, and their file is read', async () => {
  const few = { name: 'few', uri: `file://${await writeSmallSet(join(folder, 'few.bin'), 5)}` };
  await writeFile(join(folder, 'groups.txt'), 'old\n'.repeat(10));
  const groups = { uri: `file://${join(folder, 'groups.txt')}` };
  const gate = { maxGroupAccuracyDrop: 0.1 };
  const refused = { code: 'InvalidConfig', subject: 'gate.maxGroupAccuracyDrop' };
  await assert.rejects(check({ gate }, [few]), refused);
  await check({ gate }, [{ ...few, groups }]);
  await check({ gate, evaluation: { sets: [{ ...few, groups: { uri: 's3://faces/groups.txt' } }] } });
  await assert.rejects(check({}, [{ ...lfw, groups }]), { code: 'InvalidVerificationSet' });
});

test('a quantization of a kept model reads what the training gives it by default', async () => {
  const checkAlone = (job: FaceTrainJob) =>
    checkQuantizationInputs(job, join(folder, 'state'), new AbortController().signal);
  const own = { calibration: { dataset: { uri: `file://${exampleFaces}` } }, evaluation: { sets: [lfw] } };
  const gone = { name: 'lfw', ...here('gone.bin') };
  await checkAlone(makeJob({}, [lfw]));
  await checkAlone(makeJob(own, [gone], join(folder, 'gone')));
  await assert.rejects(checkAlone(makeJob({}, [], join(folder, 'gone'))), { code: 'InvalidDataset' });
  await assert.rejects(checkAlone(makeJob({}, [gone])), { code: 'InvalidVerificationSet' });
});
