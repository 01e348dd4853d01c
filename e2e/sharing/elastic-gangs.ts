/**
 * A training whose number of trainers changes, by its user and by the room that the cluster has. Its namespace has no
 * volume: checkpoints and results are in the object store.
 */
import assert from 'node:assert/strict';
import { CheckpointManifest } from '@facetrain/api';
import { compareCheckpoints, openAt } from '@facetrain/trainer/checkpoint/compare';
import type { Cluster } from '../cluster/cluster.ts';
import {
  applyExample,
  reachesStep,
  stepOf,
  trainLongWithoutEvaluation,
  withoutVolume,
} from '../testing/example-job.ts';
import { condition, type Job, MINUTE, type Namespace, restartsOf } from '../testing/namespace.ts';
import { shellContainer } from '../testing/small-jobs.ts';

/** A resource of which the node has one for each trainer, so that a pod takes the place of one. */
const PLACE = 'example.com/trainer';
const TRAINERS = 4;
const onePlace = { limits: { [PLACE]: '1' }, requests: { [PLACE]: '1' } };

async function makePlaces(cluster: Cluster, count: number): Promise<void> {
  const places = { [PLACE]: String(count) };
  const change = JSON.stringify({ status: { capacity: places, allocatable: places } });
  await cluster.kubectl('patch', 'node', 'control-plane', '--subresource=status', '--type=merge', '-p', change);
}

/** What both trainings have: with micro-batches, nothing in a step depends on the number of ranks. */
function trainTheSame(spec: Job['spec']): void {
  withoutVolume(spec);
  trainLongWithoutEvaluation(spec);
  spec.schedule = { type: 'Constant' };
  spec.loss.sampleRate = 0.5;
  // Five micro-batches, of which some of two, three and four trainers have one more.
  spec.globalBatchSize = 10;
  spec.trainers.microBatchSize = 2;
}

/** Waits until the gang has trained with so many ranks. @returns the job then */
export async function trainsWith(ns: Namespace, name: string, trainers: number, changes: number): Promise<Job> {
  const { status } = await ns.waitFor(name, (job) => {
    const { desired, active } = job.status!.trainers;
    assert.equal(job.status!.scaling?.resizes ?? 0, changes, condition(job, 'Ready')?.message);
    assert.deepEqual([desired, active], [trainers, trainers], condition(job, 'Ready')?.message);
  });
  return reachesStep(ns, name, { attempt: status!.attempt, step: (status!.progress?.step ?? 0) + 1 });
}

/** @returns the name of a job that has trained without a change, and was quantized */
export async function fourChangesGiveTheSameTraining(ns: Namespace): Promise<string> {
  await ns.kubectl('delete', 'pvc', 'facetrain');
  await makePlaces(ns.cluster, TRAINERS);
  await applyExample(ns, 'elastic', (spec) => {
    trainTheSame(spec);
    spec.checkpoint = { everySteps: 1_000_000, keep: 100 };
    spec.trainers.replicas = TRAINERS;
    // Longer than a scheduler on a busy machine takes for four pods: a gang would begin with fewer.
    spec.trainers.elastic = { minReplicas: 2, maxReplicas: TRAINERS, scaleDownSeconds: 20, scaleUpSeconds: 5 };
    spec.trainers.resources = onePlace;
  });
  await trainsWith(ns, 'elastic', 4, 0);

  // A pod of higher priority takes a place: the gang goes on with three, and with four when the pod is gone.
  await ns.apply(
    {
      apiVersion: 'scheduling.k8s.io/v1',
      kind: 'PriorityClass',
      metadata: { name: 'takes-a-place' },
      value: 1000,
    },
    {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'urgent' },
      spec: {
        priorityClassName: 'takes-a-place',
        restartPolicy: 'Never',
        terminationGracePeriodSeconds: 1,
        containers: [shellContainer('urgent', 'sleep infinity', { resources: onePlace })],
      },
    },
  );
  const { checkpoint: early } = (await trainsWith(ns, 'elastic', 3, 1)).status!;
  await ns.kubectl('delete', 'pod', 'urgent');
  const regrown = await trainsWith(ns, 'elastic', 4, 2);
  assert.deepEqual(restartsOf(regrown), { counted: 0, disruptions: 1 });

  await ns.kubectl('scale', 'facetrainjob/elastic', '--replicas=2');
  await trainsWith(ns, 'elastic', 2, 3);
  await ns.kubectl('scale', 'facetrainjob/elastic', '--replicas=3');
  const last = await trainsWith(ns, 'elastic', 3, 4);
  assert.deepEqual(
    last.status!.scaling.history.map(({ trainers, reason }: { trainers: number; reason: string }) => [
      trainers,
      reason,
    ]),
    [
      [3, 'ScaledDown'],
      [4, 'ScaledUp'],
      [2, 'ScaledDown'],
      [3, 'ScaledUp'],
    ],
  );
  assert.deepEqual(restartsOf(last), { counted: 0, disruptions: 1 });
  await ns.patch('facetrainjob', 'elastic', { spec: { suspend: true } });
  const { status: stopped } = await ns.waitFor('elastic', ({ status }) => {
    assert.equal(status!.phase, 'Suspended');
    assert(status!.checkpoint.step >= stepOf(last));
  });

  // One trainer, which nothing disturbs: it passes the same step, and ends with that epoch.
  const { step } = stopped!.checkpoint;
  const stepsPerEpoch = stopped!.progress.totalSteps / last.spec.epochs;
  await applyExample(ns, 'steady', (spec) => {
    trainTheSame(spec);
    spec.checkpoint = { everySteps: step, keep: 100 };
    spec.trainers.replicas = 1;
    spec.epochs = Math.ceil(step / stepsPerEpoch);
    spec.quantize = { calibration: { images: 8 }, search: { rounds: 0 } };
  });
  await ns.reachesPhase('steady', 'Succeeded', { milliseconds: 30 * MINUTE });
  const checkpoint = async (name: string, at: number) =>
    openAt(await ns.fetch(name, 'checkpoint', '--step', String(at)));
  const [elastic, steady] = [await checkpoint('elastic', step), await checkpoint('steady', step)];
  const losses = [elastic, steady].map(({ manifest }) => CheckpointManifest.parse(manifest).history.recentLosses);
  assert.deepEqual(losses[0], losses[1]);
  const first = await checkpoint('elastic', early.step);
  const [moved, apart] = [await compareCheckpoints(first, steady), await compareCheckpoints(elastic, steady)];
  assert(moved.backbone.distance! > 0 && moved.centres!.angle.mean > 0);
  assert.deepEqual([apart.backbone.distance, apart.centres!.angle.largest], [0, 0]);
  await ns.kubectl('delete', 'facetrainjob', 'elastic');
  return 'steady';
}
