/** The checks before the ranks meet: the model, the dataset, and numbers that do not fit together. */
import { existsSync } from 'node:fs';
import { FacetrainError, type TrainerConfig } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { buildBackbone } from '../backbones/backbone.ts';
import { type Preflight, preflightDataset } from '../dataset/dataset-preflight.ts';
import { trainingFacts } from '../estimate/plan-training.ts';
import { checkTrainingMemory } from '../estimate/training-memory.ts';
import { inferShapes } from '../onnx/infer-shapes.ts';
import { withInputRange } from '../onnx/input-range.ts';
import { readOnnx } from '../onnx/read.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';

/**
 * The backbone before training: the user's own ONNX file, or a built-in one with initial weights.
 * @throws FacetrainError as readOnnx
 */
export async function backboneGraph({ model, seed }: TrainerConfig): Promise<Graph> {
  if (model.onnxPath === null) return buildBackbone({ ...model, seed });
  const { graph } = withInputRange(await readOnnx(model.onnxPath, { output: model.onnxOutput }), {
    given: model.input,
    keepNorms: true,
    subject: model.onnxPath,
  });
  return graph;
}

/**
 * Checks the dataset. Rank 0 decodes a sample of the pictures; the other ranks only read the records' headers.
 * @throws FacetrainError InvalidConfig, InvalidDataset, InsufficientMemory
 */
export async function preflight(
  config: TrainerConfig,
  graph: Graph,
  { rank, size, localSize }: Ranks,
  { progress, signal }: Program,
): Promise<Preflight & { totalSteps: number }> {
  const { globalBatchSize, microBatchSize } = config;
  if (globalBatchSize < size)
    throw invalidConfig('globalBatchSize', globalBatchSize, `a picture for each of the ${size} ranks`);
  if (microBatchSize !== null && (globalBatchSize % microBatchSize !== 0 || globalBatchSize / microBatchSize < size))
    throw invalidConfig(
      'microBatchSize',
      microBatchSize,
      `a divisor of the ${globalBatchSize} pictures of a step, with a micro-batch for each of the ${size} ranks`,
    );
  // Of the ranks with the fewest.
  const pictures = microBatchSize ?? Math.floor(globalBatchSize / size);
  if (pictures === 1 && !(config.model.syncBatchNorm && size > 1)) refuseSingleValues(graph, config);
  const dataset = await preflightDataset(config.dataset.path, {
    numClasses: config.model.numClasses,
    input: graph.input,
    globalBatchSize,
    maxBadPictures: config.dataset.maxBadPictures,
    decode: rank === 0 ? 'sample' : 'none',
    signal,
    onProgress: () => progress.tick(),
  });
  if (dataset.numClasses < size)
    throw invalidConfig('model.numClasses', dataset.numClasses, `at least one for each of the ${size} ranks`);
  // Memory of a GPU is not known here; libtorch reports what it lacks. Class centres on the host are, and for placement
  // Auto native/train/device.h decides.
  const device = config.device === 'auto' ? (existsSync('/dev/nvidiactl') ? 'cuda' : 'cpu') : config.device;
  if (device === 'cpu' || config.loss.rows.placement === 'host') {
    const { numClasses } = dataset;
    const gang = { numClasses, replicas: size, ranksPerPod: localSize, maxReplicas: null, device } as const;
    const facts = trainingFacts(config, graph, gang);
    checkTrainingMemory(facts, config.model.onnxPath ?? config.model.backbone, localSize);
  }
  return { ...dataset, totalSteps: config.epochs * dataset.stepsPerEpoch };
}

/**
 * The variance of one value is 0: a batch norm over the channels of a single picture gives the same for every picture.
 * @throws FacetrainError InvalidConfig where there is such a batch norm
 */
function refuseSingleValues(graph: Graph, { microBatchSize, globalBatchSize }: TrainerConfig): void {
  const shapes = inferShapes(graph, 1);
  const norm = graph.nodes.find(({ op, inputs: [x] }) => {
    const shape = op === 'BatchNormalization' ? shapes.get(x!) : undefined;
    return shape?.slice(2).every((length) => length === 1);
  });
  if (!norm) return;
  const allowed = `at least 2 pictures for the batch norm ${norm.name}, or syncBatchNorm with several ranks`;
  if (microBatchSize === null) throw invalidConfig('globalBatchSize', globalBatchSize, allowed);
  throw invalidConfig('microBatchSize', microBatchSize, allowed);
}

function invalidConfig(subject: string, found: number, allowed: string): FacetrainError {
  return new FacetrainError({ code: 'InvalidConfig', subject, found: String(found), allowed });
}
