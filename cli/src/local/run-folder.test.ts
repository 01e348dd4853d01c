/** What a run keeps of an earlier one in its folder, by how that one ended and what has changed in the manifest. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { type FaceTrainJob, FacetrainError } from '@facetrain/api';
import { parsedJob } from '../testing/parsed-job.ts';
import { plannedTrainerConfig } from './planned-config.ts';
import { setArtifactAside } from './run-files.ts';
import { RunFolder, type RunMode } from './run-folder.ts';
import type { RunState } from './run-state.ts';

type Fields = Record<string, unknown>;

function makeJob(change: (spec: Fields) => void = () => {}, name = 'faces'): FaceTrainJob {
  const spec: Fields = {
    dataset: { uri: 'file:///data' },
    model: { backbone: 'iresnet18', numClasses: 50 },
    output: { uri: 'file:///results' },
    epochs: 10,
    quantize: { gate: { maxAccuracyDrop: 0.01 } },
  };
  change(spec);
  return parsedJob(spec, name);
}

let out: string;
let printed: string[];
beforeEach(async () => {
  out = join(await mkdtemp(join(tmpdir(), 'facetrain-folder-')), 'out');
  printed = [];
});
afterEach(() => rm(dirname(out), { recursive: true }));

const noCheck = async () => {};
async function take(
  job = makeJob(),
  { fresh = false, checkInputs = noCheck, checkQuantizationInputs = noCheck } = {},
): Promise<RunFolder> {
  const options = {
    fresh,
    checkInputs,
    checkQuantizationInputs,
    signal: new AbortController().signal,
    print: (line: string) => printed.push(line),
  };
  const folder = await RunFolder.take(out, job, options);
  folder.release();
  return folder;
}

const stateFile = () => join(out, '.facetrain', 'run.json');
const state = () => JSON.parse(readFileSync(stateFile(), 'utf8')) as RunState;

async function write(path: string, content = 'x'): Promise<void> {
  await mkdir(dirname(join(out, path)), { recursive: true });
  await writeFile(join(out, path), content);
}

/** Every file in the folder but the locks, with its content. */
async function files(): Promise<Record<string, string>> {
  const entries = await readdir(out, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile() && !entry.name.endsWith('.lock'));
  return Object.fromEntries(
    paths
      .map(({ parentPath, name }) => join(parentPath, name))
      .sort()
      .map((path) => [path.slice(out.length + 1), readFileSync(path, 'utf8')]),
  );
}

const writeCheckpoint = (step = 5) => write(`checkpoints/step-${String(step).padStart(10, '0')}/manifest.json`, '{}');

async function writeModel(uid: string): Promise<void> {
  await write('model/backbone.onnx', 'onnx');
  const sha256 = createHash('sha256').update('onnx').digest('hex');
  await write(
    'train-report.json',
    JSON.stringify({
      job: { name: 'faces', uid, attempt: 0 },
      model: { path: 'model/backbone.onnx', sha256, bytes: 4, parameters: 1, embeddingDim: 1 },
      steps: 1,
      imagesPerSecond: 1,
      trainSeconds: 1,
      lossFirst: 1,
      lossLast: 1,
      evaluations: [],
    }),
  );
}

const ARTIFACT = [
  'model.int7.onnx',
  'model.int7.trt.onnx',
  'scales.json',
  'report.json',
  'report.html',
  'manifest.json',
];
const writeArtifact = async (folder = 'int7', uid = 'before') => {
  const files: Record<string, { sha256: string; bytes: number }> = {};
  for (const name of ARTIFACT.slice(0, -1)) {
    const content = name === 'report.json' ? JSON.stringify({ job: { name: 'faces-quantize', uid } }) : `first ${name}`;
    await write(`${folder}/${name}`, content);
    files[name] = { sha256: createHash('sha256').update(content).digest('hex'), bytes: content.length };
  }
  const metrics = { meanCosine: 1, percentile1Cosine: 1, accuracyDrop: null, comparisons: [] };
  await write(`${folder}/manifest.json`, JSON.stringify({ kind: 'facetrain-int7', metrics, files }));
};

