/** What differs between two checkpoints: how they were trained, how far weights and class centres moved. */
import { basename, dirname, resolve } from 'node:path';
import { type AnyCheckpointManifest, checkpointStep, counted } from '@facetrain/api';
import { type Checkpoint, invalid, openCheckpoint, openWhole } from './directory.ts';
import { evaluationOf, readEvaluations } from './evaluations.ts';
import { type Identities, readIdentities } from './retired.ts';
import { type Centres, readCentres } from './rows.ts';
import type { Safetensors } from './safetensors.ts';
import { splitName } from './save.ts';

export interface CheckpointComparison {
  /** Fields of the manifests that differ. */
  fields: { field: string; first: unknown; second: unknown }[];
  /** Mean loss of the last steps; null before the first. */
  loss: { first: number | null; second: number | null };
  /** By verification set, of those that were evaluated after these very steps. */
  accuracy: { set: string; first: number | null; second: number | null }[];
  backbone: {
    /** Tensors of both, of the same shape; without the optimizer's state. */
    tensors: number;
    /** Names of tensors that only one has, or that differ in shape. */
    different: string[];
    /** L2 norm of the difference, divided by that of the first, over the tensors of both; null without any. */
    distance: number | null;
    /** The tensors that moved furthest by this measure. */
    largest: { name: string; distance: number }[];
  };
  /** null when embeddings differ in length. */
  centres: {
    /** Rows of both. */
    compared: number;
    /** Bit for bit. */
    unchanged: number;
    /** Between the two vectors of a class, in degrees; zero vectors have none. */
    angle: { mean: number; median: number; percentile99: number; largest: number };
    /** The classes that turned furthest. */
    largest: { row: number; degrees: number }[];
    /** Mean L2 norm of a row. */
    norm: { first: number; second: number };
  } | null;
}

/** Classes and tensors that are named. */
const NAMED = 5;
/** Classes that are retired in one only, which are named. */
const MOST_RETIRED = 20;
/** Fields of a manifest that say how it was trained; `step` and `time` besides. */
const FIELDS = ['step', 'time', 'worldSize', 'seed', 'stepsPerEpoch', 'numClasses', 'embeddingDim'] as const;

/** @param path of a folder step-… @throws FacetrainError InvalidCheckpoint, StorageFailed */
export async function openAt(path: string): Promise<Checkpoint> {
  const directory = resolve(path);
  const step = checkpointStep(basename(directory));
  if (step === undefined)
    throw invalid(path, 'no folder step-…, with ten digits', 'the folder of a checkpoint under its own name');
  return openCheckpoint(dirname(directory), step);
}

/**
 * Reads all weights of both, and compares their digests first.
 * @param onRows is called with the rows done
 * @throws FacetrainError InvalidCheckpoint, StorageFailed
 */
export async function compareCheckpoints(
  first: Checkpoint,
  second: Checkpoint,
  onRows: (rows: number) => void = () => {},
): Promise<CheckpointComparison> {
  return {
    fields: [
      ...differences(first.manifest, second.manifest),
      ...retiredInOne(await readIdentities(first), await readIdentities(second)),
    ],
    loss: { first: lastLoss(first.manifest), second: lastLoss(second.manifest) },
    accuracy: await accuracies(first, second),
    backbone: await compareBackbones(first, second),
    centres:
      first.manifest.embeddingDim === second.manifest.embeddingDim ? await compareCentres(first, second, onRows) : null,
  };
}

function differences(first: AnyCheckpointManifest, second: AnyCheckpointManifest): CheckpointComparison['fields'] {
  const read = (manifest: AnyCheckpointManifest): Record<string, unknown> => ({
    'job.name': manifest.job.name,
    'job.uid': manifest.job.uid,
    ...Object.fromEntries(FIELDS.map((field) => [field, manifest[field]])),
    schemaVersion: manifest.schemaVersion,
    precision: manifest.schemaVersion === 1 ? undefined : manifest.precision,
    'rows.optimizer': manifest.schemaVersion === 1 ? 'SGD' : manifest.rows.optimizer,
    ...(manifest.schemaVersion === 2 && {
      classesAdded: manifest.classesAdded,
      bf16: manifest.bf16?.join(', '),
      labels: manifest.labels && `${counted(manifest.labels.count, 'folder')}, ${manifest.labels.sha256}`,
      ...Object.fromEntries(Object.entries(manifest.margin ?? {}).map(([name, value]) => [`margin.${name}`, value])),
      ...manifest.settings,
    }),
    'rows.tensors':
      manifest.schemaVersion === 1
        ? 'weight float32, momentum float32'
        : manifest.rows.tensors.map(({ name, dtype }) => `${name} ${dtype}`).join(', '),
  });
  const [a, b] = [read(first), read(second)];
  return [...new Set([...Object.keys(a), ...Object.keys(b)])]
    .filter((field) => a[field] !== b[field])
    .map((field) => ({ field, first: a[field] ?? null, second: b[field] ?? null }));
}

/** Classes that one of the two trains, or trains under another label. */
function retiredInOne(first: Identities, second: Identities): CheckpointComparison['fields'] {
  const texts = [first, second].map(({ retired }) =>
    retired.map((each) => (each.into === null ? `${each.class} removed` : `${each.class} merged into ${each.into}`)),
  );
  const [a, b] = texts.map((own, index) => {
    const others = new Set(texts[1 - index]);
    const only = own.filter((text) => !others.has(text));
    return only.length > MOST_RETIRED ? [...only.slice(0, MOST_RETIRED), `${only.length - MOST_RETIRED} more`] : only;
  });
  if (a!.length + b!.length === 0) return [];
  const text = (only: string[]) => (only.length === 0 ? 'none' : only.join(', '));
  return [{ field: 'retired in one', first: text(a!), second: text(b!) }];
}

