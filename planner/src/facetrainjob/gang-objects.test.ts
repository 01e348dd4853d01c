import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { TRAINER_ENV, TrainerConfig } from '@facetrain/api';
import type { Environment } from '../environment.ts';
import type { ConfigMap, Pod, Service } from '../objects.ts';
import { type FaceTrainJobBuilder, makeJob } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { type Attempt, childrenOf, findConflict, queuedGang } from './gang-objects.ts';

const attemptOf = (builder: FaceTrainJobBuilder): Attempt => {
  const { identity, spec } = builder.observe();
  return {
    job: identity,
    spec,
    attempt: 0,
    size: spec.trainers.replicas,
    gang: { mode: 'none' },
    environment: testEnvironment,
  };
};
const podOf = (builder: FaceTrainJobBuilder, rank = 0) =>
  childrenOf(attemptOf(builder))
    .find(({ name }) => name === `faces-0-${rank}`)!
    .make() as Pod;
const withTemplate = (podTemplate: object) => makeJob().trainers({ podTemplate });
const s3 = { uri: 's3://faces/train', s3: { secretRef: { name: 'aws' } } };

test('every container of ours meets the restricted Pod Security Standard, but for capabilities that are added', () => {
  const { spec } = podOf(
    withTemplate({
      spec: {
        securityContext: { fsGroup: 7 },
        containers: [{ name: 'facetrain', securityContext: { capabilities: { add: ['IPC_LOCK'] }, runAsUser: 5 } }],
      },
    }).with({ dataset: s3 }),
  );
  assert.deepEqual(spec.securityContext, {
    runAsUser: 65532,
    runAsGroup: 65532,
    fsGroup: 7,
    fsGroupChangePolicy: 'OnRootMismatch',
    runAsNonRoot: true,
    seccompProfile: { type: 'RuntimeDefault' },
  });
  const restricted = { privileged: false, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true };
  assert.deepEqual(
    [...spec.initContainers!, ...spec.containers].map(({ securityContext }) => securityContext),
    [
      { ...restricted, capabilities: { drop: ['ALL'] } },
      { ...restricted, capabilities: { drop: ['ALL'], add: ['IPC_LOCK'] }, runAsUser: 5 },
    ],
  );
  assert.equal(spec.automountServiceAccountToken, false);
});

test('the template decides what our container does not need for itself', () => {
  const probe = { exec: { command: ['true'] } };
  const { spec } = podOf(
    withTemplate({
      spec: {
        automountServiceAccountToken: true,
        securityContext: { seccompProfile: { type: 'Localhost', localhostProfile: 'x' } },
        containers: [
          {
            name: 'facetrain',
            image: 'mine:2',
            imagePullPolicy: 'Always',
            command: ['numactl', 'facetrain-trainer'],
            resources: { claims: [{ name: 'gpu' }], limits: { cpu: '500m' } },
            readinessProbe: probe,
            ports: [{ name: 'debug', containerPort: 9229 }],
            terminationMessagePolicy: 'File',
          },
        ],
      },
    })
      .trainers({ resources: { limits: { memory: '128Mi' }, requests: { cpu: 0.5 } }, replicas: 1 })
      .with({ dataset: s3 }),
  );
  assert.partialDeepStrictEqual(spec, {
    automountServiceAccountToken: true,
    securityContext: { seccompProfile: { type: 'Localhost', localhostProfile: 'x' }, runAsNonRoot: true },
    initContainers: [{ name: 'fetch-dataset', image: 'mine:2', imagePullPolicy: 'Always' }],
  });
  assert.partialDeepStrictEqual(spec.containers[0], {
    image: 'mine:2',
    imagePullPolicy: 'Always',
    command: ['numactl', 'facetrain-trainer'],
    args: ['train'],
    resources: { claims: [{ name: 'gpu' }], limits: { cpu: '500m', memory: '128Mi' }, requests: { cpu: '0.5' } },
    readinessProbe: probe,
    livenessProbe: { periodSeconds: 20 },
    ports: [
      { name: 'progress', containerPort: 8080 },
      { name: 'rendezvous', containerPort: 29500 },
      { name: 'debug', containerPort: 9229 },
    ],
    terminationMessagePolicy: 'File',
  } as object);
});