/** Leaves an earlier run behind, as it is after this end. */
const ENDS = {
  'stopped or killed': async () => {
    await take();
    await writeCheckpoint();
  },
  'failed in training': async () => {
    const folder = await take();
    await writeCheckpoint();
    await folder.recordEnd({ phase: 'Failed', exitCode: 2, message: 'no space left' });
  },
  'missed its gate': async () => {
    const folder = await take();
    await writeCheckpoint();
    await writeModel(folder.uid);
    await folder.recordTrained();
    await write('int7/rejected/report.json');
    await folder.recordEnd({ phase: 'Failed', exitCode: 3, message: 'gate' });
  },
  succeeded: async () => {
    const folder = await take();
    await writeCheckpoint();
    await writeModel(folder.uid);
    await folder.recordTrained();
    await writeArtifact();
    await folder.recordEnd({ phase: 'Succeeded', exitCode: 0 });
  },
  'failed before its first checkpoint': async () => {
    const folder = await take();
    await folder.recordEnd({ phase: 'Failed', exitCode: 2, message: 'no dataset' });
  },
};
type End = keyof typeof ENDS;

/** What the next run does after each end, if nothing has changed that decides a result. */
const GOES_ON: Record<End, RunMode> = {
  'stopped or killed': 'continue',
  'failed in training': 'continue',
  'missed its gate': 'quantize',
  succeeded: 'nothing',
  'failed before its first checkpoint': 'begin',
};
/** The same, if something has changed that decides the artifact. */
const QUANTIZES_ANEW: Record<End, RunMode> = {
  'stopped or killed': 'continue',
  'failed in training': 'continue',
  'missed its gate': 'quantize',
  succeeded: 'quantize',
  'failed before its first checkpoint': 'begin',
};

/** A change of the manifest, and what the next run does after each end: a mode, or what the refusal says. */
const CHANGES: Record<string, { change: (spec: Fields) => void; want: Record<End, RunMode | RegExp> }> = {
  nothing: {
    change: () => {},
    want: GOES_ON,
  },
  'the gate': {
    change: (spec) => (spec.quantize = { gate: { maxAccuracyDrop: 0.5 } }),
    want: QUANTIZES_ANEW,
  },
  'the verification sets': {
    change: (spec) => (spec.evaluation = { sets: [{ name: 'lfw', uri: 'file:///lfw.bin' }] }),
    want: QUANTIZES_ANEW,
  },
  'no quantization any more': {
    change: (spec) => delete spec.quantize,
    want: {
      'stopped or killed': 'continue',
      'failed in training': 'continue',
      'missed its gate': 'nothing',
      succeeded: 'nothing',
      'failed before its first checkpoint': 'begin',
    },
  },
  'failure policy, deadline, number of trainers, checkpoint interval': {
    change: (spec) =>
      Object.assign(spec, {
        failurePolicy: { maxRestarts: 9 },
        activeDeadlineSeconds: 1000,
        trainers: { replicas: 2 },
        checkpoint: { everySteps: 7 },
      }),
    want: GOES_ON,
  },
  'the learning rate and the model': {
    change: (spec) =>
      Object.assign(spec, { optimizer: { learningRate: 0.5 }, model: { backbone: 'iresnet34', numClasses: 50 } }),
    want: {
      'stopped or killed': /checkpoints of this job with other values of spec\.model\.backbone, spec\.optimizer\.lear/,
      'failed in training': /--out.*--fresh/,
      'missed its gate': /a trained model .* spec\.model\.backbone, spec\.optimizer\.learningRate;.*--out.*--fresh/,
      succeeded: /spec\.model\.backbone, spec\.optimizer\.learningRate/,
      'failed before its first checkpoint': 'begin',
    },
  },
  'more epochs': {
    change: (spec) => (spec.epochs = 20),
    want: {
      'stopped or killed': 'continue',
      'failed in training': 'continue',
      'missed its gate': /spec\.epochs; .* copy .*checkpoints/,
      succeeded: /spec\.epochs; .* copy .*checkpoints/,
      'failed before its first checkpoint': 'begin',
    },
  },
  'micro-batches, and fewer activations': {
    change: (spec) => {
      spec.trainers = { microBatchSize: 64 };
      Object.assign(spec.model as object, { checkpointActivations: true });
    },
    want: {
      'stopped or killed': 'continue',
      'failed in training': 'continue',
      'missed its gate': 'quantize',
      succeeded: 'nothing',
      'failed before its first checkpoint': 'begin',
    },
  },
  'more classes': {
    change: (spec) => Object.assign(spec.model as object, { numClasses: 100 }),
    want: {
      'stopped or killed': 'continue',
      'failed in training': 'continue',
      'missed its gate': /spec\.model\.numClasses/,
      succeeded: /spec\.model\.numClasses/,
      'failed before its first checkpoint': 'begin',
    },
  },
  'fewer classes': {
    change: (spec) => Object.assign(spec.model as object, { numClasses: 49 }),
    want: {
      'stopped or killed': /spec\.model\.numClasses/,
      'failed in training': /spec\.model\.numClasses/,
      'missed its gate': /spec\.model\.numClasses/,
      succeeded: /spec\.model\.numClasses/,
      'failed before its first checkpoint': 'begin',
    },
  },
  'fewer epochs': {
    change: (spec) => (spec.epochs = 5),
    want: {
      'stopped or killed': /spec\.epochs/,
      'failed in training': /spec\.epochs/,
      'missed its gate': /spec\.epochs/,
      succeeded: /spec\.epochs/,
      'failed before its first checkpoint': 'begin',
    },
  },
  'another folder of checkpoints': {
    change: (spec) => (spec.checkpoint = { uri: 'file:///elsewhere' }),
    want: {
      'stopped or killed': /spec\.checkpoint\.uri/,
      'failed in training': /spec\.checkpoint\.uri/,
      'missed its gate': /spec\.checkpoint\.uri/,
      succeeded: /spec\.checkpoint\.uri/,
      'failed before its first checkpoint': 'begin',
    },
  },
};

