/**
 * FaceTrainJob: trains a face model by Partial FC (arXiv 2010.05222) on a gang of trainers, and can quantize it
 * afterwards.
 *
 * The defaults of the training are those of insightface's `arcface_torch` for MS1MV3, whose published results we
 * compare with: 20 epochs, batches of 1024 (8 × 128), SGD with momentum 0.9 and weight decay 5e-4, gradient norm 5,
 * rate 0.1, polynomial decay of power 2, s = 64, two loader threads.
 */
import { z } from 'zod';
import { API_VERSION, MAX_FACETRAINJOB_NAME } from './identifiers.ts';
import {
  ArtifactStatus,
  evaluationSets,
  failurePolicy,
  firstStatusFields,
  labelKey,
  MANAGED_BY_RULE,
  managedBy,
  objectMeta,
  podFields,
  QUEUE_RULE,
  queue,
  queueName,
  Refusal,
  Restarts,
  seconds,
  Time,
  ttlSecondsAfterFinished,
} from './job-fields.ts';
import { channelOrder, modelInput, QuantizeTemplate } from './quantizejob.ts';
import {
  adaptiveMargin,
  backbone,
  blocks,
  concentration,
  cosine,
  embeddingDim,
  epochs,
  everyEpochs,
  fromEpoch,
  globalBatchSize,
  gradientClipNorm,
  keep,
  keepBest,
  learningRate,
  loaderThreads,
  MAX_SAMPLE_RATE_CHANGES,
  MAX_SET_ASIDE,
  MAX_SET_ASIDE_REASON,
  MAX_SETS,
  m1,
  m2,
  m3,
  microBatchSize,
  modelOutput,
  momentum,
  numClasses,
  port,
  power,
  probability,
  ranksPerPod,
  replicas,
  sampleRate,
  scale,
  seed,
  setAsideFolder,
  shift,
  warmupEpochs,
  weightDecay,
  width,
} from './ranges.ts';
import { rules, section, unchanged, unchangedOptional } from './schema-rules.ts';
import {
  DEFAULT_EMBEDDING_DIM,
  DEFAULT_MARGINS,
  DEFAULT_MOBILEFACENET_WIDTH,
  DEFAULT_PROGRESS_PORT,
  DEFAULT_RENDEZVOUS_PORT,
} from './shared-defaults.ts';
import { dataset, destination, S3_RULE, S3Access, sourceFields, writtenUri } from './storage.ts';

/** Those that decide what the model is. */
const OPTIONAL_MODEL_FIELDS = ['backbone', 'onnx', 'embeddingDim', 'width', 'blocks', 'input'];

const model = rules(
  z.strictObject({
    backbone: backbone
      .optional()
      .describe('A backbone that Facetrain builds. Exactly one of backbone and onnx is set.'),
    onnx: rules(
      z.strictObject({
        ...sourceFields(
          'Your own backbone: an ONNX file with one image input, or a folder with one and the files of its weights.',
        ),
        output: modelOutput.optional().describe('Name of the output that is the embedding; absent: the only one.'),
      }),
      [S3_RULE],
    )
      .optional()
      .describe(
        'Your own backbone, an ONNX file. Training starts from its weights, so an exported model can be fine-tuned.',
      ),
    embeddingDim: embeddingDim
      .optional()
      .describe(`Length of the embedding; absent: ${DEFAULT_EMBEDDING_DIM}. With onnx the graph decides.`),
    width: width
      .optional()
      .describe(
        'mobilefacenet only: multiplier of the channels; ' +
          `absent: ${DEFAULT_MOBILEFACENET_WIDTH}, as in insightface’s mbf.`,
      ),
    blocks: blocks
      .optional()
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe('Residual blocks in each of the four stages; absent: as the backbone’s name defines.'),
    numClasses: numClasses
      .optional()
      .describe(
        'Number of identities; absent: that of the dataset. May grow while the job is suspended: the class ' +
          'centres of ' +
          'the new ones are those that a job of the same seed would have begun with.',
      ),
    channelOrder,
    input: modelInput.optional(),
    checkpointActivations: z
      .boolean()
      .default(false)
      .describe(
        'Keeps few activations for the backward pass and computes the others again, block by block: a larger batch ' +
          'fits into memory, and a step takes about a third longer. The numbers stay the same bit for bit. May be ' +
          'changed at any time, for the next attempt.',
      ),
    syncBatchNorm: z
      .boolean()
      .default(false)
      .describe(
        'Whether batch norms take their statistics over the pictures of all trainers instead of each trainer’s own. ' +
          'For few pictures on each trainer; costs two collectives for each batch norm, in the forward and the ' +
          'backward pass.',
      ),
  }),
  [
    {
      cel: '!has(self.input) || has(self.onnx)',
      message: 'input is for your own onnx; a backbone that we build reads −1..1',
      check: (value) => value.input === undefined || value.onnx !== undefined,
    },
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
    {
      cel: `${unchangedOptional(...OPTIONAL_MODEL_FIELDS)} && ${unchanged('channelOrder', 'syncBatchNorm')}`,
      message:
        'the model cannot be changed, except checkpointActivations and numClasses: checkpoints would no longer fit',
    },
    {
      cel:
        'has(self.numClasses) == has(oldSelf.numClasses) && ' +
        '(!has(self.numClasses) || self.numClasses >= oldSelf.numClasses)',
      message: 'numClasses can grow, but neither shrink nor be added or removed: class ids stay as they are',
    },
  ],
).describe('The network.');