test('ports of the template come before ours: a number of its own, or a name', () => {
  const portsWith = (...ports: object[]) =>
    podOf(withTemplate({ spec: { containers: [{ name: 'facetrain', ports }] } })).spec.containers[0]!.ports;
  const [progress, rendezvous] = [
    { name: 'progress', containerPort: 8080 },
    { name: 'rendezvous', containerPort: 29500 },
  ];
  const other = { name: 'rendezvous', containerPort: 4000 };
  assert.deepEqual(portsWith(other), [progress, { containerPort: 29500 }, other]);
  const same = { name: 'meet', containerPort: 29500 };
  assert.deepEqual(portsWith(same), [progress, same]);
  assert.deepEqual(portsWith({ containerPort: 4000 }), [progress, rendezvous, { containerPort: 4000 }]);
});

test('several inputs are fetched by one container of our image, and by one each of another, which may be older', () => {
  const inputs = { dataset: s3, evaluation: { sets: [{ name: 'lfw', ...s3 }] } };
  const fetchesOf = (trainers: object) =>
    podOf(makeJob().trainers(trainers).with(inputs)).spec.initContainers!.map(({ name, args }) => [
      name,
      args.includes('--and'),
    ]);
  const one = [['fetch-dataset', true]];
  const each = [
    ['fetch-dataset', false],
    ['fetch-evaluation-0', false],
  ];
  assert.deepEqual(fetchesOf({}), one);
  assert.deepEqual(fetchesOf({ image: testEnvironment.defaultImage }), one);
  assert.deepEqual(fetchesOf({ image: 'registry.example/facetrain:0' }), each);
  const template = (image: string) => ({ podTemplate: { spec: { containers: [{ name: 'facetrain', image }] } } });
  assert.deepEqual(fetchesOf(template('registry.example/facetrain:0')), each);
});

test('the Service selects the pod of rank 0 alone: every selected pod is another write of its Endpoints', () => {
  const job = makeJob();
  const service = childrenOf(attemptOf(job))
    .find(({ kind }) => kind === 'Service')!
    .make() as Service;
  const isSelected = ({ metadata: { labels } }: Pod) =>
    Object.entries(service.spec.selector).every(([name, value]) => labels[name] === value);
  assert.deepEqual(
    [0, 1].map((rank) => isSelected(podOf(job, rank))),
    [true, false],
  );
});

test('an image beside the template comes before that of the operator', () => {
  const { spec } = podOf(makeJob().trainers({ image: 'mine:3' }));
  assert.equal(spec.containers[0]!.image, 'mine:3');
});

test('the environment variables that a template must not set are those of our container', () => {
  const names = podOf(makeJob()).spec.containers[0]!.env.map(({ name }) => name);
  assert.deepEqual(names.toSorted(), [...TRAINER_ENV].toSorted());
});

test('a template of the quantizer is checked before the training', () => {
  const quantizer = { podTemplate: { nodeSelector: { pool: 'cpu' } } };
  assert.equal(
    findConflict(attemptOf(makeJob().quantized({ quantizer })))?.message,
    'spec.quantize.quantizer.podTemplate.nodeSelector: ' +
      'a pod template has only metadata and spec; move it to spec.nodeSelector',
  );
});

