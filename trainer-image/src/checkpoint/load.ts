/**
 * Loads a checkpoint into a session. Any number of ranks may have written it. What does not fit the job is an error. No
 * byte is used before its digest was compared.
 */
import {
  type AnyCheckpointManifest,
  BYTES_OF,
  type CheckpointManifest,
  type CheckpointManifestV1,
  FacetrainError,
  NormStatistics,
  precision as precisions,
  ROWS_OPTIMIZER_NAMES,
  type TrainerConfig,
} from '@facetrain/api';
import type { BackboneState, Rows, TrainingSessionContract } from '@facetrain/native';
import { type Checkpoint, invalid, manifestPath, OpenRowFile, openWhole } from './directory.ts';
import { OPTIMIZER, splitName } from './save.ts';

/** What a checkpoint must fit. */
export interface JobFacts {
  /** Name of the job that must have written it; null allows any job. */
  name: string | null;
  seed: number;
  precision: TrainerConfig['precision'];
  numClasses: number;
  /** Whether the job names numClasses, and has more of them than the checkpoint on purpose. */
  mayAddClasses?: boolean;
  totalSteps: number;
  /** Called after every block. */
  onBlock?: () => void;
}

/**
 * To be called on every rank; each reads the backbone and its own class centres.
 * @throws DamagedCheckpoint for a file that is not what the manifest says; FacetrainError InvalidCheckpoint when the
 * checkpoint does not fit the job; StorageFailed
 */
export async function loadCheckpoint(
  session: TrainingSessionContract,
  checkpoint: Checkpoint,
  job: JobFacts,
): Promise<void> {
  const { manifest } = checkpoint;
  checkFits(session, checkpoint, job);
  await usePrecision(session, checkpoint, job.precision);
  await useNormStatistics(session, checkpoint);
  await loadBackbone(session, checkpoint);
  job.onBlock?.();
  if (manifest.schemaVersion === 1) await loadRowsV1(session, { ...checkpoint, manifest }, job);
  else await loadRows(session, { ...checkpoint, manifest }, job);
}

/**
 * Sets the class centres of classes to zero, those that are the session's, and what their optimizer keeps.
 * @throws FacetrainError of the session
 */
export async function zeroRows(session: TrainingSessionContract, classes: readonly number[]): Promise<void> {
  for (const firstRow of classes.filter((id) => overlap({ firstRow: id, rows: 1 }, session.rowRange).count > 0)) {
    const tensors = session.rowTensors.map(({ name, dtype, columns }) => {
      return [name, { dtype, bytes: new Uint8Array(columns * BYTES_OF[dtype]) }] as const;
    });
    await session.loadRows({ firstRow, rows: 1, tensors: Object.fromEntries(tensors) });
  }
}

/** The rows of a block that a session holds; a count of 0 or less: none. */
function overlap(
  { firstRow, rows }: { firstRow: number; rows: number },
  range: TrainingSessionContract['rowRange'],
): { first: number; count: number } {
  const first = Math.max(firstRow, range.firstRow);
  return { first, count: Math.min(firstRow + rows, range.firstRow + range.rows) - first };
}

/** Of the class centres in a checkpoint, as manifests name it. */
export const rowsOptimizerOf = (manifest: AnyCheckpointManifest): string =>
  manifest.schemaVersion === 1 ? ROWS_OPTIMIZER_NAMES.sgd : manifest.rows.optimizer;

/**
 * Which tensors of the class centres to load: all, or only the centres, if another optimizer has trained them. Its
 * state would mean something else to the session's, which starts anew.
 */
function wantedTensors(session: TrainingSessionContract, manifest: AnyCheckpointManifest): (name: string) => boolean {
  const same = rowsOptimizerOf(manifest) === ROWS_OPTIMIZER_NAMES[session.rowsOptimizer];
  return (name) => same || name === 'weight';
}

