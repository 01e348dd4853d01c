/** What happens while the operator does not run: it finds out from what the cluster still shows. */
import assert from 'node:assert/strict';
import { eventually } from '@facetrain/operator/testing/eventually';
import { OPERATOR_NAMESPACE } from '../cluster/install-facetrain.ts';
import { MINUTE, type Namespace, restartsOf } from '../testing/namespace.ts';
import { AT_THE_GATE, gated, openGate, trainJob } from '../testing/small-jobs.ts';

interface Pod {
  metadata: { name: string };
  status: { phase: string };
}

export async function podsGoWhileTheOperatorIsAway(ns: Namespace): Promise<void> {
  const { cluster } = ns;
  const pods = (job: string) => ns.list<Pod>('pod', `facetrain.dev/job-name=${job}`);
  const replicas = Number(await operator(ns, 'get', 'deployment/facetrain', '-o', 'jsonpath={.spec.replicas}'));
  // Ready as soon as it answers at the progress port; SIGTERM ends it at once.
  const serves =
    "require('http').createServer((q,s)=>s.end('{}')).listen(8080);process.on('SIGTERM',()=>process.exit(0))";
  await ns.apply(
    trainJob('drained', { replicas: 2, shell: '', container: { command: ['node', '-e', serves] } }),
    trainJob('removed', { replicas: 2, shell: AT_THE_GATE, ...gated }),
    trainJob('partly', { replicas: 2, shell: `if [ "$RANK" = 0 ]; then ${AT_THE_GATE}; fi`, ...gated }),
  );
  await ns.waitFor('drained', ({ status }) => assert.equal(status?.phase, 'Running'));
  await ns.waitFor('removed', ({ status }) => assert.equal(status?.trainers?.active, 2));
  await ns.waitFor('partly', ({ status }) => assert.equal(status?.trainers?.completedRanks, '1'));

  await operator(ns, 'scale', 'deployment/facetrain', '--replicas=0');
  await operator(ns, 'wait', 'pods', '--for=delete', '-l', 'app.kubernetes.io/name=facetrain', '--timeout=5m');
  await openGate(ns);
  for (const job of ['removed', 'partly'])
    await eventually(
      async () => {
        assert.deepEqual(
          (await pods(job)).map(({ status }) => status.phase),
          ['Succeeded', 'Succeeded'],
        );
      },
      10 * MINUTE,
      250,
    );
  await ns.kubectl('delete', 'pods', '-l', 'facetrain.dev/job-name=removed');
  await ns.kubectl('delete', 'pod', 'partly-0-1');
  const node = 'control-plane';
  const selected = ['--pod-selector=facetrain.dev/job-name=drained', '--delete-emptydir-data', '--force'];
  await cluster.kubectl('drain', node, ...selected);
  await cluster.kubectl('uncordon', node);
  assert.deepEqual(await pods('drained'), []);
  await operator(ns, 'scale', 'deployment/facetrain', `--replicas=${replicas}`);

  // Nobody has seen that these pods succeeded, so they run again. They did not fail: nothing counts.
  for (const [name, phase] of [
    ['removed', 'Succeeded'],
    ['drained', 'Running'],
  ] as const) {
    const job = await ns.waitFor(name, (job) => {
      assert.equal(job.status!.phase, phase);
      assert.equal(job.status!.attempt, 1);
    });
    assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 1 }, name);
  }
  // Of this one, rank 1 was seen to succeed, and the pod of rank 0 still exists.
  const partly = await ns.reachesPhase('partly', 'Succeeded');
  assert.equal(partly.status!.attempt ?? 0, 0);
  assert.deepEqual(restartsOf(partly), { counted: 0, disruptions: 0 });
  await ns.kubectl('delete', 'facetrainjob', 'drained');
}

const operator = (ns: Namespace, ...args: string[]): Promise<string> =>
  ns.cluster.kubectl('-n', OPERATOR_NAMESPACE, ...args);