describe('names of its own pod that a template of the quantizer must not use are refused before the training', () => {
  const quantized = (spec: object, output?: object) =>
    makeJob().quantized({ quantizer: { podTemplate: { spec } }, ...(output && { output }) });
  const container = { name: 'facetrain', env: [{ name: 'AWS_SESSION_TOKEN', value: 'x' }] };
  const publishes = { uri: 's3://models/a', s3: { secretRef: { name: 'aws' } } };
  const cases: Record<string, { spec: object; output?: object; want: string | undefined }> = {
    'a volume': {
      spec: { volumes: [{ name: 'model' }] },
      want:
        'spec.quantize.quantizer.podTemplate.spec.volumes[0].name: ' +
        "model is a name of Facetrain's own; choose another",
    },
    'a variable with credentials of the output': {
      spec: { containers: [container] },
      output: publishes,
      want:
        'spec.quantize.quantizer.podTemplate.spec.containers[0].env[0].name: ' +
        'Facetrain sets AWS_SESSION_TOKEN itself; remove it',
    },
    'the same where Facetrain sets none': { spec: { containers: [container] }, want: undefined },
  };
  for (const [name, { spec, output, want }] of Object.entries(cases))
    test(name, () => assert.equal(findConflict(attemptOf(quantized(spec, output)))?.message, want));
});

test('fields of the template are kept, except where ours replace them', () => {
  const pod = podOf(
    withTemplate({
      metadata: {
        labels: { team: 'faces', 'facetrain.dev/rank': '99' },
        annotations: { note: 'x', 'facetrain.dev/writes-to': '[]' },
      },
      spec: {
        nodeSelector: { gpu: 'h100' },
        restartPolicy: 'Always',
        terminationGracePeriodSeconds: 600,
        volumes: [{ name: 'cache', emptyDir: {} }],
        initContainers: [{ name: 'warm', image: 'w' }],
        containers: [
          {
            name: 'facetrain',
            env: [
              { name: 'NCCL_DEBUG', value: 'INFO' },
              { name: 'RANK', value: '99' },
            ],
            volumeMounts: [{ name: 'cache', mountPath: '/cache' }],
            args: ['sleep'],
          },
          { name: 'exporter', image: 'e' },
        ],
      },
    }),
    1,
  );
  const { team, 'facetrain.dev/rank': rank } = pod.metadata.labels;
  assert.deepEqual([team, rank], ['faces', '1']);
  assert.partialDeepStrictEqual(pod.metadata.annotations, {
    note: 'x',
    'facetrain.dev/writes-to':
      '["pvc://data/out/model/backbone.onnx","pvc://data/out/train-report.json",' +
      '"pvc://data/out/train-report.html","pvc://data/out/checkpoints"]',
  });
  assert.partialDeepStrictEqual(pod.spec, {
    nodeSelector: { gpu: 'h100' },
    restartPolicy: 'Never',
    terminationGracePeriodSeconds: 600,
    initContainers: [{ name: 'warm', image: 'w' }],
  });
  const [ours, exporter] = pod.spec.containers;
  assert.equal(exporter!.name, 'exporter');
  assert.deepEqual(ours!.args, ['train']);
  assert.deepEqual(
    ours!.env.filter(({ name }) => name === 'RANK'),
    [{ name: 'RANK', value: '1' }],
  );
  assert(ours!.env.some(({ name }) => name === 'NCCL_DEBUG'));
  assert(ours!.volumeMounts.some(({ mountPath }) => mountPath === '/cache'));
  assert(pod.spec.volumes.some(({ name }) => name === 'cache'));
});

test('a pod is evicted from a lost node after nodeLostSeconds, unless the template sets a toleration', () => {
  const keysOf = (pod: Pod) => pod.spec.tolerations!.map(({ key, tolerationSeconds }) => [key, tolerationSeconds]);
  assert.deepEqual(keysOf(podOf(makeJob())), [
    ['node.kubernetes.io/not-ready', 65],
    ['node.kubernetes.io/unreachable', 65],
  ]);
  const toleration = { key: 'node.kubernetes.io/unreachable', operator: 'Exists', tolerationSeconds: 900 };
  assert.deepEqual(keysOf(podOf(withTemplate({ spec: { tolerations: [toleration] } }))), [
    ['node.kubernetes.io/not-ready', 65],
    ['node.kubernetes.io/unreachable', 900],
  ]);
});

