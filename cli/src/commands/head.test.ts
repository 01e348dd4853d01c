/** Identities leave and join a trained head, and training goes on. */
import assert from 'node:assert/strict';
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { openCheckpoint } from '@facetrain/trainer/checkpoint/directory';
import { type OpenHead, openHeads, rowsOf, storedRows } from '@facetrain/trainer/checkpoint/edit-head';
import { readIdentities } from '@facetrain/trainer/checkpoint/retired';
import { writeSmallDataset } from '@facetrain/trainer/testing/training-gang';
import { facetrain, writeTinyJob } from '../testing/run-cli.ts';

const IDENTITIES = 8;
const PICTURES = 6;
const BATCH = 8;

let folder: string;
let data: string;
/** A copy of the checkpoints of a training of two epochs. */
let checkpoints: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-head-'));
  data = join(folder, 'data');
  checkpoints = join(folder, 'copy');
  writeSmallDataset(data, { identities: IDENTITIES, perIdentity: PICTURES });
  const { code, stderr } = await facetrain('train', '-f', await jobOf('first', 2));
  assert.equal(code, 0, stderr);
  await cp(join(folder, 'first', 'out', 'checkpoints'), checkpoints, { recursive: true });
});
after(() => rm(folder, { recursive: true }));

function jobOf(name: string, epochs: number, more: object = {}): Promise<string> {
  return writeTinyJob(join(folder, name), (spec) =>
    Object.assign(spec, {
      dataset: { uri: `file://${data}` },
      globalBatchSize: BATCH,
      epochs,
      loss: { sampleRate: 0.5 },
      checkpoint: { everySteps: 4 },
      trainers: { replicas: 1, computeThreads: 1 },
      ...more,
    }),
  );
}

async function steps(): Promise<number[]> {
  return (await readdir(checkpoints))
    .filter((name) => name.startsWith('step-'))
    .map((name) => Number(name.slice('step-'.length)))
    .sort((a, b) => b - a);
}

test('removed, merged and added identities; training goes on', async () => {
  const kept = await steps();
  assert.ok(kept.length >= 2, `${kept.length} checkpoints`);
  const removed = await facetrain('head', 'remove', checkpoints, '--classes', '3', '--json');
  assert.equal(removed.code, 0, removed.stderr);
  const { search, checkpoints: edited } = JSON.parse(removed.stdout) as {
    search: { classes: number; files: number; found: string[] };
    checkpoints: { step: number }[];
  };
  assert.deepEqual([search.classes, search.found], [1, []]);
  assert.deepEqual(
    edited.map(({ step }) => step),
    kept,
  );
  assert.ok(search.files >= 3 * kept.length);
  // Again: nothing is left to do.
  const again = await facetrain('head', 'remove', checkpoints, '--classes', '3');
  assert.equal(again.code, 0, again.stderr);
  assert.match(again.stdout, /step \d+ \(0 B written\)/);
  assert.match(again.stdout, /Searched +nothing: all their rows were zero before/);

  const map = join(folder, 'map.tsv');
  const merged = await facetrain('head', 'merge', checkpoints, '--classes', '4', '--into', '5', '--map', map);
  assert.equal(merged.code, 0, merged.stderr);
  assert.equal(await readFile(map, 'utf8'), '4\t5\n');

  // Two people join; what the dataset had stays as it was.
  writeSmallDataset(data, { identities: IDENTITIES + 2, perIdentity: PICTURES });
  const model = join(folder, 'first', 'out', 'model', 'backbone.onnx');
  const add = () => facetrain('head', 'add', checkpoints, '--dataset', data, '--model', model);
  const added = await add();
  assert.equal(added.code, 0, added.stderr);
  assert.match(added.stdout, /Added +2 classes, from 8 on: now 10/);
  assert.match((await add()).stdout, /Added +0 classes: now 10/);

  const [newest] = kept;
  const before = await openCheckpoint(checkpoints, newest!);
  const rowsBefore = await rowsOf(before, [3, 4, 5, 9]);
  const norm = (row: Float32Array) => Math.hypot(...row);
  assert.deepEqual([norm(rowsBefore.get(3)!), norm(rowsBefore.get(4)!)], [0, 0]);
  assert.ok(norm(rowsBefore.get(9)!) > 0);
  assert.equal(before.manifest.numClasses, IDENTITIES + 2);

  const second = await jobOf('second', 4, { checkpoint: { uri: `file://${checkpoints}`, everySteps: 4 } });
  const { code, stderr } = await facetrain('train', '-f', second);
  assert.equal(code, 0, stderr);
  const [last] = await steps();
  assert.equal(last, 4 * Math.floor(((IDENTITIES + 2) * PICTURES) / BATCH));
  const trained = await openCheckpoint(checkpoints, last!);
  assert.deepEqual((await readIdentities(trained)).retired, [
    { class: 3, into: null },
    { class: 4, into: 5 },
  ]);
  const rows = await rowsOf(trained, [3, 4, 5, 9]);
  assert.deepEqual([norm(rows.get(3)!), norm(rows.get(4)!)], [0, 0]);
  for (const id of [5, 9]) assert.notDeepEqual(rows.get(id), rowsBefore.get(id), `class ${id} has not moved`);
});

