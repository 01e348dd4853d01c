/**
 * Checkpoints and models of simulated trainers in a real object store (versitygw), written by the trainers' own code:
 * the fence, the checkpoints and the output of trainer-image/. What must never happen is noted, as a CheckpointFolder
 * of the planner's tests does.
 *
 * Each process that writes reaches the store by a proxy of its own. While it is frozen the proxy holds its requests,
 * and passes them on when it wakes: to the store it is a process that was stopped at any point between two requests,
 * and writes late.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { FacetrainError, type ObjectStorePlace, OUTPUT } from '@facetrain/api';
import { STEPS, type WriterProcess, type WriterStep } from '@facetrain/planner/testing/checkpoint-folder';
import { ObjectTarget } from '@facetrain/trainer/checkpoint/object-target';
import { prune } from '@facetrain/trainer/checkpoint/target';
import { HEAD, type Head, ObjectFence, PROBE_PREFIX } from '@facetrain/trainer/storage/object-fence';
import { ObjectStore } from '@facetrain/trainer/storage/object-store';
import { ObjectOutput } from '@facetrain/trainer/storage/output-place';
import { type Fate, type FaultyS3, startFaultyS3 } from '@facetrain/trainer/testing/s3-faults';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '@facetrain/trainer/testing/s3-server';
import { manifestOf, writeFiles } from '@facetrain/trainer/testing/small-checkpoint';

const BUCKET = 'soak';
const KEEP = 3;
/** How long a request is repeated. No fault lasts as long. */
const PATIENCE_MILLISECONDS = 120_000;
const POLL_MILLISECONDS = 20;

/** The store of all jobs, and what happens to requests. */
export class Store {
  readonly server: S3Server;
  #fates: Fate[] = [];

  private constructor(server: S3Server) {
    this.server = server;
  }

  static async start(): Promise<Store> {
    Object.assign(process.env, AWS_ENVIRONMENT);
    return new Store(await startS3Server(BUCKET));
  }

  /** The next requests fail so. */
  fail(fate: Fate, times: number): void {
    this.#fates = Array.from({ length: times }, () => fate);
  }

  nextFate(): Fate {
    return this.#fates.pop() ?? 'pass';
  }

  /** The place of a job, by its uid. */
  place(uid: string, endpoint = this.server.endpoint): ObjectStorePlace {
    return { ...this.server.address(`s3://${BUCKET}/${uid}`), endpoint, credentials: null };
  }

  stop(): Promise<void> {
    return this.server.stop();
  }
}

/** What a process has, beside what everybody sees of it. */
interface Writing {
  isFrozen: () => boolean;
  proxy?: FaultyS3 | undefined;
  store?: ObjectStore | undefined;
  fence?: ObjectFence;
  target?: ObjectTarget;
  output?: ObjectOutput;
  /** The random name of its start, when it has begun to claim. */
  start?: string;
  /** When it last sent a request or had an answer: until then the store may have done something for it. */
  lastHeard: number;
}

/** The checkpoints of one job. */
export class StoredCheckpoints {
  readonly violations = new Set<string>();
  /** Token of the process that wrote the model, as it was told. */
  modelWriter: number | null = null;
  readonly #store: Store;
  readonly #uid: string;
  readonly #writing = new Map<WriterProcess, Writing>();
  /** Times are those of performance.now(). */
  readonly #claims: { token: number; base: number; done: number }[] = [];
  readonly #saves: { token: number; step: number; began: number }[] = [];
  readonly #exports: { token: number; began: number }[] = [];

  constructor(store: Store, uid: string) {
    this.#store = store;
    this.#uid = uid;
  }

  start(attempt: number, isFrozen: () => boolean): WriterProcess {
    const process: WriterProcess = { attempt, claim: null, step: 0, staged: null, ended: null };
    this.#writing.set(process, { isFrozen, lastHeard: 0 });
    return process;
  }

