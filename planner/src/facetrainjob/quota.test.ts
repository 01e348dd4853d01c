/** Gangs under a ResourceQuota, in a simulated namespace: each simulator has one job, and all share the quota. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { isTrue } from '../conditions.ts';
import type { ChildObject } from '../objects.ts';
import { ConditionType } from '../reasons.ts';
import { countsEndedPods, quotaRivalsOf } from '../refusal.ts';
import { after, at, makeJob, makePod, START } from '../testing/builders.ts';
import { Simulator } from '../testing/simulator.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { secondsSince } from '../time.ts';
import { planFaceTrainJob } from './plan-facetrainjob.ts';

/** A namespace with a quota on `pods`; `countsEnded`: on `count/pods`, which counts pods that have ended, too. */
class Namespace {
  readonly jobs: Simulator[] = [];
  limit: number;
  readonly countsEnded: boolean;
  #count = 0;

  constructor(limit: number, countsEnded = false) {
    this.limit = limit;
    this.countsEnded = countsEnded;
  }

  /** Adds a job that is younger than all before it. */
  add(replicas: number, spec: object = {}): Simulator {
    const builder = makeJob(`job-${this.#count++}`).replicas(replicas);
    const job = new Simulator(builder.with({ globalBatchSize: 60 * replicas, ...spec }).observe());
    if (this.jobs[0]) job.now = this.jobs[0].now;
    job.admit = (object) => this.#admit(object);
    job.observeMore = () => {
      const all = this.jobs.map(({ trainJob: { identity, status } }) => ({
        uid: identity.uid,
        label: identity.name,
        status,
      }));
      const quotaRivals = quotaRivalsOf(job.trainJob.identity.uid, all, job.now);
      return quotaRivals ? { quotaRivals } : {};
    };
    this.jobs.push(job);
    return job;
  }

  get used(): number {
    return this.jobs.flatMap((job) => (this.countsEnded ? job.pods : job.livePods())).length;
  }

  #admit({ kind, metadata }: ChildObject): string | null {
    if (kind !== 'Pod' || this.used < this.limit) return null;
    const resource = this.countsEnded ? 'count/pods' : 'pods';
    return (
      `pods "${metadata.name}" is forbidden: exceeded quota: q, ` +
      `requested: ${resource}=1, used: ${resource}=${this.used}, limited: ${resource}=${this.limit}`
    );
  }

  /** Lets some seconds pass: pods that are being deleted disappear, gangs that are whole work for `work` seconds. */
  pass(seconds: number, work: number, order: number[] = this.jobs.map((_, index) => index)): void {
    for (const job of this.jobs) {
      job.advance(seconds);
      job.removeDeletedPods();
      const { attemptStartTime } = job.trainJob.status;
      for (const pod of job.livePods()) Object.assign(pod, { phase: 'Running', ready: true, node: 'n' });
      if (attemptStartTime !== undefined && secondsSince(attemptStartTime, job.now) >= work)
        for (const pod of job.livePods())
          Object.assign(pod, { phase: 'Succeeded', ready: false, exitCode: 0, finishedAt: job.now.toISOString() });
    }
    for (const index of order) this.jobs[index]?.tick();
  }

  get unfinished(): string[] {
    return this.jobs.flatMap(({ trainJob: { identity, status } }) =>
      isTrue(status.conditions, ConditionType.succeeded) ? [] : [`${identity.name} ${JSON.stringify(status)}`],
    );
  }
}

const ready = ({ trainJob: { status } }: Simulator) =>
  status.conditions!.find(({ type }) => type === ConditionType.ready)!;