test('meshes leave the traffic between ranks alone, unless the template says otherwise', () => {
  const { 'facetrain.dev/writes-to': _, ...annotations } = podOf(makeJob().trainers({ rendezvousPort: 3000 }), 1)
    .metadata.annotations!;
  const want = {
    'traffic.sidecar.istio.io/includeInboundPorts': '',
    'traffic.sidecar.istio.io/excludeOutboundPorts': '3000',
    'config.linkerd.io/skip-inbound-ports': '1-65535',
    'config.linkerd.io/skip-outbound-ports': '3000,32768-60999',
  };
  assert.deepEqual(annotations, want);
  const theirs = { 'traffic.sidecar.istio.io/includeInboundPorts': '9000' };
  assert.partialDeepStrictEqual(podOf(withTemplate({ metadata: { annotations: theirs } })).metadata.annotations, {
    ...theirs,
    'config.linkerd.io/skip-inbound-ports': '1-65535',
  });
  for (const [label, ours, theirs] of [
    ['security.istio.io/tlsMode', 'disabled', 'istio'],
    ['istio.io/dataplane-mode', 'none', 'ambient'],
  ] as const) {
    const valueWith = (labels: object) => podOf(withTemplate({ metadata: { labels } })).metadata.labels[label];
    assert.deepEqual([valueWith({}), valueWith({ [label]: theirs })], [ours, theirs]);
  }
});

test('pods in the network of their node ask the cluster’s DNS, and rank 0 lists both of its ports', () => {
  const { spec } = podOf(withTemplate({ spec: { hostNetwork: true } }));
  assert.deepEqual(
    [spec.hostNetwork, spec.dnsPolicy, spec.containers[0]!.ports],
    [
      true,
      'ClusterFirstWithHostNet',
      [
        { name: 'progress', containerPort: 8080 },
        { name: 'rendezvous', containerPort: 29500 },
      ],
    ],
  );
  assert.equal(podOf(withTemplate({ spec: { hostNetwork: true, dnsPolicy: 'Default' } })).spec.dnsPolicy, 'Default');
  assert.equal(podOf(makeJob()).spec.dnsPolicy, undefined);
});

test('an init container that fetches has the CPUs and memory of the trainer, wherever they are set, and no GPU', () => {
  const resources = { limits: { 'nvidia.com/gpu': 1, memory: '8Gi' }, claims: [{ name: 'nic' }] };
  const container = { name: 'facetrain', resources: { limits: { cpu: '2' }, requests: { cpu: '1' } } };
  const { spec } = podOf(
    withTemplate({ spec: { containers: [container] } })
      .trainers({ resources })
      .with({ dataset: s3 }),
  );
  assert.deepEqual(spec.initContainers![0]!.resources, {
    limits: { cpu: '2', memory: '8Gi' },
    requests: { cpu: '1' },
  });
  assert.equal(podOf(makeJob().with({ dataset: s3 })).spec.initContainers![0]!.resources, undefined);
});

test('resource claims are of the pod, and of the trainer’s container beside those that it names itself', () => {
  const own = { name: 'nic', resourceClaimTemplateName: 'rdma' };
  const { spec } = podOf(
    withTemplate({ spec: { resourceClaims: [own] } })
      .trainers({
        resources: { limits: { cpu: 2 }, claims: [{ name: 'nic' }] },
        resourceClaims: [
          { name: 'gpu', resourceClaimTemplateName: 'h100', request: 'one' },
          { name: 'fabric', resourceClaimName: 'nvlink' },
        ],
      })
      .with({ dataset: s3 }),
  );
  assert.deepEqual(spec.resourceClaims, [
    own,
    { name: 'gpu', resourceClaimTemplateName: 'h100' },
    { name: 'fabric', resourceClaimName: 'nvlink' },
  ]);
  const claims = [{ name: 'nic' }, { name: 'gpu', request: 'one' }, { name: 'fabric' }];
  assert.deepEqual(spec.containers[0]!.resources, { limits: { cpu: '2' }, claims });
  assert.deepEqual(spec.initContainers![0]!.resources, { limits: { cpu: '2' } });
});