for (const [what, { change, want }] of Object.entries(CHANGES)) {
  describe(`the manifest is given again; changed: ${what}`, () => {
    for (const [end, expected] of Object.entries(want) as [End, RunMode | RegExp][]) {
      test(`after a run that ${end}`, async () => {
        await ENDS[end]();
        const [before, earlier] = [await files(), state()];
        if (typeof expected !== 'string') {
          await assert.rejects(take(makeJob(change)), (error) => {
            assert.ok(error instanceof FacetrainError);
            assert.deepEqual([error.code, error.exitCode], ['InvalidArgument', 2]);
            assert.match(error.message, expected);
            return true;
          });
          assert.deepEqual(await files(), before);
          return;
        }
        const folder = await take(makeJob(change));
        assert.equal(folder.mode, expected);
        assert.equal(folder.uid, earlier.uid, 'the fence knows the job by its uid');
        if (expected !== 'nothing') assert.ok(folder.attempt > earlier.attempt, 'the fence refuses a lower attempt');
        // Nothing is lost: an artifact that is replaced lies beside its folder.
        const after = await files();
        for (const [path, content] of Object.entries(before))
          if (path !== '.facetrain/run.json')
            assert.equal(after[path] ?? after[path.replace(/^int7\//, 'int7-1/')], content, path);
      });
    }
  });
}

test('an artifact is set aside each time under another number, with all its files', async () => {
  await ENDS.succeeded();
  for (const [round, drop] of [
    [1, 0.2],
    [2, 0.3],
  ] as const) {
    const folder = await take(makeJob((spec) => (spec.quantize = { gate: { maxAccuracyDrop: drop } })));
    assert.match(printed.join('\n'), new RegExp(`Keeps the earlier INT7 artifact in ${out}/int7-${round}`));
    assert.deepEqual((await readdir(join(out, `int7-${round}`))).sort(), [...ARTIFACT].sort());
    await writeArtifact();
    await folder.recordEnd({ phase: 'Succeeded', exitCode: 0 });
  }
});

test('an artifact on another file system is set aside, or the disk is said to be full', async () => {
  const disk = join(dirname(out), 'disk');
  await mkdir(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk]);
  try {
    await ENDS.succeeded();
    const before = await files();
    await cp(join(out, 'int7'), join(disk, 'int7'), { recursive: true });
    await rm(join(out, 'int7'), { recursive: true });
    await symlink(join(disk, 'int7'), join(out, 'int7'));
    await take(makeJob((spec) => (spec.quantize = { gate: { maxAccuracyDrop: 0.2 } })));
    for (const name of ARTIFACT)
      assert.equal(await readFile(join(out, 'int7-1', name), 'utf8'), before[`int7/${name}`], name);
    assert.deepEqual(await readdir(join(disk, 'int7')), []);

    // The other way round, and without room.
    await rm(out, { recursive: true });
    await ENDS.succeeded();
    await write('int7/model.int7.onnx', 'x'.repeat(100_000));
    await symlink(join(out, 'int7'), join(disk, 'linked'));
    await assert.rejects(setArtifactAside(join(disk, 'linked')), (error) => {
      assert.ok(error instanceof FacetrainError, String(error));
      assert.equal(error.code, 'DiskFull');
      return true;
    });
    assert.ok((await readdir(join(out, 'int7'))).includes('model.int7.onnx'), 'a file is removed when it is copied');
    assert.ok(existsSync(join(out, 'int7', 'manifest.json')));
  } finally {
    execFileSync('umount', [disk]);
  }
});

test('a model that was damaged since is made again, from the checkpoint', async () => {
  await ENDS.succeeded();
  await write('model/backbone.onnx', 'cut');
  assert.equal((await take()).mode, 'continue');
  assert.match(printed.join('\n'), /backbone\.onnx is not as the earlier run wrote it/);
});

test('an artifact stays in its place when the next quantization cannot read its inputs', async () => {
  await ENDS.succeeded();
  const before = await files();
  const other = makeJob((spec) => (spec.quantize = { calibration: { images: 3 } }));
  const checkQuantizationInputs = () => Promise.reject(new Error('no dataset'));
  await assert.rejects(take(other, { checkQuantizationInputs }), /no dataset/);
  assert.deepEqual(await files(), before);
  assert.equal((await take()).mode, 'nothing');
});

test('an artifact that was damaged since is made again, and what is left of it is kept', async () => {
  const damages: Record<string, () => Promise<void>> = {
    'a cut model': () => write('int7/model.int7.onnx', 'cut'),
    'no model': () => rm(join(out, 'int7/model.int7.onnx')),
    'no scales': () => rm(join(out, 'int7/scales.json')),
    'a cut manifest': () => write('int7/manifest.json', '{"kind": "facetr'),
  };
  for (const [name, damage] of Object.entries(damages)) {
    await ENDS.succeeded();
    await damage();
    const left = await readdir(join(out, 'int7'));
    assert.equal((await take()).mode, 'quantize', name);
    assert.match(printed.join('\n'), /int7 is not as the earlier run wrote it; the model is quantized again/);
    assert.deepEqual(await readdir(join(out, 'int7-1')), left, name);
    await rm(out, { recursive: true });
    printed = [];
  }
});

describe('a run was killed after the last file of its artifact', () => {
  const s3 = (spec: Fields) => (spec.quantize = { output: { uri: 's3://models/faces' } });
  const cases: Record<
    string,
    { spec?: (spec: Fields) => void; folder?: string; uid?: string; change?: (spec: Fields) => void; want: RunMode }
  > = {
    'it is kept': { want: 'nothing' },
    'of another attempt: quantized again': { uid: 'another-0', want: 'quantize' },
    'a field of the quantization has changed since: quantized again': {
      change: (spec) => (spec.quantize = { gate: { maxAccuracyDrop: 0.5 } }),
      want: 'quantize',
    },
    'it may not have been published: quantized again': {
      spec: s3,
      folder: '.facetrain/scratch/output',
      change: s3,
      want: 'quantize',
    },
  };
  for (const [name, { spec, folder = 'int7', uid, change = spec, want }] of Object.entries(cases)) {
    test(name, async () => {
      const { uid: run } = await take(makeJob(spec));
      // Restarts of the training count on; the second invocation quantizes.
      await writeModel(run);
      await writeFile(stateFile(), JSON.stringify({ ...state(), trained: true, attempt: 3 }));
      assert.equal((await take(makeJob(spec))).attempt, 4);
      await writeArtifact(folder, uid ?? `${run}-4`);
      assert.equal((await take(makeJob(change))).mode, want);
      // What is found out is recorded.
      assert.equal(state().quantized, want === 'nothing');
    });
  }
});

describe('--fresh', () => {
  const ours = [
    'checkpoints/step-0000000005/manifest.json',
    'checkpoints/step-0000000005/rows-0000000000.safetensors',
    'checkpoints/step-0000000010/backbone.safetensors',
    'checkpoints/step-0000000010/.backbone.safetensors.17.tmp',
    'checkpoints/step-0000000010/rows-0000000000-2.safetensors',
    'checkpoints/step-0000000010/retired-0123456789abcdef.json',
    'checkpoints/damaged-step-0000000007.0000000001/manifest.json',
    'checkpoints/evaluations.json',
    'model/backbone.onnx',
    'tensorboard/events.out.tfevents.1.faces',
    'train-report.html',
    'int7-1/model.int7.onnx',
    '.facetrain/logs/faces-0-0.log',
    '.facetrain/config/faces-0/config.json',
  ];
  const foreign = [
    'mine.txt',
    'int7-old/model.int7.onnx',
    'int7/mine.onnx',
    'model/mine.onnx',
    'model/backbone.onnx.bak',
    'checkpoints/mine.txt',
    'tensorboard/mine.txt',
    'checkpoints/step-0000000005/mine.txt',
    'checkpoints/step-mine/manifest.json',
    '.facetrain/volumes/faces/train.rec',
    '.facetrain/inputs/dataset/train.rec',
    'checkpoints/fences/0000000003.json',
  ];

  test('names and removes what the run has made, and nothing else', async () => {
    await ENDS.succeeded();
    const { uid } = state();
    for (const path of [...ours, ...foreign]) await write(path);
    const folder = await take(makeJob(), { fresh: true });
    assert.deepEqual([folder.mode, folder.attempt], ['begin', 0]);
    assert.notEqual(folder.uid, uid);
    assert.deepEqual(Object.keys(await files()).sort(), [...foreign, '.facetrain/run.json'].sort());
    const text = printed.join('\n');
    for (const name of ['step-0000000005', 'step-0000000010', 'model/backbone.onnx', 'int7/manifest.json'])
      assert.match(text, new RegExp(`  ${out}/.*${name.replaceAll('.', '\\.')} \\(.* B\\)`));
    for (const path of foreign) assert.doesNotMatch(text, new RegExp(`${path.replaceAll('.', '\\.')} `));
  });

  test('removes nothing when an input cannot be used', async () => {
    await ENDS.succeeded();
    const before = await files();
    const checkInputs = () => Promise.reject(new Error('no dataset'));
    await assert.rejects(take(makeJob(), { fresh: true, checkInputs }), /no dataset/);
    assert.deepEqual(await files(), before);
    assert.deepEqual(printed, []);
  });

  test('in a folder of checkpoints that other jobs share, removes only those of this run', async () => {
    const shared = join(dirname(out), 'shared');
    const job = makeJob((spec) => (spec.checkpoint = { uri: `file://${shared}` }));
    const { uid } = await take(job);
    for (const [step, writer] of [
      ['step-0000000001', uid],
      ['step-0000000002', 'another'],
    ] as const) {
      await mkdir(join(shared, step), { recursive: true });
      await writeFile(join(shared, step, 'manifest.json'), JSON.stringify({ job: { name: 'faces', uid: writer } }));
    }
    await take(job, { fresh: true });
    assert.deepEqual(await readdir(shared), ['step-0000000002']);
  });

  test('that was interrupted goes on with removing: what is left of the earlier run is not resumed', async () => {
    await ENDS.succeeded();
    await writeFile(stateFile(), JSON.stringify({ ...state(), removing: true }));
    assert.equal((await take()).mode, 'begin');
    assert.deepEqual(Object.keys(await files()), ['.facetrain/run.json']);
  });

  test('does not replace another job', async () => {
    await ENDS.succeeded();
    const before = await files();
    for (const fresh of [false, true])
      await assert.rejects(
        take(
          makeJob(() => {}, 'others'),
          { fresh },
        ),
        /holds the run of another job, "faces"/,
      );
    assert.deepEqual(await files(), before);
  });
});

describe('a folder of version 0.1', () => {
  const sha256 = (job: FaceTrainJob) => createHash('sha256').update(JSON.stringify(job.spec)).digest('hex');
  /** The process with this number is no facetrain. */
  const former = async (job: FaceTrainJob, finished: boolean, pid = process.ppid) => {
    await write('.facetrain/run.json', JSON.stringify({ uid: 'old', specSha256: sha256(job), finished, pid }));
    const config = plannedTrainerConfig(job, 'old', join(out, '.facetrain'));
    config.job.attempt = 3;
    const later = [
      ...['input', 'checkpointActivations', 'syncBatchNorm', 'm', 'h', 'gradient', 'rows', 'sampleRateChanges'],
      ...['microBatchSize', 'maxBadPictures', 'cropProbability', 'lowResolutionProbability', 'colorJitterProbability'],
    ];
    const withoutLater = (key: string, value: unknown) => (later.includes(key) ? undefined : value);
    await write('.facetrain/config/faces-3/config.json', JSON.stringify(config, withoutLater));
  };

  test('a run that failed, which that version calls finished, is continued', async () => {
    await former(makeJob(), true);
    await writeCheckpoint();
    const folder = await take();
    assert.deepEqual([folder.mode, folder.uid, folder.attempt], ['continue', 'old', 4]);
  });

  test('a run that succeeded is kept', async () => {
    await former(makeJob(), true);
    await writeModel('old');
    await writeArtifact();
    assert.equal((await take()).mode, 'nothing');
  });

  test('a run that missed its gate is quantized', async () => {
    await former(makeJob(), true);
    await writeModel('old');
    assert.equal((await take()).mode, 'quantize');
  });

  test('fields that decide what is trained are compared, others are not', async () => {
    await former(
      makeJob((spec) => (spec.failurePolicy = { maxRestarts: 1 })),
      false,
    );
    await writeCheckpoint();
    await assert.rejects(take(makeJob((spec) => (spec.seed = 7))), /checkpoints .* spec\.seed/);
    assert.equal((await take()).mode, 'continue');
  });
});

test('the artifact of another job is neither replaced nor removed', async () => {
  const place = join(out, '..', 'models', 'face');
  const job = () => makeJob((spec) => (spec.quantize = { output: { uri: `file://${place}` } }));
  const publishAs = async (name: string, folder: string) => {
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, 'manifest.json'), '{}');
    await writeFile(join(folder, 'report.json'), JSON.stringify({ job: { name } }));
  };
  await publishAs('other-quantize', place);
  await assert.rejects(take(job()), /models\/face: holds an artifact, or another manifest\.json/);
  await publishAs('faces-quantize', place);
  await publishAs('other-quantize', `${place}-2`);
  await take(job());
  await take(job(), { fresh: true });
  assert.deepEqual([existsSync(place), existsSync(join(`${place}-2`, 'manifest.json'))], [false, true]);
});