describe('two gangs that hold 5 and 3 pods of a quota for 8', () => {
  const begin = () => {
    const namespace = new Namespace(3);
    const younger = namespace.add(8);
    younger.tick();
    namespace.jobs.length = 0;
    namespace.limit = 8;
    const older = namespace.add(8);
    // The younger one has got its pods first.
    namespace.jobs.push(younger);
    older.tick();
    assert.deepEqual([older.pods.length, younger.pods.length], [5, 3]);
    return { namespace, older, younger };
  };
  test('the younger lets go after a minute, the older becomes whole, and both finish', () => {
    const { namespace, older, younger } = begin();
    for (let seconds = 0; seconds < 50; seconds += 10) namespace.pass(10, 600);
    assert.deepEqual([older.pods.length, younger.pods.length], [5, 3]);
    for (let seconds = 0; seconds < 60; seconds += 10) namespace.pass(10, 600);
    assert.deepEqual([older.pods.length, younger.livePods().length], [8, 0]);
    assert.equal(older.trainJob.status.attempt, 0);
    assert.equal(older.trainJob.status.refusal, undefined);
    assert.partialDeepStrictEqual(younger.trainJob.status, {
      phase: 'Pending',
      attempt: 1,
      refusal: { quota: 'q', releases: 1 },
    });
    assert.equal(younger.trainJob.status.restarts, undefined);
    assert.deepEqual(
      younger.events.map(({ reason }) => reason),
      ['QuotaExceeded', 'GangReleased'],
    );
    for (let seconds = 0; seconds < 1800; seconds += 10) namespace.pass(10, 600);
    assert.deepEqual(namespace.unfinished, []);
  });
});

test('gangs that each fit into the quota all finish, in whatever order they are planned', () => {
  const size = fc.integer({ min: 1, max: 8 });
  const scenario = fc.record({
    sizes: fc.array(size, { minLength: 2, maxLength: 4 }),
    limit: fc.integer({ min: 8, max: 12 }),
    countsEnded: fc.boolean(),
    seed: fc.array(fc.nat({ max: 23 }), { minLength: 8, maxLength: 8 }),
    arrival: fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 4, maxLength: 4 }),
  });
  fc.assert(
    fc.property(scenario, ({ sizes, limit, countsEnded, seed, arrival }) => {
      const namespace = new Namespace(limit, countsEnded);
      for (let round = 0; round < 700; round++) {
        if (namespace.jobs.length < sizes.length && round >= arrival[namespace.jobs.length]!)
          namespace.add(sizes[namespace.jobs.length]!, { cleanPodPolicy: 'All' });
        const start = seed[round % seed.length]!;
        const order = namespace.jobs.map((_, index) => (index * 5 + start) % namespace.jobs.length);
        namespace.pass(10, 100, [...new Set([...order, ...namespace.jobs.keys()])]);
        assert(namespace.used <= limit);
      }
      assert.deepEqual(namespace.unfinished, []);
    }),
    { numRuns: 25 },
  );
});

describe('ended pods give way to a quota that counts them, or what they keep', () => {
  const cases: Record<string, boolean> = {
    'pods=1': false,
    'requests.cpu=1,count/pods=1': true,
    'count/pods=1,pods=1': true,
    'configmaps=1': true,
    'count/configmaps=1': true,
    'count/podgroups.scheduling.k8s.io=1': false,
  };
  for (const [requested, want] of Object.entries(cases))
    test(requested, () => {
      const message = `ResourceQuota q refuses Pod faces-1-0: requested: ${requested}, used: pods=2, limited: pods=2`;
      assert.equal(countsEndedPods({ quota: 'q', message }), want);
    });
});

test('a gang that is larger than the quota does not keep a smaller one from its pods', () => {
  const namespace = new Namespace(4);
  const large = namespace.add(8);
  large.tick();
  assert.equal(large.pods.length, 4);
  const small = namespace.add(3);
  for (let round = 0; round < 120 && !isTrue(small.trainJob.status.conditions, ConditionType.succeeded); round++)
    namespace.pass(10, 100);
  assert.equal(small.trainJob.status.phase, 'Succeeded');
  assert.equal(large.trainJob.status.phase, 'Pending');
});

