/** Checks the generated definitions with the API server's own code (hack/crdcheck), and that zod and the CRD agree. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { root, tools } from '../../hack/lib/paths.mjs';
import { FaceTrainJob, QuantizeJob } from './index.ts';
import { changes, type Document, fixtures, trainSpec } from './testing/manifest-fixtures.ts';

const folder = join(root, 'crds');
const files = readdirSync(folder).map((name) => join(folder, name));
/**
 * Bytes of a definition: kubectl apply stores it in annotations, which may have 256 KiB; Helm stores releases in
 * Secrets of 1 MiB.
 */
const MAX_BYTES = 250_000;

function crdcheck(inputs: { object: Document; old?: Document }[]): {
  definitions: Record<string, string[]>;
  objects: string[][];
} {
  const program = join(tools, 'crdcheck');
  const { stdout, stderr, status, error } = spawnSync(program, files, {
    input: JSON.stringify(inputs),
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  assert.equal(status, 0, `${error?.message ?? ''}${stderr}`);
  return JSON.parse(stdout);
}

let verdicts: string[][];
before(() => {
  verdicts = crdcheck(Object.values(fixtures).map(({ object }) => ({ object }))).objects;
});

test('an API server accepts the definitions: structural schemas, CEL that compiles and is cheap enough', () => {
  assert.deepEqual(
    Object.values(crdcheck([]).definitions),
    files.map(() => []),
  );
});

test('the definitions are small enough to be applied', () => {
  for (const file of files) assert.ok(readFileSync(file).length < MAX_BYTES, file);
});

for (const [index, [name, { object, wantValid }]] of Object.entries(fixtures).entries()) {
  test(`zod and the CRD agree: ${name} is ${wantValid ? 'valid' : 'refused'}`, () => {
    const schema = object.kind === 'FaceTrainJob' ? FaceTrainJob : QuantizeJob;
    assert.equal(schema.safeParse(object).success, wantValid);
    assert.equal(verdicts[index]!.length === 0, wantValid, verdicts[index]!.join('\n'));
  });
}

const endOf = (finished: true | 'training') => (finished === true ? 'completionTime' : 'trainingCompletionTime');
for (const [name, { from, to, finished, wantRefusal }] of Object.entries(changes)) {
  test(`a change: ${name} is ${wantRefusal ? 'refused' : 'allowed'}`, () => {
    const job = (spec: Document) => ({
      ...trainSpec(spec),
      ...(finished && { status: { [endOf(finished)]: '2026-01-01T00:00:00Z' } }),
    });
    const [errors] = crdcheck([{ object: job(to), old: job(from) }]).objects as [string[]];
    if (wantRefusal) assert.match(errors.join('\n'), wantRefusal);
    else assert.deepEqual(errors, []);
  });
}