test('--fresh removes the reports of a missed gate outside OUT, but not those of another job', async () => {
  const place = join(out, '..', 'models', 'missed');
  const job = () => makeJob((spec) => (spec.quantize = { output: { uri: `file://${place}` } }));
  const rejected = join(place, 'rejected');
  for (const [name, left] of [
    ['other-quantize', true],
    ['faces-quantize', false],
  ] as const) {
    await take(job(), { fresh: true });
    await mkdir(rejected, { recursive: true });
    await writeFile(join(rejected, 'report.html'), '');
    await writeFile(join(rejected, 'report.json'), JSON.stringify({ job: { name } }));
    await take(job(), { fresh: true });
    assert.equal(existsSync(place), left, name);
  }
});

test('a model that was changed is not trained again when no checkpoint is left', async () => {
  const folder = await take();
  await writeModel(folder.uid);
  await folder.recordTrained();
  await write('model/backbone.onnx', 'simplified');
  await assert.rejects(take(), /is not as the earlier run wrote it, and there is no checkpoint to make it from/);
});

test('files without a run are refused; the state folder alone is no obstacle', async () => {
  await write('.facetrain/run.lock', '');
  assert.equal((await take()).mode, 'begin');
  await rm(stateFile());
  await write('mine.txt', 'precious');
  await assert.rejects(take(), /is not empty, and no run of facetrain made it/);
  assert.equal(await readFile(join(out, 'mine.txt'), 'utf8'), 'precious');
});

