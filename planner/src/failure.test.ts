import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { viewOf } from './attempt.ts';
import { actionFor, type Failure, findFailure } from './failure.ts';
import type { ObservedPod } from './observed.ts';
import { after, at, makeJob, makePod } from './testing/builders.ts';

const STARTED = { attempt: 0, attemptStartTime: at(0) };

function find(pods: ObservedPod[], seconds = 200, status: object = STARTED, toleratesNodeLoss = false): Failure | null {
  return findFailure(
    viewOf(
      'FaceTrainJob',
      makeJob()
        .replicas(pods.length > 2 ? 4 : 2)
        .observe(status, pods),
      pods.length > 2 ? 4 : 2,
      after(seconds),
      toleratesNodeLoss,
    ),
  );
}

describe('the cause of a failure', () => {
  const cases: Record<
    string,
    { pods: ObservedPod[]; at?: number; status?: object; toleratesNodeLoss?: boolean; want: Partial<Failure> | null }
  > = {
    'none while all run': { pods: [makePod(0).running().build(), makePod(1).running().build()], want: null },
    'none while pods wait': { pods: [makePod(0).build(), makePod(1).build()], want: null },
    'none after a rank has succeeded': {
      pods: [makePod(0).running().build(), makePod(1).succeeded().build()],
      want: null,
    },
    'none for an unknown phase': {
      pods: [makePod(0).with({ phase: 'Unknown' }).build(), makePod(1).with({ phase: 'Hibernating' }).build()],
      want: null,
    },
    'the rank that failed first': {
      pods: [makePod(0).failed(1, 110).build(), makePod(1).failed(137, 100).build()],
      want: { rank: 1, exitCode: 137, reason: 'ProcessKilled', disruption: false },
    },
    'the rank that failed by itself, even if ranks that lost a peer ended earlier': {
      pods: [makePod(0).failed(4, 100).build(), makePod(1).failed(1, 101).build()],
      want: { rank: 1, exitCode: 1, reason: 'ProcessFailed' },
    },
    'ranks with a finish time come before ranks without': {
      pods: [
        makePod(0)
          .failed(1)
          .with({ finishedAt: undefined as never })
          .build(),
        makePod(1).failed(2, 100).build(),
      ],
      want: { rank: 1, exitCode: 2, reason: 'InputRefused' },
    },
    'the reason in the termination message': {
      pods: [
        makePod(0).running().build(),
        makePod(1).running('gpu-7').failed(2).terminationMessage('InvalidDataset', 'train.rec: cut short').build(),
      ],
      want: {
        reason: 'InvalidDataset',
        message: 'rank 1 left with exit code 2 on gpu-7: train.rec: cut short',
        node: 'gpu-7',
        code: 'InvalidDataset',
        ruleReasons: ['InvalidDataset', 'InvalidDataset', 'Error'],
      },
    },
    'the reason of Kubernetes, if there is no termination message': {
      pods: [makePod(0).running().build(), makePod(1).failed(137).with({ reason: 'OOMKilled' }).build()],
      want: { reason: 'OOMKilled', message: 'rank 1 left with exit code 137 (OOMKilled)', disruption: false },
    },
    'the cluster, for a pod that was evicted for its node': {
      pods: [
        makePod(0).failed(4, 101).build(),
        makePod(1)
          .with({ phase: 'Failed', reason: 'Evicted', finishedAt: at(100) })
          .disrupted()
          .build(),
      ],
      want: { rank: 1, reason: 'Evicted', disruption: true },
    },
    'the pod itself, evicted over its own limit: without DisruptionTarget': {
      pods: [
        makePod(0).failed(4, 101).build(),
        makePod(1)
          .failed(137)
          .with({ reason: 'Evicted', message: 'Pod ephemeral local storage usage exceeds the total limit 20Mi.' })
          .build(),
      ],
      want: {
        rank: 1,
        reason: 'Evicted',
        disruption: false,
        message:
          'rank 1 left with exit code 137 (Evicted): Pod ephemeral local storage usage exceeds the total limit 20Mi.',
        ruleReasons: ['Evicted', 'Evicted'],
      },
    },
    'the pod itself, if eviction over its own limit let it stop in time': {
      pods: [makePod(0).failed(143).with({ reason: 'Evicted' }).build(), makePod(1).failed(143, 99).build()],
      want: { rank: 0, reason: 'Evicted', disruption: false },
    },
    'none yet after all ranks ended by SIGTERM, while the Event of a failed probe may still come': {
      pods: [makePod(0).failed(143, 101).build(), makePod(1).failed(143, 100).build()],
      at: 104,
      want: null,
    },
    'the probe, as soon as the Event has come': {
      pods: [
        makePod(0).failed(143, 101).build(),
        makePod(1).failed(143, 100).with({ message: 'Container facetrain failed liveness probe' }).build(),
      ],
      at: 104,
      want: {
        rank: 1,
        message: 'rank 1 left with exit code 143: Container facetrain failed liveness probe',
        disruption: false,
      },
    },
    'a SIGKILL, without a wait': {
      pods: [makePod(0).failed(4, 101).build(), makePod(1).failed(137, 100).build()],
      at: 101,
      want: { rank: 1, reason: 'ProcessKilled' },
    },
    'a SIGTERM that nobody explains': {
      pods: [makePod(0).failed(143, 101).build(), makePod(1).failed(143, 100).build()],
      want: { rank: 1, reason: 'ProcessKilled', exitCode: 143, disruption: false },
    },
    'the cluster, for a gang that stops because one pod is drained': {
      pods: [makePod(0).failed(143, 100).build(), makePod(1).running().disrupted().deleting().build()],
      want: { rank: 1, reason: 'Disrupted', disruption: true },
    },
    'the cluster, for a gang that stopped because a node was shut down': {
      pods: [makePod(0).failed(143, 100).build(), makePod(1).failed(143, 101).disrupted().build()],
      want: { rank: 1, reason: 'Disrupted', disruption: true },
    },
    'none yet after a SIGTERM, while the pod that it was for may still be reported': {
      pods: [makePod(0).failed(143, 100).build(), makePod(1).running().with({ exitCode: 143 }).build()],
      at: 125,
      want: null,
    },
    'the SIGTERM, if no cause is reported in time': {
      pods: [makePod(0).failed(143, 100).build(), makePod(1).running().build()],
      at: 131,
      want: { rank: 0, reason: 'ProcessKilled', disruption: false },
    },
    'none yet for a signal, while the reason of the pod may still be reported': {
      pods: [makePod(0).running().build(), makePod(1).failed(137, 100).with({ phase: 'Running' }).build()],
      at: 104,
      want: null,
    },
    'the signal, if a sidecar keeps the pod': {
      pods: [makePod(0).running().build(), makePod(1).failed(137, 100).with({ phase: 'Running' }).build()],
      at: 105,
      want: { rank: 1, reason: 'ProcessKilled', disruption: false },
    },
    'the deletion, for a pod that left with a code of its own meanwhile': {
      pods: [makePod(0).running().build(), makePod(1).failed(1).deleting().build()],
      want: { rank: 1, reason: 'PodDeleted', disruption: true },
    },
    'the kubelet, for a pod that it had no place for': {
      pods: [
        makePod(0).running().build(),
        makePod(1)
          .with({ phase: 'Failed', reason: 'OutOfcpu', message: 'Pod was rejected: Node had no cpu', rejected: true })
          .build(),
      ],
      want: {
        rank: 1,
        reason: 'OutOfcpu',
        disruption: true,
        message: 'rank 1 failed (OutOfcpu): Pod was rejected: Node had no cpu',
      },
    },
    'the pod, if no node can run it': {
      pods: [
        makePod(0).running().build(),
        makePod(1).with({ phase: 'Failed', reason: 'PodOSNotSupported', rejected: true }).build(),
      ],
      want: { rank: 1, reason: 'PodOSNotSupported', disruption: false },
    },
    'a container of the template, whose exit code is not ours': {
      pods: [
        makePod(0).running().build(),
        makePod(1)
          .with({
            phase: 'Failed',
            node: 'n',
            foreignContainer: { name: 'copy-certs', exitCode: 2, reason: 'Error', message: 'ls: no such folder' },
          })
          .build(),
      ],
      want: {
        rank: 1,
        reason: 'ContainerFailed',
        message: 'rank 1: container copy-certs left with exit code 2 on n: ls: no such folder',
        disruption: false,
      },
    },
    'a container of the template that ran out of memory': {
      pods: [
        makePod(0).running().build(),
        makePod(1)
          .with({ phase: 'Failed', foreignContainer: { name: 'unpack', exitCode: 137, reason: 'OOMKilled' } })
          .build(),
      ],
      want: { reason: 'OOMKilled', message: 'rank 1: container unpack left with exit code 137 (OOMKilled)' },
    },
    'a container of ours that fetches, with its code': {
      pods: [
        makePod(0).running().build(),
        makePod(1).failed(2).with({ container: 'fetch-dataset' }).terminationMessage('StorageFailed', 'denied').build(),
      ],
      want: {
        reason: 'StorageFailed',
        code: 'StorageFailed',
        exitCode: 2,
        message: 'rank 1: container fetch-dataset left with exit code 2: denied',
      },
    },
    'the container runtime, for a program that it cannot start': {
      pods: [
        makePod(0).running().build(),
        makePod(1)
          .failed(128)
          .with({ reason: 'StartError', message: 'exec: "/no/such/program": no such file or directory' })
          .build(),
      ],
      want: {
        reason: 'StartError',
        message: 'rank 1 left with exit code 128 (StartError): exec: "/no/such/program": no such file or directory',
        disruption: false,
      },
    },
    'the step of a loss that is not finite': {
      pods: [
        makePod(0).running().build(),
        makePod(1).failed(2).terminationMessage('NotANumber', 'step 812: the loss is nan; lower the rate').build(),
      ],
      want: { reason: 'NotANumber', step: 812 },
    },
    'the cluster, for a drained pod whose peers fail': {
      pods: [makePod(0).failed(4, 100).build(), makePod(1).running().disrupted().deleting().build()],
      want: { rank: 1, reason: 'Disrupted', disruption: true },
    },
    'a disrupted pod, even if its exit code is that of a lost peer': {
      pods: [makePod(0).failed(4, 99).build(), makePod(1).failed(4, 100).disrupted().build()],
      want: { rank: 1, disruption: true },
    },
    'the deletion of a pod': {
      pods: [makePod(0).running().build(), makePod(1).running().deleting().build()],
      want: { rank: 1, reason: 'PodDeleted', disruption: true },
    },
    'none after the deletion of a pod that has succeeded': {
      pods: [makePod(0).running().build(), makePod(1).succeeded().deleting().build()],
      want: null,
    },
    'an unreachable node, after a peer was lost': {
      pods: [makePod(0).failed(4, 100).build(), makePod(1).with({ phase: 'Unknown', node: 'n' }).build()],
      want: { rank: 1, reason: 'NodeLost', node: 'n', disruption: true },
    },
    'a lost node, at once': {
      pods: [makePod(0).running().build(), makePod(1).running('n').with({ lostNode: 'node n is gone' }).build()],
      want: {
        rank: 1,
        reason: 'NodeLost',
        node: 'n',
        message: 'pod faces-0-1 is lost: node n is gone',
        disruption: true,
      },
    },
    'a signal that no word explains, on a node that is gone': {
      pods: [
        makePod(0).running().build(),
        makePod(1).running('n').failed(137, 100).with({ lostNode: 'node n is gone' }).build(),
      ],
      want: {
        rank: 1,
        exitCode: 137,
        reason: 'NodeLost',
        message: 'rank 1 left with exit code 137 (NodeLost) on n: node n is gone',
        disruption: true,
      },
    },
    'SIGTERM of all ranks, one of them on a node that is gone': {
      pods: [
        makePod(0).running('m').failed(143, 100).build(),
        makePod(1).running('n').failed(143, 101).with({ lostNode: 'node n is gone' }).build(),
      ],
      want: { rank: 1, reason: 'NodeLost', disruption: true },
    },
    'memory that ran out, though the node is gone now': {
      pods: [
        makePod(0).running().build(),
        makePod(1).running('n').failed(137, 100).with({ reason: 'OOMKilled', lostNode: 'node n is gone' }).build(),
      ],
      want: { rank: 1, reason: 'OOMKilled', disruption: false },
    },
    'an exit code of its own, though the node is gone now': {
      pods: [
        makePod(0).running().build(),
        makePod(1).running('n').failed(1, 100).with({ lostNode: 'node n is gone' }).build(),
      ],
      want: { rank: 1, exitCode: 1, disruption: false },
    },
    'a node that has not answered for nodeLostSeconds': {
      pods: [
        makePod(0).running().build(),
        makePod(1)
          .running('n')
          .with({ silentNode: { reason: 'node n does not answer', since: at(140) } })
          .build(),
      ],
      want: { rank: 1, reason: 'NodeLost', message: 'pod faces-0-1 is lost: node n does not answer', disruption: true },
    },
    'none while it may still answer': {
      pods: [
        makePod(0).running().build(),
        makePod(1)
          .running('n')
          .with({ silentNode: { reason: 'node n does not answer', since: at(141) } })
          .build(),
      ],
      want: null,
    },
    'the rank that failed before the node was lost': {
      pods: [makePod(0).failed(1).build(), makePod(1).running('n').with({ lostNode: 'node n is gone' }).build()],
      want: { rank: 0, exitCode: 1, disruption: false },
    },
    'none for the lost node of a rank that has succeeded': {
      pods: [makePod(0).running().build(), makePod(1).succeeded().with({ lostNode: 'node n is gone' }).build()],
      want: null,
    },
    'none for a lost node if the template sets a toleration for unreachable nodes': {
      pods: [makePod(0).running().build(), makePod(1).running('n').with({ lostNode: 'node n is gone' }).build()],
      toleratesNodeLoss: true,
      want: null,
    },
    'a missing pod': {
      pods: [makePod(0).running().build()],
      want: { rank: 1, reason: 'PodLost', message: 'pod faces-0-1 is gone', disruption: true },
    },
    'none for a missing pod that the cache may not have yet': {
      pods: [makePod(0).running().build()],
      at: 4,
      want: null,
    },
    'none for a pod that may not have been created yet': {
      pods: [makePod(0).running().build()],
      status: { attempt: 0 },
      want: null,
    },
    'none yet, while the root cause may still be observed': {
      pods: [makePod(0).failed(4, 100).build(), makePod(1).running().build()],
      at: 101,
      want: null,
    },
    'the lost peer, if no root cause is observed in time': {
      pods: [makePod(0).failed(4, 100).build(), makePod(1).running().build()],
      at: 102,
      want: { rank: 0, reason: 'PeerLost' },
    },
    'the lost peer at once, if all ranks have ended': {
      pods: [makePod(0).failed(4, 100).build(), makePod(1).failed(4, 100).build()],
      at: 100,
      want: { rank: 0, reason: 'PeerLost' },
    },
    'a trainer whose sidecar still runs': {
      pods: [makePod(0).running().build(), makePod(1).running().with({ exitCode: 1 }).build()],
      want: { rank: 1, exitCode: 1 },
    },
  };
  for (const [name, { pods, at: seconds, status, toleratesNodeLoss, want }] of Object.entries(cases)) {
    test(name, () => {
      const failure = find(pods, seconds, status, toleratesNodeLoss);
      if (want === null) assert.equal(failure, null);
      else assert.partialDeepStrictEqual(failure, want);
    });
  }
});

