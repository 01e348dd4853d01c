/**
 * Files that are published with a quantized model: `report.json` for people and dashboards, `manifest.json` for
 * programs.
 */
import { z } from 'zod';
import { StoredFile } from './checkpoint-manifest.ts';
import { GroupAccuracy, Histogram } from './train-report.ts';

/** FP32 and INT7 on the pairs of one group, each at its own threshold of the whole set. */
export const GroupComparison = z.strictObject({
  group: z.string(),
  pairs: z.int().positive(),
  fp32: GroupAccuracy,
  int7: GroupAccuracy,
  drop: z.number().describe('fp32 − int7 accuracy.'),
  positives: z.int().min(0).optional().describe('Pairs of one person. Absent in artifacts from before it.'),
  tarAtFar: z
    .record(z.string(), z.tuple([z.number(), z.number()]))
    .optional()
    .describe(
      'True accept rates of FP32 and INT7 by false accept rate, at the thresholds that have this rate on the whole ' +
        'set, of each model its own. Absent: the group has no pairs of one person, or an artifact from before it.',
    ),
});
export type GroupComparison = z.infer<typeof GroupComparison>;

const Accuracy = z.strictObject({
  accuracy: z.number().min(0).max(1),
  std: z.number().min(0),
  threshold: z.number(),
  tarAtFar: z.record(z.string(), z.number()),
});

/** FP32 and INT7 on one verification set. */
export const Comparison = z.strictObject({
  set: z.string(),
  pairs: z.int().positive(),
  fp32: Accuracy,
  int7: Accuracy,
  drop: z.number().describe('fp32 − int7 accuracy.'),
  meanCosine: z.number().describe('Between the FP32 and INT7 embeddings of the set’s pictures.'),
  negatives: z.int().positive().optional().describe('Pairs of different people. Absent in artifacts from before it.'),
  unresolvedFar: z
    .array(z.string())
    .optional()
    .describe('Rates of tarAtFar for which these pairs are too few: the gate does not judge them. Absent: none.'),
  groups: z.array(GroupComparison).optional().describe('By group of pairs. Absent: the set has no groups.'),
});
export type Comparison = z.infer<typeof Comparison>;

/** What the FP32 file and the INT7 file read. */
const InputFacts = z
  .strictObject({
    mean: z.array(z.number()),
    std: z.array(z.number()),
    source: z
      .enum(['given', 'metadata', 'type', 'head', 'default'])
      .describe(
        'given: model.input; metadata, type (of bytes), head: the file says it; default: nothing said another range.',
      ),
    layout: z.enum(['NCHW', 'NHWC', 'CHW']).optional().describe('Axes of both files’ input. Absent: NCHW.'),
    elementType: z.enum(['float32', 'uint8']).optional().describe('What both files’ input holds. Absent: float32.'),
  })
  .optional()
  .describe('Both files read (pixel − mean) / std, with a pixel from 0 to 255. Absent in artifacts from before it.');

/** How close INT7 is to FP32, over all sets. */
export const Metrics = z.strictObject({
  meanCosine: z.number().describe('Between FP32 and INT7 embeddings, over the pictures that measuredOn names.'),
  percentile1Cosine: z.number().describe('First percentile of the cosine: 99 of 100 pictures are better.'),
  worstCosine: z.number().optional().describe('Of the worst picture. Absent in artifacts from before it.'),
  accuracyDrop: z.number().nullable().describe('Largest drop over the sets; null without sets.'),
  top1Agreement: z
    .number()
    .optional()
    .describe(
      'Share of the pictures on which the largest number of the only output, a vector, is the same; absent with sets.',
    ),
  comparisons: z.array(Comparison),
  outputs: z
    .array(
      z.strictObject({
        name: z.string(),
        meanCosine: z.number(),
        percentile1Cosine: z.number(),
        worstCosine: z.number().optional().describe('Absent in artifacts from before it.'),
        top1Agreement: z
          .number()
          .min(0)
          .max(1)
          .nullable()
          .describe('Share of the pictures on which the largest of its numbers is the same; null: it is no vector.'),
      }),
    )
    .optional()
    .describe('Of a model that is no embedding: each output. Then the cosines are means over the outputs.'),
  measuredOn: z
    .strictObject({
      source: z
        .enum(['evaluation', 'heldOut', 'calibration'])
        .describe(
          'evaluation: all pictures of the evaluation sets. Without sets, heldOut: pictures of the calibration ' +
            'dataset that the search has not seen; calibration: the one picture of a dataset that has only one.',
        ),
      pictures: z.int().positive(),
    })
    .optional()
    .describe(
      'The pictures of the cosines. Absent in artifacts from before this field: the calibration pictures, ' +
        'if there are no comparisons.',
    ),
});
export type Metrics = z.infer<typeof Metrics>;

