/** What the soak notes of an object store: nothing when all goes well, and each thing that must never happen. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { OUTPUT } from '@facetrain/api';
import { eventually } from '@facetrain/operator/testing/eventually';
import type { WriterProcess } from '@facetrain/planner/testing/checkpoint-folder';
import { HEAD } from '@facetrain/trainer/storage/object-fence';
import { ObjectStore } from '@facetrain/trainer/storage/object-store';
import { Store, StoredCheckpoints } from './stored-checkpoints.ts';

let store: Store;
before(async () => {
  store = await Store.start();
});
const started: [StoredCheckpoints, WriterProcess][] = [];
after(() => {
  for (const [checkpoints, process] of started) checkpoints.end(process);
  return store?.stop();
});

function start(checkpoints: StoredCheckpoints, attempt: number, isFrozen = () => false): WriterProcess {
  const process = checkpoints.start(attempt, isFrozen);
  started.push([checkpoints, process]);
  return process;
}

async function save(checkpoints: StoredCheckpoints, process: WriterProcess): Promise<void> {
  for (const step of ['train', 'stage', 'publish'] as const) await checkpoints.act(process, step);
}

/** A job of two attempts, both ended: the first saved 10, the second 20 and the model. */
async function twoAttempts(uid: string): Promise<StoredCheckpoints> {
  const checkpoints = new StoredCheckpoints(store, uid);
  for (const attempt of [0, 1]) {
    const process = start(checkpoints, attempt);
    await checkpoints.act(process, 'claim');
    assert.equal(process.step, 10 * attempt);
    await save(checkpoints, process);
    if (attempt === 1) await checkpoints.act(process, 'export');
  }
  return checkpoints;
}

test('a process that is frozen in a save, and wakes after another has taken its place, changes nothing', async () => {
  const checkpoints = new StoredCheckpoints(store, 'frozen');
  let isFrozen = false;
  const old = start(checkpoints, 0, () => isFrozen);
  await checkpoints.act(old, 'claim');
  await save(checkpoints, old);
  await checkpoints.act(old, 'train');
  await checkpoints.act(old, 'stage');
  isFrozen = true;
  const late = checkpoints.act(old, 'publish');
  const next = start(checkpoints, 1);
  await checkpoints.act(next, 'claim');
  assert.deepEqual([old.claim, next.claim, next.step], [1, 2, 10]);
  await save(checkpoints, next);
  isFrozen = false;
  await late;
  assert.equal(old.ended, 'fenced off');
  await checkpoints.act(next, 'export');
  await checkpoints.checkEnd();
  assert.deepEqual([...checkpoints.violations], []);
});

test('the last write of a killed process may come after the next claim: nobody deletes it', async () => {
  const checkpoints = new StoredCheckpoints(store, 'on-its-way');
  const old = start(checkpoints, 0);
  await checkpoints.act(old, 'claim');
  await checkpoints.act(old, 'train');
  const [sent, arrives] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const { nextFate } = store;
  store.nextFate = () => {
    store.nextFate = nextFate;
    sent.resolve();
    return arrives.promise.then(() => 'pass') as never;
  };
  const late = checkpoints.act(old, 'stage');
  await sent.promise;
  old.ended = 'killed';
  const next = start(checkpoints, 1);
  await checkpoints.act(next, 'claim');
  await save(checkpoints, next);
  await checkpoints.act(next, 'export');
  arrives.resolve();
  const objects = new ObjectStore(store.place('on-its-way'));
  await eventually(async () => assert((await objects.list('step-0000000010/0000000001-')).length > 0));
  objects.close();
  checkpoints.end(old);
  await late;
  await checkpoints.checkEnd();
  assert.deepEqual([...checkpoints.violations], []);
});

test('a process outlasts a store that is away, and loses no answer', async () => {
  const checkpoints = new StoredCheckpoints(store, 'away');
  const process = start(checkpoints, 0);
  await checkpoints.act(process, 'claim');
  store.fail('lost', 3);
  const saved = save(checkpoints, process);
  await store.server.restart(500);
  await saved;
  await checkpoints.act(process, 'export');
  await checkpoints.checkEnd();
  assert.deepEqual([...checkpoints.violations], []);
});

/** What a defect would leave, in place of what the trainers' code left. */
const DAMAGE: Record<string, [(objects: ObjectStore) => Promise<unknown>, RegExp]> = {
  'a lost checkpoint': [(objects) => editHead(objects, (head) => ({ ...head, checkpoints: [] })), /step lost: 20 /],
  'an older head': [(objects) => editHead(objects, (head) => ({ ...head, token: 1 })), /the head has token 1, and 2 /],
  'a model of an older process': [(objects) => objects.put(OUTPUT.model, Buffer.from('model of 1')), /model of 1, and/],
  'an object that nobody deletes': [
    (objects) => objects.put('step-0000000030/0000000002-x/manifest.json', new Uint8Array(1)),
    /left behind: step-0000000030/,
  ],
  'a missing file': [
    async (objects) => objects.delete((await objects.list('step-0000000020/')).slice(0, 1)),
    /step-0000000020\/.* is not whole/,
  ],
};

async function editHead(objects: ObjectStore, edit: (head: Record<string, unknown>) => object): Promise<void> {
  const { bytes } = (await objects.get(HEAD))!;
  const head = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
  await objects.put(HEAD, new TextEncoder().encode(JSON.stringify(edit(head))));
}

for (const [name, [damage, want]] of Object.entries(DAMAGE))
  test(`finds ${name}`, async () => {
    const uid = name.replaceAll(' ', '-');
    const checkpoints = await twoAttempts(uid);
    const objects = new ObjectStore(store.place(uid));
    try {
      await damage(objects);
    } finally {
      objects.close();
    }
    await checkpoints.checkEnd();
    assert.match([...checkpoints.violations].join('\n'), want);
  });

test('finds a checkpoint with bytes that its writer did not write, and a step that is missed', async () => {
  const checkpoints = await twoAttempts('next');
  const objects = new ObjectStore(store.place('next'));
  try {
    const rows = (await objects.list('step-0000000020/')).find((key) => key.includes('/rows-'))!;
    await objects.put(rows, Buffer.alloc(10, 7));
    const third = start(checkpoints, 2);
    await checkpoints.act(third, 'claim');
    await editHead(objects, (head) => ({ ...head, checkpoints: [] }));
    const fourth = start(checkpoints, 3);
    await checkpoints.act(fourth, 'claim');
  } finally {
    objects.close();
  }
  const found = [...checkpoints.violations].join('\n');
  assert.match(found, /has bytes that its writer did not write/);
  assert.match(found, /step lost: 2 saved 20, and 4 continued from 0/);
});