const margin = rules(
  section(
    {
      type: z
        .enum(['CosFace', 'ArcFace', 'Combined', 'SphereFace', 'AdaFace'])
        .default('CosFace')
        .describe(
          'What becomes of cos θ of a picture and its own class. CosFace: cos θ − m3. ArcFace: cos(θ + m2). ' +
            'Combined: cos(m1·θ + m2) − m3. SphereFace: (−1)^k cos(m1·θ) − 2k with k = ⌊m1·θ / π⌋, which falls over ' +
            'all angles (arXiv 1704.08063, with features of fixed length as in arXiv 2109.05565). AdaFace (arXiv ' +
            '2204.00964): cos(θ − m·q) − (m + m·q), where the quality q of a picture, −1 to 1, is h times its ' +
            'distance in deviations from the mean length of features; mean and deviation follow the batches of all ' +
            'trainers and are saved in checkpoints.',
        ),
      m1: m1
        .optional()
        .describe(
          `Multiplicative angular margin, Combined (absent: ${DEFAULT_MARGINS.Combined.m1}) and SphereFace (absent: ` +
            `${DEFAULT_MARGINS.SphereFace.m1}, for which scale 30 fits).`,
        ),
      m2: m2
        .optional()
        .describe(
          `Additive angular margin in radians, ArcFace (absent: ${DEFAULT_MARGINS.ArcFace.m2}) and ` +
            `Combined (absent: ${DEFAULT_MARGINS.Combined.m2}).`,
        ),
      m3: m3
        .optional()
        .describe(
          `Additive cosine margin, CosFace (absent: ${DEFAULT_MARGINS.CosFace.m3}) and ` +
            `Combined (absent: ${DEFAULT_MARGINS.Combined.m3}).`,
        ),
      m: adaptiveMargin.optional().describe(`Margin, AdaFace only; absent: ${DEFAULT_MARGINS.AdaFace.m}.`),
      h: concentration
        .optional()
        .describe(`Concentration of qualities, AdaFace only; absent: ${DEFAULT_MARGINS.AdaFace.h}.`),
    },
    'The margin between identities.',
  ),
  [
    {
      cel: "!has(self.m1) || self.type == 'Combined' || self.type == 'SphereFace'",
      message: 'm1 is for types Combined and SphereFace',
      check: (value) => value.m1 === undefined || value.type === 'Combined' || value.type === 'SphereFace',
      path: ['m1'],
    },
    {
      cel: "!has(self.m2) || self.type == 'ArcFace' || self.type == 'Combined'",
      message: 'm2 is for types ArcFace and Combined',
      check: (value) => value.m2 === undefined || value.type === 'ArcFace' || value.type === 'Combined',
      path: ['m2'],
    },
    {
      cel: "!has(self.m3) || self.type == 'CosFace' || self.type == 'Combined'",
      message: 'm3 is for types CosFace and Combined',
      check: (value) => value.m3 === undefined || value.type === 'CosFace' || value.type === 'Combined',
      path: ['m3'],
    },
    {
      cel: "(!has(self.m) && !has(self.h)) || self.type == 'AdaFace'",
      message: 'm and h are for type AdaFace',
      check: (value) => (value.m === undefined && value.h === undefined) || value.type === 'AdaFace',
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
    gradient: z
      .enum(['Exact', 'StraightThrough'])
      .default('Exact')
      .describe(
        'Exact: the gradient of the loss, margin included. StraightThrough: as if the margin were a number that is ' +
          'added to cos θ, as insightface and OpenSphere compute it; the loss of a step is the same. With CosFace ' +
          'the ' +
          'two are equal. With the others, Exact weights a picture’s pull to its class by the slope of its margin.',
      ),
    scale: scale.default(64).describe('Scale of the logits, s.'),
    sampleRate: sampleRate
      .default(1)
      .describe(
        'Fraction of the negative class centres that are scored in a step. Recommended: 1 up to 10^5 identities, ' +
          '0.1 beyond.',
      ),
    sampleRateChanges: rules(
      z
        .array(
          z.strictObject({
            fromEpoch: fromEpoch.describe('The epoch that begins with this rate, counted from 0; may be a fraction.'),
            rate: sampleRate.describe('Fraction of the negatives from there on.'),
          }),
        )
        .max(MAX_SAMPLE_RATE_CHANGES)
        .meta({ 'x-kubernetes-list-type': 'atomic' })
        .default([])
        .describe(
          'Other sample rates later in the training, such as {fromEpoch: 18, rate: 1} after a start with few ' +
            'negatives ' +
            '(LVFace, arXiv 2501.13420). Memory is planned for the largest. Which rate a step has depends on its ' +
            'number alone, so a restart changes nothing.',
        ),
      [
        {
          cel: 'self.all(a, self.exists_one(b, b.fromEpoch == a.fromEpoch))',
          message: 'each fromEpoch may have one rate',
          check: (changes) => new Set(changes.map(({ fromEpoch: from }) => from)).size === changes.length,
        },
      ],
    ),
    interclassFilter: cosine
      .optional()
      .describe(
        'Negatives with a larger cosine are ignored: they may be mislabeled images of the same person ' +
          '(arXiv 2203.15565). Absent: off.',
      ),
    rows: section(
      {
        precision: z
          .enum(['FP32', 'BF16'])
          .default('FP32')
          .describe(
            'Type in which class centres and their momentum are kept. BF16 takes half of the memory: 2 KiB a class ' +
              'at 512 dimensions instead of 4; it is computed with in FP32, and rounded stochastically. A training ' +
              'that goes on with another type converts its checkpoint.',
          ),
        optimizer: z
          .enum(['SGD', 'AdamW', 'AdaGrad'])
          .default('SGD')
          .describe(
            'Optimizer of the class centres; the backbone has SGD. SGD: with optimizer.momentum; a class takes 4 KiB ' +
              'at 512 dimensions in FP32, 2 in BF16. AdamW (arXiv 1711.05101): moments, and a count of updates for ' +
              'each class; 6 KiB, 3 in BF16. AdaGrad: one sum of squares for a class; 2 KiB, 1 in BF16. On GPUs only ' +
              'SGD has run yet. A training that goes on with another one keeps its class centres, and their ' +
              'optimizer starts anew.',
          ),
        placement: z
          .enum(['Device', 'Host', 'Auto'])
          .default('Device')
          .describe(
            'Where the class centres and what their optimizer keeps are. Host: in the memory of the machine, which a ' +
              'GPU reaches over its bus: more identities than the memory of the GPU has room for, and slower steps; ' +
              'facetrain plan says how much slower. On a CPU there is one memory, and Host only takes more of it. ' +
              'Auto: Host on a GPU in whose memory the training would not fit, else Device; each trainer decides ' +
              'when it starts. The numbers are the same, so a training may go on with another placement.',
          ),
        learningRate: learningRate
          .optional()
          .describe(
            'Learning rate of the class centres at the end of the warm-up; the schedule is that of ' +
              'optimizer.learningRate, which is also the default. AdamW and AdaGrad need less than SGD: about 0.001 ' +
              'and 0.01.',
          ),
      },
      'How class centres are kept.',
    ),
  },
  'Partial FC and its margin.',
);

const optimizer = section(
  {
    learningRate: learningRate
      .default(0.1)
      .describe('Learning rate at the end of the warm-up. 0.1 fits a global batch of 1024.'),
    momentum: momentum.default(0.9).describe('Momentum of SGD.'),
    weightDecay: weightDecay.default(0.0005).describe('L2 penalty on all parameters, class centres included.'),
    gradientClipNorm: gradientClipNorm
      .default(5)
      .describe('Largest L2 norm of the backbone’s gradient; class centres are not clipped. 0: off.'),
    rowUpdate: z
      .enum(['Lazy', 'Dense'])
      .default('Lazy')
      .describe(
        'Lazy: a class centre changes only in the steps that sample it. Dense: weight decay and momentum move it in ' +
          'every step, as in insightface; the result is that of an update of all rows, but rows are changed when ' +
          'they are sampled next, or saved. Dense is for SGD and AdaGrad, and keeps 4 bytes more for a class.',
      ),
  },
  'Stochastic gradient descent.',
);

const schedule = section(
  {
    type: z
      .enum(['Polynomial', 'Constant'])
      .default('Polynomial')
      .describe('Polynomial: learningRate·(1 − t/T)^power after the warm-up.'),
    power: power.default(2).describe('Exponent of the polynomial; insightface’s published models were trained with 2.'),
    warmupEpochs: warmupEpochs
      .default(0)
      .describe('Epochs over which the rate grows linearly from 0; may be a fraction.'),
  },
  'The learning rate over time.',
);

const augmentation = section(
  {
    flip: z.boolean().default(true).describe('Mirror a picture with probability 1/2.'),
    shift: shift.default(0).describe('Move a picture by up to this many pixels.'),
    cropProbability: probability
      .default(0)
      .describe(
        'How often a part of a picture is kept, a fifth of its area or more, and the rest becomes black. This and ' +
          'the ' +
          'next two are the augmentation of AdaFace (arXiv 2204.00964), whose recipe has 0.2 for each.',
      ),
    lowResolutionProbability: probability
      .default(0)
      .describe('How often a picture is scaled down, to a fifth of its sides or more, and up again.'),
    colorJitterProbability: probability
      .default(0)
      .describe('How often brightness, contrast and saturation change, each by a factor of 0.5 to 1.5.'),
  },
  'Random changes of training pictures. They depend on seed, epoch and picture only.',
);

const evaluation = section(
  {
    sets: evaluationSets,
    everyEpochs: everyEpochs.default(1).describe('Evaluate every so many epochs; 0: only at the end.'),
    everySteps: z.int32().min(1).optional().describe('Also evaluate every so many steps.'),
  },
  'Verification during training. It always runs at the end as well.',
);

const checkpoint = section(
  {
    uri: writtenUri('A place for checkpoints that every trainer, also of later attempts, can reach.')
      .optional()
      .describe(
        'Absent: checkpoints/ in the output, where checkpoints of another job are refused. In a place that is named ' +
          'here, training also continues from checkpoints of another job. An object store needs conditional writes; ' +
          'no other volume is then needed for checkpoints.',
      ),
    s3: S3Access.optional(),
    everyEpochs: everyEpochs.default(1).describe('Write one every so many epochs; 0: not by epochs.'),
    everySteps: z.int32().min(1).optional().describe('Also write one every so many steps.'),
    everySeconds: z.int32().min(1).optional().describe('Also write one every so many seconds.'),
    keep: keep
      .default(3)
      .describe(
        'Complete checkpoints that are kept, the newest; older ones are deleted. Only those of this job count.',
      ),
    inMemory: z
      .boolean()
      .default(false)
      .describe(
        'true: each trainer also keeps the state after its last two steps in memory (/dev/shm). Trainers that are ' +
          'started again in their pods, after a lost peer, SIGKILL or an unforeseen failure, go on from the newest ' +
          'step that all have, so one step is lost at most; with new pods, from the newest checkpoint. It takes the ' +
          'memory and the time that `facetrain plan` says. No effect in `facetrain run`, whose processes are new in ' +
          'each attempt.',
      ),
    keepBest: keepBest
      .default(0)
      .describe(
        'Beside the newest, this many are kept whose mean accuracy over the sets of evaluation is best. Above 0, a ' +
          'checkpoint is also written where an evaluation is due.',
      ),
  },
  'Checkpoints, from which a restart continues. One is also written when the trainers receive SIGTERM.',
);

const elastic = z
  .strictObject({
    minReplicas: replicas.describe('The gang never goes on with fewer pods.'),
    maxReplicas: replicas.describe('Largest trainers.replicas.'),
    scaleDownSeconds: seconds(
      'Pods have no place for this long (no node, or a quota refuses them) before the gang goes on without them.',
    ).default(120),
    scaleUpSeconds: seconds(
      'A gang that lacks pods looks for room for them after this long; twice as long, and so on, after it found ' +
        'room that was gone when it came.',
    ).default(600),
  })
  .describe(
    'Lets the gang go on with fewer pods than trainers.replicas, from the newest checkpoint, and with more when ' +
      'there ' +
      'is room. The global batch, the order of pictures and the sample of classes stay the same. Can be added or ' +
      'removed only while the job is suspended.',
  );

const trainers = section(
  {
    replicas: replicas
      .default(1)
      .describe(
        'Pods in the gang, with one rank each, or ranksPerPod. The class centres are divided among all ranks. With ' +
          'elastic it is a wish, which may change at any time; kubectl scale changes it.',
      ),
    ranksPerPod: ranksPerPod
      .default(1)
      .describe(
        'Ranks in each pod: processes in its container, of which each takes the GPU of its number (LOCAL_RANK). They ' +
          'share what resources asks for, such as nvidia.com/gpu: 8 for 8 ranks, and the inputs, which are fetched ' +
          'once for all. Over NVLink, NCCL connects only GPUs of one pod. The gang has replicas · ranksPerPod ranks.',
      ),
    elastic: elastic.optional(),
    ...podFields,
    device: z
      .enum(['Auto', 'CPU', 'CUDA'])
      .default('Auto')
      .describe('Auto: CUDA if the container has a GPU, else CPU.'),
    precision: z
      .enum(['Auto', 'FP32', 'TF32', 'BF16', 'FP16'])
      .default('Auto')
      .describe(
        'In which convolutions and matrix products are computed; weights, their gradients and the ' +
          'statistics of batch norms are FP32 in all of them. FP32: IEEE float32, also on a GPU. TF32 (GPU ' +
          'only): float32 operands, rounded to 10 bits by tensor cores. BF16: bfloat16. FP16 (GPU only): ' +
          'half, with a loss scale that adapts itself. Auto: BF16 on a GPU, FP32 on a CPU. A training keeps ' +
          'what it began with, so this cannot be changed.',
      ),
    deterministic: z
      .boolean()
      .default(true)
      .describe(
        'Whether two trainings of one manifest, with as many trainers on as many devices, give the same model bit ' +
          'for bit. false lets cuDNN measure its algorithms and take the fastest, also those whose sums have no ' +
          'fixed order; no effect on CPUs.',
      ),
    microBatchSize: microBatchSize
      .optional()
      .describe(
        'Pictures that go through the backbone at once; must divide globalBatchSize into a micro-batch for each ' +
          'trainer, or more. A trainer’s part of a step is whole micro-batches, of which some may have one more. ' +
          'Memory for activations shrinks with it; all micro-batches but one are computed forward twice, so a step ' +
          'takes up to a third longer. Batch norms take their statistics over a micro-batch: n on one trainer train ' +
          'as n trainers with one each. On CPUs, trainers with as many threads give the same model for any number of ' +
          'them, bit for bit. Absent: the trainer’s whole part of the batch.',
      ),
    loaderThreads: loaderThreads.default(2).describe('Threads that decode pictures, in every process.'),
    progressPort: port
      .default(DEFAULT_PROGRESS_PORT)
      .describe('TCP port at which rank 0 serves /v1/progress, /metrics and /healthz.'),
    rendezvousPort: port
      .default(DEFAULT_RENDEZVOUS_PORT)
      .describe('TCP port at which rank 0 waits for the other ranks.'),
    rendezvousTimeoutSeconds: seconds('Longest wait until all ranks are connected.').default(300),
    collectiveTimeoutSeconds: seconds(
      'Longest wait for another rank inside a step. Then that rank counts as lost.',
    ).default(600),
  },
  'The gang of trainers.',
);

const topology = rules(
  z.strictObject({
    required: labelKey
      .optional()
      .describe(
        'All pods of an attempt run on nodes with the same value of this label, such as topology.kubernetes.io/zone.',
      ),
    preferred: labelKey.optional().describe('The same as a wish: pods that find no place there run elsewhere.'),
  }),
  [
    {
      cel: 'has(self.required) != has(self.preferred)',
      message: 'exactly one of required and preferred must be set',
      check: (value) => (value.required === undefined) !== (value.preferred === undefined),
    },
  ],
).describe(
  'Keeps the pods of a gang near each other, by a label of nodes. In a queue Kueue chooses the nodes, and the label ' +
    'must be a level of the topology of its flavor. Elsewhere by the affinity of pods and, where the cluster has ' +
    'topology-aware scheduling, by the PodGroup. Can change at any time, for the next attempt.',
);
export type Topology = z.infer<typeof topology>;

const gang = section(
  {
    mode: z
      .enum(['Auto', 'Native', 'Kueue', 'KAI', 'Volcano', 'None'])
      .default('Auto')
      .describe(
        'Who places the pods all together. Native: kube-scheduler, by a scheduling.k8s.io PodGroup. Kueue: by the ' +
          'admission of spec.queue alone, without a PodGroup. KAI: NVIDIA’s KAI Scheduler, 0.15 or later; Volcano: ' +
          'its scheduler; each by a PodGroup of its own. The objects for KAI and Volcano follow their documentation ' +
          'and are not tested with these schedulers. None: nobody, each pod is placed by itself. Auto: Native if the ' +
          'cluster serves PodGroups, else None. Can change at any time, for the next attempt.',
      ),
    queue: queueName
      .optional()
      .describe(
        'The queue of KAI Scheduler or Volcano, an object without a namespace; only with these modes. KAI needs ' +
          'one; absent: Volcano’s queue "default". Can change at any time, for the next attempt.',
      ),
    topology: topology.optional(),
  },
  'Gang scheduling: all trainers start, or none.',
);
/** Who places the pods of a gang. */
export type GangMode = z.output<typeof gang>['mode'];

/** Modes whose schedulers have queues of their own, as CEL. */
const HAS_OWN_QUEUE = "self.gang.mode in ['KAI', 'Volcano']";
const hasOwnQueue = (mode: GangMode): boolean => mode === 'KAI' || mode === 'Volcano';

/**
 * Fields that decide what an attempt trains, as paths in the spec. They can change only while the job is suspended, and
 * a change replaces the attempt (the planner compares their digest). A field that is added below one of them needs a
 * default, or to be optional; one that joins the list, a new DIGEST_FORMAT (planner/src/attempt.ts).
 */
export const TRAINING_FIELDS: readonly string[] = [
  'dataset',
  'model.numClasses',
  'loss',
  'optimizer',
  'schedule',
  'epochs',
  'globalBatchSize',
  'seed',
  'augmentation',
  'trainers.replicas',
  'trainers.ranksPerPod',
  'trainers.microBatchSize',
  'trainers.progressPort',
  'trainers.rendezvousPort',
];

/** Those of TRAINING_FIELDS that a spec may have or not. */
const OPTIONAL_TRAINING_FIELDS: readonly string[] = ['model.numClasses', 'trainers.microBatchSize'];

/** The one of TRAINING_FIELDS that may change at any time in a job with trainers.elastic. */
export const ELASTIC_FIELD = 'trainers.replicas';

/** CEL for a rule on changes: all TRAINING_FIELDS are the same. `spec`: its path below self, with a dot at its end. */
export const sameTraining = (spec = ''): string =>
  `${sameButReplicas(spec)} && ${unchanged(`${spec}${ELASTIC_FIELD}`)}`;

function sameButReplicas(spec = ''): string {
  const below = (fields: readonly string[]) => fields.map((field) => `${spec}${field}`);
  const isOptional = (field: string) => OPTIONAL_TRAINING_FIELDS.includes(field);
  const required = TRAINING_FIELDS.filter((field) => field !== ELASTIC_FIELD && !isOptional(field));
  return `${unchanged(...below(required))} && ${unchangedOptional(...below(OPTIONAL_TRAINING_FIELDS))}`;
}

/** CEL for a rule on changes: what may change in a job that is not suspended. */
const MAY_CHANGE =
  `${sameButReplicas()} && has(self.trainers.elastic) == has(oldSelf.trainers.elastic) && ` +
  `(has(self.trainers.elastic) || ${unchanged(ELASTIC_FIELD)})`;

/** CEL for the number of ranks in the gang. */
const RANKS = 'self.trainers.replicas * self.trainers.ranksPerPod';
/** The number of ranks in the gang. */
export const rankCount = ({ replicas: pods, ranksPerPod: perPod }: { replicas: number; ranksPerPod: number }): number =>
  pods * perPod;

export const FaceTrainJobSpec = rules(
  z.strictObject({
    suspend: z
      .boolean()
      .default(false)
      .describe('true stops the trainers after they wrote a checkpoint; false resumes from it.'),
    managedBy,
    queue: queue.optional(),
    dataset: dataset(
      'Training faces: a folder with train.rec, train.idx and property (insightface’s RecordIO), with *.tar ' +
        '(webdataset’s shards), or with a folder of pictures for each identity.',
    ),
    model,
    loss,
    optimizer,
    schedule,
    epochs: epochs.default(20).describe('Passes over the dataset.'),
    globalBatchSize: globalBatchSize
      .default(1024)
      .describe('Pictures in a step, over all trainers: one or more for each. They are divided as evenly as possible.'),
    seed: seed
      .default(0)
      .describe(
        'Seed of the initial weights, the order of pictures and the sampled classes. They do not depend on the ' +
          'number of trainers.',
      ),
    augmentation,
    evaluation,
    checkpoint,
    output: destination('Receives model/backbone.onnx, train-report.json and train-report.html.').describe(
      'Where the results are written. `facetrain run --out` takes precedence.',
    ),
    trainers,
    gang,
    quantize: QuantizeTemplate.optional(),
    activeDeadlineSeconds: seconds(
      'Longest time from startTime, when pods were first wanted, to the end of training, restarts included; ' +
        'absent: no limit.',
    ).optional(),
    pendingDeadlineSeconds: seconds(
      'Longest wait for all trainers of an attempt to run, also while a quota or a webhook refuses their pods; ' +
        'absent: no limit.',
    ).optional(),
    // Three times collectiveTimeoutSeconds: if a rank is lost, the others report that before the gang counts as hung.
    progressDeadlineSeconds: seconds(
      'A gang that made no progress for this long is restarted. While one of its nodes does not answer, ' +
        'failurePolicy.nodeLostSeconds decides instead.',
    ).default(1800),
    failurePolicy,
    successPolicy: z
      .enum(['AllRanks', 'RankZero'])
      .default('AllRanks')
      .describe(
        'AllRanks: training has succeeded when all ranks have. RankZero: as soon as rank 0 has, which writes the ' +
          'results; with trainers.ranksPerPod, as soon as all ranks of its pod have.',
      ),
    cleanPodPolicy: z
      .enum(['All', 'Running', 'None'])
      .default('Running')
      .describe(
        'Which pods are deleted when an attempt is over. All: all. Running: those that still run; the others stay, ' +
          'for their logs. None: as Running, but no pod of a finished job is deleted.',
      ),
    ttlSecondsAfterFinished,
    networkPolicy: section(
      { enabled: z.boolean().default(true).describe('Whether to create the NetworkPolicy.') },
      'A NetworkPolicy by which only the job’s own pods can reach its trainers. The progress port is open to all.',
    ),
  }),
  [
    {
      cel: `self.globalBatchSize >= ${RANKS}`,
      message: 'globalBatchSize must be trainers.replicas · ranksPerPod or more: a picture for each rank',
      check: (value) => value.globalBatchSize >= rankCount(value.trainers),
      path: ['globalBatchSize'],
    },
    {
      cel:
        '!has(self.trainers.microBatchSize) || (self.globalBatchSize % self.trainers.microBatchSize == 0 && ' +
        `self.globalBatchSize >= ${RANKS} * self.trainers.microBatchSize)`,
      message: 'trainers.microBatchSize must divide globalBatchSize into a micro-batch for each rank, or more',
      // Without microBatchSize, the first rule says it.
      check: ({ globalBatchSize: pictures, trainers }) =>
        trainers.microBatchSize === undefined ||
        (pictures % trainers.microBatchSize === 0 && pictures >= rankCount(trainers) * trainers.microBatchSize),
      path: ['trainers', 'microBatchSize'],
    },
    {
      cel:
        '!has(self.trainers.microBatchSize) || !self.model.syncBatchNorm || ' +
        `self.globalBatchSize == ${RANKS} * self.trainers.microBatchSize`,
      message:
        'model.syncBatchNorm needs all pictures of a step at the same time: leave trainers.microBatchSize out, or ' +
        'use more trainers',
      check: ({ globalBatchSize: pictures, model: { syncBatchNorm }, trainers }) =>
        trainers.microBatchSize === undefined ||
        !syncBatchNorm ||
        pictures === rankCount(trainers) * trainers.microBatchSize,
      path: ['trainers', 'microBatchSize'],
    },
    {
      cel:
        '!has(self.trainers.elastic) || (self.trainers.elastic.minReplicas <= self.trainers.replicas && ' +
        'self.trainers.replicas <= self.trainers.elastic.maxReplicas)',
      message: 'trainers.replicas must be at least elastic.minReplicas and at most elastic.maxReplicas',
      check: ({ trainers: { replicas, elastic } }) =>
        elastic === undefined || (elastic.minReplicas <= replicas && replicas <= elastic.maxReplicas),
      path: ['trainers', 'replicas'],
    },
    {
      cel:
        '!has(self.trainers.elastic) || self.globalBatchSize >= self.trainers.elastic.maxReplicas * ' +
        'self.trainers.ranksPerPod * (has(self.trainers.microBatchSize) ? self.trainers.microBatchSize : 1)',
      message:
        'elastic.maxReplicas · ranksPerPod must be at most the pictures, or the micro-batches, of globalBatchSize',
      check: ({ globalBatchSize: pictures, trainers: { microBatchSize: size = 1, elastic, ranksPerPod: perPod } }) =>
        elastic === undefined || pictures >= elastic.maxReplicas * perPod * size,
      path: ['trainers', 'elastic', 'maxReplicas'],
    },
    {
      cel: '!has(self.trainers.elastic) || !has(self.trainers.microBatchSize) || !self.model.syncBatchNorm',
      message: 'with trainers.elastic, leave trainers.microBatchSize or model.syncBatchNorm out',
      check: ({ model: { syncBatchNorm }, trainers: { microBatchSize: size, elastic } }) =>
        elastic === undefined || size === undefined || !syncBatchNorm,
      path: ['trainers', 'microBatchSize'],
    },
    {
      cel: '!has(self.checkpoint.s3) || (has(self.checkpoint.uri) && ' + "self.checkpoint.uri.startsWith('s3://'))",
      message: 'checkpoint.s3 is only for an s3:// checkpoint.uri',
      check: ({ checkpoint: { uri, s3 } }) => s3 === undefined || (uri ?? '').startsWith('s3://'),
      path: ['checkpoint', 's3'],
    },
    {
      cel: "self.optimizer.rowUpdate != 'Dense' || self.loss.rows.optimizer != 'AdamW'",
      message: 'rowUpdate Dense is for class centres with SGD or AdaGrad: AdamW has Lazy',
      check: (value) => value.optimizer.rowUpdate !== 'Dense' || value.loss.rows.optimizer !== 'AdamW',
      path: ['optimizer', 'rowUpdate'],
    },
    {
      cel: "!self.checkpoint.inMemory || self.optimizer.rowUpdate == 'Lazy'",
      message: 'checkpoint.inMemory is for rowUpdate Lazy: with Dense, each step changes all class centres',
      check: ({ checkpoint: { inMemory }, optimizer }) => !inMemory || optimizer.rowUpdate === 'Lazy',
      path: ['checkpoint', 'inMemory'],
    },
    {
      cel: 'self.trainers.progressPort != self.trainers.rendezvousPort',
      message: 'progressPort and rendezvousPort must differ',
      check: (value) => value.trainers.progressPort !== value.trainers.rendezvousPort,
      path: ['trainers', 'progressPort'],
    },
    {
      cel:
        'self.output == oldSelf.output && has(self.checkpoint.uri) == has(oldSelf.checkpoint.uri) && ' +
        '(!has(self.checkpoint.uri) || self.checkpoint.uri == oldSelf.checkpoint.uri) && ' +
        'has(self.checkpoint.s3) == has(oldSelf.checkpoint.s3) && ' +
        '(!has(self.checkpoint.s3) || self.checkpoint.s3 == oldSelf.checkpoint.s3)',
      message: 'output and checkpoint.uri cannot be changed: the checkpoints are there',
    },
    {
      cel: unchanged('trainers.precision'),
      message: 'trainers.precision cannot be changed: a training goes on in the precision that it began with',
    },
    {
      cel: `oldSelf.suspend || (${MAY_CHANGE})`,
      message:
        'what is trained, by how many, and at which ports, can change only while the job is suspended; ' +
        'trainers.replicas of a job with trainers.elastic at any time',
    },
    {
      cel: "self.gang.mode != 'Kueue' || has(self.queue)",
      message: 'gang.mode Kueue needs queue: what Kueue admits as a whole is the job with a queue',
      check: ({ gang: { mode }, queue }) => mode !== 'Kueue' || queue !== undefined,
      path: ['gang', 'mode'],
    },
    {
      cel: `!(${HAS_OWN_QUEUE}) || !has(self.queue)`,
      message: 'gang.mode KAI and Volcano leave queue, which is Kueue’s, out: their own queue is gang.queue',
      check: ({ gang: { mode }, queue }) => !hasOwnQueue(mode) || queue === undefined,
      path: ['gang', 'mode'],
    },
    {
      cel: `!has(self.gang.queue) || ${HAS_OWN_QUEUE}`,
      message: 'gang.queue is for gang.mode KAI or Volcano; the queue of Kueue is spec.queue',
      check: ({ gang: { mode, queue: own } }) => own === undefined || hasOwnQueue(mode),
      path: ['gang', 'queue'],
    },
    {
      cel: "self.gang.mode != 'KAI' || has(self.gang.queue)",
      message: 'gang.mode KAI needs gang.queue: the scheduler places no PodGroup without a queue',
      check: ({ gang: { mode, queue: own } }) => mode !== 'KAI' || own !== undefined,
      path: ['gang', 'queue'],
    },
    QUEUE_RULE,
    MANAGED_BY_RULE,
  ],
);
export type FaceTrainJobSpec = z.output<typeof FaceTrainJobSpec>;

/** Longest `completedRanks`, in characters: every other rank of the largest gang, with a comma. */
const MAX_COMPLETED_RANKS = 10_240;

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
    imagesPerSecond: z.number().min(0).optional().describe('Recent speed of all trainers together.'),
    loss: z.number().optional().describe('Mean loss of the last steps.'),
    estimatedCompletionTime: Time.optional().describe('When training ends at this rate.'),
    activity: z
      .int()
      .min(0)
      .optional()
      .describe(
        'Counter of all work of the trainer: steps, evaluation batches, checkpoint files. It stands still in a hang.',
      ),
    lastHeartbeatTime: Time.describe('When activity was last observed to change.'),
  })
  .describe('Progress of the training.');
