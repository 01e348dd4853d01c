/**
 * A fence around a prefix of an object store: of all processes that ever start to write there, only the newest can
 * change what counts.
 *
 * An object store has no rename, by which a folder refuses an old writer (fence.ts). It has conditional writes: a PUT
 * with `If-Match: ETAG` fails (412) when the object has changed. So one small object, the head, decides all:
 *
 * - `fences/head.json` holds the token, a number that rises with each claim, its owner, and the list of the checkpoints
 *   that count. A claim and every change of the list replaces it, on condition that it is what the writer has read.
 *   A writer whose condition fails reads it again, and finds who has taken its place.
 * - Names of all other objects hold the token and the random name of the start, so an old writer cannot replace the
 *   objects of a newer one. What it writes, the head does not list: it counts for nothing, and the next claim deletes
 *   it.
 * - The content of the head is never the same twice (`change`), so that its ETag, which may be a digest, is not either.
 *   It also tells a writer whether its own write has succeeded when the answer was lost.
 *
 * A store that takes such a PUT although its condition does not hold would let two writers go on. probe() finds out.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { CheckpointEvaluations, FacetrainError, OUTPUT } from '@facetrain/api';
import { z } from 'zod';
import { FencedOff, type Owner } from './fence.ts';
import { otherTag } from './generations.ts';
import { type Condition, ObjectStore } from './object-store.ts';

const Listed = z.object({
  step: z.int().min(0),
  /** Name of what its objects' names begin with, below the prefix. */
  folder: z.string().min(1),
  /** Name of the job that wrote it. */
  job: z.string().min(1),
  /** As its manifest has it; versions of before did not list it. */
  time: z.string().optional(),
});
/** A checkpoint that counts. */
export type Listed = z.infer<typeof Listed>;

const Head = z.object({
  schemaVersion: z.literal(1),
  change: z.string().min(1),
  token: z.int().min(1),
  owner: z.object({
    name: z.string(),
    uid: z.string(),
    attempt: z.int(),
    start: z.string().min(1),
    time: z.string(),
  }),
  checkpoints: z.array(Listed),
  /** Set aside for people. */
  damaged: z.array(Listed),
  /** How checkpoints verify, as evaluations.json of a folder says it. */
  evaluations: CheckpointEvaluations.shape.evaluations,
});
export type Head = z.infer<typeof Head>;

type Lists = Pick<Head, 'checkpoints' | 'damaged' | 'evaluations'>;

/** The object that decides. */
export const HEAD = `${OUTPUT.fences}/head.json`;
/** What names of the objects begin with by which a claim tries the store's conditions. */
export const PROBE_PREFIX = `${OUTPUT.fences}/probe-`;
/**
 * After so many milliseconds its process has ended: a store does not take a request whose signature is older than a
 * quarter of an hour, so that clocks cannot be further apart, either.
 */
const PROBE_IS_LEFT_MS = 3_600_000;
/** What names of the objects of checkpoints begin with. */
export const CHECKPOINT_PREFIX = 'step-';
const JSON_TYPE = 'application/json';
/** A claim is tried again while others claim at the same time. */
const CLAIM_TRIES = 100;
/** How long explain() waits for the store, in milliseconds. */
const EXPLAIN_MS = 10_000;
/** Between two looks for a head that is not there, in milliseconds. */
const LOOK_AGAIN_MS = 100;
/** For how long a head that was there is looked for before it counts as gone, in milliseconds. */
const GONE_AFTER_MS = 3_000;

export class ObjectFence {
  readonly store: ObjectStore;
  /** The token. */
  readonly number: number;
  /** That of the owner. */
  readonly start: string;
  /** What the head was when it was last read or written by this process. */
  #known: { head: Head; etag: string } | undefined;
  #changing: Promise<unknown> = Promise.resolve();

  private constructor(store: ObjectStore, number: number, start: string, known?: { head: Head; etag: string }) {
    this.store = store;
    this.number = number;
    this.start = start;
    this.#known = known;
  }

