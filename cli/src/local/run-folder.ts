/**
 * The folder of a run: who uses it now, and whether what lies in it is to be continued.
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

interface RunState {
  uid: string;
  specSha256: string;
  finished: boolean;
  pid: number;
}

/** All that a run puts into its folder; what else lies there is somebody's own. */
const OURS = [...Object.values(OUTPUT), dirname(OUTPUT.model), '.facetrain'];

const digest = (value: unknown) => createHash('sha256').update(JSON.stringify(value)).digest('hex');

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

export class RunFolder {
  readonly out: string;
  /** For everything but the results. */
  readonly folder: string;
  readonly uid: string;
  /** An earlier run of the same manifest was stopped, and this one goes on from its newest checkpoint. */
  readonly continued: boolean;
  /** The results of an earlier run were removed. */
  readonly replaced: boolean;
  readonly #state: RunState;

  private constructor(out: string, state: RunState, continued: boolean, replaced: boolean) {
    this.out = out;
    this.folder = join(out, '.facetrain');
    this.uid = state.uid;
    this.continued = continued;
    this.replaced = replaced;
    this.#state = state;
  }

  /**
   * Takes the folder for this process. A run that was stopped goes on; after one that has finished, or with `fresh`, what it left is
   * removed first.
   * @throws FacetrainError InvalidArgument when another process has the folder, or it holds something else
   */
  static async take(out: string, spec: FaceTrainJob['spec'], fresh: boolean): Promise<RunFolder> {
    const refuse = (found: string, allowed: string) =>
      new FacetrainError({ code: 'InvalidArgument', subject: out, found, allowed });
    const file = join(out, '.facetrain', 'run.json');
    const specSha256 = digest(spec);
    let earlier: RunState | undefined;
    if (existsSync(file)) {
      try {
        earlier = JSON.parse(readFileSync(file, 'utf8')) as RunState;
      } catch (cause) {
        throw new FacetrainError({
          code: 'InvalidArgument',
          subject: file,
          found: (cause as Error).message,
          allowed: 'the file as facetrain wrote it; or choose another folder with --out',
          cause,
        });
      }
      if (earlier.pid !== process.pid && alive(earlier.pid))
        throw refuse(
          `process ${earlier.pid} is running a job there`,
          'wait for it, or choose another folder with --out',
        );
      if (!earlier.finished && earlier.specSha256 !== specSha256 && !fresh) {
        throw refuse(
          'holds an unfinished run of another manifest',
          'choose another folder with --out, or start anew with --fresh',
        );
      }
    } else if (existsSync(out) && readdirSync(out).length > 0) {
      throw refuse('is not empty, and no run of facetrain made it', 'choose another folder with --out');
    }
    const continued = earlier !== undefined && !earlier.finished && earlier.specSha256 === specSha256 && !fresh;
    if (earlier && !continued) for (const name of OURS) rmSync(join(out, name), { recursive: true, force: true });
    try {
      await makeFolder(join(out, '.facetrain'));
    } catch (error) {
      throw storageError(out, error);
    }
    const state: RunState = {
      uid: continued ? earlier!.uid : randomUUID(),
      specSha256,
      finished: false,
      pid: process.pid,
    };
    const run = new RunFolder(out, state, continued, earlier !== undefined && !continued);
    await run.#write();
    return run;
  }

  async finish(): Promise<void> {
    this.#state.finished = true;
    await this.#write();
  }

  #write(): Promise<void> {
    return writeAtomically(join(this.folder, 'run.json'), `${JSON.stringify(this.#state, null, 2)}\n`);
  }
}
