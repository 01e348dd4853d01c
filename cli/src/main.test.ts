/** Exit codes, and what is written to standard output and to standard error. */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { exampleFaces } from '../../hack/lib/paths.mjs';
import { facetrain, Running } from './testing/run-cli.ts';

const job = join(exampleFaces, '..', 'job.yaml');
const pairs = join(exampleFaces, 'lfw-small.bin');

test('validate prints a line for people, and an object with --json', async () => {
  const people = await facetrain('validate', '-f', job);
  assert.deepEqual([people.code, people.stdout], [0, `${job}: FaceTrainJob lfw-small is valid\n`]);
  const program = await facetrain('validate', '-f', job, '--json');
  assert.deepEqual(JSON.parse(program.stdout), {
    valid: true,
    manifests: [{ file: job, kind: 'FaceTrainJob', name: 'lfw-small', warnings: [] }],
  });
});

const validate = (input: string) => new Running(['validate', '-f', '-'], { input }).outcome;
const minimalJob = ({ metadata, spec }: { metadata?: object; spec?: object }) =>
  JSON.stringify({
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name: 'faces', ...metadata },
    spec: {
      dataset: { uri: 'pvc://data' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: 'pvc://out' },
      ...spec,
    },
  });

test('validate warns of a label that names a queue where the spec names none', async () => {
  const metadata = { labels: { 'kueue.x-k8s.io/queue-name': 'team' } };
  const { code, stdout } = await validate(minimalJob({ metadata }));
  assert.equal(code, 0);
  assert.match(stdout, /^-: FaceTrainJob faces is valid\n-: FaceTrainJob faces: warning: label kueue\.x-k8s\.io/);
  assert.match(stdout, /queue-name: team; .* \(QueueNotSet\): a queue is set by spec\.queue\.name\n$/);
  const queued = await validate(minimalJob({ metadata, spec: { queue: { name: 'team' } } }));
  assert.equal(queued.stdout, '-: FaceTrainJob faces is valid\n');
});

