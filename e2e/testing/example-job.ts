/** The job of examples/lfw-small in a cluster, under other names and with changes. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { parse } from 'yaml';
import { root } from '../../hack/lib/paths.mjs';
import { condition, type Job, type Namespace } from './namespace.ts';

export const EXAMPLE = join(root, 'examples', 'lfw-small');
/** Steps between checkpoints of `trainLongWithoutEvaluation`. */
export const CHECKPOINT_STEPS = 20;
/** Steps after which such a training has written checkpoints. */
export const BEGUN = 2 * CHECKPOINT_STEPS + 2;
/** Of a pod template: pods go to a worker, while there is one. Other pods never do. */
export const ON_WORKERS = {
  affinity: {
    nodeAffinity: {
      preferredDuringSchedulingIgnoredDuringExecution: [
        { weight: 100, preference: { matchExpressions: [{ key: 'facetrain.dev/worker', operator: 'Exists' }] } },
      ],
    },
  },
  tolerations: [{ key: 'facetrain.dev/worker', operator: 'Exists' }],
};

/** Applies the example under another name, with separate folders, and with the changes that `change` makes. */
export async function applyExample(ns: Namespace, name: string, change: (spec: Job['spec']) => void): Promise<void> {
  const job = parse(await ns.cluster.kubectl('kustomize', EXAMPLE)) as Job;
  job.metadata.name = name;
  job.spec.output.uri = `pvc://facetrain/${name}`;
  job.spec.quantize.output.uri = `s3://models/${name}`;
  change(job.spec);
  await ns.apply(job);
}

/**
 * The cheapest steps that train all parts of a network. Many trainers share the processors of this machine, and what
 * these tests wait for depends on no result.
 */
function trainCheaply(spec: Job['spec']): void {
  Object.assign(spec.model, { width: 1, blocks: [1, 1, 1, 1], embeddingDim: 64 });
  spec.globalBatchSize = 8;
}

/** Cheaply, and for longer than a test takes. */
export function trainLongWithoutEvaluation(spec: Job['spec']): void {
  trainCheaply(spec);
  spec.epochs = 1000;
  spec.checkpoint = { everySteps: CHECKPOINT_STEPS };
  spec.evaluation = { sets: [] };
  delete spec.quantize;
}

/**
 * Checkpoints and results go to the object store, and every pod fetches its data: no claim is used. To be called while
 * the spec has the example's `quantize`, whose output says where the store is.
 */
export function withoutVolume(spec: Job['spec']): void {
  spec.output = spec.quantize.output;
  delete spec.quantize.output;
  for (const { s3 } of [spec.dataset, ...spec.evaluation.sets]) delete s3.cache;
}

export const stepOf = (job: Job): number => job.status?.progress?.step ?? 0;

/**
 * Waits until the current attempt has trained up to a step. The status keeps the progress of an earlier attempt, or of
 * an earlier start in the same pods, until the current one reports its own, so the heartbeat must be younger, and not
 * of the same second.
 *
 * @param inPlace how often its trainers were started again in their pods
 */
export function reachesStep(
  ns: Namespace,
  name: string,
  { attempt, inPlace = 0, step }: { attempt: number; inPlace?: number; step: number },
) {
  return ns.waitFor(name, (job) => {
    const { status = {} } = job;
    assert.equal(status.attempt, attempt);
    assert.equal(status.trainers?.containerRestarts ?? 0, inPlace);
    const begun = inPlace > 0 ? status.restarts.lastTime : status.attemptStartTime;
    assert(
      status.progress?.lastHeartbeatTime > begun && stepOf(job) >= step,
      `step ${stepOf(job)}, phase ${status.phase}: ${condition(job, 'Ready')?.message}`,
    );
  });
}

/** The step of the checkpoint that a trainer has read, from its log. @throws when it has read none */
export async function stepResumedFrom(ns: Namespace, pod: string): Promise<number> {
  const log = await ns.kubectl('logs', pod);
  const step = Number(/step-(\d{10})/.exec(log)?.[1]);
  assert(!Number.isNaN(step), `${pod} has read no checkpoint:\n${log}`);
  return step;
}