  /** Lets a process do a step, if it is alive. @throws FacetrainError StorageFailed */
  async act(process: WriterProcess, step: WriterStep): Promise<void> {
    if (process.ended !== null) return;
    const writing = this.#writing.get(process)!;
    try {
      await this.#act(process, writing, step);
    } catch (failure) {
      // A newer claim has deleted what this process had staged.
      const error = writing.target && process.ended === null ? await writing.target.explain(failure) : failure;
      // What a process does after its death, nobody hears of.
      if (process.ended !== null) return;
      if (!(error instanceof FacetrainError) || error.code !== 'FencedOff') throw error;
      process.ended = 'fenced off';
      if (this.#claims.every(({ token }) => token < (process.claim ?? Infinity)) && process.claim !== null)
        this.violations.add('newest fenced off');
    }
  }

  /** Ends the connections of a process that has ended. May be called more than once. */
  end(process: WriterProcess): void {
    const writing = this.#writing.get(process);
    writing?.store?.close();
    writing?.proxy?.close();
    if (writing) writing.store = writing.proxy = undefined;
  }

  async #act(process: WriterProcess, writing: Writing, step: WriterStep): Promise<void> {
    switch (step) {
      case 'claim':
        return this.#claim(process, writing);
      case 'train':
        process.step += STEPS;
        return;
      case 'stage':
        await writeFiles(writing.target!, this.#checkpoint(process.claim!, process.step));
        process.staged = { step: process.step, complete: true };
        return;
      case 'publish':
        return this.#publish(process, writing.target!);
      case 'export': {
        const began = performance.now();
        await writing.output!.write(OUTPUT.model, `model of ${process.claim}`);
        this.#exports.push({ token: process.claim!, began });
        this.modelWriter = process.claim;
      }
    }
  }

  async #claim(process: WriterProcess, writing: Writing): Promise<void> {
    const heard = () => {
      writing.lastHeard = performance.now();
    };
    writing.proxy = await startFaultyS3(this.#store.server.endpoint);
    writing.proxy.decide = async () => {
      while (writing.isFrozen() && process.ended === null) await delay(POLL_MILLISECONDS);
      // A process that was killed sends nothing more.
      if (process.ended === 'killed') return 'cut';
      heard();
      return this.#store.nextFate();
    };
    writing.proxy.settled = heard;
    const place = this.#store.place(this.#uid, writing.proxy.endpoint);
    const store = new ObjectStore(place, { patienceMs: PATIENCE_MILLISECONDS });
    writing.store = store;
    writing.start = randomUUID();
    const owner = { name: 'job', uid: this.#uid, attempt: process.attempt, start: writing.start };
    const fence = await ObjectFence.claim(store, owner);
    const done = performance.now();
    const target = new ObjectTarget(fence);
    const output = await ObjectOutput.open(fence);
    Object.assign(writing, { fence, target, output });
    await target.removeUnfinished(() => {});
    const base = await target.findNewest(async ({ message }) => {
      this.violations.add(`damaged checkpoint: ${message}`);
    });
    const step = base?.manifest.step ?? 0;
    if (base) await this.#compare(target, step);
    this.#claims.push({ token: fence.number, base: step, done });
    process.claim = fence.number;
    process.step = step;
    this.#checkSaves();
  }

  /** Whether the bytes of a checkpoint are those that its writer wrote. */
  async #compare(target: ObjectTarget, step: number): Promise<void> {
    const { manifest, source, directory } = await target.open(step);
    const token = Number(/\/(\d{10})-[^/]*$/.exec(directory)?.[1]);
    const [file] = manifest.schemaVersion === 2 ? manifest.rows.files : [];
    const { rows } = this.#checkpoint(token, step);
    const bytes = new Uint8Array(file!.bytes);
    await source!.read(file!.file, bytes, 0);
    if (!Buffer.from(bytes.subarray(-rows.length)).equals(rows))
      this.violations.add(`${directory} has bytes that its writer did not write`);
  }

  async #publish(process: WriterProcess, target: ObjectTarget): Promise<void> {
    const { step } = process.staged!;
    const token = process.claim!;
    process.staged = null;
    const began = performance.now();
    await target.complete(manifestOf(this.#checkpoint(token, step)));
    // Also of a process that was killed meanwhile: it may have been told.
    this.#saves.push({ token, step, began });
    this.#checkSaves();
    await prune(target, { keep: KEEP, keepBest: 0 }, 'job');
  }

  /**
   * A process that has saved a step wrote the head before the next claim did: that one has to find the step. After a
   * claim, no older process may be told that it has saved something.
   */
  #checkSaves(): void {
    for (const { token, base, done } of this.#claims)
      for (const save of this.#saves) {
        if (save.token >= token) continue;
        if (save.step > base)
          this.violations.add(`step lost: ${save.token} saved ${save.step}, and ${token} continued from ${base}`);
        if (save.began > done) this.violations.add(`${save.token} saved ${save.step} after ${token} had claimed`);
      }
  }

  #checkpoint(token: number, step: number) {
    const rows = Buffer.alloc(8);
    rows.writeUInt32LE(token, 0);
    rows.writeUInt32LE(step, 4);
    return { step, job: 'job', rows };
  }

  /** What is stored after the job has succeeded: the newest model, what was saved, and nothing that nobody deletes. */
  async checkEnd(): Promise<void> {
    const store = new ObjectStore(this.#store.place(this.#uid));
    try {
      const found = await store.get(HEAD);
      if (!found) return void this.violations.add('there is no head: nobody has claimed the prefix, or it is gone');
      const head = JSON.parse(textOf(found)) as Head;
      const newest = Math.max(0, ...this.#claims.map(({ token }) => token));
      if (head.token < newest) this.violations.add(`the head has token ${head.token}, and ${newest} had claimed`);
      const model = textOf(await store.get(OUTPUT.model));
      if (model !== `model of ${head.token}`) this.violations.add(`${model}, and the newest is ${head.token}`);
      const saved = Math.max(0, ...this.#saves.map(({ step }) => step));
      const listed = Math.max(0, ...head.checkpoints.map(({ step }) => step));
      if (listed < saved) this.violations.add(`step lost: ${saved} was saved, and ${listed} is the newest`);
      // One more: its writer may have been killed before it deleted the oldest, and nobody has saved since.
      if (head.checkpoints.length > KEEP + 1) this.violations.add(`${head.checkpoints.length} checkpoints are left`);
      await this.#checkObjects(store, head);
    } finally {
      store.close();
    }
  }

  async #checkObjects(store: ObjectStore, head: Head): Promise<void> {
    const last = this.#claims.find(({ token }) => token === head.token);
    /** Processes whose writes may have come after the last claim had deleted what was there: nobody deletes them. */
    const late = [...this.#writing].filter(
      ([{ claim }, { lastHeard }]) => claim !== head.token && lastHeard >= (last?.done ?? 0),
    );
    const lateTokens = new Set(late.map(([{ claim }]) => claim));
    // A later claim deletes them, but not before an hour has passed.
    const killedInClaim = new Set(
      [...this.#writing]
        .filter(([{ claim, ended }]) => claim === null && ended === 'killed')
        .map(([, { start }]) => `${PROBE_PREFIX}${start}`),
    );
    for (const name of await store.list('')) {
      const [, folder, token] = /^(step-\d{10}\/(\d{10})-[^/]*)\//.exec(name) ?? [];
      if (folder === undefined) {
        if (name !== HEAD && name !== OUTPUT.model && !killedInClaim.has(name))
          this.violations.add(`left behind: ${name}`);
      } else if (!head.checkpoints.some((each) => each.folder === folder) && !lateTokens.has(Number(token)))
        this.violations.add(`left behind: ${name}`);
    }
    for (const { folder } of head.checkpoints)
      if ((await store.list(`${folder}/`)).length !== 3) this.violations.add(`${folder} is not whole`);
  }
}

const textOf = (found: { bytes: Uint8Array } | undefined): string =>
  found ? new TextDecoder().decode(found.bytes) : 'nothing';
