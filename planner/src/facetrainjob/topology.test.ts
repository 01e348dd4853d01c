import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ChildObject, Pod, PodGroup, Workload } from '../objects.ts';
import { placed, workloadChildren } from '../queue.ts';
import { makeJob } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { type Attempt, childrenOf, placeholdersOf, queuedGang } from './gang-objects.ts';

const RACK = 'example.com/rack';
const TERM = {
  topologyKey: RACK,
  labelSelector: { matchLabels: { 'facetrain.dev/job-uid': 'uid-faces', 'facetrain.dev/attempt': '3' } },
};

function attemptOf(topology: object, spec: object = {}): Attempt {
  const job = makeJob()
    .with({ gang: { topology }, ...spec })
    .observe();
  return {
    job: job.identity,
    spec: job.spec,
    attempt: 3,
    size: 2,
    gang: { mode: 'grouped', reader: 'Native', apiVersion: 'scheduling.k8s.io/v1beta1' },
    environment: testEnvironment,
  };
}
const made = <T extends ChildObject>(attempt: Attempt, kind: T['kind']): T[] =>
  childrenOf(attempt).flatMap((child) => (child.kind === kind ? [child.make() as T] : []));

test('a required topology is in the PodGroup and on every pod, for pods of the attempt and placeholders', () => {
  const attempt = attemptOf({ required: RACK });
  const [group] = made<PodGroup>(attempt, 'PodGroup');
  assert.deepEqual(group!.spec.schedulingConstraints, { topology: [{ key: RACK }] });
  const affinity = { podAffinity: { requiredDuringSchedulingIgnoredDuringExecution: [TERM] } };
  const pods = [...made<Pod>(attempt, 'Pod'), ...placeholdersOf(attempt, [2])];
  assert.deepEqual(
    pods.map(({ spec }) => spec.affinity),
    [affinity, affinity, affinity],
  );
  for (const { metadata } of pods) assert.partialDeepStrictEqual(metadata.labels, TERM.labelSelector.matchLabels);
});

test('a preferred topology is a preference of pods beside the affinity of the template, not in the PodGroup', () => {
  const nodeAffinity = { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [] } };
  const other = { weight: 1, podAffinityTerm: { topologyKey: 'zone' } };
  const affinity = { nodeAffinity, podAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [other] } };
  const trainers = { replicas: 2, podTemplate: { spec: { affinity } } };
  const attempt = attemptOf({ preferred: RACK }, { trainers });
  assert.equal(made<PodGroup>(attempt, 'PodGroup')[0]!.spec.schedulingConstraints, undefined);
  assert.deepEqual(made<Pod>(attempt, 'Pod')[0]!.spec.affinity, {
    nodeAffinity,
    podAffinity: {
      preferredDuringSchedulingIgnoredDuringExecution: [other, { weight: 100, podAffinityTerm: TERM }],
    },
  });
});

test('without a topology pods have no affinity', () => {
  assert.equal(made<Pod>(attemptOf({ preferred: RACK }, { gang: {} }), 'Pod')[0]!.spec.affinity, undefined);
});

test('in a queue the topology is asked of Kueue alone', () => {
  const attempt = attemptOf({ required: RACK }, { queue: { name: 'team' } });
  const [pod] = made<Pod>(attempt, 'Pod');
  assert.equal(pod!.spec.affinity, undefined);
  assert.equal(pod!.metadata.annotations!['kueue.x-k8s.io/podset-required-topology'], RACK);
  assert.equal(made<PodGroup>(attempt, 'PodGroup')[0]!.spec.schedulingConstraints, undefined);
  const view = { kind: 'FaceTrainJob', identity: attempt.job } as Parameters<typeof workloadChildren>[0];
  const [workload] = workloadChildren(view, queuedGang(attempt), undefined);
  assert.partialDeepStrictEqual((workload!.make() as Workload).spec, {
    podSets: [{ topologyRequest: { required: RACK, podIndexLabel: 'facetrain.dev/rank' } }],
  });
});

test('pods with a gate of Kueue have one of its three annotations', () => {
  const gates = { schedulingGates: [{ name: 'kueue.x-k8s.io/topology' }] };
  const annotationsOf = (topology: object) => {
    const attempt = attemptOf(topology, { queue: { name: 'team' }, ...('preferred' in topology ? {} : { gang: {} }) });
    const { annotations } = placed(made<Pod>(attempt, 'Pod')[0]!, gates).metadata;
    return Object.entries(annotations!).filter(([name]) => /^kueue.*topology$/.test(name));
  };
  assert.deepEqual(annotationsOf({ preferred: RACK }), [['kueue.x-k8s.io/podset-preferred-topology', RACK]]);
  assert.deepEqual(annotationsOf({}), [['kueue.x-k8s.io/podset-unconstrained-topology', 'true']]);
});
