/** Properties of the planner that hold for any history of a job, in a simulated cluster whose executor crashes. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type Condition, FaceTrainJobStatus, QuantizeJobStatus } from '@facetrain/api';
import fc from 'fast-check';
import { isTrue } from '../conditions.ts';
import type { PodGroupApis } from '../observed.ts';
import { ConditionType } from '../reasons.ts';
import { makeJob } from '../testing/builders.ts';
import {
  anyEvents,
  applyEvent,
  type ClusterEvent,
  finishUndisturbed,
  harmlessEvents,
  isOver,
  restartHistory,
  storageHistory,
} from '../testing/cluster-events.ts';
import { Simulator } from '../testing/simulator.ts';
import { secondsSince } from '../time.ts';
import { trainingDigest } from './gang-objects.ts';

const POD_GROUP_APIS: Record<'None' | 'Native' | 'KAI', PodGroupApis> = {
  None: {},
  Native: { Native: 'scheduling.k8s.io/v1beta1' },
  KAI: { Native: 'scheduling.k8s.io/v1beta1', KAI: 'scheduling.run.ai/v2alpha2' },
};

const jobs = (servesRestartRules: fc.Arbitrary<boolean>) =>
  fc
    .record({
      replicas: fc.integer({ min: 1, max: 4 }),
      maxRestarts: fc.integer({ min: 0, max: 4 }),
      windowSeconds: fc.integer({ min: 60, max: 3000 }),
      successPolicy: fc.constantFrom('AllRanks', 'RankZero'),
      cleanPodPolicy: fc.constantFrom('All', 'Running', 'None'),
      quantize: fc.boolean(),
      reader: fc.constantFrom('None', 'Native', 'KAI'),
      servesRestartRules,
    })
    .map(({ replicas, maxRestarts, windowSeconds, successPolicy, cleanPodPolicy, quantize, reader, ...served }) => {
      const builder = makeJob()
        .replicas(replicas)
        .with({ globalBatchSize: 60 * replicas, successPolicy, cleanPodPolicy })
        .with(reader === 'KAI' ? { gang: { mode: 'KAI', queue: 'team' } } : {})
        .failurePolicy({ maxRestarts, windowSeconds });
      return {
        builder: quantize ? builder.quantized() : builder,
        podGroupApis: POD_GROUP_APIS[reader],
        ...served,
      };
    });

const job = jobs(fc.boolean());

/** Also with gangs that go on with fewer ranks while pods have no node, and then look for room. */
const anyJob = fc.tuple(job, fc.boolean()).map(([given, isElastic]) => {
  const elastic = { minReplicas: 1, maxReplicas: 8, scaleDownSeconds: 30, scaleUpSeconds: 120 };
  const { replicas } = given.builder.parse().trainers;
  return isElastic ? { ...given, builder: given.builder.trainers({ replicas, elastic }) } : given;
});

const crash = fc.option(fc.integer({ min: 1, max: 8 }));
const history = (events: fc.Arbitrary<ClusterEvent>) =>
  fc.array(fc.record({ event: events, crash }), { maxLength: 40 });
type Given = { builder: ReturnType<typeof makeJob>; podGroupApis: PodGroupApis; servesRestartRules: boolean };

const clusterFor = ({ builder, ...served }: Given, fenced = true) =>
  new Simulator(builder.observe({}, [], served), fenced);

/**
 * Runs a history. The simulator itself asserts after every write that no two attempts are alive, and after every event
 * that the executor reaches a steady state.
 */
function run(
  given: Given,
  steps: { event: ClusterEvent; crash: number | null }[],
  watch: (cluster: Simulator) => void = () => {},
  fenced = true,
): Simulator {
  const cluster = clusterFor(given, fenced);
  cluster.settle();
  for (const { event, crash } of steps) {
    applyEvent(event, cluster);
    cluster.settle(crash);
    watch(cluster);
  }
  return cluster;
}

const check = (property: fc.IPropertyWithHooks<any>, numRuns = 150) => fc.assert(property, { numRuns });

