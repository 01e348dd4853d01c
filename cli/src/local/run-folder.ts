/**
 * The folder of a run: which process uses it, and whether an earlier run in it is continued.
 *
 *   OUT/checkpoints, OUT/model, OUT/train-report.*, OUT/int7   results
 *   OUT/.facetrain/run.json                                   which job, and whether it has finished
 *   OUT/.facetrain/{config,inputs,logs,termination,volumes}   what a cluster would keep elsewhere
 */
import { createHash, randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type FaceTrainJob, FacetrainError, OUTPUT } from '@facetrain/api';
import { makeFolder, storageError, writeAtomically } from '@facetrain/trainer/storage/atomic-files';

/** The content of run.json. */
interface RunState {
  uid: string;
  specSha256: string;
  finished: boolean;
  pid: number;
}

const STATE_FOLDER = '.facetrain';
/** Everything that a run writes into its folder. Other files there belong to the user and are never removed. */
const RUN_FILES = [...Object.values(OUTPUT), dirname(OUTPUT.model), STATE_FOLDER];
const stateFile = (out: string) => join(out, STATE_FOLDER, 'run.json');

export class RunFolder {
  readonly out: string;
  /** For everything but the results. */
  readonly stateFolder: string;
  readonly uid: string;
  /** An earlier run of the same manifest was stopped; this one continues from its newest checkpoint. */
  readonly continued: boolean;
  /** The files of an earlier run were removed. */
  readonly replaced: boolean;
  readonly #state: RunState;

  private constructor(out: string, state: RunState, continued: boolean, replaced: boolean) {
    this.out = out;
    this.stateFolder = join(out, STATE_FOLDER);
    this.uid = state.uid;
    this.continued = continued;
    this.replaced = replaced;
    this.#state = state;
  }

  /**
   * Takes the folder for this process. A run that was stopped is continued. After one that has finished, and with
   * `fresh`, its files are removed first.
   * @throws FacetrainError InvalidArgument when another process uses the folder, when it holds an unfinished run of
   * another manifest, or files but no run; StorageFailed when it cannot be written
   */
  static async take(out: string, spec: FaceTrainJob['spec'], fresh: boolean): Promise<RunFolder> {
    const specSha256 = sha256(spec);
    const earlier = readState(out);
    if (earlier) refuseFolderInUse(out, earlier);
    else refuseForeignFolder(out);
    const isUnfinished = earlier !== undefined && !earlier.finished;
    const isSameSpec = earlier?.specSha256 === specSha256;
    if (isUnfinished && !isSameSpec && !fresh) throw otherManifest(out);

    const continued = isUnfinished && isSameSpec && !fresh;
    const replaced = earlier !== undefined && !continued;
    if (replaced) removeRunFiles(out);
    await makeStateFolder(out);
    const uid = continued ? earlier.uid : randomUUID();
    const folder = new RunFolder(out, { uid, specSha256, finished: false, pid: process.pid }, continued, replaced);
    await folder.#writeState();
    return folder;
  }

  /** The next run in this folder begins anew. */
  async markFinished(): Promise<void> {
    this.#state.finished = true;
    await this.#writeState();
  }

  #writeState(): Promise<void> {
    return writeAtomically(stateFile(this.out), `${JSON.stringify(this.#state, null, 2)}\n`);
  }
}

const sha256 = (value: unknown) => createHash('sha256').update(JSON.stringify(value)).digest('hex');

const refusal = (subject: string, found: string, allowed: string, cause?: unknown) =>
  new FacetrainError({ code: 'InvalidArgument', subject, found, allowed, cause });

/** @returns undefined when no run has used the folder */
function readState(out: string): RunState | undefined {
  const file = stateFile(out);
  if (!existsSync(file)) return undefined;
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as RunState;
  } catch (cause) {
    const allowed = 'the file as facetrain wrote it; or choose another folder with --out';
    throw refusal(file, (cause as Error).message, allowed, cause);
  }
}

function refuseForeignFolder(out: string): void {
  if (existsSync(out) && readdirSync(out).length > 0)
    throw refusal(out, 'is not empty, and no run of facetrain made it', 'choose another folder with --out');
}

function refuseFolderInUse(out: string, { pid }: RunState): void {
  if (pid !== process.pid && isRunning(pid))
    throw refusal(out, `process ${pid} is running a job there`, 'wait for it, or choose another folder with --out');
}

const otherManifest = (out: string) =>
  refusal(
    out,
    'holds an unfinished run of another manifest',
    'choose another folder with --out, or start anew with --fresh',
  );

/** Signal 0 only checks that the process exists; EPERM: it does, and belongs to another user. */
function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function removeRunFiles(out: string): void {
  for (const name of RUN_FILES) rmSync(join(out, name), { recursive: true, force: true });
}

async function makeStateFolder(out: string): Promise<void> {
  try {
    await makeFolder(join(out, STATE_FOLDER));
  } catch (error) {
    throw storageError(out, error);
  }
}
