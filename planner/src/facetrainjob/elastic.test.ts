/** Elastic gangs, in a simulated cluster that has places for a number of pods: when they shrink, when they grow. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FaceTrainJobStatus } from '@facetrain/api';
import fc from 'fast-check';
import { isAlive } from '../attempt.ts';
import type { ChildObject } from '../objects.ts';
import { makeJob } from '../testing/builders.ts';
import { type SimulatedPod, Simulator } from '../testing/simulator.ts';

const DOWN = 60;
const UP = 300;
const elasticJob = (replicas: number, { min = 1, max = 8, ...others }: Record<string, number> = {}) =>
  makeJob()
    .with({ progressDeadlineSeconds: 31_536_000 })
    .trainers({
      replicas,
      elastic: { minReplicas: min, maxReplicas: max, scaleDownSeconds: DOWN, scaleUpSeconds: UP, ...others },
    });

/** A cluster with `places` for pods, which are given in the order of their names. */
class Cluster {
  readonly job: Simulator;
  places: number;
  /** Ranks of each attempt whose pods were all ready, with its number, in order. */
  readonly ran: [attempt: number, ranks: number][] = [];

  constructor(builder: ReturnType<typeof makeJob>, places: number) {
    this.job = new Simulator(builder.observe());
    this.places = places;
    this.pass(0);
  }

  get placed(): SimulatedPod[] {
    return this.job.livePods().filter(({ node }) => node !== undefined);
  }
  get status(): FaceTrainJobStatus {
    return this.job.trainJob.status;
  }
  /** Names of placeholders, and of trainers. */
  get names() {
    const of = (isPlaceholder: boolean) =>
      this.job
        .livePods()
        .filter(({ placeholder = false }) => placeholder === isPlaceholder)
        .map(({ name }) => name);
    return { placeholders: of(true), trainers: of(false) };
  }

  /** Lets the kubelets and the scheduler work, and plans. */
  #act(): void {
    const { job } = this;
    for (const pod of job.pods)
      if (pod.deleting && isAlive(pod)) Object.assign(pod, { phase: 'Failed', exitCode: 143, ready: false });
    job.removeDeletedPods();
    for (const pod of job.livePods()) {
      if (pod.node !== undefined || this.placed.length >= this.places) continue;
      Object.assign(pod, { node: 'n', phase: 'Running' });
    }
    const trainers = job.livePods().filter(({ placeholder }) => !placeholder);
    // A trainer is ready after the rendezvous of all.
    if (trainers.length === this.status.trainers?.desired && trainers.every(({ node }) => node !== undefined))
      for (const pod of trainers) pod.ready = true;
    job.tick();
    const { ready = 0, desired } = this.status.trainers ?? {};
    const { attempt = 0, phase } = this.status;
    if (phase === 'Running' && ready === desired && this.ran.at(-1)?.[0] !== attempt) this.ran.push([attempt, ready]);
  }

  /** Lets seconds pass, in steps of `step`. */
  pass(seconds: number, step = 5): void {
    for (let left = seconds; ; left -= step) {
      for (let before = -1; before !== this.job.writes.length; ) {
        before = this.job.writes.length;
        this.#act();
      }
      if (left <= 0) return;
      this.job.advance(Math.min(step, left));
    }
  }

  /** Takes the node of a trainer away. */
  lose(rank: number): void {
    const pod = this.job.livePods().find((one) => one.rank === rank && !one.placeholder)!;
    Object.assign(pod, { phase: 'Failed', ready: false, disrupted: true, finishedAt: this.job.now.toISOString() });
  }

  wish(replicas: number): void {
    const { trainers } = this.job.trainJob.spec;
    this.job.change({ trainers: { ...trainers, replicas } });
  }

  /** The number of ranks of each change, with its reason. */
  get history(): string[] {
    return (this.status.scaling?.history ?? []).map(({ trainers, reason }) => `${reason} ${trainers}`);
  }
}

