/**
 * Where a training's results are written, behind a fence: a folder, or a prefix of an object store. Their names are the
 * same in every attempt, since users and the quantization read them there.
 *
 * A folder's fence lets no older attempt replace a file. In an object store each of these objects is replaced only if
 * it is what this process has found there when it claimed the prefix, or has written itself. So an older attempt that
 * wakes can replace an object only as long as the newer one has not written it, which then replaces it by its own.
 * After the newer attempt's last write, it can replace none.
 */

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { OUTPUT, type StoredFile } from '@facetrain/api';
import { storageError } from './atomic-files.ts';
import { digestBytes, digestFile } from './digest.ts';
import type { Fence } from './fence.ts';
import type { ObjectFence } from './object-fence.ts';

export interface OutputPlace {
  /** The folder, or the URI of the prefix, for messages. */
  readonly name: string;
  /** Creates or replaces a file. @throws FacetrainError FencedOff, DiskFull, StorageFailed */
  write(file: string, content: Uint8Array | string): Promise<void>;
  /**
   * Creates or replaces a file, and deletes all others in its folder.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  replaceFolder(folder: string, name: string, content: Uint8Array): Promise<void>;
  /** Takes a JSON document away: its readers find none. @throws FacetrainError FencedOff, StorageFailed */
  revoke(file: string): Promise<void>;
  /** @returns undefined when there is none. @throws FacetrainError StorageFailed */
  read(file: string): Promise<Uint8Array | undefined>;
  /** Digest and size; undefined when there is none. @throws FacetrainError StorageFailed */
  digest(file: string): Promise<StoredFile | undefined>;
}

export class FolderOutput implements OutputPlace {
  readonly #fence: Fence;

  constructor(fence: Fence) {
    this.#fence = fence;
  }

  get name(): string {
    return this.#fence.folder;
  }

  write(file: string, content: Uint8Array | string): Promise<void> {
    return this.#fence.write(join(this.name, file), content);
  }

  async replaceFolder(folder: string, name: string, content: Uint8Array): Promise<void> {
    await this.write(join(folder, name), content);
    const path = join(this.name, folder);
    const names = await readdir(path).catch((error: unknown) => {
      throw storageError(path, error);
    });
    for (const other of names) if (other !== name) await this.#fence.remove(join(path, other));
  }

  revoke(file: string): Promise<void> {
    return this.#fence.remove(join(this.name, file));
  }

  read(file: string): Promise<Uint8Array | undefined> {
    return orMissing(async () => {
      const path = join(this.name, file);
      return readFile(path).catch((error: unknown) => {
        throw storageError(path, error);
      });
    });
  }

  digest(file: string): Promise<StoredFile | undefined> {
    return orMissing(() => digestFile(join(this.name, file)));
  }
}

async function orMissing<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work();
  } catch (error) {
    if (((error as Error).cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Names of the objects of a training's output. */
const NAMES = [OUTPUT.model, OUTPUT.trainReport, OUTPUT.trainReportHtml];

export class ObjectOutput implements OutputPlace {
  readonly #fence: ObjectFence;
  /** ETags of the objects; null where there is none. */
  readonly #etags: Map<string, string | null>;

  private constructor(fence: ObjectFence, etags: Map<string, string | null>) {
    this.#fence = fence;
    this.#etags = etags;
  }

  /** To be called right after the claim. @throws FacetrainError StorageFailed */
  static async open(fence: ObjectFence): Promise<ObjectOutput> {
    const etags = await Promise.all(
      NAMES.map(async (name) => [name, (await fence.store.head(name))?.etag ?? null] as const),
    );
    return new ObjectOutput(fence, new Map(etags));
  }

  get name(): string {
    return this.#fence.store.uri('').replace(/\/$/, '');
  }

  async write(file: string, content: Uint8Array | string): Promise<void> {
    const { store } = this.#fence;
    const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content;
    for (;;) {
      await this.#fence.check();
      const etag = await store.put(file, bytes, { etag: this.#etags.get(file) ?? null }, contentType(file));
      if (etag !== undefined) return void this.#etags.set(file, etag);
      // An older attempt has written it since the claim, or the answer to this very write was lost. In both cases this
      // one replaces it, as long as it is the newest.
      this.#etags.set(file, (await store.head(file))?.etag ?? null);
    }
  }

  async replaceFolder(folder: string, name: string, content: Uint8Array): Promise<void> {
    const before = await this.#fence.store.list(`${folder}/`);
    await this.write(`${folder}/${name}`, content);
    await this.#fence.store.delete(before.filter((each) => each !== `${folder}/${name}`));
  }

  async revoke(file: string): Promise<void> {
    // A DELETE with a condition is known to few stores. Readers refuse a report without its fields.
    if (this.#etags.get(file) === null) return;
    await this.write(file, `${JSON.stringify({ incomplete: 'these files are being replaced' })}\n`);
  }

  async read(file: string): Promise<Uint8Array | undefined> {
    return (await this.#fence.store.get(file))?.bytes;
  }

  async digest(file: string): Promise<StoredFile | undefined> {
    const bytes = await this.read(file);
    return bytes && digestBytes(bytes);
  }
}

const contentType = (file: string): string =>
  file.endsWith('.json')
    ? 'application/json'
    : file.endsWith('.html')
      ? 'text/html; charset=utf-8'
      : 'application/octet-stream';
