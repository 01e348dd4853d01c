/**
 * Manifests, and changes of them, with the verdict that zod, the generated definitions and a live API server must
 * share.
 */

export type Document = Record<string, unknown>;

export const trainSpec = (change: Document = {}): Document => ({
  apiVersion: 'facetrain.dev/v1alpha1',
  kind: 'FaceTrainJob',
  metadata: { name: 'a' },
  spec: {
    dataset: { uri: 's3://faces/ms1mv3' },
    model: { backbone: 'iresnet50' },
    output: { uri: 'pvc://claim/out' },
    ...change,
  },
});
export const quantizeSpec = (change: Document = {}): Document => ({
  apiVersion: 'facetrain.dev/v1alpha1',
  kind: 'QuantizeJob',
  metadata: { name: 'a' },
  spec: {
    model: { uri: 's3://models/a.onnx' },
    calibration: { dataset: { uri: 'pvc://faces/' } },
    output: { uri: 's3://models/int7' },
    ...change,
  },
});

/** Manifests, by what is special about them. */
export const fixtures: Record<string, { object: Document; wantValid: boolean }> = {
  'a FaceTrainJob with required fields only': { object: trainSpec(), wantValid: true },
  'a QuantizeJob with required fields only': { object: quantizeSpec(), wantValid: true },
  'quantize with defaults only': { object: trainSpec({ quantize: {} }), wantValid: true },
  'ArcFace with its margin': { object: trainSpec({ loss: { margin: { type: 'ArcFace', m2: 0.5 } } }), wantValid: true },
  'memory of a search': { object: quantizeSpec({ search: { memory: '512Mi' } }), wantValid: true },
  'memory of a search in the unit of processors': {
    object: quantizeSpec({ search: { memory: '500m' } }),
    wantValid: false,
  },
  'memory of a search in a unit that Kubernetes does not have': {
    object: quantizeSpec({ search: { memory: '4GB' } }),
    wantValid: false,
  },
  'memory of a trainer in a unit that Kubernetes does not have': {
    object: trainSpec({ trainers: { resources: { limits: { memory: '4GB' } } } }),
    wantValid: false,
  },
  'memory of a quantizer in a unit that Kubernetes does not have': {
    object: quantizeSpec({ quantizer: { resources: { requests: { memory: '4 gb' } } } }),
    wantValid: false,
  },
  'fewer processors than none': {
    object: trainSpec({ trainers: { resources: { limits: { cpu: -1 } } } }),
    wantValid: false,
  },
  'm2 for CosFace': { object: trainSpec({ loss: { margin: { type: 'CosFace', m2: 0.5 } } }), wantValid: false },
  'SphereFace with its margin': {
    object: trainSpec({ loss: { margin: { type: 'SphereFace', m1: 1.7 }, gradient: 'StraightThrough' } }),
    wantValid: true,
  },
  'm2 for SphereFace': { object: trainSpec({ loss: { margin: { type: 'SphereFace', m2: 0.5 } } }), wantValid: false },
  'AdaFace with its margin': {
    object: trainSpec({ loss: { margin: { type: 'AdaFace', m: 0.5, h: 0.2 } } }),
    wantValid: true,
  },
  'm3 for AdaFace': { object: trainSpec({ loss: { margin: { type: 'AdaFace', m3: 0.4 } } }), wantValid: false },
  'h for CosFace': { object: trainSpec({ loss: { margin: { h: 0.3 } } }), wantValid: false },
  'an unknown gradient': { object: trainSpec({ loss: { gradient: 'Detached' } }), wantValid: false },
  'Combined without any margin': { object: trainSpec({ loss: { margin: { type: 'Combined' } } }), wantValid: false },
  'a margin out of range': { object: trainSpec({ loss: { margin: { m3: 1.1 } } }), wantValid: false },
  'class centres in BF16': { object: trainSpec({ loss: { rows: { precision: 'BF16' } } }), wantValid: true },
  'class centres in FP16': { object: trainSpec({ loss: { rows: { precision: 'FP16' } } }), wantValid: false },
  'class centres with AdaGrad and dense updates': {
    object: trainSpec({ loss: { rows: { optimizer: 'AdaGrad' } }, optimizer: { rowUpdate: 'Dense' } }),
    wantValid: true,
  },
  'class centres with AdamW and dense updates': {
    object: trainSpec({ loss: { rows: { optimizer: 'AdamW' } }, optimizer: { rowUpdate: 'Dense' } }),
    wantValid: false,
  },
  'steps in memory': { object: trainSpec({ checkpoint: { inMemory: true } }), wantValid: true },
  'steps in memory and dense updates': {
    object: trainSpec({ checkpoint: { inMemory: true }, optimizer: { rowUpdate: 'Dense' } }),
    wantValid: false,
  },
  'class centres with AdamW on a GPU': {
    object: trainSpec({ loss: { rows: { optimizer: 'AdamW' } }, trainers: { device: 'CUDA' } }),
    wantValid: true,
  },
  'class centres with an unknown optimizer': {
    object: trainSpec({ loss: { rows: { optimizer: 'LAMB' } } }),
    wantValid: false,
  },
  'a queue of Kueue': { object: trainSpec({ queue: { name: 'team', priorityClassName: 'low' } }), wantValid: true },
  'resource claims': {
    object: trainSpec({
      trainers: {
        resourceClaims: [
          { name: 'gpu', resourceClaimTemplateName: 'one-h100', request: 'gpu' },
          { name: 'fabric', resourceClaimName: 'nvlink.domain' },
        ],
      },
    }),
    wantValid: true,
  },
  'a resource claim that names neither an object nor a template': {
    object: quantizeSpec({ quantizer: { resourceClaims: [{ name: 'gpu' }] } }),
    wantValid: false,
  },
  'a required topology': {
    object: trainSpec({ gang: { topology: { required: 'example.com/rack' } } }),
    wantValid: true,
  },
  'a topology by a label without a domain': {
    object: trainSpec({ gang: { topology: { preferred: 'rack' } } }),
    wantValid: true,
  },
  'a topology that is both': {
    object: trainSpec({ gang: { topology: { required: 'rack', preferred: 'zone' } } }),
    wantValid: false,
  },
  'a topology without a label': { object: trainSpec({ gang: { topology: {} } }), wantValid: false },
  'a topology by what is no label': {
    object: trainSpec({ gang: { topology: { required: 'rack/' } } }),
    wantValid: false,
  },
  'a gang by KAI Scheduler': { object: trainSpec({ gang: { mode: 'KAI', queue: 'team' } }), wantValid: true },
  'a gang by KAI Scheduler without its queue': { object: trainSpec({ gang: { mode: 'KAI' } }), wantValid: false },
  'a gang by Volcano, in its default queue': { object: trainSpec({ gang: { mode: 'Volcano' } }), wantValid: true },
  'a gang by Volcano in a queue of Kueue': {
    object: trainSpec({ gang: { mode: 'Volcano' }, queue: { name: 'team' } }),
    wantValid: false,
  },
  'a queue of the gang that no scheduler reads': {
    object: trainSpec({ gang: { mode: 'Native', queue: 'team' } }),
    wantValid: false,
  },
  'a queue of the gang that is no value of a label': {
    object: trainSpec({ gang: { mode: 'Volcano', queue: 'a'.repeat(64) } }),
    wantValid: false,
  },
  'a gang by Kueue': { object: trainSpec({ gang: { mode: 'Kueue' }, queue: { name: 'team' } }), wantValid: true },
  'a gang by Kueue without a queue': { object: trainSpec({ gang: { mode: 'Kueue' } }), wantValid: false },
  'a queue without a name': { object: trainSpec({ queue: { priorityClassName: 'low' } }), wantValid: false },
  'a queue whose name no object can have': { object: quantizeSpec({ queue: { name: 'Team A' } }), wantValid: false },
  'the augmentation of AdaFace': {
    object: trainSpec({
      augmentation: { cropProbability: 0.2, lowResolutionProbability: 0.2, colorJitterProbability: 0.2 },
    }),
    wantValid: true,
  },
  'a probability above 1': { object: trainSpec({ augmentation: { cropProbability: 1.5 } }), wantValid: false },
  'sample rates by epoch': {
    object: trainSpec({ loss: { sampleRate: 0.1, sampleRateChanges: [{ fromEpoch: 17.5, rate: 1 }] } }),
    wantValid: true,
  },
  'two sample rates from one epoch': {
    object: trainSpec({
      loss: {
        sampleRateChanges: [
          { fromEpoch: 17, rate: 1 },
          { fromEpoch: 17, rate: 0.5 },
        ],
      },
    }),
    wantValid: false,
  },
  'a sample rate from epoch 0': {
    object: trainSpec({ loss: { sampleRateChanges: [{ fromEpoch: 0, rate: 1 }] } }),
    wantValid: false,
  },
  'a sample rate of 0': { object: trainSpec({ loss: { sampleRate: 0 } }), wantValid: false },
  'an unknown field': { object: trainSpec({ epoch: 3 }), wantValid: false },
  'an unknown field deep inside': { object: trainSpec({ optimizer: { learnRate: 3 } }), wantValid: false },
  'an unknown precision': { object: trainSpec({ trainers: { precision: 'FP8' } }), wantValid: false },
  'an unknown backbone': { object: trainSpec({ model: { backbone: 'resnet50' } }), wantValid: false },
  'both backbone and onnx': {
    object: trainSpec({ model: { backbone: 'iresnet18', onnx: { uri: 's3://models/a.onnx' } } }),
    wantValid: false,
  },
  'neither backbone nor onnx': { object: trainSpec({ model: {} }), wantValid: false },
  'results and checkpoints in object stores': {
    object: trainSpec({
      output: { uri: 's3://models/faces', s3: { region: 'eu-west-1', secretRef: { name: 'keys' } } },
      checkpoint: { uri: 's3://states/faces', s3: { endpoint: 'https://store:9000', forcePathStyle: true } },
    }),
    wantValid: true,
  },
  'checkpoint.s3 without its uri': {
    object: trainSpec({ checkpoint: { s3: { region: 'eu-west-1' } } }),
    wantValid: false,
  },
  'output.s3 of a claim': {
    object: trainSpec({ output: { uri: 'pvc://claim/out', s3: { region: 'eu-west-1' } } }),
    wantValid: false,
  },
  'width for iresnet': { object: trainSpec({ model: { backbone: 'iresnet18', width: 2 } }), wantValid: false },
  'a batch that replicas do not divide': {
    object: trainSpec({ globalBatchSize: 10, trainers: { replicas: 3 } }),
    wantValid: true,
  },
  'a batch of fewer pictures than trainers': {
    object: trainSpec({ globalBatchSize: 2, trainers: { replicas: 3 } }),
    wantValid: false,
  },
  'micro-batches that replicas do not divide': {
    object: trainSpec({ globalBatchSize: 24, trainers: { replicas: 3, microBatchSize: 6 } }),
    wantValid: true,
  },
  'a batch that micro-batches do not divide': {
    object: trainSpec({ globalBatchSize: 24, trainers: { replicas: 3, microBatchSize: 5 } }),
    wantValid: false,
  },
  'fewer micro-batches than trainers': {
    object: trainSpec({ globalBatchSize: 24, trainers: { replicas: 3, microBatchSize: 12 } }),
    wantValid: false,
  },
  'a picture for each of several ranks in a pod': {
    object: trainSpec({ globalBatchSize: 6, trainers: { replicas: 2, ranksPerPod: 3 } }),
    wantValid: true,
  },
  'a batch of fewer pictures than ranks': {
    object: trainSpec({ globalBatchSize: 5, trainers: { replicas: 2, ranksPerPod: 3 } }),
    wantValid: false,
  },
  'fewer micro-batches than ranks': {
    object: trainSpec({ globalBatchSize: 12, trainers: { replicas: 2, ranksPerPod: 3, microBatchSize: 3 } }),
    wantValid: false,
  },
  'an elastic gang whose ranks may be more than the pictures': {
    object: trainSpec({
      globalBatchSize: 8,
      trainers: { replicas: 2, ranksPerPod: 2, elastic: { minReplicas: 1, maxReplicas: 5 } },
    }),
    wantValid: false,
  },
  'more ranks in a pod than GPUs in a machine': {
    object: trainSpec({ trainers: { ranksPerPod: 17 } }),
    wantValid: false,
  },
  'no rank in a pod': { object: trainSpec({ trainers: { ranksPerPod: 0 } }), wantValid: false },
  'an elastic gang': {
    object: trainSpec({ trainers: { replicas: 2, elastic: { minReplicas: 1, maxReplicas: 3 } } }),
    wantValid: true,
  },
  'an elastic gang whose replicas are too few': {
    object: trainSpec({ trainers: { replicas: 2, elastic: { minReplicas: 3, maxReplicas: 4 } } }),
    wantValid: false,
  },
  'an elastic gang with more trainers than pictures': {
    object: trainSpec({ globalBatchSize: 8, trainers: { replicas: 2, elastic: { minReplicas: 1, maxReplicas: 9 } } }),
    wantValid: false,
  },
  'an elastic gang with more trainers than micro-batches': {
    object: trainSpec({
      globalBatchSize: 8,
      trainers: { replicas: 2, microBatchSize: 2, elastic: { minReplicas: 1, maxReplicas: 5 } },
    }),
    wantValid: false,
  },
  'an elastic gang with micro-batches and batch norms over all trainers': {
    object: trainSpec({
      globalBatchSize: 8,
      model: { backbone: 'iresnet18', syncBatchNorm: true },
      trainers: { replicas: 2, microBatchSize: 4, elastic: { minReplicas: 1, maxReplicas: 2 } },
    }),
    wantValid: false,
  },
  'a micro-batch of no picture': { object: trainSpec({ trainers: { microBatchSize: 0 } }), wantValid: false },
  'batch norms over all trainers': {
    object: trainSpec({
      globalBatchSize: 24,
      model: { backbone: 'iresnet18', syncBatchNorm: true, checkpointActivations: true },
      trainers: { replicas: 3, microBatchSize: 8 },
    }),
    wantValid: true,
  },
  'batch norms over all trainers and several micro-batches': {
    object: trainSpec({
      globalBatchSize: 24,
      model: { backbone: 'iresnet18', syncBatchNorm: true },
      trainers: { replicas: 3, microBatchSize: 4 },
    }),
    wantValid: false,
  },
  'resources as numbers and strings': {
    object: trainSpec({ trainers: { resources: { limits: { cpu: 2, memory: '4Gi' } } } }),
    wantValid: true,
  },
  'resources as fractions and in every form of a quantity': {
    object: trainSpec({
      trainers: {
        resources: {
          requests: { cpu: 0.5, memory: '1.5Gi', 'ephemeral-storage': '1e3' },
          limits: { cpu: '500m', memory: 2e9, 'nvidia.com/gpu': '1' },
          claims: [{ name: 'nic' }],
        },
      },
    }),
    wantValid: true,
  },
  'a pod template with fields that our schema does not list': {
    object: trainSpec({
      trainers: {
        podTemplate: { spec: { priorityClassName: 'high', containers: [{ name: 'facetrain', stdin: true }] } },
      },
    }),
    wantValid: true,
  },
  's3 access for a pvc': {
    object: trainSpec({ dataset: { uri: 'pvc://claim/', s3: { region: 'x' } } }),
    wantValid: false,
  },
  'a cache on a claim': {
    object: trainSpec({ dataset: { uri: 's3://faces/ms1mv3', s3: { cache: 'pvc://cache/faces' } } }),
    wantValid: true,
  },
  'a cache on the nodes, for a verification set': {
    object: trainSpec({
      evaluation: { sets: [{ name: 'lfw', uri: 's3://faces/lfw.bin', s3: { cache: 'hostpath:///var/cache/faces' } }] },
    }),
    wantValid: true,
  },
  'a cache in the container’s own file system': {
    object: trainSpec({ dataset: { uri: 's3://faces/ms1mv3', s3: { cache: 'file:///tmp' } } }),
    wantValid: false,
  },
  'a cache of data on a claim': {
    object: trainSpec({ dataset: { uri: 'pvc://faces/ms1mv3', s3: { cache: 'pvc://cache/' } } }),
    wantValid: false,
  },
  'a cache in an object store': {
    object: trainSpec({ dataset: { uri: 's3://faces/ms1mv3', s3: { cache: 's3://cache/faces' } } }),
    wantValid: false,
  },
  'a cache for an output': {
    object: quantizeSpec({ output: { uri: 's3://models/int7', s3: { cache: 'pvc://cache/' } } }),
    wantValid: false,
  },
  'an unknown storage': { object: trainSpec({ dataset: { uri: 'ftp://x' } }), wantValid: false },
  'a failure rule without exitCodes and reasons': {
    object: trainSpec({ failurePolicy: { rules: [{ action: 'FailJob' }] } }),
    wantValid: false,
  },
  'a name too long for its pods': { object: { ...trainSpec(), metadata: { name: 'a'.repeat(41) } }, wantValid: false },
  'a name that is no DNS label': { object: { ...trainSpec(), metadata: { name: 'a.b' } }, wantValid: false },
  'ports that are the same': {
    object: trainSpec({ trainers: { progressPort: 9, rendezvousPort: 9 } }),
    wantValid: false,
  },
  'a gate out of range': { object: quantizeSpec({ gate: { minMeanCosine: 2 } }), wantValid: false },
  'no calibration pictures': {
    object: quantizeSpec({ calibration: { dataset: { uri: 'pvc://faces/' }, images: 0 } }),
    wantValid: false,
  },
};

