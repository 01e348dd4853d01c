/** `facetrain plan`: tables, JSON, exit codes; the figures are tested in trainer-image/src/estimate. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseQuantity } from '@facetrain/api';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { facetrain } from '../testing/run-cli.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-plan-'));
});
after(() => rm(folder, { recursive: true }));

/** Writes a job with ten million identities on one GPU. @returns its file */
async function tenMillion(spec: object = {}): Promise<string> {
  const file = join(folder, 'job.yaml');
  const job = {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name: 'ten-million' },
    spec: {
      dataset: { uri: 'pvc://faces/ten-million' },
      model: { backbone: 'iresnet50', numClasses: 10_000_000 },
      loss: { sampleRate: 0.1, rows: { precision: 'BF16' } },
      output: { uri: 'pvc://results/faces' },
      trainers: { resources: { limits: { 'nvidia.com/gpu': 1 } } },
      ...spec,
    },
  };
  await writeFile(file, JSON.stringify(job));
  return file;
}

interface Printed {
  device: { kind: string };
  memory: {
    deviceBytes: number;
    usableBytes: number;
    fits: boolean;
    copy: { on: string; fits: boolean | null };
    checkpointCopy: number;
    device: { name: string; bytes: number }[];
  };
  checkpoints: { keptBytes: number; storageBytes: number | null; fit: boolean | null };
  step: { seconds: number };
  total: { steps: number; seconds: number } | null;
  facts: { numClasses: number; replicas: number; rowsPlacement: string };
  toFit: { change: Record<string, unknown> }[];
}

test('a MIG profile is a GPU with the memory of its name', async () => {
  const file = await tenMillion({ trainers: { resources: { limits: { 'nvidia.com/mig-3g.40gb': 1 } } } });
  const { stdout, code } = await facetrain('plan', '-f', file, '--json');
  const { device, memory } = JSON.parse(stdout) as Printed;
  assert.deepEqual([code, device.kind, memory.usableBytes <= 40e9, memory.fits], [2, 'h100', true, false]);
});

test('ten million identities fit an H100 in BF16', async () => {
  const file = await tenMillion();
  const people = await facetrain('plan', '-f', file, '--images', '100000000');
  assert.equal(people.code, 0);
  assert.match(
    people.stdout,
    /^ten-million: 10,000,000 identities, 1,024 pictures a step, 1 x NVIDIA H100 80GB, BF16\n/,
  );
  assert.match(people.stdout, /\nMemory: \d+\.\d GiB of \d+\.\d GiB: it fits\n/);
  assert.match(people.stdout, /\n {2}class centres +9\.5 GiB {2}10,000,000 rows of 512 numbers in BF16\n/);
  assert.match(people.stdout, /\nTraining: 1,953,120 steps, about \d+ h/);
  const { stdout } = await facetrain('plan', '-f', file, '--json');
  const printed = JSON.parse(stdout) as Printed;
  assert.deepEqual([printed.device.kind, printed.memory.fits, printed.total, printed.toFit], ['h100', true, null, []]);
  assert.equal(
    printed.memory.device.reduce((sum, { bytes }) => sum + bytes, 0),
    printed.memory.deviceBytes,
  );
});

