/** Pods that Kubernetes does not create or place: priorities, claims, quotas, webhooks. */
import assert from 'node:assert/strict';
import { condition, type Namespace, restartsOf } from '../testing/namespace.ts';
import { shellContainer, trainJob, yaml } from '../testing/small-jobs.ts';

const quota = (hard: Record<string, string>) => ({
  apiVersion: 'v1',
  kind: 'ResourceQuota',
  metadata: { name: 'quota' },
  spec: { hard },
});

/** A quota counts from the moment at which its controller has seen the namespace. */
async function applyQuota(ns: Namespace, hard: Record<string, string>): Promise<void> {
  await ns.apply(quota(hard));
  const [[name, value]] = Object.entries(hard) as [[string, string]];
  const path = `{.status.hard.${name}}`;
  await ns.kubectl('wait', 'resourcequota/quota', `--for=jsonpath=${path}=${value}`, '--timeout=5m');
}

export const podsThatWait: Record<string, (ns: Namespace) => Promise<void>> = {
  'a gang of any priority class is scheduled': async (ns) => {
    await ns.apply(
      yaml('{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: training}, value: 1000}'),
      trainJob('faces', { shell: 'exit 0', pod: { priorityClassName: 'training' } }),
      trainJob('two', { replicas: 2, shell: 'exit 0', pod: { priorityClassName: 'training' } }),
    );
    await ns.reachesPhase('faces', 'Succeeded');
    await ns.reachesPhase('two', 'Succeeded');
  },

  'a gang that a pod of higher priority displaces starts again, and that does not count': async (ns) => {
    const slots = { 'example.com/slot': '2' };
    const change = JSON.stringify({ status: { capacity: slots, allocatable: slots } });
    await ns.cluster.kubectl('patch', 'node', 'control-plane', '--subresource=status', '--type=merge', '-p', change);
    const one = { limits: { 'example.com/slot': '1' }, requests: { 'example.com/slot': '1' } };
    const priorities = { low: 10, high: 1000 };
    await ns.apply(
      ...Object.entries(priorities).map(([name, value]) => ({
        apiVersion: 'scheduling.k8s.io/v1',
        kind: 'PriorityClass',
        metadata: { name },
        value,
      })),
      trainJob('low', {
        replicas: 2,
        shell: 'sleep 600',
        pod: { priorityClassName: 'low' },
        trainers: { resources: one },
      }),
    );
    await ns.waitFor('low', ({ status }) => assert.equal(status?.trainers?.active, 2));
    await ns.waitFor('low', (job) => assert.equal(condition(job, 'Admitted')?.status, 'True'));
    await ns.apply({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'urgent' },
      spec: {
        priorityClassName: 'high',
        restartPolicy: 'Never',
        terminationGracePeriodSeconds: 1,
        containers: [shellContainer('urgent', 'sleep 5', { resources: one })],
      },
    });
    const job = await ns.waitFor('low', (job) => {
      assert.equal(job.status!.attempt, 1);
      assert.equal(condition(job, 'Admitted')?.status, 'True');
    });
    assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 1 });
    assert.match(job.status!.restarts.lastMessage, /preempt/i);
    await ns.kubectl('delete', 'facetrainjob', 'low');
  },

  'one claim for checkpoints and results is bound with its first pod': async (ns) => {
    await ns.apply(
      yaml(`
        apiVersion: storage.k8s.io/v1
        kind: StorageClass
        metadata: {name: first-consumer}
        provisioner: kubernetes.io/no-provisioner
        volumeBindingMode: WaitForFirstConsumer`),
      yaml(`
        apiVersion: v1
        kind: PersistentVolume
        metadata: {name: first-consumer}
        spec:
          capacity: {storage: 1Gi}
          accessModes: [ReadWriteMany]
          storageClassName: first-consumer
          hostPath: {path: /srv/facetrain/volumes/first-consumer, type: DirectoryOrCreate}
          nodeAffinity:
            required:
              nodeSelectorTerms:
                - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [control-plane]}]`),
      yaml(`
        apiVersion: v1
        kind: PersistentVolumeClaim
        metadata: {name: faces}
        spec:
          accessModes: [ReadWriteMany]
          storageClassName: first-consumer
          resources: {requests: {storage: 1Gi}}`),
      trainJob('bind', {
        replicas: 2,
        shell: 'exit 0',
        spec: { output: { uri: 'pvc://faces/out' }, dataset: { uri: 'pvc://faces/data' } },
      }),
    );
    await ns.reachesPhase('bind', 'Succeeded');
  },

  'two gangs and a quota for one: each gets its turn': async (ns) => {
    const gang = (name: string) => trainJob(name, { replicas: 4, shell: 'sleep 3' });
    const createdPods = (name: string, count: number) =>
      ns.waitFor(name, async () =>
        assert.equal((await ns.list('pod', `facetrain.dev/job-name=${name}`)).length, count),
      );
    // The first gang gets 3 of its 4 pods, the second takes the place that is then free: neither is whole.
    await applyQuota(ns, { pods: '3' });
    await ns.apply(gang('first'));
    await createdPods('first', 3);
    await applyQuota(ns, { pods: '4' });
    await ns.apply(gang('second'));
    for (const name of ['first', 'second'])
      assert.equal(restartsOf(await ns.reachesPhase(name, 'Succeeded')).counted, 0);
  },

  'a failed pod that is kept for its log does not take the next attempt’s place in a quota': async (ns) => {
    await applyQuota(ns, { 'count/pods': '2' });
    await ns.apply(
      trainJob('counted', {
        replicas: 2,
        shell: 'if [ "$RANK" = 0 ]; then exit 1; else sleep 60; fi',
        pod: { terminationGracePeriodSeconds: 1 },
        spec: { failurePolicy: { maxRestarts: 2 } },
      }),
    );
    const job = await ns.reachesPhase('counted', 'Failed');
    assert.equal(condition(job, 'Failed')!.reason, 'MaxRestartsExceeded');
    assert.equal(restartsOf(job).counted, 2);
  },

  'the pending deadline runs while a quota refuses the pods': async (ns) => {
    await applyQuota(ns, { pods: '0' });
    await ns.apply(trainJob('late', { shell: 'exit 0', spec: { pendingDeadlineSeconds: 10 } }));
    const failed = condition(await ns.reachesPhase('late', 'Failed'), 'Failed')!;
    assert.equal(failed.reason, 'PendingDeadlineExceeded');
    assert.match(failed.message, /ResourceQuota quota refuses Pod late-0-0/);
    await ns.waitFor('late', async () => {
      const reasons = (await ns.events('FaceTrainJob', 'late')).map(({ reason }) => reason);
      assert(reasons.includes('QuotaExceeded'), reasons.join());
    });
  },

  'a webhook that is down is named in status and event; once it is gone the gang starts': async (ns) => {
    await ns.kubectl('label', 'namespace', ns.name, 'webhook=down');
    await ns.apply(
      yaml(`
        apiVersion: admissionregistration.k8s.io/v1
        kind: MutatingWebhookConfiguration
        metadata: {name: sidecar-injector}
        webhooks:
          - name: inject.example.com
            admissionReviewVersions: [v1]
            sideEffects: None
            failurePolicy: Fail
            timeoutSeconds: 2
            namespaceSelector: {matchLabels: {webhook: down}}
            rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
            clientConfig: {service: {namespace: default, name: no-such-injector, path: /inject}}`),
    );
    await ns.apply(trainJob('hooked', { replicas: 2, shell: 'exit 0' }));
    await ns.waitFor('hooked', async (job) => {
      assert.equal(job.status?.phase, 'Pending');
      assert.equal(condition(job, 'Ready')!.reason, 'WebhookFailed');
      assert.match(condition(job, 'Ready')!.message, /inject\.example\.com/);
      const events = await ns.events('FaceTrainJob', 'hooked');
      assert(events.some(({ type, message }) => type === 'Warning' && /inject\.example\.com/.test(message)));
    });
    await ns.kubectl('delete', 'mutatingwebhookconfiguration', 'sidecar-injector');
    const job = await ns.reachesPhase('hooked', 'Succeeded');
    assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 0 });
  },
};

/** Not beside other tests: the class applies to every pod that is created meanwhile. */
export async function aClassIsTheDefault(ns: Namespace): Promise<void> {
  const name = 'default-of-all';
  await ns.apply({
    apiVersion: 'scheduling.k8s.io/v1',
    kind: 'PriorityClass',
    metadata: { name },
    value: 100,
    globalDefault: true,
  });
  await ns.apply(trainJob('faces', { replicas: 2, shell: 'exit 0' }));
  await ns.reachesPhase('faces', 'Succeeded');
  const priorities = (await ns.list<{ spec: { priority: number } }>('pod')).map(({ spec }) => spec.priority);
  assert.deepEqual(priorities, [100, 100]);
  await ns.kubectl('delete', 'priorityclass', name);
}