function lastLoss({ history: { recentLosses } }: AnyCheckpointManifest): number | null {
  return recentLosses.length === 0 ? null : recentLosses.reduce((sum, loss) => sum + loss, 0) / recentLosses.length;
}

async function accuracies(first: Checkpoint, second: Checkpoint): Promise<CheckpointComparison['accuracy']> {
  const [a, b] = await Promise.all(
    [first, second].map(async ({ directory, manifest: { job, step, time } }) => {
      const all = await readEvaluations(dirname(directory));
      const own = evaluationOf(all, { job: job.name, step, time });
      return new Map(own?.sets.map(({ set, accuracy }) => [set, accuracy]));
    }),
  );
  const sets = new Set([...a!.keys(), ...b!.keys()]);
  return [...sets].map((set) => ({ set, first: a!.get(set) ?? null, second: b!.get(set) ?? null }));
}

async function compareBackbones(first: Checkpoint, second: Checkpoint): Promise<CheckpointComparison['backbone']> {
  await using a = await openWhole(first, first.manifest.backbone);
  await using b = await openWhole(second, second.manifest.backbone);
  const tensorsOf = (file: Safetensors) => file.names.filter((name) => splitName(name)[0] === 'tensors');
  const names = new Set([...tensorsOf(a), ...tensorsOf(b)]);
  const isShared = (name: string) =>
    a.names.includes(name) && b.names.includes(name) && String(a.dims(name)) === String(b.dims(name));
  const shared = [...names].filter(isShared);
  let [moved, size] = [0, 0];
  const distances: { name: string; distance: number }[] = [];
  for (const name of shared) {
    const [x, y] = [await a.read(name), await b.read(name)];
    let [difference, own] = [0, 0];
    for (let i = 0; i < x.length; i++) {
      difference += (y[i]! - x[i]!) ** 2;
      own += x[i]! ** 2;
    }
    moved += difference;
    size += own;
    distances.push({ name, distance: relative(difference, own) });
  }
  return {
    tensors: shared.length,
    different: [...names].filter((name) => !isShared(name)),
    distance: shared.length === 0 ? null : relative(moved, size),
    largest: distances.toSorted((p, q) => q.distance - p.distance).slice(0, NAMED),
  };
}

/** Of two squared norms. What begins at zero has moved by its own length. */
const relative = (difference: number, size: number) => Math.sqrt(difference) / (size > 0 ? Math.sqrt(size) : 1);

async function compareCentres(
  first: Checkpoint,
  second: Checkpoint,
  onRows: (rows: number) => void,
): Promise<NonNullable<CheckpointComparison['centres']>> {
  const dim = first.manifest.embeddingDim;
  const compared = Math.min(first.manifest.numClasses, second.manifest.numClasses);
  const angles = new Float32Array(compared);
  let [unchanged, normFirst, normSecond] = [0, 0, 0];
  for await (const { firstRow, rows, x, y } of inStep(readCentres(first), readCentres(second), dim)) {
    for (let row = 0; row < rows; row++) {
      let [dot, xx, yy, difference] = [0, 0, 0, 0];
      for (let i = row * dim; i < (row + 1) * dim; i++) {
        const [p, q] = [x[i]!, y[i]!];
        dot += p * q;
        xx += p * p;
        yy += q * q;
        difference += (q - p) ** 2;
      }
      if (difference === 0) unchanged += 1;
      normFirst += Math.sqrt(xx);
      normSecond += Math.sqrt(yy);
      // acos of a cosine near 1 loses all digits of a small angle; its sine does not.
      const cross = Math.sqrt(Math.max(0, xx * yy - dot * dot));
      angles[firstRow + row] = xx > 0 && yy > 0 && difference > 0 ? (Math.atan2(cross, dot) * 180) / Math.PI : 0;
    }
    onRows(firstRow + rows);
  }
  const sorted = angles.toSorted();
  const at = (share: number) => sorted[Math.min(compared - 1, Math.floor(share * compared))]!;
  // The rows of the largest angles: those that reach the smallest of them.
  const least = sorted[Math.max(0, compared - NAMED)]!;
  const largest: { row: number; degrees: number }[] = [];
  angles.forEach((degrees, row) => {
    if (degrees >= least && degrees > 0) largest.push({ row, degrees });
  });
  return {
    compared,
    unchanged,
    angle: {
      mean: angles.reduce((sum, angle) => sum + angle, 0) / compared,
      median: at(0.5),
      percentile99: at(0.99),
      largest: sorted[compared - 1]!,
    },
    largest: largest.toSorted((p, q) => q.degrees - p.degrees).slice(0, NAMED),
    norm: { first: normFirst / compared, second: normSecond / compared },
  };
}

/** The rows that both have, in parts that lie in one block of each. */
async function* inStep(first: AsyncGenerator<Centres>, second: AsyncGenerator<Centres>, dim: number) {
  let a = await first.next();
  let b = await second.next();
  while (!a.done && !b.done) {
    const [p, q] = [a.value, b.value];
    const from = Math.max(p.firstRow, q.firstRow);
    const end = Math.min(p.firstRow + p.rows, q.firstRow + q.rows);
    const of = ({ firstRow, values }: Centres) => values.subarray((from - firstRow) * dim, (end - firstRow) * dim);
    if (end > from) yield { firstRow: from, rows: end - from, x: of(p), y: of(q) };
    if (p.firstRow + p.rows === end) a = await first.next();
    if (q.firstRow + q.rows === end) b = await second.next();
  }
  // A generator that is left early closes its file.
  await first.return(undefined);
  await second.return(undefined);
}
