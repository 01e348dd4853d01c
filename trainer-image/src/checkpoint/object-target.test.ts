/** Checkpoints in an object store, without a training: a real server (versitygw). */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import type { CheckpointManifest } from '@facetrain/api';
import { digestBytes } from '../storage/digest.ts';
import { ObjectFence } from '../storage/object-fence.ts';
import { ObjectStore } from '../storage/object-store.ts';
import { startFaultyS3 } from '../testing/s3-faults.ts';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '../testing/s3-server.ts';
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
    const listed = [1, 2, 3, 5].map((step) => ({ step, folder: folder(step), job: step === 1 ? 'other' : 'j' }));
    await fence.change(() => ({ checkpoints: listed }));
    for (const { folder } of listed) await store.put(`${folder}/manifest.json`, new Uint8Array(1));
    const target = new ObjectTarget(fence);
    const note = (step: number, accuracy: number) =>
      target.noteEvaluation({ job: 'j', step, sets: [{ set: 'lfw', accuracy }] });
    await note(4, 1);
    await note(9, 1); // Its checkpoint may be on its way.
    await note(2, 0.5);
    await note(3, 0.8);
    await note(2, 0.9);
    assert.deepEqual(
      [...(await target.accuracies('j'))],
      [
        [2, 0.9],
        [3, 0.8],
        [9, 1],
      ],
    );
    assert.deepEqual([...(await target.accuracies('other'))], []);

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

const BACKBONE = new Uint8Array(3);
const HEADER = new Uint8Array(2);
const ROWS = new Uint8Array(8);
const ROW_FILE = 'rows-0000000000.safetensors';

/** Of a checkpoint of two class centres with one number each. */
function manifest(step: number): CheckpointManifest {
  return {
    schemaVersion: 2,
    requires: [],
    job: { name: 'j', uid: 'u' },
    time: new Date(0).toISOString(),
    step,
    stepsPerEpoch: 1,
    worldSize: 1,
    seed: 1,
    numClasses: 2,
    embeddingDim: 1,
    precision: 'fp32',
    backbone: {
      file: 'backbone.safetensors',
      ...digestBytes(BACKBONE),
      dtype: 'float32',
      optimizer: 'SGD',
      state: [{ name: 'momentum', dtype: 'float32' }],
    },
    rows: {
      optimizer: 'SGD',
      tensors: [{ name: 'weight', dtype: 'float32', columns: 1 }],
      blockRows: 8192,
      files: [
        {
          file: ROW_FILE,
          bytes: HEADER.length + ROWS.length,
          header: digestBytes(HEADER),
          blocks: [{ firstRow: 0, rows: 2, offset: HEADER.length, sha256: digestBytes(ROWS).sha256 }],
        },
      ],
    },
    history: { lossFirst: 1, trainSeconds: 1, recentLosses: [1] },
  };
}

/** A start of a job that finds the newest checkpoint, writes the next one, and prunes. */
async function attempt(store: ObjectStore, number: number): Promise<number> {
  const target = new ObjectTarget(await ObjectFence.claim(store, owner(number)));
  await target.removeUnfinished();
  const newest = await target.findNewest((damage) => assert.fail(damage));
  const step = (newest?.manifest.step ?? 0) + 1;
  for (const [file, parts] of [
    ['backbone.safetensors', [BACKBONE]],
    [ROW_FILE, [HEADER, ROWS]],
  ] as const) {
    const writer = await target.create(step, file);
    for (const part of parts) await writer.write(part);
    await writer.finish();
  }
  await target.complete(manifest(step));
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
