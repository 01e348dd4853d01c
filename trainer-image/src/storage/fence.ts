/**
 * A fence around a folder: of all processes that ever start to write there, only the newest can change it.
 *
 * Fencing tokens: Kleppmann, "How to do distributed locking" (2016). A process may be frozen at any moment, by SIGSTOP
 * or on a node that the cluster has given up, and wake after another has taken its place. A check before a write does
 * not help: the process may be frozen between the two. So the file system itself has to refuse the old writer.
 *
 * - A claim makes the folder `fences/NNNNNNNNNN`. Its number, the token, is higher than all that are there. The folder
 *   is prepared under another name and renamed: rename(2) refuses to replace a folder that is not empty, and this one
 *   holds `owner.json`. So one of several claims of a number succeeds, and its owner is known from the first moment.
 * - All that a process writes, it writes into its own folder, and moves it out by a rename when it is complete. What it
 *   deletes, it first moves in. This folder is `fences/NNNNNNNNNN/START`, with the random name of its start: a number
 *   may come again, after somebody has removed `fences/`, or by a claim that was frozen when it had read what is there.
 * - A claim removes the folders of all lower numbers before it returns. From then on every move of an older process
 *   fails with ENOENT (or ESTALE): one end of its rename no longer exists. Its folder never comes again, since only its
 *   own claim makes one of that name.
 * - A claim that finds the disk full removes the starts' folders first, and so stops the older processes before it has
 *   a number. The numbers and their owners stay until it has one.
 *
 * `owner.json` only serves people and the rule that an older attempt of a job never fences off a newer one.
 */
import { randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { FacetrainError, OUTPUT } from '@facetrain/api';
import { type Content, flushFolder, makeFolder, storageError, writeAtomically, writeNew } from './atomic-files.ts';

/** Who claims: a start of an attempt of a job. */
export interface Owner {
  name: string;
  uid: string;
  attempt: number;
  /** Unique for each start, and a file name. One start may claim a folder twice, by two paths that lead to it. */
  start: string;
}

/** Somebody else has claimed what this process writes to, or has removed its claim. */
export class FencedOff extends FacetrainError {
  /** Who has claimed it, if that is known. */
  readonly owner: Owner | undefined;

  constructor(owner: Owner | undefined, words: Omit<ConstructorParameters<typeof FacetrainError>[0], 'code'>) {
    super({ code: 'FencedOff', ...words });
    this.owner = owner;
  }
}

interface Claim {
  number: number;
  /** Undefined when its file is gone or unreadable. */
  owner: (Owner & { time: string }) | undefined;
}

/** Entries of a fence's folder whose names begin like this are moved to the guarded folder, not deleted. */
export const KEPT_PREFIX = 'damaged-';

const OWNER = 'owner.json';
const NUMBER = /^\d{10}$/;
/** A folder that is being prepared or removed. */
const TEMPORARY = /^\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
/** A claim is tried again while others claim at the same time, or remove what this one prepares. */
const CLAIM_TRIES = 100;
/** How long explain() waits for the storage, in milliseconds. */
const EXPLAIN_MS = 10_000;
/** Between two looks of isVisible(), in milliseconds. */
const LOOK_AGAIN_MS = 100;
const folderName = (number: number) => String(number).padStart(10, '0');

export class Fence {
  /** The guarded folder. */
  readonly folder: string;
  /** The token. */
  readonly number: number;
  /** That of the owner. */
  readonly start: string;

  private constructor(folder: string, number: number, start: string) {
    this.folder = folder;
    this.number = number;
    this.start = start;
  }

  /**
   * Takes the folder, which is made if it does not exist. When this returns, no older process can change it any more.
   * @throws FacetrainError FencedOff when a newer attempt of the same job has claimed it, or another start claims it at
   * the same time and later; StorageFailed; DiskFull, also without what older processes had not completed
   */
  static async claim(folder: string, owner: Owner): Promise<Fence> {
    const root = join(folder, OUTPUT.fences);
    let hasFreed = false;
    try {
      await makeFolder(root);
      for (let tries = 1; ; tries++) {
        const claims = await claimsIn(folder);
        const newer = claims.find((claim) => claim.owner?.uid === owner.uid && claim.owner.attempt > owner.attempt);
        if (newer) throw fencedOff(folder, newer);
        const newest = claims.at(-1);
        // By another path to the folder, or by the last try: a network file system may report a rename that it has
        // done as failed, since it sends a request again of which the answer was lost.
        const isOurs = newest?.owner?.start === owner.start;
        const fence = new Fence(folder, isOurs ? newest.number : (newest?.number ?? 0) + 1, owner.start);
        if (!isOurs) {
          const made = await fence.#create(owner, tries === CLAIM_TRIES).catch(async (error: unknown) => {
            if (!isFull(error) || hasFreed) throw error;
            hasFreed = true;
            await removeIncomplete(folder, claims);
            return false;
          });
          if (!made) continue;
        }
        await flushFolder(root);
        await fence.check();
        await fence.#removeOlder();
        return fence;
      }
    } catch (error) {
      throw isFull(error) ? noRoom(folder, error) : storageError(root, error);
    }
  }

  /** The fence that another process of the same gang has claimed. */
  static of(folder: string, { number, start }: Pick<Fence, 'number' | 'start'>): Fence {
    return new Fence(folder, number, start);
  }

  /** Where its owner writes, on the file system of the guarded folder. Only `claim` makes it. */
  get path(): string {
    return join(this.folder, OUTPUT.fences, folderName(this.number), this.start);
  }

  /**
   * Whether this process finds where to write. Not so when its folder is another than that of the process that has
   * claimed, or when a newer claim has removed the fence.
   * @param patienceMs for how long to look: a network file system may show late what another machine has made
   * @throws FacetrainError StorageFailed
   */
  async isVisible(patienceMs: number): Promise<boolean> {
    const end = performance.now() + patienceMs;
    while (!(await this.#exists())) {
      if (performance.now() >= end) return false;
      await delay(LOOK_AGAIN_MS);
    }
    return true;
  }

  /**
   * Whether this process still is the newest. To end soon and with a reason: what it writes is safe without.
   * @throws FacetrainError FencedOff, StorageFailed
   */
  async check(): Promise<void> {
    await this.#check();
  }

  /** The error of an operation: FencedOff when that is why it failed. */
  async explain(error: unknown): Promise<unknown> {
    if (error instanceof FacetrainError && error.code === 'FencedOff') return error;
    const answer = this.#check(error).then(
      () => error,
      // Storage that fails is no answer; what failed first says more.
      (found: unknown) => (found instanceof FacetrainError && found.code === 'FencedOff' ? found : error),
    );
    // Neither is storage that hangs. The process must end, so that its gang starts again.
    return Promise.race([answer, delay(EXPLAIN_MS, error, { ref: false })]);
  }

  /** Creates or replaces a file, as writeAtomically does. @throws FacetrainError FencedOff, DiskFull, StorageFailed */
  async write(target: string, content: Content): Promise<void> {
    const staged = this.#unique(basename(target));
    await this.#guarded(target, async () => {
      await writeNew(staged, content, target);
      await this.check();
      await this.#moveOut(staged, target);
    });
  }

  /**
   * Moves a complete, flushed file or folder from `path` to its place. A file there is replaced.
   * @throws FacetrainError FencedOff, StorageFailed, also when a folder is there
   */
  async moveOut(staged: string, target: string): Promise<void> {
    await this.#guarded(target, () => this.#moveOut(staged, target));
  }

  /** Deletes a file or a folder, at once for all readers. @throws FacetrainError FencedOff, StorageFailed */
  async remove(target: string): Promise<void> {
    const hidden = this.#unique(basename(target));
    await this.#guarded(target, async () => {
      if (await this.#moveIn(target, hidden)) await removeAll(hidden);
    });
  }

  /**
   * Gives something in the guarded folder a name that starts with KEPT_PREFIX.
   * @returns its new path; undefined when it does not exist
   * @throws FacetrainError FencedOff, StorageFailed
   */
  async setAside(target: string): Promise<string | undefined> {
    const name = `${KEPT_PREFIX}${basename(target)}.${folderName(this.number)}`;
    const kept = join(this.folder, name);
    let found = true;
    await this.#guarded(target, async () => {
      found = await this.#moveIn(target, join(this.path, name));
      if (found) await this.#moveOut(join(this.path, name), kept);
    });
    return found ? kept : undefined;
  }

  #unique(name: string): string {
    return join(this.path, `${name}.${randomUUID()}`);
  }

  /** @returns false when there is nothing to move */
  async #moveIn(target: string, to: string): Promise<boolean> {
    try {
      await rename(target, to);
      return true;
    } catch (error) {
      if (!isMissing(error)) throw error;
      await this.check();
      return false;
    }
  }

  async #moveOut(staged: string, target: string): Promise<void> {
    await makeFolder(dirname(target));
    try {
      await rename(staged, target);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
      // A part of the guarded folder is another file system. There the check must do.
      await writeAtomically(target, async (file) => {
        for await (const chunk of createReadStream(staged)) await file.writeFile(chunk as Uint8Array);
        await this.check();
      });
      await rm(staged);
    }
    await flushFolder(dirname(target));
  }

  /**
   * Makes the folder of the number, with its owner and the folder of the start.
   * @param last whether it is the last try
   * @returns false when another process has the number
   */
  async #create(owner: Owner, last: boolean): Promise<boolean> {
    const claimed = dirname(this.path);
    const prepared = join(dirname(claimed), `.${randomUUID()}`);
    try {
      await mkdir(prepared);
      await mkdir(join(prepared, this.start));
      await writeNew(join(prepared, OWNER), `${JSON.stringify({ ...owner, time: new Date().toISOString() })}\n`);
      await flushFolder(prepared);
      await rename(prepared, claimed);
      return true;
    } catch (error) {
      await rm(prepared, { recursive: true, force: true }).catch(() => {});
      // Missing: another claim has removed what was prepared, as it removes what dead processes left.
      const { code = '' } = error as NodeJS.ErrnoException;
      if (!last && (isMissing(error) || ['EEXIST', 'ENOTEMPTY'].includes(code))) return false;
      throw error;
    }
  }

  async #removeOlder(): Promise<void> {
    const root = dirname(dirname(this.path));
    for (const name of await readdir(root)) {
      const older = NUMBER.test(name) ? Number(name) < this.number : TEMPORARY.test(name);
      if (older) await discard(join(root, name), this.folder, 2);
    }
  }

  /** Runs a change of the folder. */
  async #guarded(target: string, change: () => Promise<void>): Promise<void> {
    try {
      await change();
    } catch (error) {
      throw await this.explain(storageError(target, error));
    }
  }

  async #check(cause?: unknown): Promise<void> {
    // Before the claims are read: one of them is why it has gone.
    const exists = await this.#exists();
    const newest = (await claimsIn(this.folder)).at(-1);
    if (newest && newest.number > this.number) throw fencedOff(this.folder, newest, cause);
    if (exists) return;
    const isTaken = newest?.number === this.number && newest.owner && newest.owner.start !== this.start;
    throw fencedOff(this.folder, isTaken ? newest : undefined, cause);
  }

  /** Whether there is where to write. @throws FacetrainError StorageFailed */
  async #exists(): Promise<boolean> {
    try {
      await stat(this.path);
      return true;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT') return false;
      if (code === 'ESTALE') return true; // It cannot be read now, and may be there. A write will tell.
      throw storageError(this.path, error);
    }
  }
}