test('an older job that gets no pod at all does not keep a younger one from its pods', () => {
  const namespace = new Namespace(4);
  const big = namespace.add(1);
  const admit = big.admit!;
  // A pod with more CPUs than the quota ever has; the quota is full at first.
  big.admit = (object) =>
    object.kind === 'Pod'
      ? 'pods "job-0-0-0" is forbidden: exceeded quota: q, requested: cpu=20, used: cpu=0, limited: cpu=10'
      : admit(object);
  namespace.limit = 0;
  const small = namespace.add(2);
  namespace.pass(10, 100);
  assert.deepEqual([big.pods.length, small.pods.length], [0, 0]);
  namespace.limit = 4;
  for (let seconds = 0; seconds < 900; seconds += 10) namespace.pass(10, 100);
  assert.equal(small.trainJob.status.phase, 'Succeeded', JSON.stringify(small.trainJob.status));
});

test('the delay between the tries of a gang grows to five minutes', () => {
  const namespace = new Namespace(1);
  const job = namespace.add(2);
  job.tick();
  const releases: number[] = [];
  for (let seconds = 0; seconds < 3600; seconds += 5) {
    namespace.pass(5, 100);
    if (job.trainJob.status.refusal?.releases !== releases.length && job.trainJob.status.refusal?.releases)
      releases.push((job.now.getTime() - START.getTime()) / 1000);
  }
  const gaps = releases.slice(1).map((time, index) => time - releases[index]!);
  // Each try holds the pod for a minute, and begins some seconds after the delay.
  for (const [index, want] of [30, 60, 120, 240, 300, 300].entries())
    assert(Math.abs(gaps[index]! - want - 60) <= 20, `${gaps}`);
  assert.match(ready(job).message, /^(the gang|ResourceQuota q)/);
});

for (const [reason, message] of Object.entries({
  WebhookFailed: 'Internal error occurred: failed calling webhook "pods.example": connection refused',
  CreateFailed: 'etcdserver: request timed out',
}))
  test(`a gang that let go of its pods because of ${reason} says so until it tries again`, () => {
    const job = new Simulator(makeJob().replicas(2).observe());
    job.admit = ({ kind, metadata: { name } }) =>
      kind === 'Pod' && name.endsWith('-1') ? { message, failed: true } : null;
    for (let seconds = 0; seconds < 80; seconds += 5) {
      job.tick();
      job.advance(5);
      job.removeDeletedPods();
    }
    assert.equal(job.trainJob.status.refusal?.releases, 1);
    assert.equal(ready(job).reason, reason);
    assert.match(ready(job).message, /^the gang has let go of its pods once; it tries again at /);
  });

