/** FaceTrainJob: trains a face model by Partial FC (arXiv 2010.05222) on a gang of trainers, and hands it to the quantizer. */
import { z } from 'zod';
import {
  API_VERSION,
  ArtifactStatus,
  conditions,
  evaluationSets,
  failurePolicy,
  folder,
  MAX_FACETRAINJOB_NAME,
  managedBy,
  objectMeta,
  podFields,
  Restarts,
  rules,
  seconds,
  section,
  source,
  Time,
  ttlSecondsAfterFinished,
} from './common.ts';
import { channelOrder, QuantizeTemplate } from './quantizejob.ts';

export const BACKBONES = ['iresnet18', 'iresnet34', 'iresnet50', 'iresnet100', 'iresnet200', 'mobilefacenet'] as const;

const model = rules(
  z.strictObject({
    backbone: z.enum(BACKBONES).optional().describe('A backbone that we build. Exactly one of backbone and onnx.'),
    onnx: source(
      'Your own backbone: an ONNX file with one image input and one embedding output; training starts from its weights, so an exported model is fine-tuned this way.',
    ).optional(),
    embeddingDim: z
      .int32()
      .min(8)
      .max(4096)
      .optional()
      .describe('Length of the embedding; absent: 512. With onnx the graph decides.'),
    width: z
      .int32()
      .min(1)
      .max(16)
      .optional()
      .describe('mobilefacenet only: multiplier of the channels; absent: 2, as the reference has it.'),
    blocks: z
      .array(z.int32().min(1).max(256))
      .length(4)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe('Residual blocks in each of the four stages; absent: the backbone’s own.'),
    numClasses: z
      .int()
      .min(1)
      .max(1_000_000_000)
      .optional()
      .describe('Identities; absent: as many as the dataset has.'),
    channelOrder,
  }),
  [
    {
      cel: 'has(self.backbone) != has(self.onnx)',
      message: 'exactly one of backbone and onnx must be set',
      check: (value) => (value.backbone === undefined) !== (value.onnx === undefined),
    },
    {
      cel: "!has(self.width) || (has(self.backbone) && self.backbone == 'mobilefacenet')",
      message: 'width is for backbone mobilefacenet',
      check: (value) => value.width === undefined || value.backbone === 'mobilefacenet',
      path: ['width'],
    },
    {
      cel: 'has(self.backbone) || (!has(self.blocks) && !has(self.embeddingDim))',
      message: 'blocks and embeddingDim are for a backbone that we build; with onnx the graph decides',
      check: (value) =>
        value.backbone !== undefined || (value.blocks === undefined && value.embeddingDim === undefined),
    },
    { cel: 'self == oldSelf', message: 'the model cannot be changed: checkpoints would no longer fit' },
  ],
).describe('The network.');

const margin = rules(
  section(
    {
      type: z
        .enum(['CosFace', 'ArcFace', 'Combined'])
        .default('CosFace')
        .describe('CosFace: cos θ − m3. ArcFace: cos(θ + m2). Combined: cos(m1·θ + m2) − m3.'),
      m1: z.number().min(0.1).max(4).optional().describe('Multiplicative angular margin, Combined only; absent: 1.'),
      m2: z
        .number()
        .min(0)
        .max(1.5)
        .optional()
        .describe('Additive angular margin in radians, ArcFace (absent: 0.5) and Combined (absent: 0).'),
      m3: z
        .number()
        .min(0)
        .max(1)
        .optional()
        .describe('Additive cosine margin, CosFace (absent: 0.4) and Combined (absent: 0).'),
    },
    'The margin between identities.',
  ),
  [
    {
      cel: "!has(self.m1) || self.type == 'Combined'",
      message: 'm1 is for type Combined',
      check: (value) => value.m1 === undefined || value.type === 'Combined',
      path: ['m1'],
    },
    {
      cel: "!has(self.m2) || self.type != 'CosFace'",
      message: 'm2 is for types ArcFace and Combined',
      check: (value) => value.m2 === undefined || value.type !== 'CosFace',
      path: ['m2'],
    },
    {
      cel: "!has(self.m3) || self.type != 'ArcFace'",
      message: 'm3 is for types CosFace and Combined',
      check: (value) => value.m3 === undefined || value.type !== 'ArcFace',
      path: ['m3'],
    },
    {
      cel: "!has(self.type) || self.type != 'Combined' || has(self.m1) || has(self.m2) || has(self.m3)",
      message: 'type Combined needs at least one of m1, m2, m3',
      check: (value) =>
        value.type !== 'Combined' || value.m1 !== undefined || value.m2 !== undefined || value.m3 !== undefined,
    },
  ],
);

