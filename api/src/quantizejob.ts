/** QuantizeJob: EasyQuant (arXiv 2006.16669) of an ONNX face model to INT7, checked against a gate and published. */
import { z } from 'zod';
import { API_VERSION, MAX_QUANTIZEJOB_NAME } from './identifiers.ts';
import {
  ArtifactStatus,
  evaluationSets,
  failurePolicy,
  firstStatusFields,
  MANAGED_BY_RULE,
  managedBy,
  objectMeta,
  podFields,
  QUEUE_RULE,
  queue,
  Refusal,
  Restarts,
  seconds,
  Time,
  ttlSecondsAfterFinished,
} from './job-fields.ts';
import { MemoryQuantity } from './quantity.ts';
import {
  accuracyDrop,
  agreement,
  calibrationImages,
  cosine,
  inputMean,
  inputSide,
  inputStd,
  modelOutput,
  searchBudget,
  searchCandidates,
  searchLower,
  searchRounds,
  searchUpper,
  seed,
} from './ranges.ts';
import { rules, section, unchanged } from './schema-rules.ts';
import { DEFAULT_CALIBRATION, DEFAULT_CHANNEL_ORDER, DEFAULT_SEARCH } from './shared-defaults.ts';
import { dataset, destination, S3_RULE, sourceFields } from './storage.ts';

export const channelOrder = z
  .enum(['RGB', 'BGR'])
  .default(DEFAULT_CHANNEL_ORDER)
  .describe('Order of the color channels at the model’s input.');

export const modelInput = z
  .strictObject({
    mean: inputMean.meta({ 'x-kubernetes-list-type': 'atomic' }).describe('One number, or one for each channel.'),
    std: inputStd.meta({ 'x-kubernetes-list-type': 'atomic' }).describe('One number, or one for each channel.'),
  })
  .describe(
    'What the model’s file reads: (pixel − mean) / std, with a pixel from 0 to 255. mean [127.5] and std [127.5] are ' +
      '−1..1, [0] and [255] are 0..1, [0] and [1] are 0..255. Absent: as the file’s metadata or first nodes say it, ' +
      'else −1..1.',
  );

export const modelInputSize = z
  .strictObject({ height: inputSide.describe('In pixels.'), width: inputSide.describe('In pixels.') })
  .describe('Size of the pictures, for a model whose file leaves it free; the INT7 model has this size.');

const search = section(
  {
    rounds: searchRounds
      .default(DEFAULT_SEARCH.rounds)
      .describe(
        'Most rounds of the search; it ends when a round gains nothing. A round tries all weights, then all ' +
          'activations. 0: the scales of the maximum are kept.',
      ),
    candidates: searchCandidates
      .default(DEFAULT_SEARCH.candidates)
      .describe('Scales tried for each tensor in each round.'),
    lower: searchLower
      .default(DEFAULT_SEARCH.lower)
      .describe('Lower end of the range of 1/scale (EasyQuant’s S) that is tried, as a multiple of its first value.'),
    upper: searchUpper
      .default(DEFAULT_SEARCH.upper)
      .describe('Upper end of the range of 1/scale that is tried, as a multiple of its first value.'),
    zeroPoints: z
      .boolean()
      .default(DEFAULT_SEARCH.zeroPoints)
      .describe(
        'Search a zero point, too, for each tensor that a convolution multiplies: where its values are mostly ' +
          'positive, as behind a PReLU, the integers are then finer.',
      ),
    equalize: z
      .boolean()
      .default(DEFAULT_SEARCH.equalize)
      .describe('Before the search, balance the ranges of channels against the weights that read them. Exact in FP32.'),
    biasCorrection: z
      .boolean()
      .default(DEFAULT_SEARCH.biasCorrection)
      .describe('After the search, remove the mean error of each output channel through its bias.'),
    budget: searchBudget
      .default(DEFAULT_SEARCH.budget)
      .describe(
        'Share of the network’s multiply-accumulates of which the activations may have 8 bits instead of 7; weights ' +
          'keep 7. Given to the layers whose activations get the most finer for their multiplications. More is ' +
          'closer to FP32, and slower on CPUs without VNNI or the dot product of ARMv8.2.',
      ),
    strict: z
      .boolean()
      .default(DEFAULT_SEARCH.strict)
      .describe('Refuse a model of which a node has no quantized form and would stay FP32; report.json names such.'),
    comparePaper: z
      .boolean()
      .default(false)
      .describe(
        'Also search by the paper alone (EasyQuant, arXiv 2006.16669: no zero points, no balanced ranges, no ' +
          'corrected biases, 7 bits), and show what that model would be beside this one in the report. Takes a ' +
          'second search.',
      ),
    memory: MemoryQuantity.optional().describe(
      'Memory for what a layer gives for all calibration pictures; what needs more lies in a file in the pod’s ' +
        '`/tmp`, and the search finds the same. Weights and the search’s own work are beside that. Absent: 2Gi, or ' +
        'half of the container’s memory where that is less.',
    ),
  },
  'The scale search.',
);