test('class centres that do not fit a GPU go to the memory of its machine by Auto', async () => {
  const planOf = async (placement: string, ...options: string[]) => {
    const file = await tenMillion({ loss: { sampleRate: 0.01, rows: { precision: 'BF16', placement } } });
    return facetrain('plan', '-f', file, '--classes', '50000000', ...options);
  };
  const onDevice = await planOf('Device', '--json');
  assert.equal(onDevice.code, 2);
  const { toFit } = JSON.parse(onDevice.stdout) as Printed;
  assert.ok(toFit.some(({ change }) => change['loss.rows.placement'] === 'Host'));
  const { stdout, code } = await planOf('Auto', '--json');
  const printed = JSON.parse(stdout) as Printed;
  assert.deepEqual([code, printed.memory.fits, printed.facts.rowsPlacement], [0, true, 'host']);
  const roomy = JSON.parse((await planOf('Auto', '--json', '--memory', '200')).stdout) as Printed;
  assert.equal(roomy.facts.rowsPlacement, 'device');
  const limits = { 'nvidia.com/gpu': 1, memory: '64Gi' };
  const limitedTo = async (placement: string, ...options: string[]) => {
    const loss = { sampleRate: 0.01, rows: { precision: 'BF16', placement } };
    const file = await tenMillion({ loss, trainers: { resources: { limits } } });
    return facetrain('plan', '-f', file, '--classes', '50000000', ...options);
  };
  const limited = await limitedTo('Host');
  assert.equal(limited.code, 2);
  assert.match(
    limited.stdout,
    /\nHost memory: \d+\.\d GiB, \d+\.\d GiB while a checkpoint is written; there are 64\.0 GiB: IT DOES NOT FIT\n/,
  );
  assert.match(
    limited.stdout,
    /\nIt would fit with one of these:\n(?: {2}- .+\n)* {2}- trainers\.resources\.limits\.memory 99Gi or more: /,
  );
  const beyond = JSON.parse((await limitedTo('Device', '--json')).stdout) as Printed;
  assert.deepEqual(
    beyond.toFit.map(({ change }) => change).filter((change) => 'trainers.resources.limits.memory' in change),
    [{ 'loss.rows.placement': 'Host', 'trainers.resources.limits.memory': '99Gi' }],
  );
  assert.match(
    (await planOf('Host')).stdout,
    /\nHost memory: \d+\.\d GiB, \d+\.\d GiB while .*\n(?: {2}.+\n)* {2}class centres +47\.7 GiB /,
  );
});

test('the largest sample rate decides the memory, and the rate of each epoch the time', async () => {
  const planOf = async (loss: object) => {
    const file = await tenMillion({ loss: { rows: { precision: 'BF16' }, ...loss } });
    return JSON.parse((await facetrain('plan', '-f', file, '--images', '100000000', '--json')).stdout) as Printed;
  };
  const [few, many, scheduled] = [
    await planOf({ sampleRate: 0.05 }),
    await planOf({ sampleRate: 0.1 }),
    await planOf({ sampleRate: 0.05, sampleRateChanges: [{ fromEpoch: 15, rate: 0.1 }] }),
  ];
  assert.ok(few.memory.deviceBytes < many.memory.deviceBytes);
  assert.deepEqual([scheduled.memory, scheduled.step], [many.memory, many.step]);
  const [first, last] = [few.total!.seconds, many.total!.seconds];
  assert.ok(first < last);
  assert.ok(Math.abs(scheduled.total!.seconds / (0.75 * first + 0.25 * last) - 1) < 1e-9);
});

test('a job that does not fit ends with exit code 2, and says what would', async () => {
  const file = await tenMillion({ loss: { sampleRate: 0.1 } });
  const people = await facetrain('plan', '-f', file, '--gpu', 'a10');
  assert.equal(people.code, 2);
  assert.match(people.stdout, /IT DOES NOT FIT/);
  assert.match(people.stdout, /\nIt would fit with one of these:\n(?: {2}- .+\n)* {2}- trainers\.replicas \d+/);
  const { code, stdout } = await facetrain('plan', '-f', file, '--memory', '30', '--json');
  assert.equal(code, 2);
  const printed = JSON.parse(stdout) as Printed;
  assert.deepEqual([printed.memory.fits, printed.memory.usableBytes], [false, 30 * 2 ** 30]);
  assert.ok(printed.toFit.length > 0);
});