test('only rank 0 has probes, on its progress port', () => {
  assert.deepEqual(podOf(makeJob().trainers({ progressPort: 9000 })).spec.containers[0]!.readinessProbe, {
    httpGet: { path: '/healthz', port: 9000 },
    periodSeconds: 2,
  });
  assert.equal(podOf(makeJob(), 1).spec.containers[0]!.readinessProbe, undefined);
  assert.equal(podOf(makeJob(), 1).spec.containers[0]!.livenessProbe, undefined);
});

test('config.json leaves out what is a default, so that an image of before reads it', () => {
  const configOf = (builder: FaceTrainJobBuilder) => {
    const { data } = childrenOf(attemptOf(builder))
      .find(({ kind }) => kind === 'ConfigMap')!
      .make() as ConfigMap;
    return JSON.parse(data['config.json']!) as Record<string, Record<string, unknown>>;
  };
  const usual = configOf(makeJob());
  assert.deepEqual([usual.precision, usual.deterministic], [undefined, undefined]);
  assert.deepEqual([usual.model!.syncBatchNorm, usual.loss!.rows], [undefined, undefined]);
  const used = configOf(
    makeJob().with({ loss: { rows: { precision: 'BF16' } }, model: { backbone: 'iresnet18', syncBatchNorm: true } }),
  );
  assert.deepEqual([used.model!.syncBatchNorm, used.loss!.rows!], [true, { precision: 'bf16' }]);
  assert.partialDeepStrictEqual(TrainerConfig.parse(used).loss.rows, { precision: 'bf16', optimizer: 'sgd' });
});

test('the container gets the environment variables of torchrun', () => {
  const env = Object.fromEntries(
    podOf(makeJob(), 1).spec.containers[0]!.env.map((entry) => [entry.name, 'value' in entry ? entry.value : null]),
  );
  assert.deepEqual(env, {
    RANK: '1',
    WORLD_SIZE: '2',
    LOCAL_RANK: '0',
    MASTER_ADDR: 'faces-0-0.faces.default.svc',
    MASTER_PORT: '29500',
    FACETRAIN_CONFIG: '/etc/facetrain/config.json',
  });
});

test('a pod with several ranks gets the first of them, and the number of all', () => {
  const job = makeJob().trainers({ replicas: 2, ranksPerPod: 8, resources: { limits: { 'nvidia.com/gpu': 8 } } });
  const pods = [podOf(job), podOf(job, 1)].map(({ metadata, spec: { containers } }) => {
    const { args, env, ports, resources } = containers[0]!;
    const value = (wanted: string) =>
      env.flatMap((entry) => (entry.name === wanted && 'value' in entry ? entry.value : []));
    return {
      label: metadata.labels['facetrain.dev/rank'],
      args,
      ranks: ['RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'].flatMap(value),
      ports: ports?.length ?? 0,
      gpus: resources?.limits,
    };
  });
  const args = ['train', '--ranks', '8'];
  const gpus = { 'nvidia.com/gpu': '8' };
  assert.deepEqual(pods, [
    { label: '0', args, ranks: ['0', '16', '0', '8'], ports: 2, gpus },
    { label: '1', args, ranks: ['8', '16', '0', '8'], ports: 0, gpus },
  ]);
  const queued = queuedGang(attemptOf(job.with({ queue: { name: 'team' } })));
  assert.partialDeepStrictEqual(queued, { count: 2, pod: { spec: { containers: [{ resources: { limits: gpus } }] } } });
});