const gate = section(
  {
    maxAccuracyDrop: accuracyDrop
      .optional()
      .describe('Largest drop of accuracy from FP32 to INT7 on any evaluation set, e.g. 0.01; absent: not checked.'),
    minMeanCosine: cosine
      .optional()
      .describe('Smallest mean cosine between FP32 and INT7 embeddings, e.g. 0.98; absent: not checked.'),
    maxTarDrop: accuracyDrop
      .optional()
      .describe(
        'Largest drop of the true accept rate from FP32 to INT7 on any evaluation set, e.g. 0.02, at any false ' +
          'accept rate of the report for which the set has enough pairs of different people: 10 for 1e-1, 1,000 for ' +
          '1e-3; absent: not checked.',
      ),
    maxGroupAccuracyDrop: accuracyDrop
      .optional()
      .describe(
        'Largest drop of accuracy from FP32 to INT7 on the pairs of any group of a set with `groups`, e.g. 0.02, at ' +
          'the threshold of the whole set. A group has to have so many pairs that one of them changes its accuracy ' +
          'by no more than this: 50 for 0.02; absent: not checked.',
      ),
    maxGroupTarDrop: accuracyDrop
      .optional()
      .describe(
        'Largest drop of the true accept rate from FP32 to INT7 on the pairs of any group of a set with `groups`, ' +
          'e.g. 0.05, at the thresholds of the whole set, at the false accept rates that maxTarDrop judges. A group ' +
          'has to have so many pairs of one person that one of them changes its rate by no more than this: 20 for ' +
          '0.05; absent: not checked.',
      ),
    minWorstCosine: cosine
      .optional()
      .describe('Smallest cosine between the FP32 and the INT7 embedding of any picture; absent: not checked.'),
    minTop1Agreement: agreement
      .optional()
      .describe(
        'For models that are no embedding, such as classifiers: smallest share of the pictures on which the largest ' +
          'number is the same in FP32 and INT7, of every output that is a vector, e.g. 0.98; absent: not checked.',
      ),
  },
  'Bounds that the artifact must keep. If it misses one, the job fails, and only its report is written, to rejected/.',
);

const quantizerPod = section(podFields, 'The pod that quantizes.');

const calibrationFields = {
  images: calibrationImages.default(DEFAULT_CALIBRATION.images).describe('Pictures drawn for the search.'),
  seed: seed.default(DEFAULT_CALIBRATION.seed).describe('Decides which pictures are drawn.'),
};

/** Fields that a QuantizeJob and `spec.quantize` of a FaceTrainJob share. */
const common = {
  search,
  gate,
  quantizer: quantizerPod,
  activeDeadlineSeconds: seconds(
    'Longest time from startTime, when the pod was first wanted, to the end, restarts included; absent: no limit.',
  ).optional(),
  pendingDeadlineSeconds: seconds(
    'Longest wait for the pod to run, also while a quota or a webhook refuses it; absent: no limit.',
  ).optional(),
  failurePolicy,
};

/**
 * `spec.quantize` of a FaceTrainJob: the spec of a QuantizeJob. Its model is the trained one; the data and the sets
 * that it does not name are those of the training.
 */