test('a run.json that is damaged, or of a later version, is refused', async () => {
  for (const [content, message] of [
    ['{"uid"', /run\.json: .*JSON/],
    ['{"schemaVersion": 3}', /run\.json: is not the state of a run that this version knows/],
    ['null', /run\.json: is not the state/],
  ] as const) {
    await write('.facetrain/run.json', content);
    await assert.rejects(take(), message);
    assert.equal(await readFile(stateFile(), 'utf8'), content);
  }
  await rm(stateFile());
  await ENDS['stopped or killed']();
  const whole = JSON.parse(await readFile(stateFile(), 'utf8')) as { spec: object };
  for (const damage of [
    { spec: null },
    { spec: {} },
    { spec: { ...whole.spec, checkpoint: null } },
    { spec: { ...whole.spec, trainers: null } },
    { spec: { ...whole.spec, quantize: {} } },
    { uid: null },
    { attempt: 0.5 },
  ]) {
    await writeFile(stateFile(), JSON.stringify({ ...whole, ...damage }));
    for (const fresh of [false, true])
      await assert.rejects(take(makeJob(), { fresh }), /run\.json: is not the state/, JSON.stringify(damage));
  }
});

test('a process that holds the lock keeps others out, until it ends by whatever signal', async () => {
  await ENDS['stopped or killed']();
  const lock = join(out, '.facetrain', 'run.lock');
  const holder = spawn('flock', [lock, 'sh', '-c', 'echo locked; read _'], { stdio: ['pipe', 'pipe', 'inherit'] });
  await new Promise((resolve) => holder.stdout.once('data', resolve));
  await assert.rejects(take(), /is running a job there/);
  const ended = new Promise((resolve) => holder.once('exit', resolve));
  holder.stdin.end();
  await ended;
  assert.equal((await take()).mode, 'continue');
});