describe('a gang of four that loses a node', () => {
  const begin = () => {
    const cluster = new Cluster(elasticJob(4, { min: 2 }), 4);
    assert.deepEqual(cluster.ran, [[0, 4]]);
    cluster.places = 3;
    cluster.lose(1);
    return cluster;
  };

  test('goes on with three after scaleDownSeconds, which is no restart, and with four when there is room', () => {
    const cluster = begin();
    cluster.pass(10);
    assert.equal(cluster.status.attempt, 1);
    cluster.pass(DOWN - 20);
    assert.deepEqual([cluster.status.attempt, cluster.history], [1, []]);
    cluster.pass(20);
    assert.deepEqual(cluster.ran, [
      [0, 4],
      [2, 3],
    ]);
    assert.partialDeepStrictEqual(cluster.status, {
      phase: 'Running',
      trainers: { desired: 3, ready: 3 },
      restarts: { count: 0, disruptions: 1 },
      scaling: { replicas: 4, resizes: 1, failedGrowths: 0 },
    });
    assert.match(
      cluster.status.scaling!.history[0]!.message,
      /^1 of 4 pods had no place for 60 s; the gang goes on with 3$/,
    );

    // Nothing looks for room before scaleUpSeconds.
    cluster.pass(UP - 20);
    assert.deepEqual(cluster.names.placeholders, []);
    cluster.pass(30);
    assert.deepEqual(cluster.names.placeholders, ['faces-2-3']);
    // Without room, the training is left alone.
    cluster.pass(3600, 60);
    assert.equal(cluster.status.attempt, 2);
    cluster.places = 4;
    cluster.pass(10);
    assert.deepEqual(cluster.ran.at(-1), [3, 4]);
    assert.deepEqual(cluster.names, {
      placeholders: [],
      trainers: ['faces-3-0', 'faces-3-1', 'faces-3-2', 'faces-3-3'],
    });
    assert.deepEqual(cluster.history, ['ScaledDown 3', 'ScaledUp 4']);
    assert.deepEqual(cluster.status.restarts!.disruptions, 1);
    assert.deepEqual(
      cluster.job.events.map(({ reason }) => reason).filter((reason) => reason.startsWith('Scaled')),
      ['ScaledDown', 'ScaledUp'],
    );
    FaceTrainJobStatus.parse(cluster.status);
  });

  test('waits when fewer than minReplicas have a place', () => {
    const cluster = begin();
    cluster.places = 1;
    cluster.pass(1800, 30);
    assert.deepEqual([cluster.status.attempt, cluster.history], [1, []]);
    assert.equal(cluster.status.phase, 'Restarting');
    cluster.places = 2;
    cluster.pass(10);
    assert.deepEqual(cluster.ran.at(-1), [2, 2]);
  });
});

test('placeholders keep the room until the trainers have ended, and then end', () => {
  const cluster = new Cluster(elasticJob(4), 2);
  cluster.pass(DOWN);
  assert.deepEqual(cluster.ran, [[1, 2]]);
  cluster.places = 4;
  cluster.pass(UP + 20);
  assert.deepEqual(cluster.ran.at(-1), [2, 4]);
  // Trainers are deleted first.
  const deletions = cluster.job.writes.filter((write) => write.startsWith('delete faces-1-'));
  assert.deepEqual(deletions.slice(0, 2).sort(), ['delete faces-1-0', 'delete faces-1-1']);
  assert.deepEqual(deletions.slice(2).sort(), ['delete faces-1-2', 'delete faces-1-3']);
});

