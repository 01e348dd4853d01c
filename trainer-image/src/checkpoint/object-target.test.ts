/** Checkpoints in an object store, without a training: a real server (versitygw). */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import type { CheckpointManifest } from '@facetrain/api';
import { ObjectFence } from '../storage/object-fence.ts';
import { ObjectStore } from '../storage/object-store.ts';
import { startFaultyS3 } from '../testing/s3-faults.ts';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '../testing/s3-server.ts';
import { manifestOf, writeFiles } from '../testing/small-checkpoint.ts';
import { editHead, openHeadsOf, removal, rowsOf } from './edit-head.ts';
import { evaluationOf } from './evaluations.ts';
import { ObjectTarget } from './object-target.ts';
import { prune } from './target.ts';

Object.assign(process.env, AWS_ENVIRONMENT);
let server: S3Server;
before(async () => {
  server = await startS3Server('faces');
});
after(() => server.stop());

const owner = (attempt: number) => ({ name: 'j', uid: 'u', attempt, start: randomUUID() });

/** Checkpoints in an object store, without a training: a real server (versitygw). */
test('of a job’s checkpoints the newest and the best stay, and evaluations of others go', async () => {
  const store = new ObjectStore({ ...server.address('s3://faces/best'), credentials: null });
  try {
    const fence = await ObjectFence.claim(store, owner(0));
    const folder = (step: number) => `step-000000000${step}/${fence.suffix}`;
    const time = (step: number) => `2026-01-01T00:00:0${step}.000Z`;
    const listed = [1, 2, 3, 5].map((step) => ({
      ...{ step, folder: folder(step), job: step === 1 ? 'other' : 'j' },
      // A version of before wrote the one of step 2.
      ...(step !== 2 && { time: time(step) }),
    }));
    await fence.change(() => ({ checkpoints: listed }));
    for (const { folder } of listed) await store.put(`${folder}/manifest.json`, new Uint8Array(1));
    const target = new ObjectTarget(fence);
    const note = (step: number, accuracy: number) =>
      target.noteEvaluation({ job: 'j', step, time: time(step), sets: [{ set: 'lfw', accuracy }] });
    await note(4, 1);
    await note(9, 1); // Its checkpoint may be on its way.
    await note(2, 0.5);
    await note(3, 0.8);
    await note(2, 0.9);
    const evaluations = await target.evaluations();
    assert.deepEqual(
      evaluations.map(({ step, sets }) => [step, sets[0]!.accuracy]),
      [
        [2, 0.9],
        [3, 0.8],
        [9, 1],
      ],
    );
    assert.equal(evaluationOf(evaluations, { job: 'other', step: 2, time: time(2) }), undefined);

    // One of a training that began anew: it was not evaluated.
    await fence.change(({ checkpoints }) => ({
      checkpoints: checkpoints.map((each) => (each.step === 3 ? { ...each, time: time(4) } : each)),
      evaluations: evaluations.map((each) =>
        each.step === 3 ? { ...each, sets: [{ set: 'lfw', accuracy: 1 }] } : each,
      ),
    }));
    await prune(target, { keep: 1, keepBest: 1 }, 'j');
    assert.deepEqual(await target.list(), [5, 2, 1]);
    assert.deepEqual(await store.list(folder(3)), []);
    assert.equal((await store.list('step-')).length, 3);
    assert.match((await target.setAside(5))!, /^damaged-step-0000000005\.0000000001$/);
    assert.deepEqual(await target.list(), [2, 1]);
    assert.equal((await store.list(folder(5))).length, 1);
  } finally {
    store.close();
  }
});

/** A start of a job that finds the newest checkpoint, writes the next one, and prunes. */
async function attempt(store: ObjectStore, number: number): Promise<number> {
  const target = new ObjectTarget(await ObjectFence.claim(store, owner(number)));
  await target.removeUnfinished(() => {});
  const newest = await target.findNewest((damage) => assert.fail(damage));
  const step = (newest?.manifest.step ?? 0) + 1;
  const checkpoint = { step, job: 'j', rows: new Uint8Array(8) };
  await writeFiles(target, checkpoint);
  await target.complete(manifestOf(checkpoint));
  await prune(target, { keep: 1, keepBest: 0 }, 'j');
  return step;
}

