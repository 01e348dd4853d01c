/**
 * Checks what a job reads, before files of an earlier run are removed. Trainers and quantizer check the same when they
 * start.
 */
import { type FaceTrainJob, parseStorageUri, rankCount } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { createBoard } from '@facetrain/trainer/program/progress-board';
import { checkGateHasPairs } from '@facetrain/trainer/verification/gate-pairs';
import { readSet, type VerificationSet } from '@facetrain/trainer/verification/verification-set';
import { pino } from 'pino';
import { plannedQuantizeConfig, plannedTrainerConfig } from './planned-config.ts';

/** Inputs in an object store are not checked: they are fetched when the job runs. */
const isHere = ({ uri }: { uri: string }) => parseStorageUri(uri).scheme !== 's3';
const isHereWithGroups = ({ groups, ...set }: FaceTrainJob['spec']['evaluation']['sets'][number]) =>
  isHere(set) && (!groups || isHere(groups));

/**
 * @param stateFolder OUT/.facetrain
 * @throws FacetrainError InvalidManifest, InvalidConfig, InvalidDataset, InvalidModel, InvalidVerificationSet,
 * StorageFailed
 */
export async function checkInputs(job: FaceTrainJob, stateFolder: string, signal: AbortSignal): Promise<void> {
  const { spec } = job;
  const config = plannedTrainerConfig(job, 'unused', stateFolder);
  const program = { log: pino({ level: 'silent' }), progress: createBoard(config.job, 'Preflight'), signal };
  // The addon loads slowly, so only when it is needed.
  const { backboneGraph, preflight } = await import('@facetrain/trainer/train/training-preflight');
  const graph = !spec.model.onnx || isHere(spec.model.onnx) ? await backboneGraph(config) : undefined;
  if (graph) {
    const size = rankCount(spec.trainers);
    const ranks = { rank: 0, size, masterAddr: '', masterPort: 0, localRank: 0, localSize: size };
    if (isHere(spec.dataset)) await preflight(config, graph, ranks, program);
  }
  for (const [index, set] of spec.evaluation.sets.entries())
    if (isHereWithGroups(set)) await readSet(config.evaluation.sets[index]!);
  if (spec.quantize) await checkQuantizationInputs(job, stateFolder, signal, { graph, afterTraining: true });
}

/**
 * Checks what the quantization of a job with one reads, except the model.
 * @param stateFolder OUT/.facetrain
 * @param options.graph of the model, when it is known: calibration pictures then have to have its size
 * @param options.afterTraining the dataset and the sets of the training, which are the defaults, are checked already
 * @throws FacetrainError InvalidManifest, InvalidConfig, InvalidDataset, InvalidVerificationSet, StorageFailed
 */
export async function checkQuantizationInputs(
  job: FaceTrainJob,
  stateFolder: string,
  signal: AbortSignal,
  { graph, afterTraining = false }: { graph?: Graph | undefined; afterTraining?: boolean } = {},
): Promise<void> {
  const { quantize, ...training } = job.spec;
  const config = plannedQuantizeConfig(job, 'unused', stateFolder);
  const { checkCalibration, checkGateHasSets } = await import('@facetrain/trainer/quantize/inputs');
  checkGateHasSets(config);
  const dataset = quantize?.calibration.dataset ?? (afterTraining ? undefined : training.dataset);
  if (dataset && isHere(dataset))
    await checkCalibration(config.calibration.datasetPath, graph?.input, config.calibration.maxBadPictures, signal);
  const { sets } = quantize?.evaluation ?? training.evaluation;
  const isRead = afterTraining && !quantize?.evaluation;
  const { maxTarDrop, maxGroupAccuracyDrop, maxGroupTarDrop } = config.gate;
  if (isRead && (maxTarDrop ?? maxGroupAccuracyDrop ?? maxGroupTarDrop) === undefined) return;
  const read: VerificationSet[] = [];
  for (const [index, set] of sets.entries())
    if (isHereWithGroups(set)) read.push(await readSet(config.evaluation.sets[index]!));
  // One in an object store may have the pairs that these do not have.
  if (read.length === sets.length) checkGateHasPairs(config.gate, read);
}