async function loadRows(
  session: TrainingSessionContract,
  checkpoint: Checkpoint & { manifest: CheckpointManifest },
  { onBlock }: JobFacts,
): Promise<void> {
  const { files, tensors } = checkpoint.manifest.rows;
  const wanted = wantedTensors(session, checkpoint.manifest);
  for (const file of files) {
    const blocks = file.blocks.filter((block) => overlap(block, session.rowRange).count > 0);
    if (blocks.length === 0) continue;
    await using opened = await OpenRowFile.open(checkpoint, file);
    for (const block of blocks) {
      const bytes = await opened.read(block);
      const { first, count } = overlap(block, session.rowRange);
      const rows: Rows = { firstRow: first, rows: count, tensors: {} };
      // In a block, the tensors follow each other.
      let start = 0;
      for (const { name, dtype, columns } of tensors) {
        const size = columns * BYTES_OF[dtype];
        const from = start + (first - block.firstRow) * size;
        if (wanted(name)) rows.tensors[name] = { dtype, bytes: bytes.subarray(from, from + count * size) };
        start += block.rows * size;
      }
      await session.loadRows(rows);
      onBlock?.();
    }
  }
}

async function loadRowsV1(
  session: TrainingSessionContract,
  checkpoint: Checkpoint & { manifest: CheckpointManifestV1 },
  { onBlock }: JobFacts,
): Promise<void> {
  for (const block of checkpoint.manifest.rows) {
    const { first, count } = overlap(block, session.rowRange);
    if (count <= 0) continue;
    await using file = await openWhole(checkpoint, block);
    const rows: Rows = { firstRow: first, rows: count, tensors: {} };
    for (const name of ['weight', 'momentum'].filter(wantedTensors(session, checkpoint.manifest))) {
      const dims = file.dims(name);
      if (String(dims) !== String([block.rows, session.dim]))
        throw invalid(file.path, `${name} has the shape [${dims}]`, `[${block.rows}, ${session.dim}]`);
      const values = await file.read(name, (first - block.firstRow) * session.dim, count * session.dim);
      rows.tensors[name] = { dtype: 'float32', bytes: new Uint8Array(values.buffer) };
    }
    await session.loadRows(rows);
    onBlock?.();
  }
}

function checkFits(session: TrainingSessionContract, { directory, manifest }: Checkpoint, job: JobFacts): void {
  if (job.name !== null && manifest.job.name !== job.name) {
    throw invalid(
      `${manifestPath(directory)}: job.name`,
      JSON.stringify(manifest.job.name),
      `${JSON.stringify(job.name)}, the name of this job; give each job a separate output, ` +
        'or set checkpoint.uri to this folder to continue from the other job’s checkpoint',
    );
  }
  const wanted = {
    numClasses: job.numClasses,
    embeddingDim: session.dim,
    seed: job.seed,
    stepsPerEpoch: session.stepsPerEpoch,
  };
  if (manifest.numClasses > job.numClasses)
    throw invalid(
      `${manifestPath(directory)}: numClasses`,
      String(manifest.numClasses),
      `${job.numClasses} at most, as in this job; classes can be added, but their number never shrinks: facetrain ` +
        `head ` +
        'remove takes identities out, and their ids stay',
    );
  // New classes keep the rows that the session has drawn from the seed. Their pictures change the steps of an epoch.
  const grows = job.mayAddClasses === true && manifest.numClasses < job.numClasses;
  const mayDiffer = [
    ...(grows ? ['numClasses', 'stepsPerEpoch'] : []),
    ...(manifest.schemaVersion === 2 && manifest.classesAdded ? ['stepsPerEpoch'] : []),
  ];
  for (const [field, value] of Object.entries(wanted) as [keyof typeof wanted, number][]) {
    if (manifest[field] === value || mayDiffer.includes(field)) continue;
    throw invalid(
      `${manifestPath(directory)}: ${field}`,
      String(manifest[field]),
      `${value}, as in this job; a job that differs needs another checkpoint directory` +
        (field === 'numClasses' ? ', or facetrain head add, which makes class centres of the new identities' : ''),
    );
  }
  if (manifest.schemaVersion === 2) {
    const { optimizer } = manifest.backbone;
    if (optimizer !== OPTIMIZER)
      throw invalid(
        `${manifestPath(directory)}: backbone.optimizer`,
        JSON.stringify(optimizer),
        `${OPTIMIZER}, as in this job; a job that differs needs another checkpoint directory`,
      );
  }
  if (manifest.step > job.totalSteps) {
    throw invalid(
      `${manifestPath(directory)}: step`,
      String(manifest.step),
      `at most ${job.totalSteps}, the steps of this job; a shorter job needs another checkpoint directory`,
    );
  }
}