export const QuantizeTemplate = z
  .strictObject({
    calibration: section(
      {
        dataset: dataset('Faces that the search looks at: a dataset of any layout that a FaceTrainJob trains on.')
          .optional()
          .describe('Absent: the training dataset.'),
        ...calibrationFields,
      },
      'Pictures for the search.',
    ),
    evaluation: z
      .strictObject({ sets: evaluationSets })
      .optional()
      .describe('Verification sets on which FP32 and INT7 are compared; absent: those of the training.'),
    output: destination('Where the artifact is published.')
      .optional()
      .describe('Absent: int7/ in the output of the training.'),
    queue: queue.optional().describe('The queue of the QuantizeJob; absent: that of the training, if it has one.'),
    ...common,
  })
  .describe(
    'Quantizes the trained backbone to INT7 once training has succeeded. {} takes every default; ' +
      'absent: no quantization. Copied into a QuantizeJob when training succeeds; later changes have no effect.',
  );
export type QuantizeTemplate = z.output<typeof QuantizeTemplate>;

/** Fields that decide what an attempt quantizes; as TRAINING_FIELDS of a FaceTrainJob. */
export const QUANTIZATION_FIELDS: readonly string[] = ['model', 'calibration', 'search', 'output'];

export const QuantizeJobSpec = rules(
  z.strictObject({
    suspend: z.boolean().default(false).describe('true stops the pod; false starts the job again.'),
    managedBy,
    queue: queue.optional(),
    model: rules(
      z.strictObject({
        ...sourceFields(
          'The FP32 model: an ONNX file with one image input, such as [N,3,112,112], or a folder with one and the ' +
            'files of its weights.',
        ),
        output: modelOutput.optional().describe('Name of the output to keep; absent: all.'),
        inputSize: modelInputSize.optional(),
        channelOrder,
        input: modelInput.optional(),
      }),
      [S3_RULE],
    ).describe('The model to quantize.'),
    calibration: z
      .strictObject({
        dataset: dataset('Faces that the search looks at: a dataset of any layout that a FaceTrainJob trains on.'),
        ...calibrationFields,
        resize: z
          .boolean()
          .optional()
          .describe(
            'Stretch the pictures to the size of the model’s input, for models that are not of faces of the ' +
              'dataset’s size. Not with evaluation sets. Absent: pictures of another size are refused.',
          ),
      })
      .describe('Pictures for the search.'),
    evaluation: section({ sets: evaluationSets }, 'Verification sets on which FP32 and INT7 are compared.'),
    output: destination(
      'Where the artifact is published: model.int7.onnx, model.int7.trt.onnx, scales.json, report.json, ' +
        'report.html, manifest.json.',
    ),
    ...common,
    ttlSecondsAfterFinished,
  }),
  [
    {
      cel: `oldSelf.suspend || (${unchanged(...QUANTIZATION_FIELDS)})`,
      message: 'model, calibration, search and output can change only while the job is suspended',
    },
    QUEUE_RULE,
    MANAGED_BY_RULE,
  ],
);
export type QuantizeJobSpec = z.output<typeof QuantizeJobSpec>;

export const QuantizePhase = z.enum(['Pending', 'Running', 'Restarting', 'Suspended', 'Succeeded', 'Failed']);
export type QuantizePhase = z.infer<typeof QuantizePhase>;

export const QuantizeJobStatus = z
  .strictObject({
    ...firstStatusFields(QuantizePhase),
    attemptStartTime: Time.optional().describe('When the pod of the current attempt had been created.'),
    completionTime: Time.optional().describe('When the job succeeded or failed.'),
    restarts: Restarts.optional(),
    refusal: Refusal.optional(),
    artifact: ArtifactStatus.optional(),
  })
  .describe('What the operator observed.');
export type QuantizeJobStatus = z.infer<typeof QuantizeJobStatus>;

export const QuantizeJob = z.strictObject({
  apiVersion: z.literal(API_VERSION),
  kind: z.literal('QuantizeJob'),
  metadata: objectMeta(MAX_QUANTIZEJOB_NAME),
  spec: QuantizeJobSpec,
  status: QuantizeJobStatus.optional(),
});
export type QuantizeJob = z.output<typeof QuantizeJob>;
