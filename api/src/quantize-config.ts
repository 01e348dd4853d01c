/**
 * The quantizer's configuration: `config.json` of a QuantizeJob's pod, written by the planner (or by `facetrain
 * quantize`).
 *
 * It holds paths as the pod sees them, and all defaults are resolved. It never holds credentials: those are files of a
 * mounted Secret, or environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN).
 */
import { z } from 'zod';
import {
  accuracyDrop,
  agreement,
  calibrationImages,
  computeThreads,
  cosine,
  inputSide,
  MAX_SETS,
  maxBadPictures,
  modelOutput,
  searchBudget,
  searchCandidates,
  searchLower,
  searchRounds,
  searchUpper,
  seed,
} from './ranges.ts';
import { DEFAULT_SEARCH } from './shared-defaults.ts';
import { Destination } from './storage.ts';
import { ModelInput, VerificationSet } from './trainer-config.ts';

export const QuantizeConfig = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string().min(1), uid: z.string().min(1), attempt: z.int().min(0) }),
  model: z.strictObject({
    path: z.string().min(1).describe('The FP32 backbone, an ONNX file.'),
    output: modelOutput.optional().describe('The output to keep; absent: all.'),
    inputSize: z
      .strictObject({ height: inputSide, width: inputSide })
      .optional()
      .describe('Of the pictures, for a model whose file leaves it free.'),
    channelOrder: z.enum(['rgb', 'bgr']).describe('Order of the color channels at the model’s input.'),
    input: ModelInput.nullable()
      .default(null)
      .describe('null: as the file says it (trainer-image/src/onnx/input-range.ts).'),
  }),
  calibration: z.strictObject({
    datasetPath: z.string().min(1).describe('Folder of the dataset.'),
    images: calibrationImages,
    seed: seed.describe('Decides, together with the dataset, which pictures are drawn.'),
    maxBadPictures,
    resize: z
      .literal(true)
      .optional()
      .describe('Stretches the pictures to the size of the model’s input; absent: those of another size are refused.'),
  }),
  search: z.strictObject({
    rounds: searchRounds.describe(
      'Rounds of the search; each tries all weights, then all activations. 0: the scales of the maximum are kept.',
    ),
    candidates: searchCandidates.describe('Scales tried for each tensor in each round.'),
    lower: searchLower.describe('Smallest candidate as a multiple of the initial scale (alpha in the paper).'),
    upper: searchUpper.describe('Largest candidate as a multiple of the initial scale (beta in the paper).'),
    zeroPoints: z
      .boolean()
      .default(DEFAULT_SEARCH.zeroPoints)
      .describe('Search zero points of the tensors that convolutions multiply, too.'),
    equalize: z
      .boolean()
      .describe('Before the search, balance the ranges of channels against the weights that read them.'),
    biasCorrection: z
      .boolean()
      .describe('After the search, remove the mean error of each output channel through its bias.'),
    budget: searchBudget
      .default(DEFAULT_SEARCH.budget)
      .describe('Share of the multiply-accumulates of which the activations may have 8 bits instead of 7.'),
    strict: z.boolean().describe('Refuse a model of which a node would stay FP32.'),
  }),
  evaluation: z.strictObject({ sets: z.array(VerificationSet).max(MAX_SETS) }),
  gate: z.strictObject({
    maxAccuracyDrop: accuracyDrop
      .nullable()
      .describe('Largest drop of accuracy from FP32 to INT7 on any evaluation set; null: not checked.'),
    minMeanCosine: cosine
      .nullable()
      .describe('Smallest mean cosine between FP32 and INT7 embeddings; null: not checked.'),
    maxTarDrop: accuracyDrop
      .optional()
      .describe(
        'Largest drop of the true accept rate, on any set, at any false accept rate for which it has enough pairs of ' +
          'different people; absent: not checked.',
      ),
    maxGroupAccuracyDrop: accuracyDrop
      .optional()
      .describe(
        'Largest drop of accuracy on the pairs of any group that has enough of them: one pair then changes the ' +
          'accuracy by no more than this bound; absent: not checked.',
      ),
    maxGroupTarDrop: accuracyDrop
      .optional()
      .describe(
        'Largest drop of the true accept rate on the pairs of any group that has enough pairs of one person, at the ' +
          'thresholds of the whole set for the rates that maxTarDrop judges; absent: not checked.',
      ),
    minWorstCosine: cosine.optional().describe('Smallest cosine of any picture; absent: not checked.'),
    minTop1Agreement: agreement
      .optional()
      .describe(
        'Smallest share of the pictures on which the largest number of an output is the same, of every output that ' +
          'is a vector, without evaluation sets; absent: not checked.',
      ),
  }),
  publish: Destination.nullable().describe('null: the files stay in outputDirectory.'),
  outputDirectory: z
    .string()
    .min(1)
    .describe(
      'Receives model.int7.onnx, model.int7.trt.onnx, scales.json, report.json, report.html, and manifest.json last.',
    ),
  comparePaper: z
    .literal(true)
    .optional()
    .describe('Compares with a model of the paper’s search alone, in the report; absent: no.'),
  searchMemoryBytes: z
    .int()
    .min(0)
    .optional()
    .describe(
      'Memory for the activations of all calibration pictures, beside the weights and the search’s own work; those ' +
        'of a pass that needs more lie in a temporary file, on a disk. Absent: 2 GiB, or half of the memory that is ' +
        'available where that is less. It changes no result.',
    ),
  computeThreads: computeThreads.nullable().describe('null: the container’s CPUs.'),
  progress: z
    .strictObject({ host: z.string(), port: z.int().min(0).max(65535) })
    .nullable()
    .describe('null: no server.'),
});
export type QuantizeConfig = z.infer<typeof QuantizeConfig>;