test('validate checks every file that is given, each with its own -f or all with one', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-validate-'));
  try {
    const wrong = join(folder, 'wrong.yaml');
    await writeFile(wrong, 'apiVersion: facetrain.dev/v1alpha1\nkind: FaceTrainJob\n');
    const both = await facetrain('validate', '-f', job, job);
    assert.deepEqual([both.code, both.stdout.trim().split('\n').length], [0, 2]);
    const refused = await facetrain('validate', '-f', wrong, '-f', job);
    assert.equal(refused.code, 2, refused.stdout);
    assert.match(refused.stderr, /wrong\.yaml/);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('validate reads standard input, and refuses a field of a pod template that would have no effect', async () => {
  const manifest = (podTemplate: object) => minimalJob({ spec: { trainers: { podTemplate } } });
  const valid = await validate(manifest({ spec: { nodeSelector: { pool: 'gpu' } } }));
  assert.deepEqual([valid.code, valid.stdout], [0, '-: FaceTrainJob faces is valid\n']);
  const misplaced = await validate(manifest({ nodeSelector: { pool: 'gpu' } }));
  assert.equal(misplaced.code, 2);
  assert.match(misplaced.stderr, /faces: spec\.trainers\.podTemplate\.nodeSelector: .*spec\.nodeSelector/);
});

test('help says how a default is found that depends on the input', async () => {
  const { code, stdout } = await facetrain('eval', '--help');
  assert.equal(code, 0);
  assert.match(stdout.replace(/\s+/g, ' '), /--runtime <runtime> .*"int7"\) \(default: what the model is made for\)/);
  assert.match(stdout.replace(/\s+/g, ' '), /--device <device> [^()]*\([^()]*, default: "auto"\) --/);
});

test('dataset check reads and decodes every picture', async () => {
  const { code, stdout } = await facetrain('dataset', 'check', exampleFaces, '--json');
  assert.equal(code, 0);
  const { images, identities, identitiesSeen, height, width } = JSON.parse(stdout) as Record<string, number>;
  assert.deepEqual(
    { images, identities, identitiesSeen, height, width },
    { images: 800, identities: 40, identitiesSeen: 40, height: 112, width: 112 },
  );
});

const refusals: Record<string, { args: string[]; input?: string; wantMessage: RegExp }> = {
  'an unknown command': { args: ['trian'], wantMessage: /unknown command 'trian'/ },
  'an unknown option': { args: ['validate', '-f', job, '--frobnicate'], wantMessage: /unknown option '--frobnicate'/ },
  'a missing option': { args: ['run'], wantMessage: /-f, --file/ },
  'a word in place of a number': {
    args: ['quantize', '--model', 'a', '--calibration', 'b', '--out', 'c', '--images', 'many'],
    wantMessage: /whole number/,
  },
  'more threads than a manifest may ask for': {
    args: ['eval', '--model', 'a', '--pairs', pairs, '--threads', '9999'],
    wantMessage: /--threads.*whole number from 1 to 256/,
  },
  'an unknown color order': {
    args: ['eval', '--model', 'a', '--pairs', pairs, '--channel-order', 'grb'],
    wantMessage: /rgb, bgr/,
  },
  'an unknown device': {
    args: ['eval', '--model', 'a', '--pairs', pairs, '--device', 'tpu'],
    wantMessage: /auto, cpu, cuda/,
  },
  'a manifest that does not exist': { args: ['run', '-f', 'nowhere.yaml'], wantMessage: /nowhere\.yaml/ },
  'a model that does not exist': {
    args: ['eval', '--model', 'nowhere.onnx', '--pairs', pairs],
    wantMessage: /nowhere\.onnx/,
  },
  'a model that is not ONNX': { args: ['eval', '--model', job, '--pairs', pairs], wantMessage: /job\.yaml/ },
  'pairs that are no .bin file': {
    args: ['eval', '--model', 'nowhere.onnx', '--pairs', job],
    wantMessage: /job\.yaml/,
  },
  'memory in a unit that is unknown': {
    args: ['quantize', '--model', 'a', '--calibration', 'b', '--out', 'c', '--memory', '2 GB'],
    wantMessage: /--memory.*512Mi or 2Gi; write 2Gi/,
  },
  'memory of a byte': {
    args: ['quantize', '--model', 'a', '--calibration', 'b', '--out', 'c', '--memory', '1'],
    wantMessage: /--memory.*from 1M on, such as 512Mi or 2Gi/,
  },
  'a bound of the gate that is no share': {
    args: ['quantize', '--model', 'a', '--calibration', 'b', '--out', 'c', '--max-accuracy-drop', '2'],
    wantMessage: /--max-accuracy-drop.*share from 0 to 1/,
  },
  'a bound of the gate that is no cosine': {
    args: ['quantize', '--model', 'a', '--calibration', 'b', '--out', 'c', '--min-worst-cosine', '-2'],
    wantMessage: /--min-worst-cosine.*cosine from -1 to 1/,
  },
  'an output folder whose name is too long': {
    args: ['quantize', '--model', 'a', '--calibration', exampleFaces, '--out', `/tmp/${'y'.repeat(300)}`],
    wantMessage: /^\/tmp\/y+: name too long \(ENAMETOOLONG\)/,
  },
  'an option with one value, twice': {
    args: ['head', 'remove', 'a', '--classes', '1', '--classes', '2'],
    wantMessage: /^error: option '--classes <ids>' is given twice; it takes one value\n\(facetrain head remove --help/m,
  },
  'an option twice, of a command that reads the same option of another command': {
    args: ['run', '-f', job, '-f', job],
    wantMessage: /^error: option '-f, --file <manifest>' is given twice/m,
  },
  'a number of classes that is not whole': {
    args: ['plan', '-f', job, '--classes', '1.5'],
    wantMessage: /--classes.*whole number from 1/,
  },
  'an argument that is empty': { args: ['inspect', ''], wantMessage: /^error: argument 'path' is empty$/m },
  'an option that is empty': {
    args: ['quantize', '--model', 'a', '--calibration', exampleFaces, '--out', ''],
    wantMessage: /^error: option '--out <folder>' is empty$/m,
  },
  'a list with an empty argument': {
    args: ['embed', '--model', 'a', 'b', ''],
    wantMessage: /^error: argument 'images' is empty$/m,
  },
  'a command of a group with an empty option': {
    args: ['head', 'remove', '--classes', '1', ''],
    wantMessage: /^error: argument 'checkpoints' is empty$/m,
  },
  'a folder as the file of pairs': {
    args: ['dataset', 'pairs', exampleFaces, '--output', exampleFaces],
    wantMessage: /is no file; the name of a file/,
  },
  'a folder that is no dataset': { args: ['dataset', 'check', join(exampleFaces, '..')], wantMessage: /lfw-small/ },
  'a quantity of bytes with a unit that Kubernetes has not': {
    args: ['validate', '-f', '-'],
    input: minimalJob({ spec: { trainers: { resources: { limits: { memory: '4GB' } } } } }),
    wantMessage: /spec\.trainers\.resources\.limits\.memory: "4GB"; a quantity such as 2, .* 1e3; write 4Gi$/m,
  },
  'a folder without manifest.json': { args: ['inspect', join(exampleFaces, '..')], wantMessage: /manifest\.json/ },
};
for (const [name, { args, input, wantMessage }] of Object.entries(refusals)) {
  test(`exit code 2: ${name}`, async () => {
    const { code, stdout, stderr } = await new Running(args, input === undefined ? {} : { input }).outcome;
    assert.equal(code, 2, stderr);
    assert.match(stderr, wantMessage);
    assert.equal(stdout, '');
    assert.doesNotMatch(stderr, /\n\s+at /, 'a stack trace is for defects only');
  });
}

test('quantize replaces an artifact only with --fresh, lists it first, and never replaces other files', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-quantize-'));
  try {
    const quantize = async (...options: string[]) => {
      const required = ['--model', 'nowhere.onnx', '--calibration', exampleFaces, '--out', folder];
      const { code, stderr } = await facetrain('quantize', ...required, ...options);
      assert.equal(code, 2);
      return stderr;
    };
    const manifest = join(folder, 'manifest.json');
    await writeFile(manifest, '{"kind": "another"}');
    for (const options of [[], ['--fresh']])
      assert.match(await quantize(...options), /holds manifest\.json, not of an INT7 artifact; choose another folder/);
    await writeFile(manifest, '{"kind": "facetrain-int7"}');
    assert.match(await quantize(), /holds manifest\.json; .*--out, or .*--fresh/);
    assert.match(await quantize('--fresh'), /^--fresh replaces:\n {2}.*manifest\.json \(26 B\)\n.*nowhere\.onnx/);
    await rm(manifest);
    await writeFile(join(folder, 'model.int7.onnx'), 'copied here by hand');
    assert.match(await quantize(), /holds model\.int7\.onnx, not of an INT7 artifact; choose another folder/);
    // A quantization that was interrupted has claimed the folder.
    await mkdir(join(folder, 'fences'));
    assert.match(await quantize(), /^.*nowhere\.onnx/);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('a reader that ends early is no failure', async () => {
  const reader = await new Promise((resolve) => {
    const child = spawn(process.execPath, [join(import.meta.dirname, 'main.ts'), 'validate', '-f', job]);
    let stderr = '';
    child.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
    child.stdout.destroy();
    child.once('close', (code) => resolve({ code, stderr }));
  });
  assert.deepEqual(reader, { code: 0, stderr: '' });
});

test('--json: a wrong command line prints one object', async () => {
  const { code, stdout } = await facetrain(
    'quantize',
    '--json',
    '--model',
    'a',
    '--calibration',
    'b',
    '--out',
    'c',
    '--images',
    '0',
  );
  assert.equal(code, 2);
  const { error } = JSON.parse(stdout) as { error: { code: string; message: string } };
  assert.equal(error.code, 'InvalidArgument');
  assert.match(error.message, /--images/);
});

test('--json: a refused input prints one object', async () => {
  const { code, stdout } = await facetrain('inspect', 'nowhere', '--json');
  assert.equal(code, 2);
  assert.deepEqual((JSON.parse(stdout) as { error: { code: string; subject: string } }).error.code, 'InvalidArgument');
});