const loss = section(
  {
    margin,
    scale: z.number().gt(0).max(512).default(64).describe('Scale of the logits, s.'),
    sampleRate: z
      .number()
      .gt(0)
      .max(1)
      .default(1)
      .describe(
        'Fraction of the negative class centres that take part in a step: 1 up to 10^5 identities, 0.1 beyond.',
      ),
    interclassFilter: z
      .number()
      .min(-1)
      .max(1)
      .optional()
      .describe(
        'Negatives with a larger cosine are left out, against mislabelled identities (arXiv 2203.15565); absent: off.',
      ),
  },
  'Partial FC and its margin.',
);

const optimizer = section(
  {
    learningRate: z
      .number()
      .gt(0)
      .max(100)
      .default(0.1)
      .describe('At the end of the warm-up; 0.1 for a global batch of 1024.'),
    momentum: z.number().min(0).lt(1).default(0.9).describe('Momentum of SGD.'),
    weightDecay: z.number().min(0).max(1).default(0.0005).describe('L2 penalty, on everything.'),
    gradientClipNorm: z
      .number()
      .min(0)
      .max(1_000_000)
      .default(5)
      .describe('Largest L2 norm of the backbone’s gradient; class centres are not clipped. 0: off.'),
    rowUpdate: z
      .enum(['Lazy'])
      .default('Lazy')
      .describe('Lazy: a class centre moves only in the steps that sample it.'),
  },
  'Stochastic gradient descent.',
);

const schedule = section(
  {
    type: z
      .enum(['Polynomial', 'Constant'])
      .default('Polynomial')
      .describe('Polynomial: learningRate·(1 − t/T)^power after the warm-up.'),
    power: z.number().gt(0).max(10).default(2).describe('2 is what the published results were trained with.'),
    warmupEpochs: z
      .number()
      .min(0)
      .max(1000)
      .default(0)
      .describe('Epochs, or a part of one, over which the rate grows from 0.'),
  },
  'The learning rate over time.',
);

const augmentation = section(
  {
    flip: z.boolean().default(true).describe('Mirror a picture half of the time.'),
    shift: z.int32().min(0).max(16).default(0).describe('Move a picture by up to this many pixels.'),
  },
  'Changes made to training pictures, a function of seed, epoch and picture.',
);

const evaluation = section(
  {
    sets: evaluationSets,
    everyEpochs: z
      .number()
      .min(0)
      .max(1000)
      .default(1)
      .describe('Evaluate after this many epochs; 0: only at the end.'),
    everySteps: z.int32().min(1).optional().describe('Also evaluate after this many steps.'),
  },
  'Verification during training; it always runs at the end too.',
);

const checkpoint = section(
  {
    uri: folder('A folder for checkpoints that every trainer, also of later attempts, can reach.')
      .optional()
      .describe(
        'Absent: checkpoints/ in the output, and none but this job’s. A folder that is named here may hold those of another job, to go on from.',
      ),
    everyEpochs: z.number().min(0).max(1000).default(1).describe('Write one after this many epochs; 0: not by epochs.'),
    everySteps: z.int32().min(1).optional().describe('Also after this many steps.'),
    everySeconds: z.int32().min(1).optional().describe('Also after this long.'),
    keep: z.int32().min(1).max(1000).default(3).describe('Newest complete ones kept.'),
  },
  'What a restart starts from. One is also written when the trainers are asked to stop.',
);

const trainers = section(
  {
    replicas: z
      .int32()
      .min(1)
      .max(4096)
      .default(1)
      .describe('Ranks in the gang, one process each; the class centres are spread over them.'),
    ...podFields,
    device: z.enum(['Auto', 'CPU', 'CUDA']).default('Auto').describe('Auto: CUDA where there is one.'),
    loaderThreads: z.int32().min(1).max(64).default(2).describe('Threads that decode pictures, in every process.'),
    progressPort: z
      .int32()
      .min(1)
      .max(65_535)
      .default(8080)
      .describe('Where rank 0 serves /v1/progress, /metrics and /healthz.'),
    rendezvousPort: z.int32().min(1).max(65_535).default(29_500).describe('Where rank 0 waits for its peers.'),
    rendezvousTimeoutSeconds: seconds('Longest wait for all ranks to meet.').default(300),
    collectiveTimeoutSeconds: seconds('Longest wait inside a step for a peer, which then counts as lost.').default(600),
  },
  'The gang of trainers.',
);