test('GPUs that are not one for each rank of a pod are refused', () => {
  const problemOf = (trainers: object) => findConflict(attemptOf(makeJob().trainers(trainers)))?.message;
  const limits = { 'nvidia.com/gpu': 1, 'rdma/hca': 1 };
  assert.equal(
    problemOf({ ranksPerPod: 8, resources: { limits } }),
    'spec.trainers.resources.limits: nvidia.com/gpu is 1, and a pod has 8 ranks, each with a GPU: ask for 8',
  );
  assert.equal(problemOf({ ranksPerPod: 8, resources: { limits: { ...limits, 'nvidia.com/gpu': '8' } } }), undefined);
  assert.equal(problemOf({ ranksPerPod: 8, resources: { limits: { cpu: 2 } } }), undefined);
  const ofTemplate = { spec: { containers: [{ name: 'other' }, { name: 'facetrain', resources: { limits } }] } };
  assert.equal(
    problemOf({ ranksPerPod: 8, podTemplate: ofTemplate }),
    'spec.trainers.podTemplate.spec.containers[1].resources.limits: nvidia.com/gpu is 1, and a pod has 8 ranks, each ' +
      'with a GPU: ask for 8',
  );
  // Several GPUs for one rank were allowed before there was ranksPerPod.
  assert.equal(problemOf({ resources: { limits: { 'nvidia.com/gpu': 2 } } }), undefined);
  const podTemplate = {
    spec: { containers: [{ name: 'facetrain', env: [{ name: 'LOCAL_WORLD_SIZE', value: '1' }] }] },
  };
  assert.match(problemOf({ ranksPerPod: 8, podTemplate })!, /Facetrain sets LOCAL_WORLD_SIZE itself/);
  assert.equal(problemOf({ podTemplate }), undefined);
});

test('credentials are references to a Secret, and only the fetch container has them', () => {
  const { spec } = podOf(makeJob().with({ dataset: s3 }));
  const [fetch] = spec.initContainers!;
  assert.deepEqual(fetch!.env, [
    { name: 'AWS_ACCESS_KEY_ID', valueFrom: { secretKeyRef: { name: 'aws', key: 'AWS_ACCESS_KEY_ID' } } },
    { name: 'AWS_SECRET_ACCESS_KEY', valueFrom: { secretKeyRef: { name: 'aws', key: 'AWS_SECRET_ACCESS_KEY' } } },
    {
      name: 'AWS_SESSION_TOKEN',
      valueFrom: { secretKeyRef: { name: 'aws', key: 'AWS_SESSION_TOKEN', optional: true } },
    },
  ]);
  assert.equal(fetch!.image, 'registry.example/facetrain:1');
  assert(!spec.containers[0]!.env.some(({ name }) => name.startsWith('AWS_')));
});

test('the volumes of a pod have different names', () => {
  const { volumes } = podOf(
    makeJob().with({ model: { onnx: s3 }, dataset: s3, evaluation: { sets: [{ name: 'lfw', ...s3 }] } }),
  ).spec;
  assert.equal(new Set(volumes.map(({ name }) => name)).size, volumes.length);
});