test('of a pod with several ranks, the one that its program names failed, else any of them', () => {
  const job = makeJob().trainers({ replicas: 2, ranksPerPod: 4 });
  const find = (...pods: ObservedPod[]) =>
    findFailure(viewOf('FaceTrainJob', job.observe(STARTED, pods), 2, after(200), false));
  const named = makePod(1)
    .failed(1)
    .with({ termination: { code: 'Internal', message: 'no', rank: 6 } });
  const wanted = { rank: 6, message: 'rank 6 left with exit code 1: no' };
  assert.partialDeepStrictEqual(find(makePod(0).running().build(), named.build()), wanted);
  const killed = makePod(1).failed(137).with({ reason: 'OOMKilled' }).build();
  assert.partialDeepStrictEqual(find(makePod(0).running().build(), killed), {
    rank: 4,
    message: 'ranks 4-7 left with exit code 137 (OOMKilled)',
  });
  assert.partialDeepStrictEqual(find(makePod(0).running().build()), { rank: 4, reason: 'PodLost' });
  // Numbers that a status does not take, or of another pod: anybody can write the message of a pod of theirs.
  for (const rank of [2 ** 40, 3, 8]) {
    const odd = makePod(1)
      .failed(1)
      .with({ termination: { code: 'Internal', message: 'no', rank } });
    const wanted = { rank: 4, message: 'ranks 4-7 left with exit code 1: no' };
    assert.partialDeepStrictEqual(find(makePod(0).running().build(), odd.build()), wanted);
  }
});