test('identities and pictures are counted in a dataset of this machine, and a plan writes nothing', async () => {
  const file = await tenMillion({
    dataset: { uri: `file://${exampleFaces}` },
    model: { backbone: 'mobilefacenet' },
    loss: {},
    globalBatchSize: 32,
    epochs: 2,
    trainers: { replicas: 2, resources: { limits: { memory: '2Gi', cpu: '500m' } } },
  });
  const { code, stdout } = await facetrain('plan', '-f', file, '--json');
  assert.equal(code, 0);
  const printed = JSON.parse(stdout) as Printed;
  assert.deepEqual([printed.device.kind, printed.facts.numClasses, printed.facts.replicas], ['cpu', 40, 2]);
  assert.equal(printed.total?.steps, 2 * Math.floor(800 / 32));
  assert.equal(printed.memory.usableBytes, 2 * 2 ** 30);
  assert.deepEqual(await readdir(folder), ['job.yaml']);
});

/** Ten million identities for a CPU, with results and checkpoints on this machine. */
const onThisMachine = (spec: object = {}) =>
  tenMillion({
    dataset: { uri: `file://${exampleFaces}` },
    model: { backbone: 'mobilefacenet', numClasses: 10_000_000 },
    globalBatchSize: 64,
    trainers: {},
    output: { uri: `file://${folder}/out` },
    ...spec,
  });

test('without a limit, a job for CPUs is compared with what this machine has', async () => {
  const file = await onThisMachine({ loss: { rows: { precision: 'FP32', optimizer: 'AdamW' } } });
  const { code, stdout } = await facetrain('plan', '-f', file, '--classes', '1000000000');
  assert.equal(code, 2);
  assert.match(
    stdout,
    /\nMemory: \d+.* GiB while .*; there are \d+\.\d GiB available on this machine: IT DOES NOT FIT\n/,
  );
  assert.match(stdout, /, and the disk has room for \d.*: THEY DO NOT FIT\.\n/);
  assert.match(stdout, /\nIt would fit with /);
  const small = await facetrain('plan', '-f', file, '--classes', '1000', '--json');
  const { memory } = JSON.parse(small.stdout) as Printed;
  assert.deepEqual([small.code, memory.fits, memory.copy], [0, true, { on: 'host', fits: true }]);
  assert.ok(memory.usableBytes <= totalmem());
});

test('trainers that share this machine have a part of it each', async () => {
  const most = async (spec: object) =>
    (JSON.parse((await facetrain('plan', '-f', await onThisMachine(spec), '--json')).stdout) as Printed).memory
      .usableBytes;
  // Other programs take memory and give it back meanwhile.
  assert.ok((await most({ trainers: { replicas: 8 } })) < (await most({})) / 4);
  const inCluster = { trainers: { replicas: 8, device: 'CPU' }, output: { uri: 'pvc://results/faces' } };
  assert.ok((await most(inCluster)) > (await most({})) / 4);
});

test('a copy of the state for checkpoints is a part of the verdict', async () => {
  const file = await onThisMachine({ loss: { sampleRate: 0.1 } });
  const planned = async (gib: string) =>
    (await facetrain('plan', '-f', file, '--classes', '1000000', '--memory', gib)).stdout;
  const numbers = '\\d\\.\\d GiB, \\d+\\.\\d GiB while a checkpoint is written';
  for (const [gib, wanted, copy] of [
    ['12', ', of 12\\.0 GiB: it fits', 'goes on while a checkpoint is written: there is room'],
    [
      '8',
      ', of 8\\.0 GiB: it fits, but training waits while a checkpoint is written',
      'waits while a checkpoint is written: there is no room',
    ],
    ['4', '; there are 4\\.0 GiB: IT DOES NOT FIT', 'waits while a checkpoint is written: there is no room'],
  ] as const) {
    const text = await planned(gib);
    assert.match(text, new RegExp(`^Memory: ${numbers}${wanted}$`, 'm'));
    assert.match(text, new RegExp(`^Training ${copy} for a copy of the state \\(`, 'm'));
  }
});

