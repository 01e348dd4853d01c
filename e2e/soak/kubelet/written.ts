/**
 * What must hold of the checkpoints that real trainers write, seen from outside while they write: who has lost the
 * place to a newer process writes nothing that counts, and nothing that counted is lost or replaced. The jobs keep all
 * their checkpoints.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** What matters here of a store's head (trainer-image/src/storage/object-fence.ts). */
export interface Head {
  token: number;
  checkpoints: { step: number; folder: string }[];
}

const FOLDER = /^step-\d{10}$/;
/** The token in the folder of a checkpoint: step-…/TOKEN-START. */
const TOKEN = /\/(\d{10})-/;

export class WrittenCheck {
  readonly violations: string[] = [];
  /** Checkpoints that were seen, of all jobs. */
  seen = 0;
  readonly #folders = new Map<string, Map<string, string>>();
  readonly #heads = new Map<string, Head>();

  /**
   * @param found names of the folders of checkpoints that a volume has now, and for those that were not seen before
   *   (all, at the end) what identifies their manifest: another file of the same name differs in it
   */
  folder(job: string, found: ReadonlyMap<string, string | undefined>): void {
    const known = this.#folders.get(job) ?? new Map<string, string>();
    this.#folders.set(job, known);
    for (const [name, identity] of known) {
      if (!found.has(name)) this.violations.push(`${job}: ${name} is gone`);
      const now = found.get(name);
      if (now !== undefined && now !== identity) this.violations.push(`${job}: ${name} was written again`);
    }
    for (const [name, identity] of found) {
      if (identity === undefined || known.has(name)) continue;
      known.set(name, identity);
      this.seen++;
    }
  }

  isKnown(job: string, name: string): boolean {
    return this.#folders.get(job)?.has(name) === true;
  }

  /** The head of a job's prefix in the store, as it is now. */
  head(job: string, head: Head): void {
    const before = this.#heads.get(job) ?? { token: 0, checkpoints: [] };
    this.#heads.set(job, head);
    const say = (words: string) => this.violations.push(`${job}: ${words}`);
    if (head.token < before.token) say(`the token ${before.token} became ${head.token}`);
    const now = new Map(head.checkpoints.map(({ step, folder }) => [step, folder]));
    for (const { step, folder } of before.checkpoints)
      if (now.get(step) !== folder) say(`the checkpoint of step ${step}, ${folder}, became ${now.get(step)}`);
    const known = new Set(before.checkpoints.map(({ step }) => step));
    for (const { step, folder } of head.checkpoints) {
      if (known.has(step)) continue;
      this.seen++;
      // Between two looks a newer process may have claimed the place after this one was listed.
      const token = Number(TOKEN.exec(folder)?.[1]);
      if (!(token >= before.token)) say(`${folder} was listed after the claim of ${before.token}`);
    }
  }
}

/** Where a job's checkpoints are, on this machine. */
export interface Written {
  job: string;
  /** The folder of a volume that has its checkpoints; or the file that is its head. */
  folder?: string;
  head?: string;
}

const LOOK_MILLISECONDS = 200;

/** Looks again and again at what jobs have written. */
export class Watched {
  readonly check = new WrittenCheck();
  readonly #places: Written[];
  readonly #ended: Promise<void>;
  #stops = false;

  constructor(places: Written[]) {
    this.#places = places;
    this.#ended = this.#run();
  }

  /** Looks at everything for a last time. */
  async stop(): Promise<void> {
    this.#stops = true;
    await this.#ended;
    await this.#look(true);
  }

  async #run(): Promise<void> {
    while (!this.#stops) {
      await this.#look(false);
      await delay(LOOK_MILLISECONDS);
    }
  }

  async #look(all: boolean): Promise<void> {
    for (const { job, folder, head } of this.#places) {
      if (folder !== undefined) {
        const found = new Map<string, string | undefined>();
        for (const name of await readdir(folder).catch(() => []))
          if (FOLDER.test(name))
            found.set(name, all || !this.check.isKnown(job, name) ? await identityOf(join(folder, name)) : undefined);
        this.check.folder(job, found);
      }
      if (head !== undefined) {
        // Not there yet.
        const text = await readFile(head, 'utf8').catch(() => '');
        if (text !== '') this.check.head(job, JSON.parse(text) as Head);
      }
    }
  }
}

/** A checkpoint is moved to its name as a whole, so its manifest is there from the beginning. */
async function identityOf(checkpoint: string): Promise<string> {
  const { ino, mtimeMs } = await stat(join(checkpoint, 'manifest.json'));
  return `${ino} of ${mtimeMs}`;
}