describe('deadlines run while a quota refuses the pods', () => {
  const noPods = (spec: object) => new Namespace(0).add(1, spec);
  test('pendingDeadlineSeconds', () => {
    const job = noPods({ pendingDeadlineSeconds: 15 });
    job.tick();
    assert.partialDeepStrictEqual(job.trainJob.status, { phase: 'Pending', startTime: at(0), pendingTime: at(0) });
    assert.deepEqual(
      [ready(job).reason, ready(job).message],
      ['QuotaExceeded', 'ResourceQuota q refuses Pod job-0-0-0: requested: pods=1, used: pods=0, limited: pods=0'],
    );
    assert.equal(isTrue(job.trainJob.status.conditions, ConditionType.reconciling), true);
    assert(job.planTrainJob().requeueAfterSeconds! <= 15);
    job.advance(14);
    job.tick();
    assert.equal(job.trainJob.status.phase, 'Pending');
    job.advance(1);
    job.tick();
    assert.equal(job.trainJob.status.phase, 'Failed');
    assert.deepEqual(
      [ready(job).reason, ready(job).message],
      [
        'PendingDeadlineExceeded',
        'not all pods started within pendingDeadlineSeconds 15: 0 of 1 pods are ready; QuotaExceeded: ' +
          'ResourceQuota q refuses Pod job-0-0-0: requested: pods=1, used: pods=0, limited: pods=0',
      ],
    );
  });
  test('pendingDeadlineSeconds, over the releases of a gang', () => {
    const namespace = new Namespace(1);
    const job = namespace.add(2, { pendingDeadlineSeconds: 300 });
    job.tick();
    for (let seconds = 0; seconds < 300; seconds += 10) namespace.pass(10, 1000);
    assert.equal(ready(job).reason, 'PendingDeadlineExceeded');
    assert(job.trainJob.status.attempt! > 0);
  });
  test('activeDeadlineSeconds', () => {
    const job = noPods({ activeDeadlineSeconds: 30 });
    job.tick();
    job.advance(30);
    job.tick();
    assert.equal(ready(job).reason, 'ActiveDeadlineExceeded');
  });
  test('also while a webhook refuses them', () => {
    const job = noPods({ pendingDeadlineSeconds: 15 });
    job.admit = ({ kind }) => (kind === 'Pod' ? 'admission webhook "x" denied the request: no' : null);
    job.tick();
    assert.equal(ready(job).reason, 'ChildRefused');
    job.advance(15);
    job.tick();
    assert.equal(ready(job).reason, 'PendingDeadlineExceeded');
  });
  test('on, while nodes reject the pods of a gang that was never whole', () => {
    const job = new Simulator(makeJob().replicas(2).with({ pendingDeadlineSeconds: 60 }).observe());
    job.tick();
    for (let seconds = 0; seconds < 60; seconds += 5) {
      job.removeDeletedPods();
      for (const pod of job.livePods())
        Object.assign(pod, {
          phase: 'Failed',
          node: 'n',
          reason: 'OutOfcpu',
          rejected: true,
          finishedAt: job.now.toISOString(),
        });
      job.tick();
      job.advance(5);
    }
    job.tick();
    assert.equal(ready(job).reason, 'PendingDeadlineExceeded', JSON.stringify(job.trainJob.status));
    assert(job.trainJob.status.restarts!.disruptions > 1);
  });
  test('anew for each attempt', () => {
    const job = new Simulator(makeJob().replicas(1).with({ pendingDeadlineSeconds: 15 }).observe());
    job.tick();
    Object.assign(job.pods[0]!, { phase: 'Running', ready: true, node: 'n' });
    job.tick();
    job.advance(100);
    Object.assign(job.pods[0]!, { phase: 'Failed', ready: false, exitCode: 1, finishedAt: at(100) });
    job.tick();
    assert.partialDeepStrictEqual(job.trainJob.status, { attempt: 1, startTime: at(0), pendingTime: at(100) });
  });
});

test('a failed pod that is kept for its log gives its place to the next attempt', () => {
  const namespace = new Namespace(2, true);
  const job = namespace.add(2);
  job.tick();
  for (const pod of job.pods) Object.assign(pod, { phase: 'Running', ready: true, node: 'n' });
  Object.assign(job.pods[0]!, { phase: 'Failed', ready: false, exitCode: 1, finishedAt: at(0) });
  job.tick();
  for (let round = 0; round < 4; round++) namespace.pass(10, 1000);
  assert.deepEqual(
    job.pods.map(({ name }) => name),
    ['job-0-1-0', 'job-0-1-1'],
  );
  assert.partialDeepStrictEqual(job.trainJob.status, { restarts: { count: 1, lastReason: 'ProcessFailed' } });
});

test('a failed pod is kept for its log under a quota that does not count it', () => {
  const namespace = new Namespace(2);
  const job = namespace.add(2);
  job.tick();
  for (const pod of job.pods) Object.assign(pod, { phase: 'Running', ready: true, node: 'n' });
  Object.assign(job.pods[0]!, { phase: 'Failed', ready: false, exitCode: 1, finishedAt: at(0) });
  namespace.limit = 0;
  for (let round = 0; round < 4; round++) namespace.pass(10, 1000);
  assert.equal(ready(job).reason, 'QuotaExceeded');
  assert.deepEqual(
    job.pods.map(({ name }) => name),
    ['job-0-0-0'],
  );
});

test('a status that an earlier version wrote counts the deadline from the creation of the pods', () => {
  const status = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(50) };
  const job = makeJob().with({ pendingDeadlineSeconds: 20 });
  const pods = [makePod(0).build(), makePod(1).build()];
  const phaseAt = (seconds: number) =>
    planFaceTrainJob(job.observe(status, pods), after(seconds), testEnvironment).status.phase;
  assert.deepEqual([phaseAt(69), phaseAt(70)], ['Pending', 'Failed']);
});
