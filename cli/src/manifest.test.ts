import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { readFaceTrainJob, readManifests } from './manifest.ts';

const job = `apiVersion: facetrain.dev/v1alpha1
kind: FaceTrainJob
metadata: {name: a}
spec:
  dataset: {uri: file://data}
  model: {backbone: iresnet18}
  output: {uri: file://../out}
  evaluation: {sets: [{name: x, uri: file:///abs/x.bin}, {name: y, uri: s3://bucket/y.bin}]}
`;
const quantize = `apiVersion: facetrain.dev/v1alpha1
kind: QuantizeJob
metadata: {name: q}
spec: {model: {uri: file://m.onnx}, calibration: {dataset: {uri: file://data}}, output: {uri: s3://models/int7}}
`;

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'manifest-'));
});
after(() => rm(folder, { recursive: true }));

async function file(text: string): Promise<string> {
  const path = join(folder, 'job.yaml');
  await writeFile(path, text);
  return path;
}

test('relative paths are relative to the manifest, not to the working directory', async () => {
  const { spec } = await readFaceTrainJob(await file(job));
  assert.equal(spec.dataset.uri, `file://${folder}/data`);
  assert.equal(spec.output.uri, `file://${join(folder, '..', 'out')}`);
  assert.deepEqual(
    spec.evaluation.sets.map(({ uri }) => uri),
    ['file:///abs/x.bin', 's3://bucket/y.bin'],
  );
});

test('a file may hold several documents; empty ones are skipped', async () => {
  const manifests = await readManifests(await file(`${job}---\n---\n${quantize}`));
  assert.deepEqual(
    manifests.map(({ kind, metadata }) => [kind, metadata.name]),
    [
      ['FaceTrainJob', 'a'],
      ['QuantizeJob', 'q'],
    ],
  );
});

const refusals: Record<string, { text: string; wantMessage: RegExp }> = {
  'an empty file': { text: '', wantMessage: /job\.yaml: no document; one FaceTrainJob or QuantizeJob/ },
  'text that is not YAML': { text: 'a: [1', wantMessage: /job\.yaml: .*line 1/s },
  'a scalar': { text: 'hello', wantMessage: /job\.yaml: kind: missing; must be one of FaceTrainJob, QuantizeJob/ },
  'another kind': {
    text: 'kind: Pod',
    wantMessage: /job\.yaml: kind: "Pod"; must be one of FaceTrainJob, QuantizeJob; keep other kinds in separate files/,
  },
  'a property of Object.prototype as a kind': { text: 'kind: toString', wantMessage: /kind: "toString"/ },
  'a wrong field in the second document': {
    text: `${quantize}---\n${job}  epoch: 3\n`,
    wantMessage: /job\.yaml \(document 2\): spec\.epoch: unknown field; did you mean "epochs"\?/,
  },
  'an alias bomb': {
    text: `a: &a [x, x]
b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]
c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]
d: [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]
kind: FaceTrainJob
`,
    wantMessage: /job\.yaml/,
  },
};
for (const [name, { text, wantMessage }] of Object.entries(refusals)) {
  test(`refused: ${name}`, async () => {
    await assert.rejects(readManifests(await file(text)), (error) => {
      assert.ok(error instanceof FacetrainError, String(error));
      assert.equal(error.exitCode, 2);
      assert.match(error.message, wantMessage);
      return true;
    });
  });
}

test('`run` wants exactly one FaceTrainJob', async () => {
  await assert.rejects(readFaceTrainJob(await file(quantize)), /QuantizeJob; must hold exactly one FaceTrainJob/);
  await assert.rejects(
    readFaceTrainJob(await file(`${job}---\n${job}`)),
    /FaceTrainJob, FaceTrainJob; must hold exactly one FaceTrainJob/,
  );
});