const gang = section(
  {
    mode: z
      .enum(['Auto', 'Native', 'None'])
      .default('Auto')
      .describe(
        'Who makes the pods start together. Native: a scheduling.k8s.io PodGroup. None: nobody. Auto: Native where the cluster serves it.',
      ),
  },
  'All trainers or none.',
);

export const FaceTrainJobSpec = rules(
  z.strictObject({
    suspend: z
      .boolean()
      .default(false)
      .describe('Stops the trainers, who write a checkpoint, and waits; resuming starts from it.'),
    managedBy,
    dataset: source(
      'Training faces in insightface’s RecordIO layout: a folder with train.rec, train.idx and property.',
    ),
    model,
    loss,
    optimizer,
    schedule,
    epochs: z.int32().min(1).max(100_000).default(20).describe('Passes over the dataset.'),
    globalBatchSize: z
      .int32()
      .min(1)
      .max(1_000_000)
      .default(1024)
      .describe('Pictures in a step, over all trainers; must be divisible by trainers.replicas.'),
    seed: z
      .int()
      .min(0)
      .max(4_294_967_295)
      .default(0)
      .describe(
        'Decides the first weights, the order of pictures, and the samples; the same at any number of trainers.',
      ),
    augmentation,
    evaluation,
    checkpoint,
    output: z
      .strictObject({ uri: folder('Receives model/backbone.onnx, train-report.json and train-report.html.') })
      .describe('Where the results are written. `facetrain run --out` takes precedence.'),
    trainers,
    gang,
    quantize: QuantizeTemplate.optional(),
    activeDeadlineSeconds: seconds(
      'Longest time from the first start to the end of training, restarts included; absent: none.',
    ).optional(),
    pendingDeadlineSeconds: seconds('Longest wait for all trainers of an attempt to run; absent: none.').optional(),
    progressDeadlineSeconds: seconds('A gang whose step has not moved for this long hangs, and is restarted.').default(
      1800,
    ),
    failurePolicy,
    successPolicy: z
      .enum(['AllRanks', 'RankZero'])
      .default('AllRanks')
      .describe('Training has succeeded when all ranks have, or as soon as rank 0 has, which writes the results.'),
    cleanPodPolicy: z
      .enum(['All', 'Running', 'None'])
      .default('Running')
      .describe(
        'Pods deleted when an attempt is over: All; Running (those that ended stay, for their logs). None is as Running, but leaves pods of a finished job alone.',
      ),
    ttlSecondsAfterFinished,
    networkPolicy: section(
      { enabled: z.boolean().default(true).describe('Make one.') },
      'A NetworkPolicy that lets only the job’s own pods reach its trainers, and anyone its progress port.',
    ),
  }),
  [
    {
      cel: 'self.globalBatchSize % self.trainers.replicas == 0',
      message: 'globalBatchSize must be divisible by trainers.replicas',
      check: (value) => value.globalBatchSize % value.trainers.replicas === 0,
      path: ['globalBatchSize'],
    },
    {
      cel: 'self.trainers.progressPort != self.trainers.rendezvousPort',
      message: 'progressPort and rendezvousPort must differ',
      check: (value) => value.trainers.progressPort !== value.trainers.rendezvousPort,
      path: ['trainers', 'progressPort'],
    },
    {
      cel: 'self.output == oldSelf.output && has(self.checkpoint.uri) == has(oldSelf.checkpoint.uri) && (!has(self.checkpoint.uri) || self.checkpoint.uri == oldSelf.checkpoint.uri)',
      message: 'output and checkpoint.uri cannot be changed: the checkpoints are there',
    },
    {
      cel:
        'oldSelf.suspend || (self.dataset == oldSelf.dataset && self.loss == oldSelf.loss && self.optimizer == oldSelf.optimizer && self.schedule == oldSelf.schedule && ' +
        'self.epochs == oldSelf.epochs && self.globalBatchSize == oldSelf.globalBatchSize && self.seed == oldSelf.seed && self.augmentation == oldSelf.augmentation && ' +
        'self.trainers.replicas == oldSelf.trainers.replicas && self.trainers.progressPort == oldSelf.trainers.progressPort && ' +
        'self.trainers.rendezvousPort == oldSelf.trainers.rendezvousPort)',
      message: 'what is trained, by how many, and at which ports, can change only while the job is suspended',
    },
    {
      cel: 'has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)',
      message: 'managedBy cannot be changed',
      path: ['managedBy'],
    },
  ],
);
export type FaceTrainJobSpec = z.output<typeof FaceTrainJobSpec>;