test('after any history, an undisturbed job ends as either Succeeded or Failed', () => {
  check(
    fc.property(anyJob, history(anyEvents), (given, steps) => {
      const cluster = run(given, steps);
      finishUndisturbed(cluster);
      const { conditions, phase } = cluster.trainJob.status;
      assert(isOver(cluster), `still ${phase}: ${JSON.stringify(conditions)}`);
      assert.equal(isTrue(conditions, ConditionType.succeeded), phase === 'Succeeded');
      assert.equal(isTrue(conditions, ConditionType.failed), phase === 'Failed');
      assert.notEqual(isTrue(conditions, ConditionType.succeeded), isTrue(conditions, ConditionType.failed));
    }),
  );
});

test('a job whose pods succeed ends as Succeeded without a restart, after any phases, suspensions and removals', () => {
  check(
    fc.property(anyJob, history(harmlessEvents), ({ builder, ...served }, steps) => {
      // The default deadline would be exceeded, and a hang restarts the job.
      const cluster = run({ builder: builder.with({ progressDeadlineSeconds: 31_536_000 }), ...served }, steps);
      finishUndisturbed(cluster);
      assert.equal(cluster.trainJob.status.phase, 'Succeeded');
      assert.deepEqual(cluster.trainJob.status.restarts, undefined);
    }),
  );
});

test('crashes of the executor do not change the final state', () => {
  check(
    fc.property(anyJob, history(anyEvents), (given, steps) => {
      const crashed = run(given, steps);
      const whole = run(
        given,
        steps.map(({ event }) => ({ event, crash: null })),
      );
      assert.deepEqual(crashed.trainJob.status, whole.trainJob.status);
      assert.deepEqual(crashed.quantizeJob?.status, whole.quantizeJob?.status);
      const names = (cluster: Simulator) => [...cluster.pods, ...cluster.objects].map(({ name }) => name).sort();
      assert.deepEqual(names(crashed), names(whole));
      // The same objects were created, though maybe in another order.
      const creations = ({ writes }: Simulator) => writes.filter((write) => write.startsWith('create')).sort();
      assert.deepEqual(creations(crashed), creations(whole));
    }),
  );
});

test('counted restarts within the window never exceed maxRestarts, and attempt numbers never decrease', () => {
  check(
    fc.property(anyJob, history(anyEvents), (given, steps) => {
      let attempt = 0;
      run(given, steps, ({ trainJob: { spec, status }, now }) => {
        const recent = (status.restarts?.countedTimes ?? []).filter(
          (time) => secondsSince(time, now) < spec.failurePolicy.windowSeconds,
        );
        assert(recent.length <= spec.failurePolicy.maxRestarts);
        assert((status.attempt ?? 0) >= attempt);
        attempt = status.attempt ?? 0;
      });
    }),
  );
});

describe('a gang whose trainers the kubelet starts again in their pods', () => {
  const given = fc
    .record({ replicas: fc.integer({ min: 1, max: 3 }), maxRestarts: fc.integer({ min: 1, max: 4 }) })
    .map(({ replicas, maxRestarts }) => ({
      builder: makeJob()
        .replicas(replicas)
        .with({ globalBatchSize: 60 * replicas })
        .failurePolicy({ maxRestarts, windowSeconds: 3000 }),
      podGroupApis: {},
      servesRestartRules: true,
    }));

  test('has as many restarts as attempts and starts in place, and runs only when all have followed', () => {
    let inPlace = 0;
    const property = fc.property(given, restartHistory, (given, events) => {
      const steps = events.map((event) => ({ event, crash: null }));
      const cluster = run(given, steps, ({ trainJob: { status }, pods }) => {
        const { count = 0, disruptions = 0, inPlace = 0, lastReason } = status.restarts ?? {};
        assert.notEqual(lastReason, 'ContainerStatusUnknown');
        assert(count + disruptions <= (status.attempt ?? 0) + inPlace, JSON.stringify(status.restarts));
        const counted = status.trainers?.containerRestarts ?? 0;
        assert(counted <= inPlace);
        const gang = pods.filter(({ attempt }) => attempt === status.attempt);
        assert(counted <= Math.max(0, ...gang.map((pod) => pod.containerRestarts?.count ?? 0)));
        const late = gang.filter((pod) => (pod.containerRestarts?.count ?? 0) < counted);
        assert(status.phase !== 'Running' || late.length === 0, 'Running without all of its trainers');
      });
      inPlace += cluster.trainJob.status.restarts?.inPlace ?? 0;
      finishUndisturbed(cluster);
      assert(isOver(cluster), JSON.stringify(cluster.trainJob.status));
    });
    // The seed makes the histories the same in every run.
    fc.assert(property, { numRuns: 60, seed: 1 });
    assert(inPlace >= 10, `only ${inPlace} restarts in place`);
  });
});

