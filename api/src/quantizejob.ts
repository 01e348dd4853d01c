/** QuantizeJob: EasyQuant (arXiv 2006.16669) of an ONNX face model to INT7, gated and published. */
import { z } from 'zod';
import {
  API_VERSION,
  ArtifactStatus,
  conditions,
  destination,
  evaluationSets,
  failurePolicy,
  MAX_QUANTIZEJOB_NAME,
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

export const channelOrder = z
  .enum(['RGB', 'BGR'])
  .default('RGB')
  .describe('Order of the colour channels at the model’s input.');

const search = section(
  {
    rounds: z
      .int32()
      .min(0)
      .max(100)
      .default(2)
      .describe('Rounds over all weights, then all activations; 0 keeps the scales of the maximum.'),
    candidates: z.int32().min(2).max(10_000).default(100).describe('Scales tried for each tensor in each round.'),
    lower: z.number().min(0.01).max(1).default(0.5).describe('Smallest scale tried, as a multiple of the first one.'),
    upper: z.number().min(1).max(16).default(2).describe('Largest scale tried, as a multiple of the first one.'),
    equalize: z
      .boolean()
      .default(true)
      .describe('First balance the ranges of channels against the weights that read them; exact in FP32.'),
    biasCorrection: z
      .boolean()
      .default(true)
      .describe('Last remove each output channel’s mean error through its bias.'),
  },
  'The scale search.',
);

const gate = section(
  {
    maxAccuracyDrop: z
      .number()
      .min(0)
      .max(1)
      .optional()
      .describe('Largest accuracy FP32 may lose on any evaluation set, e.g. 0.01; absent: not checked.'),
    minMeanCosine: z
      .number()
      .min(-1)
      .max(1)
      .optional()
      .describe('Smallest mean cosine between FP32 and INT7 embeddings, e.g. 0.98; absent: not checked.'),
  },
  'Bounds the artifact must keep; outside of them the job fails, with its report written.',
);

const quantizerPod = section(podFields, 'The pod that quantizes.');

const calibrationFields = {
  images: z.int32().min(1).max(100_000).default(50).describe('Pictures drawn for the search.'),
  seed: z.int().min(0).max(4_294_967_295).default(0).describe('Which pictures are drawn.'),
};

const common = {
  search,
  gate,
  quantizer: quantizerPod,
  activeDeadlineSeconds: seconds('Longest time from the start to the end, restarts included; absent: none.').optional(),
  pendingDeadlineSeconds: seconds('Longest wait for the pod to run; absent: none.').optional(),
  failurePolicy,
};

/** `spec.quantize` of a FaceTrainJob: a QuantizeJob whose model, data and sets are the training job's where it names no others. */
export const QuantizeTemplate = z
  .strictObject({
    calibration: section(
      {
        dataset: source('Faces the search looks at: insightface RecordIO.')
          .optional()
          .describe('Absent: the training dataset.'),
        ...calibrationFields,
      },
      'Pictures for the search.',
    ),
    evaluation: z
      .strictObject({ sets: evaluationSets })
      .optional()
      .describe('Verification sets for FP32 against INT7; absent: those of the training.'),
    output: destination('Where the artifact is published.')
      .optional()
      .describe('Absent: int7/ in the output of the training.'),
    ...common,
  })
  .describe(
    'Quantizes the trained backbone to INT7 when training has succeeded. {} takes every default; absent: no quantization.',
  );
export type QuantizeTemplate = z.output<typeof QuantizeTemplate>;

export const QuantizeJobSpec = rules(
  z.strictObject({
    suspend: z.boolean().default(false).describe('Stops the pod and waits.'),
    managedBy,
    model: rules(
      z.strictObject({
        ...source('The FP32 model: an ONNX file with one image input [N,3,112,112] and one embedding output [N,d].')
          .shape,
        channelOrder,
      }),
      [
        {
          cel: "!has(self.s3) || self.uri.startsWith('s3://')",
          message: 's3 is only for an s3:// uri',
          check: (value) => value.s3 === undefined || value.uri.startsWith('s3://'),
          path: ['s3'],
        },
      ],
    ).describe('The model to quantize.'),
    calibration: z
      .strictObject({
        dataset: source('Faces the search looks at: insightface RecordIO (train.rec, train.idx, property).'),
        ...calibrationFields,
      })
      .describe('Pictures for the search.'),
    evaluation: section({ sets: evaluationSets }, 'Verification sets for FP32 against INT7.'),
    output: destination(
      'Where the artifact is published: model.int7.onnx, scales.json, report.json, report.html, manifest.json.',
    ),
    ...common,
    ttlSecondsAfterFinished,
  }),
  [
    {
      cel: 'oldSelf.suspend || (self.model == oldSelf.model && self.calibration == oldSelf.calibration && self.search == oldSelf.search && self.output == oldSelf.output)',
      message: 'model, calibration, search and output can change only while the job is suspended',
    },
    {
      cel: 'has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)',
      message: 'managedBy cannot be changed',
      path: ['managedBy'],
    },
  ],
);
export type QuantizeJobSpec = z.output<typeof QuantizeJobSpec>;

export const QuantizePhase = z.enum(['Pending', 'Running', 'Restarting', 'Suspended', 'Succeeded', 'Failed']);
export type QuantizePhase = z.infer<typeof QuantizePhase>;

export const QuantizeJobStatus = z
  .strictObject({
    observedGeneration: z
      .int()
      .min(0)
      .optional()
      .describe('The generation of the spec that this status was computed from.'),
    phase: QuantizePhase.optional().describe('One word for people; programs read the conditions.'),
    conditions: conditions.optional(),
    attempt: z.int32().min(0).optional().describe('Number of the current attempt, from 0.'),
    startTime: Time.optional().describe('When the first attempt was created.'),
    attemptStartTime: Time.optional().describe('When the current attempt was created.'),
    completionTime: Time.optional().describe('When the job succeeded or failed.'),
    restarts: Restarts.optional(),
    artifact: ArtifactStatus.optional(),
  })
  .describe('What the operator has seen.');
export type QuantizeJobStatus = z.infer<typeof QuantizeJobStatus>;

export const QuantizeJob = z.strictObject({
  apiVersion: z.literal(API_VERSION),
  kind: z.literal('QuantizeJob'),
  metadata: objectMeta(MAX_QUANTIZEJOB_NAME),
  spec: QuantizeJobSpec,
  status: QuantizeJobStatus.optional(),
});
export type QuantizeJob = z.output<typeof QuantizeJob>;
