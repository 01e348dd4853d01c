/**
 * Loads a checkpoint into a session. Any number of ranks may have written it. What does not fit the job is an error.
 */
import { join } from 'node:path';
import type { BackboneState, TrainingSessionContract } from '@facetrain/native';
import { type Checkpoint, type CheckpointFile, checkContent, invalid, manifestPath } from './directory.ts';
import { Safetensors } from './safetensors.ts';
import { splitName } from './save.ts';

/** What a checkpoint must fit. */
export interface JobFacts {
  /** Name of the job that must have written it; null allows any job. */
  name: string | null;
  seed: number;
  numClasses: number;
  totalSteps: number;
  /** Called after every file. */
  onFile?: () => void;
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
  checkFits(session, checkpoint, job);
  await loadBackbone(session, checkpoint);
  job.onFile?.();

  const { firstRow, rows } = session.rowRange;
  for (const block of checkpoint.manifest.rows) {
    const first = Math.max(block.firstRow, firstRow);
    const count = Math.min(block.firstRow + block.rows, firstRow + rows) - first;
    if (count <= 0) continue;
    await using file = await openStored(checkpoint, block);
    for (const name of ['weight', 'momentum']) {
      const dims = file.dims(name);
      if (String(dims) !== String([block.rows, session.dim]))
        throw invalid(file.path, `${name} has the shape [${dims}]`, `[${block.rows}, ${session.dim}]`);
    }
    const range = [(first - block.firstRow) * session.dim, count * session.dim] as const;
    await session.loadRows({
      firstRow: first,
      rows: count,
      weight: await file.read('weight', ...range),
      momentum: await file.read('momentum', ...range),
    });
    job.onFile?.();
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
  for (const [field, value] of Object.entries(wanted) as [keyof typeof wanted, number][]) {
    if (manifest[field] === value) continue;
    throw invalid(
      `${manifestPath(directory)}: ${field}`,
      String(manifest[field]),
      `${value}, as in this job; a job that differs needs another checkpoint directory`,
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

async function loadBackbone(session: TrainingSessionContract, checkpoint: Checkpoint): Promise<void> {
  await using file = await openStored(checkpoint, checkpoint.manifest.backbone);
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

async function openStored(checkpoint: Checkpoint, stored: CheckpointFile): Promise<Safetensors> {
  await checkContent(checkpoint, stored);
  return Safetensors.open(join(checkpoint.directory, stored.file));
}