test('that a signal ended a rank of a pod with several names it, and hides no cause', () => {
  const job = makeJob().trainers({ replicas: 2, ranksPerPod: 4 });
  const find = (...pods: ObservedPod[]) =>
    findFailure(viewOf('FaceTrainJob', job.observe(STARTED, pods), 2, after(200), false));
  const ended = (code: number, signal: string, fields: Partial<ObservedPod> = {}) => {
    const termination = { code: 'ProcessKilled', message: `its process was ended by ${signal}`, rank: 6 };
    return makePod(1)
      .running('n')
      .failed(code, 100)
      .with({ termination, ...fields })
      .build();
  };
  const running = makePod(0).running().build();
  const message = 'rank 6 left with exit code 137 on n: its process was ended by SIGKILL';
  assert.partialDeepStrictEqual(find(running, ended(137, 'SIGKILL')), {
    ...{ rank: 6, reason: 'ProcessKilled', disruption: false, message },
  });
  assert.partialDeepStrictEqual(find(running, ended(137, 'SIGKILL', { reason: 'OOMKilled' })), {
    ...{ rank: 6, reason: 'OOMKilled', disruption: false },
  });
  assert.partialDeepStrictEqual(find(running, ended(137, 'SIGKILL', { lostNode: 'node n is gone' })), {
    ...{ rank: 6, reason: 'NodeLost', disruption: true },
  });
  const drained = makePod(0).running().disrupted().deleting().build();
  assert.partialDeepStrictEqual(find(drained, ended(143, 'SIGTERM')), { rank: 0, reason: 'Disrupted' });
});

