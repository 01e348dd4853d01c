/** A gang in a cluster whose first family is IPv6: its Service and what is asked of its pods have no IPv4 address. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Cluster } from './cluster/cluster.ts';
import { buildImages } from './cluster/images.ts';
import { installAll } from './cluster/install-facetrain.ts';
import { applyExample, BEGUN, reachesStep, trainLongWithoutEvaluation } from './testing/example-job.ts';
import { Namespace } from './testing/namespace.ts';

let cluster: Cluster;

before(async () => {
  await buildImages(() => {});
  cluster = await Cluster.start({ ipv6First: true });
  await installAll(cluster, () => {});
});
after(() => cluster?.stop());

test('two trainers meet, train, and report their progress over IPv6', async () => {
  const ns = await Namespace.create(cluster, 'six');
  await applyExample(ns, 'faces', trainLongWithoutEvaluation);
  const { status } = await reachesStep(ns, 'faces', { attempt: 0, step: BEGUN });
  assert.equal(status!.trainers.ready, 2);

  const families = await ns.kubectl('get', 'service', 'faces', '-o', 'jsonpath={.spec.ipFamilies}');
  assert.deepEqual(JSON.parse(families), ['IPv6']);
  const [rankZero] = await ns.list<{ metadata: { name: string }; status: { podIP: string } }>('pod');
  const { podIP } = rankZero!.status;
  assert.match(podIP, /^fd00:244:/);
  // The rendezvous has one address, that of the Service.
  assert.match(await ns.kubectl('logs', 'faces-0-1'), /met the other ranks/);
  await ns.kubectl('delete', 'facetrainjob', 'faces');
});
