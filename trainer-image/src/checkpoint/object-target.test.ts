import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';
import { ObjectFence } from '../storage/object-fence.ts';
import { ObjectStore } from '../storage/object-store.ts';
import { AWS_ENVIRONMENT, startS3Server } from '../testing/s3-server.ts';
import { ObjectTarget } from './object-target.ts';
import { prune } from './target.ts';

Object.assign(process.env, AWS_ENVIRONMENT);

/** Checkpoints in an object store, without a training: a real server (versitygw). */
test('of a job’s checkpoints the newest and the best stay, and evaluations of others go', async () => {
  const server = await startS3Server('faces');
  const store = new ObjectStore({ ...server.address('s3://faces/a'), credentials: null });
  try {
    const fence = await ObjectFence.claim(store, { name: 'j', uid: 'u', attempt: 0, start: randomUUID() });
    const folder = (step: number) => `step-000000000${step}/${fence.suffix}`;
    const listed = [1, 2, 3, 4].map((step) => ({ step, folder: folder(step), job: step === 1 ? 'other' : 'j' }));
    await fence.change(() => ({ checkpoints: listed }));
    for (const { folder } of listed) await store.put(`${folder}/manifest.json`, new Uint8Array(1));
    const target = new ObjectTarget(fence);
    const note = (step: number, accuracy: number) =>
      target.noteEvaluation({ job: 'j', step, sets: [{ set: 'lfw', accuracy }] });
    await note(9, 1);
    await note(2, 0.5);
    await note(3, 0.8);
    await note(2, 0.9);
    assert.deepEqual(
      [...(await target.accuracies('j'))],
      [
        [2, 0.9],
        [3, 0.8],
      ],
    );
    assert.deepEqual([...(await target.accuracies('other'))], []);

    await prune(target, { keep: 1, keepBest: 1 }, 'j');
    assert.deepEqual(await target.list(), [4, 2, 1]);
    assert.deepEqual(await store.list(folder(3)), []);
    assert.equal((await store.list('step-')).length, 3);
    assert.match((await target.setAside(4))!, /^damaged-step-0000000004\.0000000001$/);
    assert.deepEqual(await target.list(), [2, 1]);
    assert.equal((await store.list(folder(4))).length, 1);
  } finally {
    store.close();
    await server.stop();
  }
});