/** Changes of a FaceTrainJob's spec, with the error of the API server; null: allowed. */
export const changes: Record<
  string,
  {
    from: Document;
    to: Document;
    /** The job has finished, or its training has. */
    finished?: true | 'training';
    wantRefusal: RegExp | null;
  }
> = {
  suspending: { from: {}, to: { suspend: true }, wantRefusal: null },
  'more epochs while it runs': { from: {}, to: { epochs: 30 }, wantRefusal: /only while the job is suspended/ },
  'more epochs while it is suspended': {
    from: { suspend: true },
    to: { suspend: true, epochs: 30 },
    wantRefusal: null,
  },
  'another port while it runs': {
    from: {},
    to: { trainers: { progressPort: 9000 } },
    wantRefusal: /only while the job is suspended/,
  },
  'another topology while it runs': {
    from: { gang: { topology: { required: 'rack' } } },
    to: { gang: { topology: { preferred: 'rack' } } },
    wantRefusal: null,
  },
  'another scheduler while it runs': {
    from: { gang: { mode: 'KAI', queue: 'team' } },
    to: { gang: { mode: 'Volcano' } },
    wantRefusal: null,
  },
  'a queue while it runs': {
    from: {},
    to: { queue: { name: 'team' } },
    wantRefusal: /queue can change only while the job is suspended/,
  },
  'another priority in its queue while it runs': {
    from: { queue: { name: 'team' } },
    to: { queue: { name: 'team', priorityClassName: 'high' } },
    wantRefusal: /queue can change only while the job is suspended/,
  },
  'another queue while it is suspended': {
    from: { suspend: true, queue: { name: 'team' } },
    to: { suspend: true, queue: { name: 'other' } },
    wantRefusal: null,
  },
  'another model, even when suspended': {
    from: { suspend: true },
    to: { suspend: true, model: { backbone: 'iresnet18' } },
    wantRefusal: /the model cannot be changed/,
  },
  'a number of classes where there was none, even when suspended': {
    from: { suspend: true },
    to: { suspend: true, model: { backbone: 'iresnet50', numClasses: 9 } },
    wantRefusal: /numClasses can grow, but neither/,
  },
  'a class more while suspended': {
    from: { suspend: true, model: { backbone: 'iresnet50', numClasses: 8 } },
    to: { suspend: false, model: { backbone: 'iresnet50', numClasses: 9 } },
    wantRefusal: null,
  },
  'a class more while it runs': {
    from: { model: { backbone: 'iresnet50', numClasses: 8 } },
    to: { model: { backbone: 'iresnet50', numClasses: 9 } },
    wantRefusal: /only while the job is suspended/,
  },
  'a class less, even when suspended': {
    from: { suspend: true, model: { backbone: 'iresnet50', numClasses: 8 } },
    to: { suspend: true, model: { backbone: 'iresnet50', numClasses: 7 } },
    wantRefusal: /numClasses can grow, but neither shrink/,
  },
  'batch norms over all trainers, even when suspended': {
    from: { suspend: true },
    to: { suspend: true, model: { backbone: 'iresnet50', syncBatchNorm: true } },
    wantRefusal: /the model cannot be changed/,
  },
  'fewer activations while it runs': {
    from: {},
    to: { model: { backbone: 'iresnet50', checkpointActivations: true } },
    wantRefusal: null,
  },
  'micro-batches while it runs': {
    from: {},
    to: { trainers: { microBatchSize: 32 } },
    wantRefusal: /only while the job is suspended/,
  },
  'micro-batches while it is suspended': {
    from: { suspend: true },
    to: { suspend: true, trainers: { microBatchSize: 32 } },
    wantRefusal: null,
  },
  'the number of trainers while it runs': {
    from: { trainers: { replicas: 2 } },
    to: { trainers: { replicas: 3 } },
    wantRefusal: /only while the job is suspended/,
  },
  'the number of ranks in a pod while it runs': {
    from: { trainers: { replicas: 4 } },
    to: { trainers: { replicas: 4, ranksPerPod: 2 } },
    wantRefusal: /only while the job is suspended/,
  },
  'the number of ranks in a pod while it is suspended': {
    from: { suspend: true, trainers: { replicas: 4 } },
    to: { suspend: true, trainers: { replicas: 2, ranksPerPod: 2 } },
    wantRefusal: null,
  },
  'the number of trainers of an elastic job while it runs': {
    from: { trainers: { replicas: 2, elastic: { minReplicas: 1, maxReplicas: 4 } } },
    to: { trainers: { replicas: 3, elastic: { minReplicas: 2, maxReplicas: 6, scaleUpSeconds: 60 } } },
    wantRefusal: null,
  },
  'more trainers than an elastic job may have': {
    from: { trainers: { replicas: 2, elastic: { minReplicas: 1, maxReplicas: 4 } } },
    to: { trainers: { replicas: 5, elastic: { minReplicas: 1, maxReplicas: 4 } } },
    wantRefusal: /trainers.replicas must be at least elastic.minReplicas and at most elastic.maxReplicas/,
  },
  'epochs of an elastic job while it runs': {
    from: { trainers: { elastic: { minReplicas: 1, maxReplicas: 4 } } },
    to: { epochs: 30, trainers: { elastic: { minReplicas: 1, maxReplicas: 4 } } },
    wantRefusal: /only while the job is suspended/,
  },
  'elastic while it runs': {
    from: {},
    to: { trainers: { elastic: { minReplicas: 1, maxReplicas: 4 } } },
    wantRefusal: /only while the job is suspended/,
  },
  'elastic while it is suspended': {
    from: { suspend: true },
    to: { suspend: true, trainers: { elastic: { minReplicas: 1, maxReplicas: 4 } } },
    wantRefusal: null,
  },
  'another precision, even when suspended': {
    from: { suspend: true },
    to: { suspend: true, trainers: { precision: 'BF16' } },
    wantRefusal: /trainers.precision cannot be changed/,
  },
  'another output': {
    from: { suspend: true },
    to: { suspend: true, output: { uri: 'pvc://claim/other' } },
    wantRefusal: /output and checkpoint.uri cannot be changed/,
  },
  'another store of checkpoints': {
    from: { suspend: true, checkpoint: { uri: 's3://states/a', s3: { endpoint: 'https://one' } } },
    to: { suspend: true, checkpoint: { uri: 's3://states/a', s3: { endpoint: 'https://other' } } },
    wantRefusal: /output and checkpoint.uri cannot be changed/,
  },
  'another managedBy': {
    from: {},
    to: { managedBy: 'acme.example/controller' },
    wantRefusal: /managedBy cannot be changed/,
  },
  'a longer deadline while it runs': {
    from: { activeDeadlineSeconds: 10 },
    to: { activeDeadlineSeconds: 20 },
    wantRefusal: null,
  },
  'the same spec after the end': {
    from: { trainers: { resources: { limits: { cpu: '1' } } }, ttlSecondsAfterFinished: { failed: 9 } },
    to: { trainers: { resources: { limits: { cpu: '1' } } }, ttlSecondsAfterFinished: { failed: 9 } },
    finished: true,
    wantRefusal: null,
  },
  'what becomes of a finished job': {
    from: { cleanPodPolicy: 'All', suspend: true },
    to: { cleanPodPolicy: 'None', ttlSecondsAfterFinished: { succeeded: 0 } },
    finished: true,
    wantRefusal: null,
  },
  'a pod template after the end, which nobody can compare': {
    from: { trainers: { podTemplate: { spec: { nodeName: 'a' } } } },
    to: { trainers: { podTemplate: { spec: { nodeName: 'b' } } } },
    finished: true,
    wantRefusal: null,
  },
  'more epochs after the training, while the job is suspended': {
    from: { suspend: true },
    to: { suspend: true, epochs: 40 },
    finished: 'training',
    wantRefusal: /the training has succeeded and is not repeated/,
  },
  'another deadline after the training': {
    from: {},
    to: { activeDeadlineSeconds: 20 },
    finished: 'training',
    wantRefusal: null,
  },
  'more epochs after the end, while it is suspended': {
    from: { suspend: true },
    to: { suspend: true, epochs: 40 },
    finished: true,
    wantRefusal: /the job has finished, and is not run again/,
  },
  'quantization of a job that has finished without it': {
    from: {},
    to: { quantize: {} },
    finished: true,
    wantRefusal: /the job has finished/,
  },
  'a gate after the end': {
    from: { quantize: { quantizer: { podTemplate: {} } } },
    to: { quantize: { gate: { maxAccuracyDrop: 0.1 } } },
    finished: true,
    wantRefusal: /the job has finished/,
  },
  'resource claims after the end, which an earlier definition pruned': {
    from: { trainers: { resources: { limits: { cpu: '1' } } } },
    to: { trainers: { resources: { limits: { cpu: '1' }, claims: [{ name: 'gpu' }] } } },
    finished: true,
    wantRefusal: null,
  },
  'the same, where they were all that was set': {
    from: {},
    to: { trainers: { resources: { claims: [{ name: 'gpu' }] } } },
    finished: true,
    wantRefusal: null,
  },
  'other resource claims after the end': {
    from: { trainers: { resources: { claims: [{ name: 'gpu' }] } } },
    to: { trainers: { resources: { claims: [{ name: 'other' }] } } },
    finished: true,
    wantRefusal: /the job has finished/,
  },
  'another limit after the end': {
    from: { trainers: { resources: { limits: { cpu: '1' } } } },
    to: { trainers: { resources: { limits: { cpu: '2' } } } },
    finished: true,
    wantRefusal: /the job has finished/,
  },
  'more restarts after the end': {
    from: {},
    to: { failurePolicy: { maxRestarts: 9 } },
    finished: true,
    wantRefusal: /the job has finished/,
  },
  'another image after the end': {
    from: {},
    to: { trainers: { image: 'registry.example/trainer:2' } },
    finished: true,
    wantRefusal: /the job has finished/,
  },
};
