/**
 * Which label is whose, of an image folder. Labels are places in a list of folders, so a folder that is added, removed
 * or renamed may give the class centres of all after it to other people. A checkpoint has a digest of the list.
 * docs/decisions/0078.
 */
import { createHash } from 'node:crypto';
import { type AnyCheckpointManifest, type CheckpointManifest, counted, FacetrainError } from '@facetrain/api';

export type FolderLabels = NonNullable<CheckpointManifest['labels']>;

/** @param folders names by label */
export function folderLabels(folders: readonly string[], count = folders.length): FolderLabels {
  const hash = createHash('sha256');
  // A name has no zero byte.
  for (let label = 0; label < count; label++) hash.update(`${folders[label]}\0`);
  return { count, sha256: hash.digest('hex') };
}

/** Those of a checkpoint; null when it was written for a dataset whose labels are numbers, or by a former version. */
export const labelsOf = (manifest: AnyCheckpointManifest): FolderLabels | null =>
  (manifest.schemaVersion === 2 && manifest.labels) || null;

/** Whether all labels of a checkpoint are still whose they were. Folders may have been added after the last. */
export function haveKeptLabels(folders: readonly string[], labels: FolderLabels): boolean {
  return folders.length >= labels.count && folderLabels(folders, labels.count).sha256 === labels.sha256;
}

/** @param step of the checkpoint */
export function labelsMoved(dataset: string, folders: readonly string[], { count }: FolderLabels, step: number) {
  return new FacetrainError({
    code: 'InvalidDataset',
    subject: dataset,
    found:
      `${counted(folders.length, 'folder')}, of which the first ${count} are not the ${count} of the checkpoint ` +
      `of step ${step}` +
      ': a folder that was added before the last, removed or renamed gives class centres to other people',
    allowed:
      `the folders of that time, and others after them. Bring them back, write ${dataset}/facetrain.index with ` +
      'facetrain dataset index, and write it again after each change of the folders: it keeps who has which label',
  });
}
