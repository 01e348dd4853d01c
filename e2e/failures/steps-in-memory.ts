/** checkpoint.inMemory in a real kubelet: a trainer of two is killed, and both are started again in their pods. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { applyExample, reachesStep, stepOf } from '../testing/example-job.ts';
import type { Job, Namespace } from '../testing/namespace.ts';
import { processesOf, signal } from '../testing/processes.ts';

/** Kills a trainer, and compares the model with that of a gang that nobody kills. */
export async function aKilledTrainerCostsOneStep(ns: Namespace): Promise<void> {
  const change = (spec: Job['spec']) => {
    spec.epochs = 3;
    // None before the end of training.
    spec.checkpoint = { everyEpochs: 0, inMemory: true };
    spec.evaluation = { sets: [] };
    delete spec.quantize;
  };
  await applyExample(ns, 'untouched', change);
  await applyExample(ns, 'kept', change);
  const running = await reachesStep(ns, 'kept', { attempt: 0, step: 12 });
  await signal(ns.cluster, 'control-plane', 'KILL', await processesOf(ns.cluster, 'control-plane', 'kept-0-1'));
  await reachesStep(ns, 'kept', { attempt: 0, inPlace: 1, step: stepOf(running) });
  const log = (await ns.kubectl('logs', 'kept-0-0')).split('\n');
  const recalled = log.find((line) => line.includes('went on from memory'));
  assert(recalled, log.join('\n'));
  const { step, checkpoint } = JSON.parse(recalled) as { step: number; checkpoint: number | null };
  assert.equal(checkpoint, null);
  assert(step >= stepOf(running) - 1, `went on from step ${step} after ${stepOf(running)}`);

  const { status } = await ns.reachesPhase('kept', 'Succeeded');
  assert.partialDeepStrictEqual(status!.restarts, { count: 1, inPlace: 1, disruptions: 0 });
  await ns.reachesPhase('untouched', 'Succeeded');
  const model = (name: string) => readFile(join(ns.folder, name, 'model', 'backbone.onnx'));
  assert((await model('kept')).equals(await model('untouched')), 'another model');
  await ns.kubectl('delete', 'facetrainjob', 'kept', 'untouched');
}