/**
 * Deletes what the owners of `claims`, and interrupted claims, have not completed. The numbers and owners stay: if the
 * claim that does this fails, an older attempt must still be refused.
 */
async function removeIncomplete(folder: string, claims: Claim[]): Promise<void> {
  const root = join(folder, OUTPUT.fences);
  for (const name of await readdir(root)) if (TEMPORARY.test(name)) await discard(join(root, name), folder, 2);
  for (const { number, owner } of claims) {
    const claimed = join(root, folderName(number));
    const names = await readdir(claimed).catch(() => []); // Another claim may have removed it.
    for (const name of names)
      if (name === owner?.start || TEMPORARY.test(name)) await discard(join(claimed, name), folder, 1);
  }
}

/**
 * Removes a folder of fences/ (`levels` 2) or of a start (1), except what setAside() had moved in when its process
 * ended: that is moved to its place.
 */
async function discard(path: string, folder: string, levels: number): Promise<void> {
  // First under another name: a folder that is being emptied could be replaced by a claim of its number.
  const removed = join(dirname(path), `.${randomUUID()}`);
  try {
    await rename(path, removed);
    await keepThoseIn(removed, folder, levels);
    await removeAll(removed);
  } catch (error) {
    if (!isMissing(error)) throw error; // Else another claim removes it.
  }
}