test('a process that dies before or after any request leaves a whole checkpoint, or the one before', async () => {
  const faulty = await startFaultyS3(server.endpoint);
  try {
    for (const last of ['cut', 'lost'] as const) {
      for (let dies = 1, isOver = false; !isOver; dies++) {
        const place = { ...server.address(`s3://faces/${last}-${dies}`), credentials: null };
        const store = new ObjectStore(place);
        const dying = new ObjectStore({ ...place, endpoint: faulty.endpoint }, { patienceMs: 0 });
        assert.equal(await attempt(store, 0), 1);
        let requests = 0;
        faulty.decide = () => (++requests < dies ? 'pass' : requests === dies ? last : 'cut');
        isOver = await attempt(dying, 1).then(
          () => requests < dies,
          () => false,
        );
        // It reads a whole checkpoint, of step 1 or 2, and goes on.
        const step = await attempt(store, 2);
        assert([2, 3].includes(step), `${last} ${dies}: step ${step}`);
        const objects = await store.list('step-');
        assert.equal(new Set(objects.map((name) => name.split('/')[1])).size, 1, `${last} ${dies}: ${objects}`);
        assert.equal(objects.length, 3, `${last} ${dies}: ${objects}`);
        store.close();
        dying.close();
      }
    }
  } finally {
    faulty.close();
  }
});

/** Two checkpoints, of steps 1 and 2, with the rows 1.5 and 2.5. */
async function twoCheckpoints(name: string): Promise<{ store: ObjectStore; claim: () => Promise<ObjectTarget> }> {
  const store = new ObjectStore({ ...server.address(`s3://faces/${name}`), credentials: null });
  const claim = async () => new ObjectTarget(await ObjectFence.claim(store, owner(0)));
  const target = await claim();
  for (const step of [1, 2]) {
    const checkpoint = { step, job: 'j', rows: new Uint8Array(Float32Array.of(1.5, 2.5).buffer) };
    await writeFiles(target, checkpoint);
    await target.complete(manifestOf(checkpoint));
  }
  return { store, claim };
}

const rowsIn = async (target: ObjectTarget, step: number) =>
  [...(await rowsOf(await target.open(step), [0, 1])).values()].map(([row]) => row);

test('an edit that is killed leaves the old head or the new one, and when repeated no rest', async (t) => {
  const { store, claim } = await twoCheckpoints('edited');
  t.after(() => store.close());
  for (let number = 1, isKilled = true; isKilled; number++) {
    const target = await claim();
    await target.removeUnfinished(assert.fail);
    const [head] = await openHeadsOf(target);
    let operations = 0;
    const mocks = (['put', 'copy', 'delete', 'writer'] as const).map((method) => {
      const original = store[method].bind(store) as (...args: unknown[]) => unknown;
      return t.mock.method(store, method, (...args: unknown[]) => {
        if (++operations === number) throw new Error('killed');
        return original(...args);
      });
    });
    isKilled = await editHead(target.edit(2), head!, removal(head!, [1])).then(
      () => false,
      () => true,
    );
    for (const { mock } of mocks) mock.restore();
    const next = await claim();
    const newest = await next.findNewest(async (damage) => assert.fail(damage.message));
    assert.equal(newest!.manifest.step, 2);
    const found = await rowsIn(next, 2);
    assert.deepEqual(found, [1.5, found[1] === 0 ? 0 : 2.5]);
    if (!isKilled) assert.equal(found[1], 0);
  }
  const last = await claim();
  await last.removeUnfinished(assert.fail);
  assert.deepEqual(await rowsIn(last, 1), [1.5, 2.5]);
  const ofStep2 = (await store.list('step-0000000002')).map((name) => name.split('/').slice(2).join());
  const { retired } = (await last.open(2)).manifest as CheckpointManifest;
  assert.deepEqual(ofStep2.sort(), [
    'backbone.safetensors',
    'manifest.json',
    retired!.file,
    'rows-0000000000-1.safetensors',
  ]);
});

test('an edit that a newer process has overtaken changes nothing', async (t) => {
  const { store, claim } = await twoCheckpoints('overtaken');
  t.after(() => store.close());
  const target = await claim();
  const [head] = await openHeadsOf(target);
  const newer = await claim();
  await assert.rejects(editHead(target.edit(2), head!, removal(head!, [1])), { code: 'FencedOff' });
  assert.deepEqual(await rowsIn(newer, 2), [1.5, 2.5]);
  await newer.removeUnfinished(assert.fail);
  assert.equal((await store.list('step-0000000002')).length, 3);
});