  /**
   * Takes the prefix. When this returns, no older process can change what counts there.
   * @throws FacetrainError FencedOff when a newer attempt of the same job has claimed it; StorageFailed, also when the
   * store has no conditional writes
   */
  static async claim(store: ObjectStore, owner: Owner): Promise<ObjectFence> {
    await probe(store, owner.start);
    for (let tries = 1; ; tries++) {
      const found = await readHead(store);
      if (found?.head.owner.uid === owner.uid && found.head.owner.attempt > owner.attempt)
        throw fencedOff(store, found.head);
      if (!found) await refuseOrphans(store);
      // One start may claim by two names that lead to one prefix: its output and its checkpoints.
      if (found?.head.owner.start === owner.start) return new ObjectFence(store, found.head.token, owner.start, found);
      const head: Head = {
        schemaVersion: 1,
        change: randomUUID(),
        token: (found?.head.token ?? 0) + 1,
        owner: { ...owner, time: new Date().toISOString() },
        checkpoints: found?.head.checkpoints ?? [],
        damaged: found?.head.damaged ?? [],
        evaluations: found?.head.evaluations ?? [],
      };
      const etag = await putHead(store, head, { etag: found?.etag ?? null });
      if (etag !== undefined) return new ObjectFence(store, head.token, owner.start, { head, etag });
      if (tries === CLAIM_TRIES) throw await contested(store);
    }
  }

  /** The fence that another process of the same gang has claimed. */
  static of(store: ObjectStore, { number, start }: Pick<ObjectFence, 'number' | 'start'>): ObjectFence {
    return new ObjectFence(store, number, start);
  }

  /** What names of this start's objects end their folder with: unique for each start. */
  get suffix(): string {
    return `${String(this.number).padStart(10, '0')}-${this.start}`;
  }

  /** The head as it is now. @throws FacetrainError FencedOff, StorageFailed */
  async head(): Promise<Head> {
    const found = await lookForHead(this.store);
    if (found?.head.owner.start !== this.start) throw fencedOff(this.store, found?.head);
    return found.head;
  }

  /**
   * Replaces the head, if this process is still the newest. To be called by the process that has claimed.
   * @param edit makes the new lists of the ones that are there; it may be called more than once
   * @throws FacetrainError FencedOff, StorageFailed
   */
  async change(edit: (head: Head) => Partial<Lists>): Promise<void> {
    const work = this.#changing.then(() => this.#change(edit));
    this.#changing = work.catch(() => {});
    await work;
  }

  async #change(edit: (head: Head) => Partial<Lists>): Promise<void> {
    for (;;) {
      const known = this.#known ?? (await lookForHead(this.store));
      if (known?.head.owner.start !== this.start) throw fencedOff(this.store, known?.head);
      const head: Head = { ...known.head, ...edit(known.head), change: randomUUID() };
      this.#known = undefined;
      const etag = await putHead(this.store, head, { etag: known.etag });
      if (etag === undefined) continue;
      this.#known = { head, etag };
      return;
    }
  }

  /**
   * Whether this process finds the claim. Not so when its store is another than that of the process that has claimed,
   * or when there is a newer claim.
   * @param patienceMs for how long to look
   * @throws FacetrainError StorageFailed
   */
  async isVisible(patienceMs: number): Promise<boolean> {
    const end = performance.now() + patienceMs;
    while ((await readHead(this.store))?.head.owner.start !== this.start) {
      if (performance.now() >= end) return false;
      await delay(LOOK_AGAIN_MS);
    }
    return true;
  }

  /** Whether this process still is the newest. @throws FacetrainError FencedOff, StorageFailed */
  async check(): Promise<void> {
    await this.head();
  }

  /** The error of an operation: FencedOff when that is why it failed. */
  async explain(error: unknown): Promise<unknown> {
    if (error instanceof FacetrainError && error.code === 'FencedOff') return error;
    // Its own connection, which does not wait for a store that is away: the process must end, so that its gang starts
    // again. What failed first then says more.
    const store = new ObjectStore(this.store.place, { patienceMs: 0 });
    try {
      const answer = lookForHead(store).then(
        (found) => (found?.head.owner.start === this.start ? error : fencedOff(this.store, found?.head, error)),
        () => error,
      );
      return await Promise.race([answer, delay(EXPLAIN_MS, error, { ref: false })]);
    } finally {
      store.close();
    }
  }
}

/**
 * Without a head nobody knows which checkpoints count. From here training would begin anew, and nobody would notice
 * that days of it are lost.
 * @throws FacetrainError InvalidCheckpoint when there are objects of checkpoints; StorageFailed
 */
async function refuseOrphans(store: ObjectStore): Promise<void> {
  const [first] = await store.list(CHECKPOINT_PREFIX);
  // Another process may have claimed and written since.
  if (first === undefined || (await lookForHead(store))) return;
  throw new FacetrainError({
    code: 'InvalidCheckpoint',
    subject: store.uri(HEAD),
    found: `no such object, and objects of checkpoints (${store.uri(first)})`,
    allowed: 'the head that belongs to them: put it back, or delete them to start from step 0',
  });
}