test('a placeholder is a trainer’s pod for the scheduler, and idle', () => {
  const cluster = new Cluster(elasticJob(3), 2);
  const made: ChildObject[] = [];
  cluster.job.admit = (object) => {
    made.push(object);
    return null;
  };
  cluster.pass(DOWN);
  cluster.pass(UP);
  const named = (name: string) => made.find(({ metadata }) => metadata.name === name) as ChildObject & { spec: any };
  const [trainer, placeholder] = [named('faces-1-1'), named('faces-1-2')];
  assert.deepEqual(
    [trainer, placeholder].map(({ spec }) => spec.containers[0].args),
    [['train'], ['hold-place']],
  );
  assert.equal(trainer.spec.containers[0].env.find((one: any) => one.name === 'WORLD_SIZE').value, '2');
  for (const field of ['tolerations', 'securityContext', 'volumes'] as const)
    assert.deepEqual(placeholder.spec[field], trainer.spec[field]);
  assert.deepEqual(placeholder.spec.containers[0].resources, trainer.spec.containers[0].resources);
  assert.equal(placeholder.spec.terminationGracePeriodSeconds, 1);
  assert.equal(placeholder.metadata.annotations!['facetrain.dev/writes-to'], undefined);
});

describe('a change of replicas', () => {
  test('down and up, at once and without a wait', () => {
    const cluster = new Cluster(elasticJob(4), 8);
    cluster.wish(2);
    cluster.pass(5);
    assert.deepEqual(cluster.ran.at(-1), [1, 2]);
    cluster.wish(5);
    cluster.pass(5);
    assert.deepEqual(cluster.ran.at(-1), [2, 5]);
    assert.deepEqual(cluster.history, ['ScaledDown 2', 'ScaledUp 5']);
    assert.equal(cluster.status.restarts, undefined);
  });
  test('up, where only a part has room: that part is taken', () => {
    const cluster = new Cluster(elasticJob(2), 3);
    cluster.wish(6);
    cluster.pass(10);
    assert.equal(cluster.status.attempt, 0);
    cluster.pass(60);
    assert.deepEqual(cluster.ran.at(-1), [1, 3]);
    // Then the usual wait applies again.
    cluster.places = 6;
    cluster.pass(UP - 100);
    assert.equal(cluster.status.attempt, 1);
    cluster.pass(100);
    assert.deepEqual(cluster.ran.at(-1), [2, 6]);
  });
  test('that is taken back ends the placeholders', () => {
    const cluster = new Cluster(elasticJob(2), 2);
    cluster.wish(4);
    cluster.pass(5);
    assert.deepEqual(cluster.names.placeholders, ['faces-0-2', 'faces-0-3']);
    cluster.wish(2);
    cluster.pass(5);
    assert.deepEqual(cluster.names.placeholders, []);
    assert.equal(cluster.status.attempt, 0);
  });
  test('of a job that is suspended, or not elastic, is no change of the scale', () => {
    const cluster = new Cluster(elasticJob(4), 8);
    cluster.job.change({ suspend: true });
    cluster.pass(5);
    cluster.wish(3);
    cluster.job.change({ suspend: false });
    cluster.pass(5);
    assert.deepEqual([cluster.ran.at(-1)![1], cluster.history], [3, []]);
    const rigid = new Cluster(makeJob().replicas(4), 2);
    rigid.pass(3600, 60);
    assert.deepEqual([rigid.status.attempt, rigid.status.scaling], [0, undefined]);
  });
});

test('a gang of which a rank has succeeded is left alone: there is nothing more to train', () => {
  const cluster = new Cluster(elasticJob(4), 2);
  cluster.pass(DOWN);
  cluster.pass(UP - 20);
  const [first] = cluster.placed;
  Object.assign(first!, { phase: 'Succeeded', exitCode: 0, ready: false });
  cluster.places = 4;
  cluster.pass(60);
  cluster.wish(1);
  cluster.pass(60);
  assert.deepEqual([cluster.status.attempt, cluster.names.placeholders], [1, []]);
});

test('a resumed job begins with all that it wishes', () => {
  const cluster = new Cluster(elasticJob(4), 2);
  cluster.pass(DOWN);
  assert.deepEqual(cluster.ran, [[1, 2]]);
  cluster.job.change({ suspend: true });
  cluster.pass(5);
  assert.equal(cluster.status.trainers!.desired, 4);
  cluster.places = 4;
  cluster.job.change({ suspend: false });
  cluster.pass(5);
  assert.equal(cluster.ran.at(-1)![1], 4);
});

