/** checkpoint.inMemory in a real kubelet: a trainer of two is killed, and both are started again in their pods. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { CheckpointManifest, checkpointFolder } from '@facetrain/api';
import { eventually } from '@facetrain/operator/testing/eventually';
import { openAt } from '@facetrain/trainer/checkpoint/compare';
import { applyExample, BEGUN, reachesStep, stepOf, trainLongWithoutEvaluation } from '../testing/example-job.ts';
import { type Job, MINUTE, type Namespace } from '../testing/namespace.ts';
import { processesOf, signal } from '../testing/processes.ts';

/** Kills a trainer, and compares what it has trained later with what a gang has that nobody kills. */
export async function aKilledTrainerCostsOneStep(ns: Namespace): Promise<void> {
  const applyWith = (name: string, checkpoint: object) =>
    applyExample(ns, name, (spec: Job['spec']) => {
      trainLongWithoutEvaluation(spec);
      spec.checkpoint = { inMemory: true, ...checkpoint };
    });
  // No checkpoint before the end of training.
  await applyWith('kept', { everyEpochs: 0 });
  const running = await reachesStep(ns, 'kept', { attempt: 0, step: BEGUN });
  await signal(ns.cluster, 'control-plane', 'KILL', await processesOf(ns.cluster, 'control-plane', 'kept-0-1'));
  const recalled = await eventually(async () => {
    const log = (await ns.kubectl('logs', 'kept-0-0')).split('\n');
    const line = log.find((line) => line.includes('went on from memory'));
    assert(line, log.join('\n'));
    return line;
  }, 10 * MINUTE);
  const { step, checkpoint } = JSON.parse(recalled) as { step: number; checkpoint: number | null };
  assert.equal(checkpoint, null);
  assert(step >= stepOf(running) - 1, `went on from step ${step} after ${stepOf(running)}`);
  await reachesStep(ns, 'kept', { attempt: 0, inPlace: 1, step: step + 2 });

  // Suspended, it writes its first checkpoint. The other trains up to the same step.
  await ns.patch('facetrainjob', 'kept', { spec: { suspend: true } });
  const { status } = await ns.waitFor('kept', ({ status }) => {
    assert.equal(status!.phase, 'Suspended');
    assert(status!.checkpoint?.step > step, 'the stopped trainers have written no checkpoint');
  });
  assert.partialDeepStrictEqual(status!.restarts, { count: 1, inPlace: 1, disruptions: 0 });
  const { step: last } = status!.checkpoint;
  await applyWith('untouched', { everyEpochs: 0, everySteps: last, keep: 100 });
  await ns.waitFor('untouched', ({ status }) => assert(status!.checkpoint?.step >= last));
  const [kept, untouched] = await Promise.all(['kept', 'untouched'].map((name) => trainedUpTo(ns, name, last)));
  assert.deepEqual(kept, untouched);
  await ns.kubectl('delete', 'facetrainjob', 'kept', 'untouched');
}

/** Digests of the weights, the class centres and the optimizer's state in a checkpoint, and the losses before it. */
async function trainedUpTo(ns: Namespace, name: string, step: number): Promise<object> {
  const { manifest } = await openAt(join(ns.folder, name, 'checkpoints', checkpointFolder(step)));
  const { backbone, rows, history } = CheckpointManifest.parse(manifest);
  return {
    backbone: backbone.sha256,
    rows: rows.files.flatMap(({ blocks }) => blocks.map(({ firstRow, sha256 }) => ({ firstRow, sha256 }))),
    losses: history.recentLosses,
  };
}
