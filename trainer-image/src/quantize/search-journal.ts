/**
 * The decisions of a search in a file of the output folder, so that a quantizer that was stopped or killed goes on
 * where it was. A line of JSON for each: first the key of the search, then the numbers of each decision, in order. A
 * line that a killed process or a full disk has cut off, and what follows it, count as not written. Where the artifact
 * goes to an object store, the folder is gone with the pod, so a copy is kept there: stored-journal.ts.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type QuantizeConfig, SEARCH_JOURNAL } from '@facetrain/api';
import type { LayerGraph, Pictures } from '@facetrain/native';
import type { Program } from '../program/program.ts';
import { storageError } from '../storage/atomic-files.ts';
import { updateHash } from '../storage/digest.ts';
import type { Fence } from '../storage/fence.ts';
import type { StoredJournal } from './stored-journal.ts';

/**
 * What decides how a search goes: decisions of another one would be wrong.
 * @param picturesSha256 digest of the pictures' data
 * @param software digest of what searches: builds of one version may do it differently
 */
export function searchKey(
  graph: LayerGraph,
  { data: _, ...size }: Pictures,
  picturesSha256: string,
  search: QuantizeConfig['search'],
  software: string,
): string {
  const hash = createHash('sha256');
  // Numbers are hashed as bytes, beside their place in the text.
  const text = JSON.stringify([software, graph, size, picturesSha256, search], (_, value: unknown) => {
    if (!ArrayBuffer.isView(value)) return value;
    updateHash(hash, new Uint8Array(value.buffer, value.byteOffset, value.byteLength));
    return `${value.constructor.name} of ${value.byteLength} bytes`;
  });
  return hash.update(text).digest('hex');
}

export class SearchJournal {
  /** Of the interrupted search, in order. */
  readonly decided: Float64Array[];
  #file: FileHandle;
  #fence: Fence;
  #stored: StoredJournal | null;
  #log: Program['log'];
  #written: Promise<void> = Promise.resolve();
  #failed = false;

  private constructor(
    decided: Float64Array[],
    file: FileHandle,
    fence: Fence,
    stored: StoredJournal | null,
    log: Program['log'],
  ) {
    this.decided = decided;
    this.#file = file;
    this.#fence = fence;
    this.#stored = stored;
    this.#log = log;
  }

  /**
   * Goes on with the journal of the folder or its copy, whichever has more of the same search.
   * @throws FacetrainError as Fence.write
   */
  static async open(
    fence: Fence,
    key: string,
    log: Program['log'],
    stored: StoredJournal | null = null,
  ): Promise<SearchJournal> {
    const path = join(fence.folder, SEARCH_JOURNAL);
    const own = decisionsOf(await readFile(path, 'utf8').catch(() => ''), key);
    const copied = decisionsOf(stored?.found ?? '', key);
    const decided = copied.length > own.length ? copied : own;
    const text = `${JSON.stringify({ key })}\n${decided.map(lineOf).join('')}`;
    // A new file: an older process that was frozen goes on writing into the one that it has open.
    await fence.write(path, text);
    stored?.replace(text);
    const file = await open(path, 'a').catch((error: unknown) => {
      throw storageError(path, error);
    });
    try {
      // A newer process may have replaced the file before it was opened: its file is not to be written to.
      await fence.check();
    } catch (error) {
      await file.close();
      throw error;
    }
    return new SearchJournal(decided, file, fence, stored, log);
  }

  /** Adds decisions, in the background. Without room for them the search goes on, and is not kept. */
  add(made: readonly Float64Array[]): void {
    if (made.length === 0 || this.#failed) return;
    const text = made.map(lineOf).join('');
    this.#stored?.append(text);
    this.#written = this.#written
      .then(async () => {
        // Behind a gap, decisions would be taken for others.
        if (!this.#failed) await this.#file.appendFile(text);
      })
      .catch((error: unknown) => this.#fail(error));
  }

  /** Ends the file; it stays for the next quantizer. */
  async close(): Promise<void> {
    await this.#written;
    // Network file systems report only now that there is no room.
    await this.#file.close().catch((error: unknown) => this.#fail(error));
    await this.#stored?.flush();
  }

  #fail(error: unknown): void {
    if (!this.#failed) this.#log.warn(`the search cannot be kept: ${(error as Error).message}`);
    this.#failed = true;
  }

  /** For a search whose result is written. */
  async remove(): Promise<void> {
    await this.#fence.remove(join(this.#fence.folder, SEARCH_JOURNAL));
    await this.#stored?.remove();
  }
}

/** What a journal has of the search with this key. */
function decisionsOf(text: string, key: string): Float64Array[] {
  const [head, ...rest] = text.split('\n').slice(0, -1).map(parsed);
  if ((head as { key?: unknown } | undefined)?.key !== key) return [];
  const end = rest.findIndex((numbers) => !isDecision(numbers));
  return (end < 0 ? rest : rest.slice(0, end)).map((of) => Float64Array.from(of as number[]));
}

const lineOf = (numbers: Float64Array): string => `${JSON.stringify(Array.from(numbers))}\n`;

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

const isDecision = (value: unknown): boolean =>
  Array.isArray(value) && value.every((number) => typeof number === 'number');