test('checkpoints on this machine are compared with its disk, those there are replaced', async () => {
  const checkpoints = join(folder, 'kept');
  const file = await onThisMachine({ checkpoint: { uri: `file://${checkpoints}` } });
  const free = async () =>
    (JSON.parse((await facetrain('plan', '-f', file, '--classes', '1000', '--json')).stdout) as Printed).checkpoints;
  const { storageBytes, fit } = await free();
  assert.equal(fit, true);
  await mkdir(join(checkpoints, 'step-1'), { recursive: true });
  // A file with a length, and without blocks on the disk.
  await writeFile(join(checkpoints, 'step-1', 'rows'), '');
  await truncate(join(checkpoints, 'step-1', 'rows'), 2 ** 40);
  assert.ok((await free()).storageBytes! > storageBytes! + 2 ** 39);
  await rm(checkpoints, { recursive: true });
});

test('what is missing is named: identities, a model of one’s own, a precision that the device lacks', async () => {
  const refusals: [spec: object, args: string[], message: RegExp][] = [
    [{ model: { backbone: 'iresnet50' } }, [], /^model\.numClasses: absent, and the dataset pvc:.*--classes/],
    [{ model: { onnx: { uri: 's3://bucket/mine.onnx' } } }, ['--classes', '9'], /^model\.onnx\.uri: s3:.*file:\/\//],
    [{ trainers: { precision: 'TF32' } }, ['--gpu', 'cpu'], /^trainers\.precision: TF32 on CPU.*Auto, FP32, BF16/],
  ];
  for (const [spec, args, message] of refusals) {
    const { code, stderr } = await facetrain('plan', '-f', await tenMillion(spec), ...args);
    assert.equal(code, 2);
    assert.match(stderr, message);
  }
  const { code, stderr } = await facetrain('plan', '-f', await tenMillion(), '--classes', '-1');
  assert.equal(code, 2);
  assert.match(stderr, /whole number from 1/);
});

test('quantities of Kubernetes', () => {
  const cases: [string | number, number][] = [
    [2, 2],
    ['0.5', 0.5],
    ['500m', 0.5],
    ['64Gi', 64 * 2 ** 30],
    ['1e3', 1000],
    ['1E', 1e18],
    ['1.5k', 1500],
    ['.5', 0.5],
  ];
  for (const [text, want] of cases) assert.equal(parseQuantity(text), want, String(text));
});

test('several ranks in a pod share what it asks for', async () => {
  const planned = async (trainers: object) => {
    const file = await tenMillion({ globalBatchSize: 1024, trainers });
    return JSON.parse((await facetrain('plan', '-f', file, '--json')).stdout) as Printed;
  };
  const one = await planned({ replicas: 16, resources: { limits: { 'nvidia.com/gpu': 1 } } });
  const eight = await planned({ replicas: 2, ranksPerPod: 8, resources: { limits: { 'nvidia.com/gpu': 8 } } });
  assert.equal(eight.facts.replicas, 16);
  assert.deepEqual([eight.memory, eight.step], [one.memory, one.step]);
  const onCpus = { device: 'CPU', resources: { limits: { cpu: 8, memory: '64Gi' } } };
  const { memory } = await planned({ replicas: 1, ranksPerPod: 4, ...onCpus });
  assert.equal(
    memory.usableBytes,
    (await planned({ replicas: 4, ...onCpus, resources: { limits: { cpu: 2, memory: '16Gi' } } })).memory.usableBytes,
  );
});

test('a GPU by a resource claim, or among the resources of the pod template, is a GPU', async () => {
  const container = { name: 'facetrain', resources: { limits: { 'nvidia.com/gpu': 1 } } };
  for (const trainers of [
    { resourceClaims: [{ name: 'gpu', resourceClaimTemplateName: 'one-h100' }] },
    { podTemplate: { spec: { containers: [container] } } },
  ]) {
    const { stdout } = await facetrain('plan', '-f', await tenMillion({ trainers }), '--json');
    assert.equal((JSON.parse(stdout) as Printed).device.kind, 'h100', JSON.stringify(trainers));
  }
  const claim = { resourceClaims: [{ name: 'nic', resourceClaimTemplateName: 'nic' }], device: 'CPU' };
  const { stdout } = await facetrain('plan', '-f', await tenMillion({ trainers: claim }), '--json');
  assert.equal((JSON.parse(stdout) as Printed).device.kind, 'cpu');
});