async function keepThoseIn(path: string, folder: string, levels: number): Promise<void> {
  for (const entry of await readdir(path, { withFileTypes: true })) {
    const inside = join(path, entry.name);
    if (entry.name.startsWith(KEPT_PREFIX)) await rename(inside, join(folder, entry.name));
    else if (levels > 1 && entry.isDirectory()) await keepThoseIn(inside, folder, levels - 1);
  }
}

/** All claims on a folder, in their order. */
async function claimsIn(folder: string): Promise<Claim[]> {
  const root = join(folder, OUTPUT.fences);
  let names: string[];
  try {
    names = await readdir(root);
  } catch (error) {
    // Not ESTALE: a folder that cannot be read now is not one without claims.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw storageError(root, error);
  }
  const claims = names
    .filter((name) => NUMBER.test(name))
    .map(async (name) => ({ number: Number(name), owner: await readOwner(join(root, name, OWNER)) }));
  return (await Promise.all(claims)).sort((a, b) => a.number - b.number);
}

async function readOwner(path: string): Promise<Claim['owner']> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as Claim['owner'];
  } catch (error) {
    if (isMissing(error) || error instanceof SyntaxError) return undefined;
    throw storageError(path, error);
  }
}

/** @param claim the newer one; undefined when there is none, and the fence of the writer is gone */
function fencedOff(folder: string, claim: Claim | undefined, cause?: unknown): FacetrainError {
  const { owner } = claim ?? {};
  const by = owner
    ? `attempt ${owner.attempt} of job ${owner.name} (uid ${owner.uid}) took it over at ${owner.time}`
    : `a newer writer (fence ${claim?.number}) took it over`;
  return new FencedOff(owner, {
    subject: folder,
    ...(claim
      ? { found: by, allowed: 'one writer at a time; this one has stopped, and wrote nothing after that' }
      : {
          found: `the fence of this writer is gone: a person or a program has removed it from ${OUTPUT.fences}/`,
          allowed: `${OUTPUT.fences}/ stays for as long as a program writes to the folder; this one has stopped`,
        }),
    cause,
  });
}

/** The error of a claim for which the disk is too full. */
function noRoom(folder: string, cause: unknown): FacetrainError {
  return new FacetrainError({
    code: 'DiskFull',
    subject: folder,
    found: 'no space left, not even for a claim of the folder',
    allowed:
      `free some space or write to another place; in the folder, checkpoints older than the newest, and what is ` +
      `called ${KEPT_PREFIX}…, can be removed`,
    cause,
  });
}

function isFull(error: unknown): boolean {
  const known = storageError('', error);
  return known instanceof FacetrainError && known.code === 'DiskFull';
}

/** Whether a file or folder was not there; ESTALE is how network file systems say that it was just removed. */
function isMissing(error: unknown): boolean {
  const cause = error instanceof FacetrainError ? error.cause : error;
  return ['ENOENT', 'ESTALE'].includes((cause as NodeJS.ErrnoException | undefined)?.code ?? '');
}

/** Removes a folder, also while a frozen process wakes and writes into it. */
async function removeAll(path: string): Promise<void> {
  try {
    await rm(path, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  } catch (error) {
    // NFS keeps a deleted file that a process of this machine has open, as .nfs… until it is closed.
    const left = await readdir(path, { recursive: true }).catch(() => []);
    if (left.length === 0 || !left.some((name) => basename(name).startsWith('.nfs'))) throw error;
  }
}