/**
 * Goes on in the precision of the checkpoint: a training whose precision changes is neither of the two, and its report
 * could name only one.
 */
async function usePrecision(
  session: TrainingSessionContract,
  { directory, manifest }: Checkpoint,
  wanted: JobFacts['precision'],
): Promise<void> {
  const { precision: named, lossScale } = manifest.schemaVersion === 1 ? {} : manifest;
  const subject = `${manifestPath(directory)}: precision`;
  // Written before there was a choice: FP32, but for convolutions on a GPU, which were computed in TF32. Either may go
  // on, and Auto takes the first.
  const before = session.device === 'cuda' ? (['tf32', 'fp32'] as const) : (['fp32'] as const);
  const allowed: readonly string[] = named === undefined ? before : [named];
  if (wanted !== 'auto' && !allowed.includes(wanted)) {
    throw invalid(
      subject,
      allowed[0]!.toUpperCase(),
      `${wanted.toUpperCase()}, as trainers.precision of this job says; Auto continues in the checkpoint’s ` +
        'precision, another one needs another checkpoint directory',
    );
  }
  const use = precisions.safeParse(wanted === 'auto' ? allowed[0] : wanted);
  if (!use.success)
    throw invalid(subject, JSON.stringify(named), `one that this version knows: ${precisions.options.join(', ')}`);
  try {
    await session.usePrecision(use.data, lossScale);
  } catch (error) {
    if (!(error instanceof FacetrainError) || error.code !== 'InvalidConfig') throw error;
    throw invalid(subject, error.found, error.allowed);
  }
}

/** A training that goes on with AdaFace after another margin starts its statistics anew, as a new training does. */
async function useNormStatistics(session: TrainingSessionContract, { directory, manifest }: Checkpoint): Promise<void> {
  if (manifest.schemaVersion === 1 || !manifest.margin || !(await session.normStatistics())) return;
  const statistics = NormStatistics.safeParse(manifest.margin);
  if (!statistics.success)
    throw invalid(
      `${manifestPath(directory)}: margin`,
      JSON.stringify(manifest.margin),
      'normMean above 0 and normDeviation of 0 or more, the running values of AdaFace',
    );
  await session.useNormStatistics(statistics.data);
}

async function loadBackbone(session: TrainingSessionContract, checkpoint: Checkpoint): Promise<void> {
  await using file = await openWhole(checkpoint, checkpoint.manifest.backbone);
  const graph = await session.saveBackbone();
  const state: BackboneState = { tensors: {}, momentum: {} };
  for (const name of file.names) {
    const [part, tensor] = splitName(name);
    const dims = file.dims(name);
    const ours = Object.hasOwn(graph[part], tensor) ? graph[part][tensor]!.dims : undefined;
    if (String(ours) !== String(dims)) {
      throw invalid(
        file.path,
        `${name} with the shape [${dims}]`,
        ours
          ? `[${ours}], as in this job’s backbone`
          : 'only tensors of this job’s backbone; another backbone needs another checkpoint directory',
      );
    }
    state[part][tensor] = { dims, data: await file.read(name) };
  }
  for (const part of ['tensors', 'momentum'] as const) {
    const missing = Object.keys(graph[part]).find((name) => !Object.hasOwn(state[part], name));
    if (missing !== undefined)
      throw invalid(
        file.path,
        `no ${part === 'momentum' ? 'momentum of ' : ''}"${missing}"`,
        'every tensor of this job’s backbone; another backbone needs another checkpoint directory',
      );
  }
  await session.loadBackbone(state);
}