test('what cannot be done is refused before anything is changed', async () => {
  const refusals: [args: string[], message: RegExp][] = [
    [['remove', checkpoints, '--classes', '99'], /class 99: the head has no such class; 0 to /],
    [['remove', checkpoints, '--classes', 'two'], /class id: a whole number/],
    [['merge', checkpoints, '--classes', '1', '--into', '3'], /class 3: it was removed or merged before/],
    [['merge', checkpoints, '--classes', '5', '--into', '5'], /class 5: it would be merged into itself; another class/],
    [['remove', join(folder, 'first'), '--classes', '1'], /no checkpoint; a folder with checkpoints/],
    [['remove', 's3://faces/checkpoints', '--classes', '1'], /s3:.*in an object store cannot be edited there/],
  ];
  for (const [args, message] of refusals) {
    const { code, stderr } = await facetrain('head', ...args);
    assert.equal(code, 2, args.join(' '));
    assert.match(stderr, message);
  }
});

test('inspect tells the optimizer of class centres, their bytes, and which are retired', async () => {
  const path = join(checkpoints, (await readdir(checkpoints)).find((name) => name.startsWith('step-'))!);
  const { stdout } = await facetrain('inspect', path, '--json');
  const { bytesPerClass, retiredClasses, embeddingDim } = JSON.parse(stdout) as {
    bytesPerClass: number;
    retiredClasses: { class: number; into: number | null }[];
    embeddingDim: number;
  };
  assert.equal(bytesPerClass, 2 * 4 * embeddingDim);
  assert.deepEqual(retiredClasses.slice(0, 2), [
    { class: 3, into: null },
    { class: 4, into: 5 },
  ]);
  const people = await facetrain('inspect', path);
  assert.match(people.stdout, /\n *Their optimizer +SGD; \d+ bytes a class\n/);
  assert.match(people.stdout, /\n *Retired +2 classes/);
});

test('a former row, or its momentum, that is still in another file of the folder is found', async () => {
  const [{ checkpoint }] = (await openHeads(checkpoints)) as [OpenHead];
  const momentum = checkpoint.manifest.rows.tensors.findIndex(({ name }) => name === 'momentum');
  for (const [classes, place, name] of [
    ['0,1', 0, 'rows.bak'],
    ['2', momentum, 'momentum.bak'],
  ] as const) {
    const last = Number(classes.split(',').at(-1));
    const [stored] = await storedRows((await openHeads(checkpoints))[0]!.checkpoint, [last]);
    const file = join(checkpoints, name);
    await writeFile(file, Buffer.concat([Buffer.alloc(1001), stored!.tensors[place]!, Buffer.alloc(9)]));
    const removed = await facetrain('head', 'remove', checkpoints, '--classes', classes);
    assert.equal(removed.code, 1, removed.stderr);
    const found = new RegExp(
      `former rows of ${classes.split(',').length} of them: FOUND in [^,]*${name}; delete these`,
    );
    assert.match(removed.stdout, found);
    await rm(file);
  }
});