export type TrainingProgress = z.infer<typeof TrainingProgress>;

/** Accuracy on one verification set at one step. */
export const EvaluationResult = z.strictObject({
  set: z.string().max(63).describe('Name of the verification set.'),
  step: z.int().min(0).describe('Step it was evaluated at.'),
  accuracy: z.number().min(0).max(1).describe('10-fold accuracy.'),
  std: z.number().min(0).optional().describe('Standard deviation over the folds.'),
});
export type EvaluationResult = z.infer<typeof EvaluationResult>;

/** Longest label selector of a job's pods: a label of ours and a uid. */
const MAX_SELECTOR = 128;
/** Changes of the number of trainers that the status keeps, the newest. */
export const MAX_RESIZES = 10;
/** Longest message of one of them, in characters. */
export const MAX_RESIZE_MESSAGE = 512;

const Resize = z.strictObject({
  attempt: z.int32().min(0).describe('The attempt that began with this number.'),
  trainers: z.int32().min(1).describe('Pods of its gang.'),
  time: Time.describe('When that was decided.'),
  reason: z.string().max(128).describe('ScaledDown or ScaledUp.'),
  message: z.string().max(MAX_RESIZE_MESSAGE).describe('Why.'),
});

export const Scaling = z
  .strictObject({
    replicas: z.int32().min(1).describe('trainers.replicas when it was last looked at.'),
    askedTime: Time.optional().describe('When trainers.replicas was seen to have changed.'),
    resizes: z.int32().min(0).describe('How often the number of trainers has changed.'),
    failedGrowths: z
      .int32()
      .min(0)
      .describe('How often in a row room that was found was gone; each doubles the wait for the next try.'),
    refusedTime: Time.optional().describe('When a pod that was to look for room was last refused.'),
    history: z
      .array(Resize)
      .max(MAX_RESIZES)
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe('The newest changes of the number of trainers. They are no restarts.'),
  })
  .describe('How the number of trainers of an elastic job has changed.');
