/** Names, folders, edits and deletions over the life of jobs, and the documented commands. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { root } from '../../hack/lib/paths.mjs';
import { condition, MINUTE, type Namespace, restartsOf } from '../testing/namespace.ts';
import { AT_THE_GATE, gated, openGate, quantizeJob, trainJob } from '../testing/small-jobs.ts';

interface Pod {
  metadata: { name: string; labels: Record<string, string>; annotations?: Record<string, string> };
  spec: { containers: { image: string; securityContext: object; resources: object }[] };
  status: { phase: string };
}

async function podsRun(ns: Namespace, job: string, count: number): Promise<void> {
  await ns.waitFor(job, async () => {
    const pods = await ns.list<Pod>('pod', `facetrain.dev/job-name=${job}`);
    assert.deepEqual(
      pods.map(({ status }) => status.phase),
      Array.from({ length: count }, () => 'Running'),
    );
  });
}

export const lifeOfAJob: Record<string, (ns: Namespace) => Promise<void>> = {
  'two kinds of one name do not share objects': async (ns) => {
    await ns.apply(trainJob('ours', { shell: 'sleep 10' }), quantizeJob('ours', { shell: 'sleep 5' }));
    for (const kind of ['facetrainjob', 'quantizejob'] as const) {
      const job = await ns.reachesPhase('ours', 'Succeeded', { kind });
      assert.equal(job.status!.attempt ?? 0, 0, kind);
      assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 0 }, kind);
    }
  },

  'a rank that has succeeded stays so when its pod is removed': async (ns) => {
    await ns.apply(
      trainJob('done', {
        replicas: 3,
        shell: `if [ "$RANK" = 0 ]; then ${AT_THE_GATE}; fi`,
        ...gated,
        spec: { globalBatchSize: 66 },
      }),
    );
    await ns.waitFor('done', async ({ status }) => {
      assert.equal(status?.trainers?.completedRanks, '1-2');
      // A pod gets the phase Succeeded after its container has ended.
      const ended = (await ns.list<Pod>('pod')).filter((pod) => pod.status.phase === 'Succeeded');
      assert.equal(ended.length, 2);
    });
    await ns.kubectl('delete', 'pods', '--field-selector=status.phase=Succeeded');
    await ns.waitFor('done', async (job) => {
      assert.equal((await ns.list('pod')).length, 1);
      assert(!('completionTime' in job.status!));
      assert.equal(job.status!.trainers.completedRanks, '1-2');
      assert.equal(job.status!.trainers.succeeded, 2);
    });
    await openGate(ns);
    const job = await ns.reachesPhase('done', 'Succeeded');
    assert.equal(job.status!.attempt ?? 0, 0);
    assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 0 });
    assert.equal(job.status!.trainers.completedRanks, '0-2');
  },

  'a finished job is not edited into one that trained something else': async (ns) => {
    await ns.apply(trainJob('finished', { shell: 'exit 0', spec: { epochs: 20 } }));
    await ns.reachesPhase('finished', 'Succeeded');
    await ns.patch('facetrainjob', 'finished', { spec: { suspend: true } });
    await assert.rejects(
      ns.patch('facetrainjob', 'finished', { spec: { epochs: 40, suspend: false } }),
      /the job has finished, and is not run again/,
    );
    const { spec, status } = await ns.get('facetrainjob', 'finished');
    assert.deepEqual([spec.epochs, status!.phase], [20, 'Succeeded']);
  },

  'a field of the template is used or refused': async (ns) => {
    const misplaced = trainJob('misplaced', { shell: 'exit 0' });
    misplaced.spec.trainers.podTemplate.nodeSelector = { gpu: 'a100' };
    const image = 'registry.example.com/mine/trainer:2';
    await ns.apply(
      trainJob('image', { shell: 'exit 0', container: { image } }),
      trainJob('lock', {
        shell: 'sleep 600',
        container: { securityContext: { capabilities: { add: ['IPC_LOCK'] } }, resources: { limits: { cpu: 0.5 } } },
      }),
      trainJob('half', { shell: 'exit 0', trainers: { resources: { requests: { cpu: 0.5 }, limits: { cpu: 1 } } } }),
      trainJob('args', { shell: 'exit 0', container: { args: ['--mine'] } }),
      misplaced,
    );
    for (const [name, path] of [
      ['args', 'spec.trainers.podTemplate.spec.containers[0].args'],
      ['misplaced', 'spec.trainers.podTemplate.nodeSelector'],
    ] as const)
      await ns.waitFor(name, (job) => {
        const { reason, message } = condition(job, 'Ready')!;
        assert.equal(reason, 'InvalidSpec');
        assert(message.includes(path), message);
      });
    const containerOf = async (job: string) => {
      const [pod] = await ns.list<Pod>('pod', `facetrain.dev/job-name=${job}`);
      return pod!.spec.containers[0]!;
    };
    await ns.waitFor('image', async () => assert.equal((await containerOf('image')).image, image));
    await ns.waitFor('lock', async ({ status }) => {
      const { securityContext, resources } = await containerOf('lock');
      assert.partialDeepStrictEqual(securityContext, { capabilities: { add: ['IPC_LOCK'], drop: ['ALL'] } });
      assert.partialDeepStrictEqual(resources, { limits: { cpu: '500m' } });
      assert.equal(status!.phase, 'Pending'); // it has no progress server
    });
    await ns.reachesPhase('half', 'Succeeded');
    await ns.kubectl('delete', 'facetrainjob', 'image', 'lock', 'args', 'misplaced');
  },

  'a job that names the folder of a deleted job waits for its pods': async (ns) => {
    const slow = trainJob('slow', {
      replicas: 2,
      shell: `trap "" TERM; ${AT_THE_GATE}`,
      container: gated.container,
      pod: { ...gated.pod, terminationGracePeriodSeconds: 600 },
      spec: { output: { uri: 'pvc://facetrain/shared' } },
    });
    await ns.apply(slow);
    // A pod whose container has not started is gone at once.
    await podsRun(ns, 'slow', 2);
    await ns.kubectl('delete', 'facetrainjob', 'slow', '--wait=false');
    await ns.apply(
      trainJob('heir', {
        shell: 'exit 0',
        spec: {
          output: { uri: 'pvc://facetrain/other' },
          checkpoint: { uri: 'pvc://facetrain//shared/./checkpoints' },
        },
      }),
    );
    await ns.waitFor('heir', (job) => {
      assert.match(condition(job, 'Ready')!.message, /slow/);
    });
    await openGate(ns);
    // Its pods come into being only when the deleted job's have ended.
    let together = false;
    await ns.waitFor('heir', async ({ status }) => {
      const pods = await ns.list<Pod>('pod');
      const of = (name: string) => pods.filter(({ metadata }) => metadata.labels['facetrain.dev/job-name'] === name);
      const old = of('slow').filter(({ status: { phase } }) => phase === 'Running');
      together ||= old.length > 0 && of('heir').length > 0;
      assert.equal(status?.phase, 'Succeeded');
    });
    assert(!together, 'both had pods');
  },

  'the documented commands follow the logs of a gang, and wait for the end of a job that fails': async (ns) => {
    const ranks = 8;
    await ns.apply(
      trainJob('faces', {
        replicas: ranks,
        shell: 'until [ -e /gate/open ]; do echo "a line of rank $RANK"; sleep 1; done; exit 1',
        ...gated,
      }),
    );
    // kubectl follows only containers that run.
    await podsRun(ns, 'faces', ranks);
    const commands = await Promise.all(['logs -f', 'wait ftj/faces --for=jsonpath'].map(documented));
    const ranksSeen = new Set<string>();
    const onLine = (line: string) => {
      const [, rank] = /a line of rank (\d+)$/.exec(line) ?? [];
      if (rank !== undefined && ranksSeen.add(rank).size === ranks) void openGate(ns);
    };
    // The commands end with the job, also when they do not show a rank.
    const late = setTimeout(() => void openGate(ns), 5 * MINUTE);
    await Promise.all(commands.map((args) => ns.cluster.run('kubectl', ['-n', ns.name, ...args], { onLine })));
    clearTimeout(late);
    assert.equal(ranksSeen.size, ranks, [...ranksSeen].join());
    assert.equal((await ns.get('facetrainjob', 'faces')).status!.phase, 'Failed');
  },
};

/** The arguments of the command of docs/kubernetes.md that starts with these words. */
async function documented(start: string): Promise<string[]> {
  const guide = await readFile(join(root, 'docs', 'kubernetes.md'), 'utf8');
  const [, line] = new RegExp(`^ +kubectl (${start}.*?)( &&| +#.*)?$`, 'm').exec(guide) ?? [];
  assert(line, `docs/kubernetes.md has no "kubectl ${start}"`);
  return line.replaceAll("'", '').split(' ');
}