/** @returns undefined when there is none */
export async function readHead(store: ObjectStore): Promise<{ head: Head; etag: string } | undefined> {
  const found = await store.get(HEAD);
  if (!found) return undefined;
  try {
    return { head: Head.parse(JSON.parse(new TextDecoder().decode(found.bytes))), etag: found.etag };
  } catch (cause) {
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: store.uri(HEAD),
      found: 'an object that this version did not write, and cannot read',
      allowed: 'the head of a prefix to which Facetrain writes; give the job another prefix',
      cause,
    });
  }
}

/**
 * Reads a head that was there. A store that has just come back may not have all its objects for a moment.
 * @returns undefined when it is gone
 */
async function lookForHead(store: ObjectStore): Promise<{ head: Head; etag: string } | undefined> {
  const end = performance.now() + GONE_AFTER_MS;
  for (;;) {
    const found = await readHead(store);
    if (found || performance.now() >= end) return found;
    await delay(LOOK_AGAIN_MS);
  }
}

/** @returns the ETag; undefined when somebody else has written the head */
async function putHead(store: ObjectStore, head: Head, condition: Condition): Promise<string | undefined> {
  const etag = await store.put(HEAD, toJson(head), condition, JSON_TYPE);
  if (etag !== undefined) return etag;
  // It may have been this very write, when an answer was lost.
  const found = await readHead(store);
  return found?.head.change === head.change ? found.etag : undefined;
}

/**
 * Finds out whether the store refuses a conditional write whose condition does not hold, and whether it lets us delete:
 * without that permission the first checkpoint that is no longer kept would end a training of hours.
 * @throws FacetrainError StorageFailed when it does not
 */
async function probe(store: ObjectStore, start: string): Promise<void> {
  const name = PROBE_PREFIX + start;
  const body = (text: string) => new TextEncoder().encode(`${text}\n`);
  try {
    await store.put(name, body('1'), { etag: null });
    const replaced = await store.put(name, body('2'), { etag: null });
    const etag = (await store.head(name))?.etag;
    const matched = await store.put(name, body('3'), { etag: otherTag(etag ?? '') });
    if (etag !== undefined) await store.put(name, body('4'), { etag });
    // Not the write's answer: an earlier try may have succeeded, of which the answer was lost.
    const found = await store.get(name);
    const isOwn = found !== undefined && Buffer.from(found.bytes).equals(body('4'));
    if (replaced !== undefined || matched !== undefined || !isOwn)
      throw noConditions(
        store,
        replaced ? 'If-None-Match: *' : matched ? 'If-Match with another ETag' : 'its own ETag',
      );
  } catch (error) {
    await store.delete([name]).catch(() => {});
    const cause = error instanceof FacetrainError ? (error.cause as { name?: string } | undefined) : undefined;
    throw cause?.name === 'NotImplemented' ? noConditions(store, 'a condition', error) : error;
  }
  // And those of processes that were killed at this point.
  const left = await store.list(PROBE_PREFIX, new Date(Date.now() - PROBE_IS_LEFT_MS));
  await store.delete([name, ...left]);
}

function noConditions(store: ObjectStore, condition: string, cause?: unknown): FacetrainError {
  return new FacetrainError({
    code: 'StorageFailed',
    subject: `${store.uri('')} at ${store.place.endpoint ?? 'AWS'}`,
    found: `the store does not keep to the condition of a write (PUT with ${condition})`,
    allowed:
      'a store with conditional writes (AWS S3, versitygw, Google Cloud Storage, newer MinIO and Ceph): without ' +
      'them an older attempt ' +
      'could overwrite a newer one; or a folder (pvc://) for checkpoints and output',
    cause,
  });
}

async function contested(store: ObjectStore): Promise<FacetrainError> {
  const found = await readHead(store);
  return fencedOff(store, found?.head);
}

/** @param head the newer one; undefined when it is gone */
function fencedOff(store: ObjectStore, head: Head | undefined, cause?: unknown): FacetrainError {
  return new FencedOff(head?.owner, {
    subject: store.uri('').replace(/\/$/, ''),
    ...(head
      ? {
          found:
            `attempt ${head.owner.attempt} of job ${head.owner.name} (uid ${head.owner.uid}) took it over at ` +
            head.owner.time,
          allowed: 'one writer at a time; this one has stopped, and nothing that it wrote after that counts',
        }
      : {
          found: `the head of this prefix is gone: a person or a program has deleted ${HEAD}`,
          allowed: `${HEAD} stays for as long as a program writes to the prefix; this one has stopped`,
        }),
    cause,
  });
}

const toJson = (value: unknown): Uint8Array => new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`);
