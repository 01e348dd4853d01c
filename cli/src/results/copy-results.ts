/**
 * Copies a part of a job's results to a folder of this machine, which then looks like that of `facetrain run`. Nothing
 * half-written is ever under its name: files are gathered in a hidden folder, their digests compared, and then moved.
 * A copy that was interrupted goes on with the files that are there.
 */
import { existsSync } from 'node:fs';
import { readdir, readFile, rename, rm, rmdir } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import {
  ARTIFACT,
  ArtifactManifest,
  CHECKPOINT_MANIFEST,
  checkpointFolder,
  FacetrainError,
  OUTPUT,
  TrainReport,
} from '@facetrain/api';
import { checkContent, parseCheckpoint, storedFiles } from '@facetrain/trainer/checkpoint/directory';
import { makeFolder, storageError, writeAtomically } from '@facetrain/trainer/storage/atomic-files';
import { digestFile } from '@facetrain/trainer/storage/digest';
import type { Part } from './parts.ts';
import type { ResultSource } from './result-source.ts';

export interface CopyOptions {
  part: Part;
  /** The folder. */
  to: string;
  /** Of the checkpoint; default: the newest. */
  step?: number | undefined;
  /** Called with each file before it is copied. */
  show: (detail: string) => void;
}

export interface Copied {
  part: Part;
  /** Where the files are. */
  folder: string;
  /** Their names in it, the manifest last. */
  files: string[];
  /** Of a checkpoint. */
  step?: number;
  /** The same was there already. */
  wasThere: boolean;
}

/** What is to be copied. */
interface Listing {
  /** Of the files below the source's place. */
  prefix: string;
  /** Of the files below the folder; empty: the folder itself. */
  folder: string;
  /** Names of those that may be large. */
  files: string[];
  /** Small ones with their bytes. The last describes all others, and is written last. */
  small: { name: string; bytes: Uint8Array }[];
  /** @throws FacetrainError when a file is not what the manifest says */
  check: (directory: string, file: string) => Promise<void>;
  step?: number;
}

const STAGING = '.fetch';
/** What is read of files that a later version may have written. */
const Report = TrainReport.pick({ model: true }).loose();
const Manifest = ArtifactManifest.pick({ kind: true, files: true }).loose();

/**
 * @throws FacetrainError InvalidArgument when there is no such result, or the folder has another one; StorageFailed,
 * InvalidCheckpoint when digests differ; DiskFull
 */