test('a finished job keeps its outcome, its time and its attempt number', () => {
  check(
    fc.property(job, history(anyEvents), history(anyEvents), (given, steps, laterSteps) => {
      const cluster = run(given, steps);
      finishUndisturbed(cluster);
      const { phase, completionTime, attempt } = cluster.trainJob.status;
      for (const { event, crash } of laterSteps) {
        applyEvent(event, cluster);
        cluster.settle(crash);
        assert.deepEqual(
          {
            phase: cluster.trainJob.status.phase,
            completionTime: cluster.trainJob.status.completionTime,
            attempt: cluster.trainJob.status.attempt,
          },
          { phase, completionTime, attempt },
        );
      }
    }),
    60,
  );
});

test('live pods work for the current spec, even if it changed while the operator was down', () => {
  check(
    fc.property(job, history(anyEvents), (given, steps) => {
      run(given, steps, (cluster) => {
        if (isOver(cluster) || cluster.trainJob.status.trainingCompletionTime !== undefined) return;
        const wanted = trainingDigest(cluster.trainJob.spec);
        for (const pod of cluster.livePods()) assert(pod.deleting || pod.specDigest === wanted);
      });
    }),
    60,
  );
});

describe('trainers that outlive their pods', () => {
  /** What a job does with its folder, disturbed by processes of earlier attempts. */
  const folderAfter = (given: Given, events: ClusterEvent[], fenced: boolean) => {
    const steps = events.map((event) => ({ event, crash: null }));
    const cluster = run(given, steps, () => {}, fenced);
    finishUndisturbed(cluster);
    const { phase } = cluster.trainJob.status;
    const model = cluster.folder.modelWriter;
    // Processes that are left wake up after the end.
    for (const { process } of cluster.processes)
      for (const step of ['claim', 'train', 'stage', 'publish', 'export'] as const) cluster.folder.act(process, step);
    return { violations: cluster.folder.violations, phase, model, modelAtLast: cluster.folder.modelWriter };
  };

  test('do no harm: no step is lost, no checkpoint of theirs is continued, and the model stays', () => {
    check(
      fc.property(job, storageHistory, (given, events) => {
        const { violations, phase, model, modelAtLast } = folderAfter(given, events, true);
        assert.deepEqual([...violations], []);
        if (phase !== 'Succeeded') return;
        assert.notEqual(model, null);
        assert.equal(modelAtLast, model);
      }),
      100,
    );
  });

  test('would do harm without the fences of the storage', () => {
    const seen = new Set<string>();
    const property = fc.property(jobs(fc.constant(false)), storageHistory, (given, events) => {
      const { violations, phase, model, modelAtLast } = folderAfter(given, events, false);
      for (const violation of violations) seen.add(violation);
      if (phase === 'Succeeded' && modelAtLast !== model) seen.add('model replaced after the end');
    });
    // The seed makes the histories the same in every run.
    fc.assert(property, { numRuns: 120, seed: 1 });
    assert.deepEqual([...seen].sort(), [
      'base of a zombie',
      'damaged checkpoint',
      'model of a zombie',
      'model replaced after the end',
      'step lost',
    ]);
  });
});

test('every status is valid, and lastTransitionTime changes only with the status of its condition', () => {
  check(
    fc.property(job, history(anyEvents), (given, steps) => {
      const { statuses } = run(given, steps, ({ quantizeJob }) => {
        if (quantizeJob) QuantizeJobStatus.parse(quantizeJob.status);
      });
      let before: Condition[] = [];
      for (const status of statuses) {
        for (const condition of FaceTrainJobStatus.parse(status).conditions!) {
          const old = before.find(({ type, status }) => type === condition.type && status === condition.status);
          if (old) assert.equal(condition.lastTransitionTime, old.lastTransitionTime, condition.type);
        }
        before = status.conditions!;
      }
    }),
    60,
  );
});