test('waits for trainers that a killed run has left, and sees the checkpoint that they write', async () => {
  await take();
  const lock = join(out, '.facetrain', 'trainers.lock');
  const checkpoint = join(out, 'checkpoints', 'step-0000000005');
  const script = `echo locked; read _; mkdir -p ${checkpoint}; echo {} > ${checkpoint}/manifest.json`;
  const trainer = spawn('flock', [lock, 'sh', '-c', script], { stdio: ['pipe', 'pipe', 'inherit'] });
  await new Promise((resolve) => trainer.stdout.once('data', resolve));
  const { signal } = new AbortController();
  const options = { fresh: false, checkInputs: noCheck, checkQuantizationInputs: noCheck, signal };
  const taken = RunFolder.take(out, makeJob(), {
    ...options,
    print: (line) => {
      printed.push(line);
      if (line.startsWith('Waits for trainers')) trainer.stdin.end();
    },
  });
  const folder = await taken;
  folder.release();
  assert.match(printed.join('\n'), /Waits for trainers of an earlier run .*\(processes \d+/);
  assert.equal(folder.mode, 'continue');
  assert.ok(existsSync(checkpoint));
});

test('trainers that a killed run has left get the time of its pod template, and are then killed', async () => {
  const withGrace = (seconds: number) =>
    makeJob((spec) => {
      spec.trainers = { podTemplate: { spec: { terminationGracePeriodSeconds: seconds } } };
      spec.quantize = { quantizer: { podTemplate: { spec: { terminationGracePeriodSeconds: 1 } } } };
    });
  const lock = join(out, '.facetrain', 'trainers.lock');
  for (const seconds of [1, 600]) {
    await take(withGrace(seconds));
    const trainer = spawn('flock', [lock, 'sh', '-c', 'echo locked; read _'], { stdio: ['pipe', 'pipe', 'inherit'] });
    await new Promise((resolve) => trainer.stdout.once('data', resolve));
    const ended = new Promise((resolve) => trainer.once('exit', (_, signal) => resolve(signal)));
    printed = [];
    const { signal } = new AbortController();
    const options = { fresh: false, checkInputs: noCheck, checkQuantizationInputs: noCheck, signal };
    // The manifest may say something else by now.
    const folder = await RunFolder.take(out, makeJob(), {
      ...options,
      print: (line) => {
        printed.push(line);
        if (seconds === 600) trainer.stdin.end();
      },
    });
    folder.release();
    assert.equal(await ended, seconds === 1 ? 'SIGKILL' : null);
    assert.match(printed[0]!, new RegExp(`at most ${seconds} s `));
    await rm(out, { recursive: true });
  }
});