test('rules by exit code are not for containers of the template', () => {
  const foreignContainer = { name: 'copy-certs', exitCode: 2 };
  const failure = find([makePod(0).running().build(), makePod(1).with({ phase: 'Failed', foreignContainer }).build()])!;
  const { failurePolicy } = makeJob()
    .failurePolicy({ rules: [{ action: 'FailJob', exitCodes: [2] }] })
    .parse();
  assert.equal(actionFor(failure, failurePolicy).action, 'Restart');
});

describe('the action of the failure policy', () => {
  const failure = (exitCode: number | undefined, fields: Partial<Failure> = {}): Failure => ({
    reason: 'x',
    message: '',
    disruption: false,
    ruleReasons: ['x'],
    ...(exitCode !== undefined && { exitCode }),
    ...fields,
  });
  const rule = (action: string, fields: object) => ({ rules: [{ action, ...fields }] });
  const cases: Record<string, { failure: Failure; policy?: object; want: string }> = {
    'a defect restarts': { failure: failure(1), want: 'Restart' },
    'a refused input does not': { failure: failure(2), want: 'FailJob' },
    'a rendezvous that timed out restarts': {
      failure: failure(2, { code: 'RendezvousTimeout' }),
      want: 'Restart',
    },
    'unless a rule says otherwise': {
      failure: failure(2, { code: 'RendezvousTimeout', ruleReasons: ['RendezvousTimeout', 'Error'] }),
      policy: rule('FailJob', { reasons: ['RendezvousTimeout'] }),
      want: 'FailJob',
    },
    'a missed gate does not': { failure: failure(3), want: 'FailJob' },
    'a lost peer restarts': { failure: failure(4), want: 'Restart' },
    'a folder that another writer has claimed is claimed again': { failure: failure(5), want: 'Restart' },
    'a loss that is not finite restarts in training': {
      failure: failure(2, { code: 'NotANumber', step: 7 }),
      want: 'Restart',
    },
    'and nowhere else': { failure: failure(2, { code: 'NotANumber' }), want: 'FailJob' },
    'a SIGTERM counts': { failure: failure(143), want: 'Restart' },
    'a failure without an exit code counts': { failure: failure(undefined), want: 'Restart' },
    'a disruption does not count, whatever the code': {
      failure: failure(2, { disruption: true }),
      want: 'RestartWithoutCounting',
    },
    'rules come first, also about a disruption': {
      failure: failure(undefined, { disruption: true, ruleReasons: ['Evicted'] }),
      policy: rule('FailJob', { reasons: ['Evicted'] }),
      want: 'FailJob',
    },
    'a rule on the exit code decides': {
      failure: failure(2),
      policy: rule('Restart', { exitCodes: [2] }),
      want: 'Restart',
    },
    'a rule on the reason decides': {
      failure: failure(137, { ruleReasons: ['OOMKilled'] }),
      policy: rule('FailJob', { reasons: ['OOMKilled'] }),
      want: 'FailJob',
    },
    'a rule with both needs both': {
      failure: failure(1),
      policy: rule('FailJob', { exitCodes: [1], reasons: ['NotANumber'] }),
      want: 'Restart',
    },
    'a rule on exit codes is not for a failure without one': {
      failure: failure(undefined),
      policy: rule('FailJob', { exitCodes: [1] }),
      want: 'Restart',
    },
    'the first rule that matches decides': {
      failure: failure(1),
      policy: {
        rules: [
          { action: 'FailJob', exitCodes: [9] },
          { action: 'RestartWithoutCounting', exitCodes: [1] },
          { action: 'FailJob', exitCodes: [1] },
        ],
      },
      want: 'RestartWithoutCounting',
    },
  };
  for (const [name, { failure, policy, want }] of Object.entries(cases)) {
    test(name, () =>
      assert.equal(
        actionFor(
          failure,
          makeJob()
            .failurePolicy(policy ?? {})
            .parse().failurePolicy,
        ).action,
        want,
      ),
    );
  }
});
