/**
 * The files of a run, known by their names: what trainers, quantizer and `facetrain run` write. All others in the same
 * folders belong to the user. They are never listed here, so never removed.
 *
 * Not listed either: .facetrain/volumes, in which users put the data of their claims; .facetrain/inputs, which the next
 * run checks against the object store; and fences/ in each folder, whose numbers keep a process of an earlier run from
 * writing (trainer-image/src/storage/fence.ts).
 */
import {
  createReadStream,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { ARTIFACT, CHECKPOINT_EVALUATIONS, CHECKPOINT_MANIFEST, OUTPUT } from '@facetrain/api';
import { storageError, writeAtomically } from '@facetrain/trainer/storage/atomic-files';
import { bytes } from '../terminal-output.ts';

/** Where a run writes. */
export interface RunPaths {
  out: string;
  /** OUT/.facetrain. */
  state: string;
  checkpoints: string;
  /** `spec.checkpoint.uri` names the folder of checkpoints: those of other jobs may lie there, too. */
  sharesCheckpoints: boolean;
  artifact: string;
  /** Name of the QuantizeJob that writes it. */
  quantizeJob: string;
}

export interface RunFile {
  path: string;
  bytes: number;
}

/** A checkpoint's folder: its step. One that was set aside as damaged ends in the number of the fence that did it. */
const CHECKPOINT = /^(step-\d{10}|damaged-step-\d{10}\.\d{10})$/;
const CHECKPOINT_FILES = [
  CHECKPOINT_MANIFEST,
  /backbone\.safetensors/,
  /rows-\d{10}(-\d+)?\.safetensors/,
  /retired(-[0-9a-f]{16})?\.json/,
];
/** The manifest first: without it the others are no artifact. */
const ARTIFACT_FILES = [
  ARTIFACT.manifest,
  ARTIFACT.model,
  ARTIFACT.tensorRtModel,
  ARTIFACT.scales,
  ARTIFACT.report,
  ARTIFACT.reportHtml,
];
/** Folders of artifacts that were set aside: int7-1, int7-2, … */
const setAside = (artifact: string): string[] =>
  names(dirname(artifact))
    .filter(
      (name) => name.startsWith(`${basename(artifact)}-`) && /^\d+$/.test(name.slice(basename(artifact).length + 1)),
    )
    .map((name) => join(dirname(artifact), name));

/** What a run with this uid has left, in the order in which to remove it. */
export function runFiles(paths: RunPaths, uid: string): RunFile[] {
  const { out, state } = paths;
  return [
    ...checkpointFolders(paths, uid).flatMap((folder) => filesIn(folder, CHECKPOINT_FILES)),
    ...(paths.sharesCheckpoints ? [] : filesIn(paths.checkpoints, [CHECKPOINT_EVALUATIONS])),
    ...filesIn(out, [OUTPUT.trainReport, OUTPUT.trainReportHtml]),
    ...filesIn(join(out, OUTPUT.tensorboard), [/events\.out\.tfevents\.[^/]+/]),
    ...filesIn(join(out, dirname(OUTPUT.model)), [basename(OUTPUT.model)]),
    ...[paths.artifact, ...setAside(paths.artifact)]
      .filter((folder) => isOwnArtifact(paths, folder))
      .flatMap((folder) => filesIn(folder, ARTIFACT_FILES)),
    ...[join(paths.artifact, ARTIFACT.rejected)]
      .filter((folder) => isOwnArtifact(paths, folder))
      .flatMap((folder) => filesIn(folder, [ARTIFACT.reportHtml, ARTIFACT.report])),
    ...filesIn(join(state, 'logs'), [/[^/]+\.log/]),
    ...filesIn(join(state, 'termination'), [/[a-z0-9-]+/]),
    ...names(join(state, 'config')).flatMap((name) => filesIn(join(state, 'config', name), ['config.json'])),
  ];
}

/**
 * The files with their sizes, in one line each; those of a checkpoint, which may be thousands, in one line together.
 */
export function listing(files: RunFile[]): string[] {
  const groups = new Map<string, RunFile[]>();
  for (const file of files) {
    const folder = dirname(file.path);
    const key = CHECKPOINT.test(basename(folder)) ? folder : file.path;
    groups.set(key, [...(groups.get(key) ?? []), file]);
  }
  return [...groups].map(([path, members]) => {
    const size = bytes(members.reduce((sum, file) => sum + file.bytes, 0));
    return path === members[0]!.path ? `${path} (${size})` : `${path} (${members.length} files, ${size})`;
  });
}

/** Whether there is a complete checkpoint to go on from. */
export const hasCheckpoint = (paths: RunPaths, uid: string): boolean =>
  checkpointFolders(paths, uid).some(
    (folder) => !basename(folder).startsWith('damaged-') && existsSync(join(folder, CHECKPOINT_MANIFEST)),
  );

/** Removes the files, and the folders that are then empty. @throws FacetrainError StorageFailed */
export function remove(files: RunFile[]): void {
  const folders = new Set<string>();
  for (const { path } of files) {
    try {
      rmSync(path, { force: true });
    } catch (error) {
      throw storageError(path, error);
    }
    folders.add(dirname(path));
  }
  // Twice: the folder of a checkpoint, then that of all checkpoints.
  for (const folder of folders) if (removeIfEmpty(folder)) removeIfEmpty(dirname(folder));
}

/** Files in a folder that have the names of an artifact's. */
export const artifactFiles = (folder: string): RunFile[] => filesIn(folder, ARTIFACT_FILES);

/**
 * Whether the files of an artifact in this folder, or the reports of a model that missed its gate, are this run's.
 * Below OUT they are; `quantize.output` may name a folder that other jobs publish to, and there the report says whose
 * they are.
 */
export const isOwnArtifact = ({ out, quantizeJob }: RunPaths, folder: string): boolean =>
  `${folder}/`.startsWith(`${out}/`) || writerOfArtifact(folder)?.name === quantizeJob;

/** The QuantizeJob that the report of an artifact names; undefined when there is no such report. */
export function writerOfArtifact(folder: string): { name?: unknown; uid?: unknown } | undefined {
  try {
    const report: unknown = JSON.parse(readFileSync(join(folder, ARTIFACT.report), 'utf8'));
    return (report as { job?: { name?: unknown; uid?: unknown } } | null)?.job;
  } catch {
    return undefined;
  }
}

/** Whether the folder has an artifact's manifest, which is written last. */
export const hasArtifact = (artifact: string): boolean => existsSync(join(artifact, ARTIFACT.manifest));

/**
 * Moves an artifact's files to a folder beside its own, under the next free number.
 * @returns that folder
 * @throws FacetrainError DiskFull, StorageFailed
 */
export async function setArtifactAside(artifact: string): Promise<string> {
  let number = 1;
  while (existsSync(`${artifact}-${number}`)) number++;
  const folder = `${artifact}-${number}`;
  try {
    mkdirSync(folder);
    // The manifest last: where it is, all files that it names are, too.
    for (const { path } of artifactFiles(artifact).reverse()) await move(path, join(folder, basename(path)));
  } catch (error) {
    throw storageError(folder, error);
  }
  return folder;
}

/** The artifact's folder may be a link to another file system, or a mount: rename(2) does not cross them. */
async function move(from: string, to: string): Promise<void> {
  try {
    renameSync(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
    await writeAtomically(to, async (file) => {
      for await (const chunk of createReadStream(from)) await file.writeFile(chunk as Uint8Array);
    });
    rmSync(from);
  }
}

/** Of a shared folder, only those that this run has written; a checkpoint without a manifest cannot say. */
function checkpointFolders({ checkpoints, sharesCheckpoints }: RunPaths, uid: string): string[] {
  return names(checkpoints)
    .filter((name) => CHECKPOINT.test(name))
    .map((name) => join(checkpoints, name))
    .filter((folder) => !sharesCheckpoints || writerOf(folder) === uid);
}

function writerOf(checkpoint: string): unknown {
  try {
    const manifest: unknown = JSON.parse(readFileSync(join(checkpoint, CHECKPOINT_MANIFEST), 'utf8'));
    return (manifest as { job?: { uid?: unknown } } | null)?.job?.uid;
  } catch {
    return undefined;
  }
}

/** Files of a folder by name, in the order of `patterns`, each with its temporary files (storage/atomic-files.ts). */
function filesIn(folder: string, patterns: (string | RegExp)[]): RunFile[] {
  const present = names(folder);
  return patterns.flatMap((pattern) => {
    const source = typeof pattern === 'string' ? pattern.replaceAll('.', '\\.') : pattern.source;
    const matches = new RegExp(`^(${source}|\\.(${source})\\.[^/]+\\.tmp)$`);
    return present
      .filter((name) => matches.test(name))
      .map((name) => join(folder, name))
      .flatMap((path) => {
        const stat = lstatSync(path, { throwIfNoEntry: false });
        return stat?.isFile() ? [{ path, bytes: stat.size }] : [];
      });
  });
}

/** Names in a folder, sorted; none when there is no such folder. @throws FacetrainError StorageFailed */
function names(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return [];
    throw storageError(folder, error);
  }
}

function removeIfEmpty(folder: string): boolean {
  try {
    rmdirSync(folder);
    return true;
  } catch {
    return false; // It is not empty, or a mount.
  }
}