/** The bounds of `spec.gate` (null: not checked), and whether they were kept. */
export const Gate = z.strictObject({
  maxAccuracyDrop: z.number().nullable(),
  minMeanCosine: z.number().nullable(),
  maxTarDrop: z.number().optional().describe('Absent: not checked.'),
  maxGroupAccuracyDrop: z.number().optional().describe('Absent: not checked.'),
  maxGroupTarDrop: z.number().optional().describe('Absent: not checked.'),
  minWorstCosine: z.number().optional().describe('Absent: not checked.'),
  minTop1Agreement: z.number().optional().describe('Absent: not checked.'),
  passed: z.boolean(),
  failures: z.array(z.string()).describe('One sentence for each missed bound.'),
  notJudged: z
    .array(z.string())
    .optional()
    .describe('What a bound does not judge, a sentence for each set, or for the model. Absent: nothing.'),
  easySets: z
    .literal(true)
    .optional()
    .describe('All sets are LFW or CALFW, or FP32 has 99 % on them: their accuracy shows little of what INT7 loses.'),
});
export type Gate = z.infer<typeof Gate>;

/** Whether the job set any bound. */
export function hasBounds(gate: Gate): boolean {
  return Object.values(gate).some((bound) => typeof bound === 'number');
}

/** What the search found for one layer. */
export const QuantizedLayer = z.strictObject({
  name: z.string(),
  kind: z.enum(['conv', 'fc', 'pointwise', 'add', 'pool', 'node']),
  bits: z
    .union([z.literal(7), z.literal(8), z.literal(32)])
    .describe(
      'Bits of the layer’s input: 7 if multiplied by weights, or 8 within search.budget; 8 if only added or mapped; ' +
        '32 if it stays real.',
    ),
  macs: z.int().min(0).describe('Multiply-accumulate operations for one picture.'),
  cosineStart: z
    .number()
    .describe('Cosine of the output and FP32’s with the scales of the maximum, mean over the calibration pictures.'),
  cosine: z.number().describe('The same after the search.'),
  inputScale: z.number().nullable(),
  saturation: z
    .number()
    .min(0)
    .max(1)
    .describe('Fraction of the input’s values that were clipped, over the calibration pictures.'),
  weightSumMax: z
    .int()
    .min(0)
    .nullable()
    .describe('Largest sum of |weight| over one output channel: 63 × it bounds the accumulator, with 8 bits 127 ×.'),
});
export type QuantizedLayer = z.infer<typeof QuantizedLayer>;

/** Where the error of INT7 comes from. */
export const ErrorSplit = z
  .strictObject({
    source: z.enum(['heldOut', 'calibration']).describe('As in measuredOn.'),
    pictures: z.int().positive(),
    weights: z.number().describe('Only the weights and biases of convolutions are those of the INT7 model.'),
    operands: z.number().describe('Only the tensors that convolutions multiply are rounded, to 7 or 8 bits.'),
    others: z.number().describe('Only the other tensors are rounded, to 8 bits: what is added or mapped.'),
    all: z.number().describe('The INT7 model on the same pictures.'),
  })
  .describe('Mean cosine of the outputs with FP32 while one part of the network is in integers and the rest in FP32.');
export type ErrorSplit = z.infer<typeof ErrorSplit>;

const Scores = z.strictObject({
  roc: z
    .array(z.tuple([z.number(), z.number()]))
    .describe('Points of the ROC: false accept rate and true accept rate, the smallest first.'),
  same: Histogram.describe('Cosines between the two embeddings of pairs of one person.'),
  different: Histogram.describe('Cosines of pairs of different people.'),
});

/** How both models score the pairs of one verification set. */
export const SetScores = z.strictObject({ set: z.string(), fp32: Scores, int7: Scores });
export type SetScores = z.infer<typeof SetScores>;

/** A picture on which INT7 is far from FP32. */
export const WorstPicture = z.strictObject({
  set: z.string().nullable().describe('The verification set; null: the calibration dataset.'),
  picture: z.int().min(0).describe('Its number there, from 0; in a set, 2i and 2i + 1 are pair i.'),
  mirrored: z.boolean().describe('Its mirror image.'),
  cosine: z.number(),
});
export type WorstPicture = z.infer<typeof WorstPicture>;

/** Time of one picture on one thread, computed and not measured. */
export const PredictedLatency = z.strictObject({
  target: z.string().describe('Instruction set or processor.'),
  milliseconds: z.number().min(0),
  basis: z
    .enum(['measured', 'simulated'])
    .describe(
      'measured: by the rates of two networks on one machine. simulated: by the cycles of inner loops alone, ' +
        'without memory; it takes longer.',
    ),
});
export type PredictedLatency = z.infer<typeof PredictedLatency>;

