/** `facetrain eval`: the verification accuracy of a model file. */
import { availableParallelism } from 'node:os';
import { counted, FacetrainError } from '@facetrain/api';
import { type Device, decodePictures, type Graph, Model, type ModelOptions } from '@facetrain/native';
import { type ChannelOrder, channelOrderOf } from '@facetrain/trainer/onnx/channel-order';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx } from '@facetrain/trainer/onnx/read';
import { checkMagnitude } from '@facetrain/trainer/quantize/check-source';
import {
  checkNotConstant,
  checkSpread,
  meanPairCosine,
  SAME_DIRECTION,
} from '@facetrain/trainer/verification/check-embeddings';
import { evaluateSet } from '@facetrain/trainer/verification/evaluate-set';
import { readGroups } from '@facetrain/trainer/verification/groups';
import {
  type AcceptRates,
  type GroupFigures,
  type Interval,
  verify,
  verifyGroups,
} from '@facetrain/trainer/verification/protocol';
import { readVerificationSet, type VerificationSet } from '@facetrain/trainer/verification/verification-set';
import { percent, type StatusLine, table } from '../terminal-output.ts';
import { DEFAULT_ORDER, givenRange, type InputRangeOptions, inputText } from './input-range.ts';
import { checkDevice, openEmbedder, type Runtime, runtimeOf } from './open-embedder.ts';

export interface ModelToEvaluate extends InputRangeOptions {
  model: string;
  /** Absent: int7 for a quantized model, fp32 for any other. */
  runtime?: Runtime;
  /** Absent: as the file's metadata says it, else DEFAULT_CHANNEL_ORDER. */
  channelOrder?: ChannelOrder;
  /** The output that is the embedding; absent: the only one. */
  output?: string;
  /** Absent: one for each CPU. */
  threads?: number;
  /** Where an FP32 model runs; absent: auto, a GPU if there is one. INT7 models run on the CPU. */
  device?: Device | 'auto';
}

/** What the command is given: one of the first two. */
export interface EvalInput {
  pairs?: string;
  templates?: string;
  groups?: string;
}

export interface EvalOptions extends ModelToEvaluate {
  /** A verification set: a .bin file. */
  pairs: string;
  /** A text file with a group for each pair. */
  groups?: string;
}

/**
 * Opens a model as its file and the options say.
 * @throws FacetrainError InvalidModel, InvalidArgument
 */
export async function openForEvaluation({
  model: file,
  runtime,
  output,
  threads = availableParallelism(),
  device = 'auto',
  ...options
}: ModelToEvaluate) {
  checkDevice(device);
  const read = await readOnnx(file, { output });
  if (read.graph.outputs)
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: file,
      found: `is an INT7 model of the outputs ${read.graph.outputs.map(({ name }) => `"${name}"`).join(', ')}`,
      allowed: 'an embedding [N, d]: quantize with --output NAME to compare faces by one of them',
    });
  const channelOrder = options.channelOrder ?? channelOrderOf(read.metadata) ?? DEFAULT_ORDER;
  const { graph, range } = withInputRange(read, { given: givenRange(options), subject: file });
  const model = { ...read, graph };
  const kind = runtimeOf(model.graph, runtime);
  const place = { computeThreads: threads, device };
  const embedder = await openEmbedder(file, model, kind, { ...place, output });
  return { embedder, graph, range, kind, channelOrder, place };
}

export async function evaluate(
  { pairs, groups: groupsFile, ...options }: EvalOptions,
  line: StatusLine,
  signal: AbortSignal,
) {
  const file = options.model;
  const set = await readVerificationSet(pairs);
  const groupNames = groupsFile === undefined ? undefined : await readGroups(groupsFile, set.same.length);
  const { embedder, graph, range, kind, channelOrder, place } = await openForEvaluation(options);
  try {
    const start = performance.now();
    const embeddings = await evaluateSet(embedder, set, {
      input: graph.input,
      channelOrder,
      flip: true,
      signal,
      onBatch: (done, total) => line.show('Embedding', `${done} of ${total} pictures`),
    });
    line.clear();
    const seconds = (performance.now() - start) / 1000;
    if (embedder instanceof Model) await nameOverflow(embedder, graph, embeddings, { set, channelOrder, file, signal });
    if (range.source === 'metadata') warnOfTraining(embeddings, embedder.dim, file, line);
    else
      await checkSpread(embeddings, embedder.dim, {
        subject: file,
        input: graph.input,
        ...(kind === 'fp32' && {
          embedWith: (input) => embedFirst(set, { ...graph, input }, channelOrder, place, signal),
        }),
      });
    const ranOn = embedder instanceof Model ? embedder.device : 'cpu';
    const verification = verify(embeddings, embedder.dim, set.same);
    const { pairs: count, accuracy, std, threshold, intervals } = verification;
    const groups = groupNames && verifyGroups(embeddings, embedder.dim, set.same, groupNames, threshold);
    return {
      json: {
        ...verification,
        ...(groups && { groups }),
        runtime: kind,
        device: ranOn,
        model: file,
        set: pairs,
        channelOrder,
        input: range,
        seconds,
        imagesPerSecond: set.encoded.length / seconds,
      },
      text: table([
        ['Model', `${file} (${kind.toUpperCase()}, on ${ranOn === 'cuda' ? 'a GPU' : 'the CPU'})`],
        ['Input', inputText(range, channelOrder)],
        ['Pairs', `${count} of ${pairs}`],
        [
          'Accuracy',
          `${percent(accuracy)} ± ${(100 * std).toFixed(2)} (10-fold, flip; ${between(intervals.accuracy)} by ` +
            `the number of pairs)`,
        ],
        ['Threshold', `${threshold.toFixed(3)} (squared distance of unit embeddings, mean over the folds)`],
        ...ratesTable(verification),
        ...verification.byNorm.map(({ from, to, pairs: of, errors }): [string, string] => [
          `Errors at norm ${from.toPrecision(3)} to ${to.toPrecision(3)}`,
          `${errors} of ${of}`,
        ]),
        ...groupsTable(groups ?? []),
        ['Speed', `${(set.encoded.length / seconds).toFixed(1)} pictures/s, each with its mirror image`],
      ]),
    };
  } finally {
    await embedder.close();
  }
}