export async function copyResults(source: ResultSource, options: CopyOptions): Promise<Copied> {
  const { part, step, show } = options;
  const to = resolve(options.to);
  const listing = await LISTINGS[part](source, step);
  const { prefix, files, small } = listing;
  const folder = join(to, listing.folder);
  const names = [...files, ...small.map(({ name }) => name)];
  const copied = { part, folder, files: names, ...(listing.step !== undefined && { step: listing.step }) };
  if (names.some((name) => existsSync(join(folder, name)))) {
    await checkSame(folder, listing);
    return { ...copied, wasThere: true };
  }
  const staging = join(to, STAGING, listing.folder || part);
  for (const [index, file] of files.entries()) {
    show(`${file} (${index + 1} of ${files.length})`);
    const path = join(staging, file);
    await inWords(path, () => makeFolder(dirname(path)));
    await source.copy(prefix + file, path);
    await listing.check(staging, file).catch(async (error: unknown) => {
      // The next try begins with the file anew.
      await rm(path, { force: true });
      throw error;
    });
  }
  for (const { name, bytes } of small) await writeAtomically(join(staging, name), bytes);
  await inWords(folder, async () => {
    // What a copy of a former version of the results has left.
    for (const entry of await readdir(staging, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (entry.isFile() && !names.some((name) => join(staging, name) === path)) await rm(path);
    }
    if (listing.folder === '') await moveFiles(staging, folder, names);
    else {
      await makeFolder(dirname(folder));
      await rename(staging, folder);
    }
    for (let empty = dirname(staging); empty !== to; empty = dirname(empty)) await rmdir(empty).catch(() => {});
  });
  return { ...copied, wasThere: false };
}

/** The file that describes the others comes last. */
async function moveFiles(from: string, to: string, names: string[]): Promise<void> {
  for (const name of names) {
    await makeFolder(dirname(join(to, name)));
    await rename(join(from, name), join(to, name));
  }
  await rm(from, { recursive: true });
}

/** @throws FacetrainError InvalidArgument when the folder has something else than what is to be copied */
async function checkSame(folder: string, { files, small, check }: Listing): Promise<void> {
  const { name, bytes } = small.at(-1)!;
  const path = join(folder, name);
  const refuse = (found: string, cause?: unknown) =>
    new FacetrainError({ code: 'InvalidArgument', subject: folder, found, allowed: 'another folder, by --to', cause });
  const found = existsSync(path) ? await inWords(path, () => readFile(path)) : undefined;
  if (!found?.equals(bytes)) throw refuse('a result of another training, or a part of one');
  for (const file of files)
    await check(folder, file).catch((error: unknown) => {
      throw refuse(`a result that was changed (${(error as Error).message})`, error);
    });
}

const LISTINGS: Record<Part, (source: ResultSource, step: number | undefined) => Promise<Listing>> = {
  model: async (source) => {
    const report = await required(source, OUTPUT.trainReport, 'a training that has ended');
    const { sha256 } = readable(source, OUTPUT.trainReport, () => Report.parse(JSON.parse(textOf(report)))).model;
    const html = await source.read(OUTPUT.trainReportHtml);
    return {
      prefix: '',
      folder: '',
      files: [OUTPUT.model],
      small: [
        ...(html ? [{ name: OUTPUT.trainReportHtml, bytes: html }] : []),
        { name: OUTPUT.trainReport, bytes: report },
      ],
      check: (directory, file) => checkDigest(join(directory, file), sha256),
    };
  },
  int7: async (source) => {
    const manifest = await required(source, ARTIFACT.manifest, 'a quantization that has published its model');
    const { files } = readable(source, ARTIFACT.manifest, () => Manifest.parse(JSON.parse(textOf(manifest))));
    for (const name of Object.keys(files))
      if (!/^[A-Za-z0-9][-A-Za-z0-9._]*$/.test(name))
        throw unreadable(source, ARTIFACT.manifest, `the file name ${JSON.stringify(name)}`);
    return {
      prefix: '',
      folder: OUTPUT.int7,
      files: Object.keys(files),
      small: [{ name: ARTIFACT.manifest, bytes: manifest }],
      check: (directory, file) => checkDigest(join(directory, file), files[file]!.sha256),
    };
  },
  checkpoint: async (source, step) => {
    const all = await source.checkpoints();
    const chosen = step === undefined ? all[0] : all.find((each) => each.step === step);
    if (!chosen)
      throw new FacetrainError({
        code: 'InvalidArgument',
        subject: source.uri,
        found: step === undefined ? 'no checkpoint' : `no checkpoint of step ${step}`,
        allowed: all.length === 0 ? 'one is there after its first interval' : `--step ${stepsOf(all)}`,
      });
    const prefix = `${chosen.folder}/`;
    const file = prefix + CHECKPOINT_MANIFEST;
    const bytes = await required(source, file, 'a checkpoint that was not deleted meanwhile: try again');
    const manifest = parseCheckpoint(textOf(bytes), `${source.uri}/${file}`, chosen.step);
    return {
      prefix,
      folder: join(OUTPUT.checkpoints, checkpointFolder(chosen.step)),
      files: storedFiles({ manifest }).map(({ file }) => file),
      small: [{ name: CHECKPOINT_MANIFEST, bytes }],
      check: (directory, name) => checkContent({ directory, manifest }, name),
      step: chosen.step,
    };
  },
};

const stepsOf = (checkpoints: { step: number }[]): string =>
  checkpoints
    .slice(0, 20)
    .map(({ step }) => step)
    .join(', ');

const textOf = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

async function required(source: ResultSource, file: string, allowed: string): Promise<Uint8Array> {
  const found = await source.read(file);
  if (found) return found;
  throw new FacetrainError({
    code: 'InvalidArgument',
    subject: `${source.uri}/${file}`,
    found: 'it is not there',
    allowed,
  });
}

function readable<T>(source: ResultSource, file: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw unreadable(source, file, 'not what this version of Facetrain reads', error);
  }
}

const unreadable = (source: ResultSource, file: string, found: string, cause?: unknown): FacetrainError =>
  new FacetrainError({
    code: 'StorageFailed',
    subject: `${source.uri}/${file}`,
    found,
    allowed: 'a file that Facetrain has written, and nobody changed',
    cause,
  });

async function checkDigest(path: string, expected: string): Promise<void> {
  const { sha256 } = await digestFile(path);
  if (sha256 === expected) return;
  throw new FacetrainError({
    code: 'StorageFailed',
    subject: path,
    found: `the digest ${sha256}`,
    allowed: `${expected}, as the manifest says; if the results were replaced meanwhile, try again`,
  });
}

/** Runs work on a file of this machine. @throws FacetrainError StorageFailed or DiskFull */
export async function inWords<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw storageError(path, error);
  }
}
