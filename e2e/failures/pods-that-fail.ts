/** Pods that fail or cannot start for a reason of their own: the job says which container, and what Kubernetes says. */
import assert from 'node:assert/strict';
import { condition, type Job, type Namespace, restartsOf } from '../testing/namespace.ts';
import { shellContainer, trainJob } from '../testing/small-jobs.ts';

/** A warning of the job has these words. It is recorded after the status was written. */
async function warns(ns: Namespace, name: string, words: RegExp[]): Promise<void> {
  await ns.waitFor(name, async () => {
    const warnings = (await ns.events('FaceTrainJob', name)).filter(({ type }) => type === 'Warning');
    const messages = warnings.map(({ reason, message }) => `${reason}: ${message}`);
    assert(
      messages.some((message) => words.every((each) => each.test(message))),
      `no warning has the words: ${messages.join('; ')}`,
    );
  });
}

/** The job failed with this reason (or with no restart left after it), and condition and event have these words. */
async function failsWith(ns: Namespace, name: string, reason: string, words: RegExp[]): Promise<Job> {
  const job = await ns.reachesPhase(name, 'Failed');
  const { reason: found, message } = condition(job, 'Failed')!;
  if (found === 'MaxRestartsExceeded') assert.match(message, new RegExp(`at last ${reason}:`));
  else assert.equal(found, reason, message);
  for (const each of words) assert.match(message, each);
  await warns(ns, name, words);
  return job;
}

/** The job starts again for a reason that does not count, and status and event have the cluster's words. */
async function restartsFor(ns: Namespace, name: string, reason: string, words: RegExp): Promise<void> {
  const job = await ns.waitFor(name, (job) => assert(restartsOf(job).disruptions > 0));
  assert.equal(job.status!.restarts.lastReason, reason);
  assert.match(job.status!.restarts.lastMessage, words);
  assert.equal(restartsOf(job).counted, 0);
  await warns(ns, name, [words]);
}

/** While the job waits, its condition says why. */
async function waitsWith(ns: Namespace, name: string, words: RegExp[]): Promise<Job> {
  return ns.waitFor(name, (job) => {
    assert.equal(job.status?.phase, 'Pending');
    const ready = condition(job, 'Ready')!;
    for (const each of words) assert.match(`${ready.reason}: ${ready.message}`, each);
  });
}

const ephemeral = { limits: { 'ephemeral-storage': '20Mi' }, requests: { 'ephemeral-storage': '20Mi' } };
const FILLS_ITS_DISK = 'dd if=/dev/zero of=/tmp/big bs=1M count=60 2>/dev/null; sleep 600';
const TOO_MUCH_DISK = /ephemeral local storage usage exceeds the total limit of containers 20Mi/;
const ENDS_SLOWLY = "process.on('SIGTERM',()=>setTimeout(process.exit,5e3,143))";

