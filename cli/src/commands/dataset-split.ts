/** `facetrain dataset split`: copies a dataset to tar shards, in two parts without a common identity. */
import { existsSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { counted, FacetrainError } from '@facetrain/api';
import { type PackedDataset, packDataset, readLabels } from '@facetrain/native';
import { countByLabel, holdOut } from '@facetrain/trainer/dataset/hold-out';
import { storageError } from '@facetrain/trainer/storage/atomic-files';
import { type StatusLine, table } from '../terminal-output.ts';

export interface SplitOptions {
  /** Below 1 a share of the identities, otherwise their number. */
  holdout: number;
  seed: number;
  out: string;
}

/** Large enough that a dataset of 10^8 pictures has some thousand shards. */
const SHARD_BYTES = 512 * 2 ** 20;
/** Labels that are not used cost memory here and class centres in a training. */
const MAX_UNUSED_LABELS = 10_000_000;

export async function splitDataset(
  folder: string,
  { holdout, seed, out }: SplitOptions,
  line: StatusLine,
  signal: AbortSignal,
) {
  const { labels, identities } = await readLabels(folder, { signal });
  if (identities > labels.length + MAX_UNUSED_LABELS)
    throw new FacetrainError({
      code: 'InvalidDataset',
      subject: folder,
      found: `labels up to ${identities - 1} in ${counted(labels.length, 'picture')}`,
      allowed: 'labels without large gaps: 0, 1, 2, …',
    });
  const { train, heldOut } = holdOut(countByLabel(labels, identities), holdout, seed);
  const parts = [
    { name: 'train', chosen: train },
    { name: 'heldout', chosen: heldOut },
  ].filter(({ chosen }) => chosen.length > 0);
  for (const { name } of parts) {
    if (existsSync(join(out, name)))
      throw new FacetrainError({
        code: 'InvalidArgument',
        subject: join(out, name),
        found: 'is there already',
        allowed: 'another --out, or a folder without train and heldout',
      });
  }
  const written: { folder: string; images: number; identities: number; shards: number }[] = [];
  const leftOut: string[] = [];
  for (const { name, chosen } of parts) {
    const relabel = new Float64Array(identities).fill(-1);
    chosen.forEach((label, place) => (relabel[label] = place));
    const to = join(out, name);
    const packed = await writePart(to, chosen, (output) =>
      packDataset(folder, {
        relabel,
        output,
        shardBytes: SHARD_BYTES,
        signal,
        onProgress: ({ done, total }) => line.show(`Writing ${to}`, `${done} of ${total} pictures`),
      }),
    );
    written.push({ folder: to, images: packed.images, identities: chosen.length, shards: packed.shards });
    for (const reason of packed.leftOut) if (!leftOut.includes(reason)) leftOut.push(reason);
  }
  line.clear();
  for (const reason of leftOut.slice(0, 10)) line.print(`Left out: ${reason}`);
  return {
    json: { source: folder, seed, parts: written, leftOut },
    text: table([
      ...written.map((part): [string, string] => [
        part.folder,
        `${counted(part.images, 'picture')} of ${counted(part.identities, 'identity')}, ` +
          `${part.shards} ${part.shards === 1 ? 'shard' : 'shards'}`,
      ]),
      ...(leftOut.length > 0
        ? [['Left out', `${counted(leftOut.length, 'picture')} that cannot be read`] as [string, string]]
        : []),
    ]),
  };
}

/** Writes to a hidden folder, which gets its name when it is complete. */
async function writePart(
  to: string,
  chosen: number[],
  pack: (output: string) => Promise<PackedDataset>,
): Promise<PackedDataset> {
  const partial = join(to, '..', `.${to.slice(to.lastIndexOf('/') + 1)}.partial`);
  try {
    await rm(partial, { recursive: true, force: true });
    await mkdir(partial, { recursive: true });
    const packed = await pack(partial);
    const lines = chosen.map((label, place) => `${place}\t${packed.names[label]}\n`);
    await writeFile(join(partial, 'identities.txt'), lines.join(''));
    await rename(partial, to);
    return packed;
  } catch (error) {
    await rm(partial, { recursive: true, force: true }).catch(() => {});
    throw error instanceof Error && 'syscall' in error ? storageError(to, error) : error;
  }
}