const between = ([low, high]: Interval) => `${(100 * low).toFixed(2)} to ${(100 * high).toFixed(2)} %`;
const rate = (share: number | null) => (share === null ? 'n/a' : percent(share));

/** 1e-3 is always given, as published figures are; a small set then has the value at no accepted pair. */
const unresolved = ({ unresolvedFar, negatives }: AcceptRates, far: string) =>
  far in unresolvedFar ? `; not resolved by ${counted(negatives, 'pair')} of different people` : '';

/** Lines of a table: true accept rates, and those that the set cannot resolve. */
export const ratesTable = (rates: AcceptRates): [string, string][] => [
  ...Object.entries(rates.tarAtFar).map(([far, tar]): [string, string] => [
    `TAR at FAR ${far}`,
    `${percent(tar)} (${between(rates.intervals.tarAtFar[far]!)})${unresolved(rates, far)}`,
  ]),
  ...Object.entries(rates.unresolvedFar)
    .filter(([far]) => !(far in rates.tarAtFar))
    .map(([far, needed]): [string, string] => [
      `TAR at FAR ${far}`,
      `n/a, needs ${needed} pairs of different people; the set has ${rates.negatives}`,
    ]),
];

export const groupsTable = (groups: readonly GroupFigures[]): [string, string][] =>
  groups.map(({ group, ...of }) => [
    `Group ${group}`,
    `${percent(of.accuracy)} of ${of.pairs} pairs (${between(of.interval)}); accepts ` +
      `${rate(of.falseAcceptRate)} of different people, refuses ${rate(of.falseRejectRate)} of the same`,
  ]);

/**
 * Our own exports say their range, so embeddings that are alike come from a training that has just begun.
 * @throws FacetrainError NotANumber when they are all the same
 */
function warnOfTraining(embeddings: Float32Array, dim: number, file: string, line: StatusLine): void {
  checkNotConstant(embeddings, dim, file);
  if (meanPairCosine(embeddings, dim) >= SAME_DIRECTION)
    line.print(`Warning: ${file} hardly tells pictures apart yet: it needs more training`);
}

/**
 * An embedding that is not finite says nothing of its cause, so its picture is looked at node by node.
 * @param embeddings [pictures of the set, dim]
 * @throws FacetrainError NotANumber or InvalidModel, naming the first node whose values are not finite or too large
 */
async function nameOverflow(
  model: Model,
  { input: { height, width } }: Graph,
  embeddings: Float32Array,
  {
    set,
    channelOrder,
    file,
    signal,
  }: { set: VerificationSet; channelOrder: ChannelOrder; file: string; signal: AbortSignal },
): Promise<void> {
  const at = embeddings.findIndex((value) => !Number.isFinite(value));
  if (at < 0) return;
  const first = Math.floor(at / model.dim);
  const pictures = await decodePictures([set.encoded[first]!], {
    channelOrder,
    height,
    width,
    subjects: [`${set.path}, picture ${first}`],
    code: 'InvalidVerificationSet',
    signal,
  });
  checkMagnitude(await model.nodeValues(pictures), file);
}

/** Pictures on which other ranges of the input are tried. */
const TRIED_PICTURES = 64;

async function embedFirst(
  set: VerificationSet,
  graph: Graph,
  channelOrder: ChannelOrder,
  place: ModelOptions,
  signal: AbortSignal,
): Promise<Float32Array> {
  const model = await Model.open(graph, place);
  try {
    const few = { ...set, encoded: set.encoded.slice(0, TRIED_PICTURES) };
    return await evaluateSet(model, few, { input: graph.input, channelOrder, flip: true, signal });
  } finally {
    await model.close();
  }
}