export const podsThatFail: Record<string, (ns: Namespace) => Promise<void>> = {
  'a pod that exceeds its own limit of disk counts as a restart, with the kubelet’s words': async (ns) => {
    await ns.apply(
      trainJob('full', {
        shell: FILLS_ITS_DISK,
        trainers: { resources: ephemeral },
        spec: { failurePolicy: { maxRestarts: 1 } },
      }),
      trainJob('ruled', {
        shell: FILLS_ITS_DISK,
        trainers: { resources: ephemeral },
        spec: {
          failurePolicy: { maxRestarts: 1, rules: [{ name: 'disk', reasons: ['Evicted'], action: 'FailJob' }] },
        },
      }),
    );
    const ruled = await failsWith(ns, 'ruled', 'Evicted', [TOO_MUCH_DISK, /rule disk/]);
    assert.deepEqual(restartsOf(ruled), { counted: 0, disruptions: 0 });
    const full = await failsWith(ns, 'full', 'Evicted', [TOO_MUCH_DISK]);
    assert.equal(condition(full, 'Failed')!.reason, 'MaxRestartsExceeded');
    assert.deepEqual(restartsOf(full), { counted: 1, disruptions: 0 });
  },

  'a container that the kubelet ends for its probe counts as a restart, and the probe is named': async (ns) => {
    await ns.apply(
      trainJob('deaf', {
        shell: '',
        container: {
          // Like a trainer that still writes its checkpoint. The Events of the kubelet may come a second after the end.
          command: ['node', '-e', `${ENDS_SLOWLY};require('fs').writeFileSync('/tmp/up','');setInterval(()=>{},1e3)`],
          // Without its handler, process 1 of a container does not get SIGTERM, and is killed in the end.
          startupProbe: { exec: { command: ['test', '-e', '/tmp/up'] }, periodSeconds: 1, failureThreshold: 600 },
          livenessProbe: { httpGet: { path: '/healthz', port: 8080 }, periodSeconds: 1, failureThreshold: 2 },
        },
        pod: { terminationGracePeriodSeconds: 60 },
        spec: { failurePolicy: { maxRestarts: 1 } },
      }),
      // Does not end at SIGTERM. The kubelet starts again what SIGKILL ended.
      trainJob('hung', {
        shell: 'sleep 600',
        container: { livenessProbe: { exec: { command: ['false'] }, periodSeconds: 1, failureThreshold: 2 } },
        spec: { failurePolicy: { maxRestarts: 1 } },
      }),
    );
    const hung = condition(await ns.reachesPhase('hung', 'Failed'), 'Failed')!;
    assert.equal(hung.reason, 'MaxRestartsExceeded');
    assert.match(hung.message, /137.*liveness probe/i);
    const job = await ns.reachesPhase('deaf', 'Failed');
    assert.equal(condition(job, 'Failed')!.reason, 'MaxRestartsExceeded');
    assert.match(condition(job, 'Failed')!.message, /143.*Liveness probe failed: .*connection refused/);
    assert.deepEqual(restartsOf(job), { counted: 1, disruptions: 0 });
  },

  'a program that cannot be started: the runtime’s message is shown': async (ns) => {
    await ns.apply(trainJob('start', { shell: '', container: { command: ['/no/such/program'] } }));
    await failsWith(ns, 'start', 'StartError', [/\/no\/such\/program.*no such file/]);
  },

  'an init container of the template that fails is named, and is no refused input': async (ns) => {
    await ns.apply(
      trainJob('unpacked', {
        replicas: 2,
        shell: 'exit 0',
        pod: { initContainers: [shellContainer('copy-certs', 'ls /no/such/folder')] },
        spec: { failurePolicy: { maxRestarts: 1 } },
      }),
      trainJob('hungry', {
        shell: 'exit 0',
        pod: {
          initContainers: [
            shellContainer('unpack', '', {
              command: ['node', '-e', 'const a=[];for(;;)a.push(Buffer.alloc(1e7,1))'],
              resources: { limits: { memory: '40Mi' } },
            }),
          ],
        },
      }),
    );
    await failsWith(ns, 'hungry', 'OOMKilled', [/unpack/]);
    const job = await ns.reachesPhase('unpacked', 'Failed');
    const { reason, message } = condition(job, 'Failed')!;
    assert.equal(reason, 'MaxRestartsExceeded', message);
    assert.doesNotMatch(message, /InputRefused/);
    assert.match(message, /copy-certs.*exit code 2.*No such file/);
    assert.deepEqual(restartsOf(job), { counted: 1, disruptions: 0 });
  },

  'a pod that the kubelet rejects is told with its words': async (ns) => {
    const rejected = (name: string, pod: object, resources: object) =>
      trainJob(name, {
        shell: 'exit 0',
        pod: { nodeName: 'control-plane', ...pod },
        trainers: { resources },
        spec: { gang: { mode: 'None' } },
      });
    await ns.apply(
      rejected('cpu', {}, { requests: { cpu: '500' } }),
      rejected('selector', { nodeSelector: { 'example.com/gpu': 'a100' } }, {}),
    );
    // The node lacked the place: not the job's fault.
    await restartsFor(ns, 'cpu', 'OutOfcpu', /enough resource: cpu/);
    await restartsFor(ns, 'selector', 'NodeAffinity', /node affinity/i);
    await ns.kubectl('delete', 'facetrainjob', 'cpu', 'selector');
  },

  'a template’s own deadline of the pod counts as a failure': async (ns) => {
    await ns.apply(trainJob('slow', { shell: 'sleep 600', pod: { activeDeadlineSeconds: 3 } }));
    await failsWith(ns, 'slow', 'DeadlineExceeded', [/active on the node longer than the specified deadline/]);
  },

  'a sidecar that fails does not end the gang': async (ns) => {
    await ns.apply(
      trainJob('native', {
        shell: 'sleep 8; exit 0',
        pod: {
          initContainers: [
            shellContainer('proxy', 'exit 3', { restartPolicy: 'Always' }),
            shellContainer('stubborn', 'trap "exit 4" TERM; sleep 600 & wait', { restartPolicy: 'Always' }),
          ],
        },
      }),
    );
    const job = await ns.reachesPhase('native', 'Succeeded');
    assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 0 });
  },

  'a pod that cannot start says why': async (ns) => {
    await ns.cluster.run('kubectl', ['apply', '-f', '-'], {
      input: '{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: no-such-runtime}, handler: nvidia}',
    });
    const withVolume = (name: string, volume: object) =>
      trainJob(name, {
        shell: 'exit 0',
        // The kubelet mounts no volume that no container uses.
        container: { volumeMounts: [{ name: 'theirs', mountPath: '/theirs' }] },
        pod: { volumes: [{ name: 'theirs', ...volume }] },
      });
    await ns.apply(
      trainJob('runtime', { shell: 'exit 0', pod: { runtimeClassName: 'no-such-runtime' } }),
      trainJob('cache', { shell: 'exit 0', pod: { initContainers: [shellContainer('warm-cache', 'sleep 45')] } }),
      withVolume('secret', { secret: { secretName: 'no-such-secret' } }),
      withVolume('map', { configMap: { name: 'no-such-map' } }),
      withVolume('claim', { persistentVolumeClaim: { claimName: 'no-such-claim' } }),
      trainJob('variable', {
        shell: 'exit 0',
        container: { env: [{ name: 'KEY', valueFrom: { secretKeyRef: { name: 'no-such-secret', key: 'key' } } }] },
      }),
    );
    await Promise.all([
      waitsWith(ns, 'runtime', [/FailedCreatePodSandBox/, /no runtime for "nvidia" is configured/]),
      waitsWith(ns, 'cache', [/warm-cache/]),
      waitsWith(ns, 'secret', [/FailedMount/, /no-such-secret/]),
      waitsWith(ns, 'map', [/FailedMount/, /no-such-map/]),
      waitsWith(ns, 'claim', [/PersistentVolumeClaimNotFound/, /no-such-claim/]),
      waitsWith(ns, 'variable', [/CreateContainerConfigError/, /no-such-secret/]),
    ]);
    await ns.reachesPhase('cache', 'Succeeded');
  },
};
