/** Identities leave and join a trained head, and training goes on. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { cp, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CHECKPOINT_MANIFEST } from '@facetrain/api';
import { checkpointDirectory, openCheckpoint, storedFiles } from '@facetrain/trainer/checkpoint/directory';
import { type OpenHead, openHeads, rowsOf, storedRows } from '@facetrain/trainer/checkpoint/edit-head';
import { ObjectTarget } from '@facetrain/trainer/checkpoint/object-target';
import { readIdentities } from '@facetrain/trainer/checkpoint/retired';
import { ObjectFence, readHead } from '@facetrain/trainer/storage/object-fence';
import { ObjectStore } from '@facetrain/trainer/storage/object-store';
import { writeImageFolder } from '@facetrain/trainer/testing/dataset-fixtures';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '@facetrain/trainer/testing/s3-server';
import { writeSmallDataset } from '@facetrain/trainer/testing/training-gang';
import { facetrain, writeTinyJob } from '../testing/run-cli.ts';

const IDENTITIES = 8;
const PICTURES = 6;
const BATCH = 8;

let server: S3Server;
let folder: string;
let data: string;
/** A copy of the checkpoints of a training of two epochs. */
let checkpoints: string;
before(async () => {
  Object.assign(process.env, AWS_ENVIRONMENT);
  server = await startS3Server('faces');
  folder = await mkdtemp(join(tmpdir(), 'facetrain-head-'));
  data = join(folder, 'data');
  checkpoints = join(folder, 'copy');
  writeSmallDataset(data, { identities: IDENTITIES, perIdentity: PICTURES });
  const { code, stderr } = await facetrain('train', '-f', await jobOf('first', 2));
  assert.equal(code, 0, stderr);
  await cp(join(folder, 'first', 'out', 'checkpoints'), checkpoints, { recursive: true });
});
after(async () => {
  await server?.stop();
  await rm(folder, { recursive: true });
});

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

const steps = () => stepsOf(checkpoints);

async function stepsOf(root: string): Promise<number[]> {
  return (await readdir(root))
    .filter((name) => name.startsWith('step-'))
    .map((name) => Number(name.slice('step-'.length)))
    .sort((a, b) => b - a);
}

const access = () => ['--endpoint', server.endpoint, '--force-path-style'];

