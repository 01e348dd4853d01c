/**
 * Trainers that live on after the cluster has given them up: the kubelet of their node has stopped, their pods were
 * deleted by force, and the next attempt trains in the same folder, or to the same place of the object store. They must
 * not harm it.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointManifest, ExitCode } from '@facetrain/api';
import { eventually } from '@facetrain/operator/testing/eventually';
import type { Cluster } from '../cluster/cluster.ts';
import {
  applyExample,
  BEGUN,
  CHECKPOINT_STEPS,
  ON_WORKERS,
  reachesStep,
  stepOf,
  trainLongWithoutEvaluation,
  withoutVolume,
} from '../testing/example-job.ts';
import { condition, MINUTE, type Namespace, restartsOf } from '../testing/namespace.ts';
import { kubeletOf, processesOf, signal } from '../testing/processes.ts';

const NODE_LOST_SECONDS = 5;

interface Pod {
  metadata: { name: string; uid: string };
  spec: { nodeName: string };
  status: { containerStatuses: { containerID: string }[] };
}

/**
 * Stops the kubelet of a worker while two gangs train on it. The trainers of the one are frozen, those of the other go
 * on; later all run again. The one writes to the object store, the other to a volume.
 */
export async function trainersOutliveTheirPods(ns: Namespace, worker: string): Promise<void> {
  const { cluster } = ns;
  const names = ['frozen', 'running'];
  for (const name of names)
    await applyExample(ns, name, (spec) => {
      if (name === 'frozen') withoutVolume(spec);
      trainLongWithoutEvaluation(spec);
      spec.trainers.replicas = name === 'frozen' ? 2 : 1;
      spec.trainers.podTemplate = { spec: ON_WORKERS };
      spec.failurePolicy = { maxRestarts: 0, nodeLostSeconds: NODE_LOST_SECONDS };
      spec.checkpoint.keep = 1000;
    });
  const begun = await Promise.all(names.map((name) => reachesStep(ns, name, { attempt: 0, step: BEGUN })));
  const old = (await ns.list<Pod>('pod')).filter(({ spec }) => spec.nodeName === worker);
  assert.equal(old.length, 3);

  const frozen = (
    await Promise.all(['frozen-0-0', 'frozen-0-1'].map((pod) => processesOf(cluster, worker, pod)))
  ).flat();
  await signal(cluster, worker, 'STOP', frozen);
  await signal(cluster, worker, 'STOP', [await kubeletOf(cluster, worker)]);
  // The status of rank 0 that trains on is still polled: nothing but its node's silence ends the attempt.
  const next = await Promise.all(
    names.map((name, i) => reachesStep(ns, name, { attempt: 1, step: stepOf(begun[i]!) + CHECKPOINT_STEPS })),
  );
  const silentSince = await readyUnknownSince(cluster, worker);
  for (const job of next) {
    const { lastReason, lastTime } = job.status!.restarts;
    assert.equal(lastReason, 'NodeLost');
    assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 1 });
    // A gang that stands still is not waited for. Both times are cut to a second.
    const waited = (Date.parse(lastTime) - silentSince) / 1000;
    if (job.metadata.name === 'running') assert(waited > NODE_LOST_SECONDS - 1, `called lost after ${waited} s`);
  }

  await signal(cluster, worker, 'CONT', frozen);
  // The kubelet is still stopped: how the trainers ended, the container runtime alone knows.
  for (const pod of old) {
    const exitCode = await eventually(() => exitCodeOf(cluster, worker, pod), 5 * MINUTE, 500);
    // Rank 0 finds it out; the other rank hears it from there, or loses its peer.
    const mayLosePeer = pod.metadata.name === 'frozen-0-1' && exitCode === ExitCode.peerLost;
    assert(exitCode === ExitCode.fencedOff || mayLosePeer, `${pod.metadata.name} ended with ${exitCode}`);
  }
  for (const name of names) {
    const { status } = await ns.get('facetrainjob', name);
    await reachesStep(ns, name, { attempt: 1, step: status!.progress.step + CHECKPOINT_STEPS });
    const job = await ns.get('facetrainjob', name);
    assert.equal(condition(job, 'Failed'), undefined);
  }
  await assertCheckpointsWhole(join(ns.folder, 'running', 'checkpoints'));
  await ns.fetch('frozen', 'checkpoint');
  await ns.kubectl('delete', 'facetrainjob', ...names);
  await signal(cluster, worker, 'CONT', [await kubeletOf(cluster, worker)]);
  await cluster.kubectl('wait', `node/${worker}`, '--for=condition=Ready', '--timeout=5m');
}

/** When the node's condition Ready became Unknown, in milliseconds. */
async function readyUnknownSince(cluster: Cluster, node: string): Promise<number> {
  const { status } = await cluster.client.raw<{
    status: { conditions: { type: string; status: string; lastTransitionTime: string }[] };
  }>(`/api/v1/nodes/${node}`);
  const ready = status.conditions.find(({ type }) => type === 'Ready')!;
  assert.equal(ready.status, 'Unknown');
  return Date.parse(ready.lastTransitionTime);
}

/** The exit code that the container runtime has recorded of a pod's trainer. @throws while it runs */
async function exitCodeOf(cluster: Cluster, node: string, { status }: Pod): Promise<number> {
  const id = status.containerStatuses[0]!.containerID.replace('containerd://', '');
  const file = `/var/lib/containerd/io.containerd.grpc.v1.cri/containers/${id}/status`;
  const { FinishedAt, ExitCode } = JSON.parse(await cluster.execute(node, ['cat', file])) as {
    FinishedAt: number;
    ExitCode: number;
  };
  assert(FinishedAt > 0, `container ${id} runs`);
  return ExitCode;
}

/** Every manifest of a folder of checkpoints names files that are there, with their size and digest. */
async function assertCheckpointsWhole(folder: string): Promise<void> {
  const steps = (await readdir(folder)).filter((name) => name.startsWith('step-'));
  assert(steps.length > 0);
  for (const step of steps) {
    const text = await readFile(join(folder, step, 'manifest.json'), 'utf8').catch(() => null);
    if (text === null) continue; // being written
    const { backbone, rows } = CheckpointManifest.parse(JSON.parse(text));
    for (const { file, bytes } of [backbone, ...rows.files]) {
      const content = await readFile(join(folder, step, file));
      assert.equal(content.length, bytes, `${step}/${file}`);
      const { header, blocks } = rows.files.find((each) => each.file === file) ?? { header: backbone, blocks: [] };
      for (const [index, { sha256 }] of [header, ...blocks].entries()) {
        const start = index === 0 ? 0 : blocks[index - 1]!.offset;
        const end = blocks[index]?.offset ?? bytes;
        const found = createHash('sha256').update(content.subarray(start, end)).digest('hex');
        assert.equal(found, sha256, `${step}/${file}, bytes ${start} to ${end}`);
      }
    }
  }
}