/** The FP32 model. */
const Source = StoredFile.extend({
  externalData: z
    .record(z.string(), StoredFile)
    .optional()
    .describe('Files beside the model that hold its weights, by name; absent: none.'),
  channelOrder: z.enum(['rgb', 'bgr']),
  input: InputFacts,
});

/**
 * `report.json`. The same inputs give the same bytes, so a repeated quantization finds its files published already.
 * Therefore it holds no times.
 */
export const QuantizeReport = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string(), uid: z.string(), attempt: z.int().min(0) }),
  source: Source.extend({
    parameters: z.int().min(0),
    removed: z
      .array(z.string())
      .optional()
      .describe('What the model computes and the quantized one does not, each a sentence; absent: nothing.'),
  }),
  model: StoredFile.describe('model.int7.onnx.'),
  calibration: z.strictObject({
    images: z.int().positive(),
    seed: z.int().min(0),
    sha256: z.string().describe('SHA-256 of the decoded pictures, in order.'),
  }),
  search: z.strictObject({
    rounds: z.int(),
    candidates: z.int(),
    lower: z.number(),
    upper: z.number(),
    zeroPoints: z.boolean().optional().describe('Absent in artifacts from before it, when all were 0.'),
    equalize: z.boolean(),
    biasCorrection: z.boolean(),
    budget: z.number().optional().describe('Absent in artifacts from before it, when it was 0.'),
    strict: z.boolean().optional().describe('Absent in artifacts from before it, when nothing could stay FP32.'),
  }),
  realNodes: z
    .array(z.strictObject({ node: z.string(), reason: z.string() }))
    .optional()
    .describe('Nodes of the model that stay in FP32, each with what has no quantized form. Absent: none.'),
  tail: z
    .strictObject({
      inputs: z.array(z.string()).describe('What our runtime gives: the outputs in front of these nodes.'),
      operators: z.string().describe('How many nodes of each operator, such as "NonMaxSuppression 1, Gather 3".'),
      causes: z
        .array(z.strictObject({ node: z.string(), reason: z.string() }))
        .describe('The nodes that our runtime does not compute, each with why; the others read of them.'),
    })
    .optional()
    .describe('Nodes at the end of the model that only other runtimes compute, in FP32. Absent: none.'),
  layers: z.array(QuantizedLayer),
  errorSplit: ErrorSplit.optional().describe('Absent in artifacts from before it.'),
  // Absent in reports of before.
  folded: z
    .array(z.strictObject({ node: z.string(), into: z.array(z.string()) }))
    .optional()
    .describe('Nodes, mostly batch norms, that weights have taken in, with the layers that they were folded into.'),
  sizes: z
    .strictObject({
      channels: z.int().min(0).describe('Output channels of all convolutions and fully connected layers.'),
      aimBytes: z.int().min(0).describe('A quarter of the FP32 model and 16 bytes for each channel.'),
      files: z.record(z.string(), z.int().min(0)).describe('Bytes of the model files, by name.'),
    })
    .optional(),
  latency: z.array(PredictedLatency).optional(),
  scores: z.array(SetScores).optional().describe('By verification set.'),
  angles: Histogram.optional().describe('Degrees between the FP32 and the INT7 output of each picture.'),
  worstPictures: z.array(WorstPicture).optional().describe('The worst first. report.html shows them.'),
  metrics: Metrics,
  paperSearch: Metrics.optional().describe(
    'As metrics, of a model by the search of the paper alone: no zero points, no balanced ranges, no corrected ' +
      'biases, 7 bits. Absent: not compared.',
  ),
  gate: Gate,
});
export type QuantizeReport = z.infer<typeof QuantizeReport>;

/** `scales.json`: real = (integer − zero point) × scale. This scale is the reciprocal of EasyQuant’s S. */
export const ScalesDocument = z.strictObject({
  schemaVersion: z.literal(1),
  tensors: z.record(
    z.string(),
    z.strictObject({
      scale: z.number().positive(),
      limit: z.union([z.literal(63), z.literal(127)]).describe('Largest magnitude of the integers.'),
      zeroPoint: z.int().min(-63).max(63).default(0).describe('The integer of 0. Absent in artifacts from before it.'),
    }),
  ),
  weights: z
    .record(z.string(), z.array(z.number().positive()))
    .describe('By layer; one scale for each output channel.'),
});
export type ScalesDocument = z.infer<typeof ScalesDocument>;

/** `manifest.json`, written last: an artifact without one is incomplete. */
export const ArtifactManifest = z.strictObject({
  schemaVersion: z.literal(1),
  kind: z.literal('facetrain-int7'),
  source: Source,
  calibration: z.strictObject({ images: z.int().positive(), seed: z.int().min(0), sha256: z.string() }),
  metrics: Metrics,
  gate: Gate,
  files: z.record(z.string(), StoredFile).describe('All other files of the artifact, by name.'),
});
export type ArtifactManifest = z.infer<typeof ArtifactManifest>;