export type Scaling = z.infer<typeof Scaling>;

export const FaceTrainJobStatus = z
  .strictObject({
    ...firstStatusFields(FaceTrainPhase),
    attemptStartTime: Time.optional().describe('When all pods of the current attempt had been created.'),
    trainingCompletionTime: Time.optional().describe('When training succeeded; quantization may follow.'),
    completionTime: Time.optional().describe('When the job succeeded or failed.'),
    trainers: z
      .strictObject({
        desired: z
          .int32()
          .min(0)
          .describe('Pods of the gang; of an elastic one those with which it goes on, not those that are wished.'),
        selector: z
          .string()
          .max(MAX_SELECTOR)
          .optional()
          .describe('Label selector of the pods, for kubectl scale and what else reads the scale subresource.'),
        active: z.int32().min(0).describe('Pods of the current attempt that exist and have not ended.'),
        ready: z.int32().min(0).describe('Pods that run and are ready.'),
        succeeded: z.int32().min(0).describe('Pods that succeeded.'),
        failed: z.int32().min(0).describe('Pods that failed.'),
        completedRanks: z
          .string()
          .max(MAX_COMPLETED_RANKS)
          .regex(/^\d+(-\d+)?(,\d+(-\d+)?)*$/)
          .optional()
          .describe(
            'Pods of this attempt that have succeeded, by number, such as "0,2-5" (the format of a Job’s ' +
              'completedIndexes). They count as succeeded also when they are removed.',
          ),
        containerRestarts: z
          .int32()
          .min(1)
          .optional()
          .describe(
            'How often the trainers of this attempt were started again in their pods, as far as status.restarts has ' +
              'counted it; absent: never.',
          ),
      })
      .optional()
      .describe('Pods of the current attempt.'),
    scaling: Scaling.optional(),
    progress: TrainingProgress.optional(),
    unanswered: z
      .strictObject({
        seconds: z.int().min(0).describe('How long they had been asked by then, by all leaders of the operator.'),
        time: Time.describe('When that was counted.'),
      })
      .optional()
      .describe(
        'The trainers are asked for their progress, and do not answer. progressDeadlineSeconds counts it; absent: ' +
          'they have answered, or were asked for a short time.',
      ),
    restarts: Restarts.optional(),
    refusal: Refusal.optional(),
    checkpoint: z
      .strictObject({
        uri: z.string().max(2048).describe('The newest complete checkpoint, a folder below that of the checkpoints.'),
        step: z.int().min(0).describe('Its step.'),
        time: Time.optional().describe('When it was written.'),
      })
      .optional()
      .describe('The checkpoint from which a restart would continue.'),
    damagedCheckpoints: z
      .array(
        z.strictObject({
          folder: setAsideFolder.describe('Its name now, in the folder of checkpoints.'),
          reason: z.string().max(MAX_SET_ASIDE_REASON).describe('Which file is damaged, and how.'),
        }),
      )
      .max(MAX_SET_ASIDE)
      .optional()
      .describe(
        'Checkpoints that were found damaged, renamed and not used; the newest ones. Delete them when you wish.',
      ),
    evaluations: z
      .array(EvaluationResult)
      .max(MAX_SETS)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['set'] })
      .describe('The newest result on each set.'),
    quantizeJobName: z.string().max(63).optional().describe('The QuantizeJob made for this job.'),
    artifact: ArtifactStatus.optional(),
  })
  .describe('What the operator observed.');
export type FaceTrainJobStatus = z.infer<typeof FaceTrainJobStatus>;

export const FaceTrainJob = z.strictObject({
  apiVersion: z.literal(API_VERSION),
  kind: z.literal('FaceTrainJob'),
  metadata: objectMeta(MAX_FACETRAINJOB_NAME),
  spec: FaceTrainJobSpec,
  status: FaceTrainJobStatus.optional(),
});
export type FaceTrainJob = z.output<typeof FaceTrainJob>;