/** Writes the checkpoints of a folder to an object store, as trainers do. */
async function storeCheckpoints(root: string, uri: string): Promise<void> {
  const store = new ObjectStore({ ...server.address(uri), credentials: null });
  try {
    const owner = { name: 'first', uid: 'u', attempt: 0, start: randomUUID() };
    const target = new ObjectTarget(await ObjectFence.claim(store, owner));
    for (const step of await stepsOf(root)) {
      const { directory, manifest } = await openCheckpoint(root, step);
      for (const { file } of storedFiles({ manifest })) {
        const writer = await target.create(step, file);
        await writer.write(await readFile(join(directory, file)));
        await writer.finish();
      }
      await target.complete(manifest);
    }
  } finally {
    store.close();
  }
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
  const merged = await facetrain('head', 'merge', checkpoints, '--classes', '4,4', '--into', '5', '--map', map);
  assert.equal(merged.code, 0, merged.stderr);
  assert.equal(await readFile(map, 'utf8'), '4\t5\n');
  assert.match(merged.stdout, /Merged +4 into 5, in/);

  // Who removes a part of a merged person is told of the rest.
  const parts = join(folder, 'parts');
  await cp(checkpoints, parts, { recursive: true });
  const part = await facetrain('head', 'remove', parts, '--classes', '4');
  assert.match(part.stdout, /Still trained +class 5, into which 4 was merged: its class centre is made of both/);
  assert.doesNotMatch((await facetrain('head', 'remove', parts, '--classes', '4,5')).stdout, /Still trained/);

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

test('in an object store the same edits give the same checkpoints, and leave nothing else', async () => {
  const original = join(folder, 'first', 'out', 'checkpoints');
  const copy = join(folder, 'second copy');
  await cp(original, copy, { recursive: true });
  await storeCheckpoints(original, 's3://faces/checkpoints');
  writeSmallDataset(data, { identities: IDENTITIES + 2, perIdentity: PICTURES });
  const model = join(folder, 'first', 'out', 'model', 'backbone.onnx');
  for (const [name, ...args] of [
    ['remove', '--classes', '3'],
    ['merge', '--classes', '4', '--into', '5'],
    ['add', '--dataset', data, '--model', model],
  ] as const) {
    const local = await facetrain('head', name, copy, ...args);
    assert.equal(local.code, 0, local.stderr);
    const stored = await facetrain('head', name, 's3://faces/checkpoints', ...args, ...access());
    assert.equal(stored.code, 0, stored.stderr);
    assert.equal(stored.stdout.split('\n')[0], local.stdout.split('\n')[0]);
    if (name === 'remove')
      assert.match(
        stored.stdout,
        /Searched +\d+ files .* for the former rows of 1 of them: none is there\n.*old objects/,
      );
  }
  const again = await facetrain('head', 'remove', 's3://faces/checkpoints', '--classes', '3', ...access());
  assert.match(again.stdout, /step \d+ \(0 B written\)/);

  const store = new ObjectStore({ ...server.address('s3://faces/checkpoints'), credentials: null });
  try {
    const { checkpoints: listed } = (await readHead(store))!.head;
    assert.deepEqual(listed.map(({ step }) => step).sort(), (await stepsOf(copy)).sort());
    const wanted = ['fences/head.json'];
    for (const { step, folder: prefix } of listed) {
      const want = await openCheckpoint(copy, step);
      const names = [CHECKPOINT_MANIFEST, ...storedFiles(want).map(({ file }) => file)];
      wanted.push(...names.map((name) => `${prefix}/${name}`));
      for (const name of names) {
        const found = Buffer.from((await store.get(`${prefix}/${name}`))!.bytes);
        assert(found.equals(await readFile(join(want.directory, name))), `${prefix}/${name}`);
      }
    }
    assert.deepEqual((await store.list('')).sort(), wanted.sort());
  } finally {
    store.close();
  }
});

test('a class that an older checkpoint does not have yet is removed from all, and does not come back', async () => {
  const [older, newer] = [join(folder, 'older'), join(folder, 'newer')];
  await cp(join(folder, 'first', 'out', 'checkpoints'), older, { recursive: true });
  const grown = join(folder, 'grown');
  writeSmallDataset(grown, { identities: IDENTITIES + 2, perIdentity: PICTURES });
  const model = { backbone: 'mobilefacenet', width: 1, blocks: [1, 1, 1, 1], embeddingDim: 32 };
  const resume = async (name: string, root: string, epochs: number) => {
    const job = await jobOf(name, epochs, {
      dataset: { uri: `file://${grown}` },
      model: { ...model, numClasses: IDENTITIES + 2 },
      checkpoint: { uri: `file://${root}`, everyEpochs: 100 },
    });
    const { code, stderr } = await facetrain('train', '-f', job);
    assert.equal(code, 0, stderr);
  };
  await cp(older, newer, { recursive: true });
  await resume('grow', newer, 3);
  const merged = await facetrain('head', 'merge', newer, '--classes', '8', '--into', '5');
  assert.equal(merged.code, 0, merged.stderr);
  const removed = await facetrain('head', 'remove', newer, '--classes', '9,4');
  assert.equal(removed.code, 0, removed.stderr);
  const [step] = await stepsOf(newer);
  // Training goes on from a checkpoint that has no row of the classes 8 and 9.
  await rm(checkpointDirectory(newer, step!), { recursive: true });
  assert.equal((await openHeads(newer))[0]!.checkpoint.manifest.numClasses, IDENTITIES);
  const added = join(folder, 'added');
  await cp(newer, added, { recursive: true });
  await resume('again', newer, 3);
  const onnx = join(folder, 'first', 'out', 'model', 'backbone.onnx');
  const add = await facetrain('head', 'add', added, '--dataset', grown, '--model', onnx);
  assert.equal(add.code, 0, add.stderr);
  const retired = [
    { class: 4, into: null },
    { class: 8, into: 5 },
    { class: 9, into: null },
  ];
  for (const root of [newer, added]) {
    const [{ checkpoint, identities }] = (await openHeads(root)) as [OpenHead];
    assert.equal(checkpoint.manifest.numClasses, IDENTITIES + 2, root);
    assert.deepEqual(identities.retired, retired, root);
    for (const [id, row] of await rowsOf(checkpoint, [4, 8, 9])) assert.equal(Math.hypot(...row), 0, `${root} ${id}`);
  }
});

test('the labels of an image folder stay whose they are, or are refused', async () => {
  const people = join(folder, 'people');
  const root = join(folder, 'of people');
  writeImageFolder(people, { identities: IDENTITIES, perIdentity: PICTURES });
  const goOn = async (name: string, epochs: number) =>
    facetrain(
      'train',
      '-f',
      await jobOf(name, epochs, {
        dataset: { uri: `file://${people}` },
        checkpoint: { uri: `file://${root}`, everySteps: 4 },
      }),
    );
  const first = await goOn('people 1', 1);
  assert.equal(first.code, 0, first.stderr);
  const onnx = join(folder, 'people 1', 'out', 'model', 'backbone.onnx');
  const add = () => facetrain('head', 'add', root, '--dataset', people, '--model', onnx);
  const index = () => facetrain('dataset', 'index', people);

  // In the order of names, anna comes first, and would shift all others.
  const [anna, aside] = [join(people, 'anna'), join(folder, 'anna')];
  await cp(join(people, 'person-0'), anna, { recursive: true });
  const moved = /people: 9 folders, of which the first 8 are not the 8 of the checkpoint of step 6: .* other people; /;
  for (const { code, stderr } of [await add(), await goOn('people 2', 2)]) {
    assert.equal(code, 2, stderr);
    assert.match(stderr, moved);
    assert.match(
      stderr,
      /write .*people\/facetrain\.index with facetrain dataset index, and write it again after each/,
    );
  }
  assert.equal((await openHeads(root))[0]!.checkpoint.manifest.numClasses, IDENTITIES);

  // What the message says.
  await rename(anna, aside);
  assert.equal((await index()).code, 0);
  await rename(aside, anna);
  await rm(join(people, 'person-3'), { recursive: true });
  assert.equal((await index()).code, 0);
  const added = await add();
  assert.equal(added.code, 0, added.stderr);
  assert.match(added.stdout, /Added +1 class, from 8 on: now 9/);
  const { code, stderr } = await goOn('people 2', 2);
  assert.equal(code, 0, stderr);
  const [{ checkpoint }] = (await openHeads(root)) as [OpenHead];
  assert.equal(checkpoint.manifest.labels?.count, IDENTITIES + 1);
  // Without the index, the labels are others again.
  await rm(join(people, 'facetrain.index'));
  assert.match((await goOn('people 3', 3)).stderr, /people: 8 folders, of which the first 9 are not the 9 of/);
});

test('inspect compares which classes are retired in two checkpoints', async () => {
  const original = join(folder, 'first', 'out', 'checkpoints');
  const edited = join(folder, 'inspected');
  await cp(original, edited, { recursive: true });
  const removed = await facetrain('head', 'remove', edited, '--classes', '3,3');
  assert.match(removed.stdout, /Removed +1 class from /);
  assert.equal((await facetrain('head', 'merge', edited, '--classes', '4', '--into', '5')).code, 0);
  const [step] = await stepsOf(original);
  const paths = [original, edited].map((root) => checkpointDirectory(root, step!));
  const { code, stdout, stderr } = await facetrain('inspect', ...paths);
  assert.equal(code, 0, stderr);
  assert.match(stdout, /\n *retired in one +none → 3 removed, 4 merged into 5\n/);
});

test('what cannot be done is refused before anything is changed', async () => {
  const refusals: [args: string[], message: RegExp][] = [
    [['remove', checkpoints, '--classes', '99'], /class 99: the head has no such class; 0 to /],
    [['remove', checkpoints, '--classes', 'two'], /class id: a whole number/],
    [['merge', checkpoints, '--classes', '1', '--into', '3'], /class 3: it was removed before; a class that is/],
    [['merge', checkpoints, '--classes', '5', '--into', '5'], /class 5: it would be merged into itself; another class/],
    [['remove', join(folder, 'first'), '--classes', '1'], /no checkpoint; a folder with checkpoints/],
    [['remove', join(folder, 'step-0000000001'), '--classes', '1'], /: one checkpoint; the folder with all of them/],
    [['remove', checkpoints, '--classes', '1', '--region', 'x'], /a folder, with an option for object stores/],
    [
      ['remove', 's3://faces/nothing', '--classes', '1', ...access()],
      /^s3:\/\/faces\/nothing: no fences\/head\.json; the prefix of checkpoints/,
    ],
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