export const FaceTrainPhase = z.enum([
  'Pending',
  'Running',
  'Restarting',
  'Suspended',
  'Quantizing',
  'Succeeded',
  'Failed',
]);
export type FaceTrainPhase = z.infer<typeof FaceTrainPhase>;

export const TrainingProgress = z
  .strictObject({
    step: z.int().min(0).describe('Steps done.'),
    totalSteps: z.int().min(0).describe('Steps in all.'),
    epoch: z.number().min(0).describe('Epochs done, with their fraction.'),
    percent: z.int32().min(0).max(100).describe('Share of the steps.'),
    imagesPerSecond: z.number().min(0).optional().describe('Over all trainers, lately.'),
    loss: z.number().optional().describe('Mean over the last steps.'),
    estimatedCompletionTime: Time.optional().describe('When training ends at this rate.'),
    activity: z
      .int()
      .min(0)
      .optional()
      .describe(
        'The trainer’s counter of everything it does: steps, evaluation batches, checkpoint files. It stands still in a hang.',
      ),
    lastHeartbeatTime: Time.describe('When activity was last found to have moved.'),
  })
  .describe('How far training is.');
export type TrainingProgress = z.infer<typeof TrainingProgress>;

export const EvaluationResult = z.strictObject({
  set: z.string().max(63).describe('Name of the verification set.'),
  step: z.int().min(0).describe('Step it was evaluated at.'),
  accuracy: z.number().min(0).max(1).describe('10-fold accuracy.'),
  std: z.number().min(0).optional().describe('Standard deviation over the folds.'),
});
export type EvaluationResult = z.infer<typeof EvaluationResult>;

export const FaceTrainJobStatus = z
  .strictObject({
    observedGeneration: z
      .int()
      .min(0)
      .optional()
      .describe('The generation of the spec that this status was computed from.'),
    phase: FaceTrainPhase.optional().describe('One word for people; programs read the conditions.'),
    conditions: conditions.optional(),
    attempt: z.int32().min(0).optional().describe('Number of the current attempt, from 0; each is a whole new gang.'),
    startTime: Time.optional().describe('When the first attempt was created; starts again when the job is resumed.'),
    attemptStartTime: Time.optional().describe('When the current attempt was created.'),
    trainingCompletionTime: Time.optional().describe('When training succeeded; quantization may follow.'),
    completionTime: Time.optional().describe('When the job succeeded or failed.'),
    trainers: z
      .strictObject({
        desired: z.int32().min(0).describe('Ranks in the gang.'),
        active: z.int32().min(0).describe('Pods of the current attempt that exist and have not ended.'),
        ready: z.int32().min(0).describe('Pods that run and are ready.'),
        succeeded: z.int32().min(0).describe('Pods that ended well.'),
        failed: z.int32().min(0).describe('Pods that failed.'),
      })
      .optional()
      .describe('Pods of the current attempt.'),
    progress: TrainingProgress.optional(),
    restarts: Restarts.optional(),
    checkpoint: z
      .strictObject({
        uri: z.string().max(1024).describe('The newest complete checkpoint.'),
        step: z.int().min(0).describe('Its step.'),
        time: Time.optional().describe('When it was written.'),
      })
      .optional()
      .describe('What a restart would start from.'),
    evaluations: z
      .array(EvaluationResult)
      .max(32)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['set'] })
      .describe('The newest result on each set.'),
    quantizeJobName: z.string().max(63).optional().describe('The QuantizeJob made for this job.'),
    artifact: ArtifactStatus.optional(),
  })
  .describe('What the operator has seen.');
export type FaceTrainJobStatus = z.infer<typeof FaceTrainJobStatus>;

export const FaceTrainJob = z.strictObject({
  apiVersion: z.literal(API_VERSION),
  kind: z.literal('FaceTrainJob'),
  metadata: objectMeta(MAX_FACETRAINJOB_NAME),
  spec: FaceTrainJobSpec,
  status: FaceTrainJobStatus.optional(),
});
export type FaceTrainJob = z.output<typeof FaceTrainJob>;