describe('under a quota', () => {
  const refuse = (limit: () => number, job: Simulator) => (object: ChildObject) =>
    object.kind === 'Pod' && job.livePods().length >= limit()
      ? `pods "${object.metadata.name}" is forbidden: exceeded quota: q, requested: pods=1, used: pods=${limit()}, ` +
        `limited: pods=${limit()}`
      : null;
  test('a gang goes on with the pods that it gets, and asks for more after scaleUpSeconds', () => {
    const cluster = new Cluster(elasticJob(4, { min: 2 }).suspended(), 8);
    let limit = 3;
    cluster.job.admit = refuse(() => limit, cluster.job);
    cluster.job.change({ suspend: false });
    cluster.pass(DOWN + 10);
    assert.deepEqual([cluster.ran.at(-1)![1], cluster.history], [3, ['ScaledDown 3']]);
    assert.match(cluster.status.scaling!.history[0]!.message, /no place for 60 s \(ResourceQuota q refuses Pod/);
    const before = cluster.status.attempt;
    cluster.pass(3 * UP);
    assert.equal(cluster.status.attempt, before);
    assert(cluster.status.scaling!.refusedTime !== undefined);
    limit = 8;
    cluster.pass(UP + 30);
    assert.deepEqual(cluster.ran.at(-1)![1], 4);
    FaceTrainJobStatus.parse(cluster.status);
  });
  test('a new gang that gets a part of its pods at first waits for all of them', () => {
    const cluster = new Cluster(elasticJob(4, { min: 2 }).suspended(), 8);
    cluster.job.trainJob.status = {};
    let limit = 2;
    cluster.job.admit = refuse(() => limit, cluster.job);
    cluster.job.change({ suspend: false });
    cluster.pass(10);
    assert.deepEqual([cluster.names.trainers.length, cluster.status.attemptStartTime], [2, undefined]);
    limit = 8;
    cluster.pass(10);
    assert.deepEqual(cluster.ran, [[0, 4]]);
  });
  test('placeholders without a place give way to another job that waits for a quota', () => {
    const cluster = new Cluster(elasticJob(4), 2);
    cluster.pass(DOWN);
    cluster.pass(UP + 10);
    const holders = ['faces-1-2', 'faces-1-3'];
    assert.deepEqual(cluster.names.placeholders, holders);
    // The planner is not told: it looks from time to time.
    cluster.job.trainJob.othersWaitForQuota = true;
    cluster.pass(60, 30);
    assert.deepEqual(cluster.names.placeholders, []);
    cluster.pass(UP);
    assert.deepEqual([cluster.names.placeholders, cluster.status.attempt], [[], 1]);
    delete cluster.job.trainJob.othersWaitForQuota;
    cluster.pass(60, 30);
    assert.deepEqual(cluster.names.placeholders, holders);
    // One that has its place keeps it: the gang takes it within half a minute.
    cluster.places = 4;
    cluster.pass(0);
    cluster.job.trainJob.othersWaitForQuota = true;
    cluster.pass(60, 30);
    assert.deepEqual(cluster.ran.at(-1)![1], 4);
  });
  test('a pod that is refused is asked for once in scaleUpSeconds', () => {
    const cluster = new Cluster(elasticJob(2), 8);
    let asked = 0;
    cluster.job.admit = ({ kind }) => {
      if (kind === 'Pod') asked += 1;
      return kind === 'Pod' ? 'exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2' : null;
    };
    cluster.wish(3);
    cluster.pass(2 * UP - 20);
    assert(asked >= 2 && asked <= 4, `${asked}`);
  });
});

test('room that is gone when the gang comes doubles the wait for the next try', () => {
  const cluster = new Cluster(elasticJob(3, { min: 2 }), 2);
  cluster.pass(DOWN);
  const tries: number[] = [];
  let since = cluster.job.now.getTime();
  for (let seconds = 0; seconds < 8000; seconds += 20) {
    const holders = cluster.job.livePods().filter(({ placeholder }) => placeholder);
    if (holders.length > 0 && cluster.placed.length === 2) {
      // The scheduler gives it a place, and takes it away before the gang comes.
      tries.push(Math.round((cluster.job.now.getTime() - since) / 1000));
      Object.assign(holders[0]!, { node: 'n', phase: 'Running' });
    }
    const { length } = cluster.ran;
    cluster.pass(20, 20);
    if (cluster.ran.length > length) since = cluster.job.now.getTime();
  }
  assert(tries.length >= 4, `${tries}`);
  for (const [index, seconds] of tries.slice(0, 4).entries())
    assert(Math.abs(seconds - UP * 2 ** index) <= 60, `${tries}`);
  assert(cluster.ran.every(([, ranks]) => ranks === 2));
});

test('an operator that finds no status goes on with the gang that runs', () => {
  const cluster = new Cluster(elasticJob(4), 3);
  cluster.pass(DOWN);
  cluster.job.trainJob.status = {};
  cluster.pass(10);
  assert.partialDeepStrictEqual(cluster.status, { attempt: 1, trainers: { desired: 3, ready: 3 } });
  assert.equal(cluster.names.trainers.length, 3);
});

test('whatever places there are: between min and max, never two gangs, and few changes', () => {
  const history = fc.array(
    fc.record({
      places: fc.integer({ min: 0, max: 9 }),
      wish: fc.option(fc.integer({ min: 2, max: 6 }), { freq: 3 }),
      lost: fc.option(fc.nat({ max: 5 }), { freq: 3 }),
      suspends: fc.boolean(),
      seconds: fc.integer({ min: 1, max: 900 }),
    }),
    { maxLength: 8 },
  );
  fc.assert(
    fc.property(fc.integer({ min: 2, max: 6 }), history, (replicas, steps) => {
      const cluster = new Cluster(elasticJob(replicas, { min: 2, max: 6 }), 8);
      let [seconds, causes] = [0, 1];
      for (const step of steps) {
        cluster.places = step.places;
        if (step.wish !== null) cluster.wish(step.wish);
        if (step.suspends) cluster.job.change({ suspend: !cluster.job.trainJob.spec.suspend });
        const running = cluster.placed.filter(({ placeholder }) => !placeholder);
        if (step.lost !== null && running[step.lost]) cluster.lose(running[step.lost]!.rank);
        seconds += step.seconds;
        causes += 1;
        cluster.pass(step.seconds, 30);
        const { desired } = cluster.status.trainers!;
        assert(desired >= 2 && desired <= 6, `${desired}`);
        // Placeholders never exceed what is wished.
        const wished = cluster.job.trainJob.spec.trainers.replicas;
        assert(cluster.job.livePods().filter(({ deleting }) => !deleting).length <= Math.max(wished, desired));
        FaceTrainJobStatus.parse(cluster.status);
      }
      assert(cluster.ran.every(([, ranks]) => ranks >= 2 && ranks <= 6));
      const { resizes = 0 } = cluster.status.scaling ?? {};
      // Each cause may shrink the gang once and let it grow once; beyond that, it grows once in scaleUpSeconds.
      assert(resizes <= 2 * causes + seconds / UP, `${resizes} changes in ${seconds} s, ${causes} causes`);
      // With room for all, the gang becomes what is wished.
      if (cluster.job.trainJob.spec.suspend) cluster.job.change({ suspend: false });
      cluster.places = 12;
      cluster.pass(UP * 2 ** 5 + 700, 300);
      const { phase, trainers } = cluster.status;
      if (phase !== 'Failed')
        assert.deepEqual([phase, trainers!.ready], ['Running', cluster.job.trainJob.spec.trainers.replicas]);
    }),
    { numRuns: 15 },
  );
});