describe('a claim is listed once in a pod', () => {
  /** Volumes of claims, and the mounts of every container by container and path: `name`, read-only or not. */
  const storageOf = ({ spec: { volumes, initContainers = [], containers } }: Pod) => ({
    claims: volumes.flatMap((volume) => ('persistentVolumeClaim' in volume ? [volume] : [])),
    mounts: Object.fromEntries(
      [...initContainers, ...containers].flatMap((container) =>
        (container.volumeMounts ?? [])
          .filter(({ mountPath }) => mountPath.startsWith('/mnt/'))
          .map(({ name, mountPath, readOnly }) => [
            `${container.name} ${mountPath}`,
            `${name}${readOnly ? ' read-only' : ''}`,
          ]),
      ),
    ),
  });
  const claim = (name: string, claimName: string, more: object = {}) => ({
    name,
    persistentVolumeClaim: { claimName, ...more },
  });

  test('that dataset, checkpoints and output share', () => {
    assert.deepEqual(storageOf(podOf(makeJob())), {
      claims: [claim('dataset', 'data')],
      mounts: {
        'facetrain /mnt/dataset': 'dataset read-only',
        'facetrain /mnt/checkpoints': 'dataset',
        'facetrain /mnt/output': 'dataset',
      },
    });
  });
  test('that a cache and the output share: also in the container that fetches', () => {
    const cached = { ...s3, s3: { ...s3.s3, cache: 'pvc://data/cache' } };
    const environment: Environment = {
      ...testEnvironment,
      storage: (name, reference, access) =>
        reference.uri === s3.uri
          ? {
              ...testEnvironment.storage(name, { uri: 'pvc://data/cache' }, access),
              fetch: {
                ...testEnvironment.storage(name, reference, access).fetch!,
                volumeMounts: [{ name, mountPath: '/mnt/cache' }],
              },
            }
          : testEnvironment.storage(name, reference, access),
    };
    const job = makeJob().with({ dataset: { uri: 'pvc://data/faces' }, model: { onnx: cached } });
    const pod = childrenOf({ ...attemptOf(job), environment })
      .find(({ name }) => name === 'faces-0-0')!
      .make() as Pod;
    assert.deepEqual(storageOf(pod).claims, [claim('dataset', 'data')]);
    assert.equal(storageOf(pod).mounts['fetch-model /mnt/cache'], 'dataset');
  });
  test('that the template lists, too: its mounts keep their access', () => {
    const pod = podOf(
      withTemplate({
        spec: {
          volumes: [claim('mine', 'data', { readOnly: true }), claim('other', 'other'), claim('again', 'other')],
          initContainers: [{ name: 'warm', volumeMounts: [{ name: 'mine', mountPath: '/mnt/warm' }] }],
          containers: [
            {
              name: 'sidecar',
              volumeMounts: [
                { name: 'output', mountPath: '/mnt/results' },
                { name: 'again', mountPath: '/mnt/other', readOnly: true },
              ],
            },
          ],
        },
      }),
    );
    const { claims, mounts } = storageOf(pod);
    assert.deepEqual(claims, [claim('dataset', 'data'), claim('other', 'other')]);
    assert.partialDeepStrictEqual(mounts, {
      'facetrain /mnt/output': 'dataset',
      'warm /mnt/warm': 'dataset read-only',
      'sidecar /mnt/results': 'dataset',
      'sidecar /mnt/other': 'other read-only',
    });
  });
  test('and stays read-only when every volume of it is', () => {
    const volumes = [claim('one', 'other', { readOnly: true }), claim('two', 'other', { readOnly: true })];
    assert.partialDeepStrictEqual(storageOf(podOf(withTemplate({ spec: { volumes } }))).claims, [
      claim('dataset', 'data'),
      claim('one', 'other', { readOnly: true }),
    ]);
  });
});

describe('names that a template must not use', () => {
  const cases: Record<string, { template: object; want: string | null }> = {
    'no name of ours': {
      template: { spec: { volumes: [{ name: 'cache' }], initContainers: [{ name: 'warm' }] } },
      want: null,
    },
    'a volume of ours': {
      template: { spec: { volumes: [{ name: 'cache' }, { name: 'dataset' }] } },
      want: "spec.trainers.podTemplate.spec.volumes[1].name: dataset is a name of Facetrain's own; choose another",
    },
    'a container of ours': {
      template: { spec: { initContainers: [{ name: 'fetch-dataset' }] } },
      want:
        'spec.trainers.podTemplate.spec.initContainers[0].name: ' +
        "fetch-dataset is a name of Facetrain's own; choose another",
    },
  };
  for (const [name, { template, want }] of Object.entries(cases))
    test(name, () =>
      assert.equal(findConflict(attemptOf(withTemplate(template).with({ dataset: s3 })))?.message ?? null, want),
    );
});
