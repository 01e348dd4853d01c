/**
 * The folder of a run: which process uses it, and what a run in it keeps of an earlier one.
 *
 *   OUT/checkpoints, OUT/model, OUT/train-report.*, OUT/int7   results
 *   OUT/.facetrain/run.json                                   which job, and how far it came
 *   OUT/.facetrain/run.lock                                   held by `facetrain run`
 *   OUT/.facetrain/trainers.lock                              held by `facetrain run` and by its trainers
 *   OUT/.facetrain/{config,inputs,logs,termination,volumes}   what a cluster would keep elsewhere
 *
 * An earlier run is continued, however it ended: its training from the newest checkpoint, or only its quantization.
 * What it made is removed only with `--fresh`. docs/decisions/0017-what-a-run-again-keeps.md gives the reasons.
 */
import { createHash, randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  DEFAULT_TERMINATION_GRACE_SECONDS,
  type FaceTrainJob,
  FacetrainError,
  OUTPUT,
  parseStorageUri,
} from '@facetrain/api';
import { quantizeJobName } from '@facetrain/planner/facetrainjob/child-quantizejob';
import { makeFolder, storageError } from '@facetrain/trainer/storage/atomic-files';
import { isArtifactWhole } from './artifact-manifest.ts';
import { canGoOn, changedFields, quantizationDiffers, trainingFields } from './changed-fields.ts';
import { FileLock, holderOf, processesWithOpen } from './folder-lock.ts';
import { differingFields, lastTrainerConfig } from './former-run.ts';
import { localStorage } from './local-environment.ts';
import {
  hasArtifact,
  hasCheckpoint,
  isOwnArtifact,
  listing,
  type RunPaths,
  remove,
  runFiles,
  setArtifactAside,
  writerOfArtifact,
} from './run-files.ts';
import { type FormerState, isFormer, quantizeJobUid, type RunState, readState, writeState } from './run-state.ts';
import { isModelWhole, writerOfModel } from './train-report.ts';

/**
 * What a run does in its folder. `begin`: the whole job. `continue`: from the newest checkpoint. `quantize`: the model
 * is trained, so only that. `nothing`: the job has succeeded, and nothing that decides its results has changed.
 */
export type RunMode = 'begin' | 'continue' | 'quantize' | 'nothing';

export interface TakeOptions {
  /** Start anew, and remove what an earlier run has made. */
  fresh: boolean;
  signal: AbortSignal;
  /** Says what is found, kept and removed, in one line. */
  print: (line: string) => void;
  /** Refuses inputs that cannot be used. Called before anything is removed. */
  checkInputs: () => Promise<void>;
  /** The same for those of the quantization alone. Called before an artifact is set aside for a new one. */
  checkQuantizationInputs: () => Promise<void>;
}

export const STATE_FOLDER = '.facetrain';
const POLL_MILLISECONDS = 200;
/** After SIGKILL a process may take a moment to end. */
const KILL_MILLISECONDS = 10_000;

export class RunFolder {
  readonly paths: RunPaths;
  readonly mode: RunMode;
  /** To be inherited by the trainers: while one of them runs, the next run waits. */
  readonly trainersLock: number;
  readonly #state: RunState;
  readonly #locks: FileLock[];

  private constructor(paths: RunPaths, mode: RunMode, state: RunState, locks: FileLock[]) {
    this.paths = paths;
    this.mode = mode;
    this.#state = state;
    this.#locks = locks;
    this.trainersLock = locks.at(-1)!.descriptor;
  }

  get uid(): string {
    return this.#state.uid;
  }
  /** The number of the attempt that this run begins with: higher than that of any earlier one. */
  get attempt(): number {
    return this.#state.attempt;
  }

  /**
   * Takes the folder for this process, and decides what to do in it. Waits for trainers that a killed run has left.
   * @throws FacetrainError InvalidArgument when another process uses the folder, when it holds files but no run, the
   * run of another job, or one whose training this manifest would change; StorageFailed when it cannot be written
   */
  static async take(out: string, job: FaceTrainJob, options: TakeOptions): Promise<RunFolder> {
    refuseForeignFolder(out);
    const state = join(out, STATE_FOLDER);
    await makeStateFolder(state);
    const runLock = FileLock.take(join(state, 'run.lock'));
    if (!runLock) throw folderInUse(out, holderOf(join(state, 'run.lock')));
    runLock.sign();
    const locks = [runLock];
    try {
      // Once to refuse without waiting, and again with what the trainers have written meanwhile.
      await decide(out, job, options);
      locks.push(await waitForTrainers(join(state, 'trainers.lock'), graceSeconds(out, job), options));
      const next = await (await decide(out, job, options))();
      const folder = new RunFolder(pathsOf(out, job.metadata.name, job.spec), next.mode, next.state, locks);
      await folder.#write();
      return folder;
    } catch (error) {
      for (const lock of locks) lock.release();
      throw error;
    }
  }

  /** Called before the attempt's trainers start. */
  recordAttempt(attempt: number): Promise<void> {
    if (attempt === this.#state.attempt) return Promise.resolve();
    this.#state.attempt = attempt;
    return this.#write();
  }

  async recordTrained(): Promise<void> {
    if (this.#state.trained) return;
    this.#state.trained = true;
    await this.#write();
  }

  async recordEnd({ phase, exitCode, message }: NonNullable<RunState['ended']>): Promise<void> {
    this.#state.ended = { phase, exitCode, ...(message !== undefined && { message }) };
    this.#state.quantized ||= phase === 'Succeeded' && this.#state.spec.quantize !== undefined;
    await this.#write();
  }

  release(): void {
    for (const lock of this.#locks) lock.release();
  }

  #write(): Promise<void> {
    return writeState(stateFile(this.paths.out), this.#state);
  }
}

const stateFile = (out: string) => join(out, STATE_FOLDER, 'run.json');

/** Where a run of this job writes. */
function pathsOf(out: string, name: string, spec: FaceTrainJob['spec']): RunPaths {
  const state = join(out, STATE_FOLDER);
  const { checkpoint, quantize } = spec;
  return {
    out,
    state,
    checkpoints: checkpoint.uri
      ? localStorage(state, 'checkpoints', { uri: checkpoint.uri }, 'write').path
      : join(out, OUTPUT.checkpoints),
    sharesCheckpoints: checkpoint.uri !== undefined,
    artifact: quantize?.output ? localStorage(state, 'output', quantize.output, 'write').path : join(out, OUTPUT.int7),
    quantizeJob: quantizeJobName({ name }),
  };
}

interface Next {
  mode: RunMode;
  state: RunState;
}

/**
 * Decides what to do, and refuses what cannot be done.
 * @returns what then changes the folder; to be called when no trainer of an earlier run is left
 */
async function decide(out: string, job: FaceTrainJob, options: TakeOptions): Promise<() => Promise<Next>> {
  const earlier = readEarlier(out, job, options.fresh);
  refuseForeignArtifact(pathsOf(out, job.metadata.name, job.spec), job);
  if (!earlier) return async () => ({ mode: 'begin', state: newState(job) });
  if (earlier.job !== job.metadata.name) throw otherJob(out, earlier.job);
  if (options.fresh || earlier.removing) {
    await options.checkInputs();
    return () => beginAnew(out, earlier, job, options);
  }
  const changed = changedFields(earlier.spec, job.spec);
  const trained = earlier.trained && (await isModelWhole(out));
  const hasWork = trained || hasCheckpoint(pathsOf(out, earlier.job, earlier.spec), earlier.uid);
  if (hasWork && (trained ? trainingFields(changed).length > 0 : !canGoOn(changed, earlier.spec, job.spec)))
    throw otherTraining(out, earlier, job, trainingFields(changed), trained);
  if (earlier.trained && !hasWork)
    throw refusal(
      join(out, OUTPUT.model),
      'is not as the earlier run wrote it, and there is no checkpoint to make it from',
      'put it and its report back, choose another folder with --out, or train anew with --fresh',
    );
  return () => goOn(out, earlier, job, { changed, trained, hasWork }, options);
}

/** The state of the earlier run; that of a former version is completed by what its files say. */
function readEarlier(out: string, job: FaceTrainJob, fresh: boolean): RunState | undefined {
  const found = readState(stateFile(out));
  if (found === undefined || !isFormer(found)) return found;
  if (isRunning(found.pid)) throw folderInUse(out, String(found.pid));
  return completed(out, found, job, fresh);
}

function completed(out: string, former: FormerState, job: FaceTrainJob, fresh: boolean): RunState {
  const paths = pathsOf(out, job.metadata.name, job.spec);
  const config = lastTrainerConfig(paths.state);
  const trained = writerOfModel(out) === former.uid;
  const sameSpec = former.specSha256 === createHash('sha256').update(JSON.stringify(job.spec)).digest('hex');
  const differing = sameSpec || !config ? [] : differingFields(config, job, paths.state);
  const state: RunState = {
    ...newState(job),
    uid: former.uid,
    job: config?.job.name ?? job.metadata.name,
    attempt: config?.job.attempt ?? 0,
    trained,
    quantized: sameSpec && trained && hasArtifact(paths.artifact),
  };
  if (
    !fresh &&
    differing.length > 0 &&
    state.job === job.metadata.name &&
    (trained || hasCheckpoint(paths, former.uid))
  )
    throw otherTraining(out, state, job, differing, trained);
  return state;
}

const newState = ({ metadata, spec }: FaceTrainJob): RunState => ({
  schemaVersion: 2,
  job: metadata.name,
  uid: randomUUID(),
  spec,
  attempt: 0,
  trained: false,
  quantized: false,
  ended: null,
  removing: false,
});

/** `--fresh`, or the rest of one that was interrupted. */
async function beginAnew(
  out: string,
  earlier: RunState,
  job: FaceTrainJob,
  { fresh, print }: TakeOptions,
): Promise<Next> {
  const files = runFiles(pathsOf(out, earlier.job, earlier.spec), earlier.uid);
  print(`${fresh ? '--fresh' : 'An earlier --fresh was interrupted, and'} removes what the earlier run has made:`);
  for (const line of listing(files)) print(`  ${line}`);
  await writeState(stateFile(out), { ...earlier, removing: true });
  remove(files);
  return { mode: 'begin', state: newState(job) };
}

async function goOn(
  out: string,
  earlier: RunState,
  job: FaceTrainJob,
  { changed, trained, hasWork }: { changed: string[]; trained: boolean; hasWork: boolean },
  { print, checkQuantizationInputs }: TakeOptions,
): Promise<Next> {
  const { artifact } = pathsOf(out, job.metadata.name, job.spec);
  const quantized = trained && (await isQuantized(earlier, job, artifact));
  const mode = modeOf(job, trained, quantized, hasWork);
  if (earlier.ended?.phase === 'Failed' && mode !== 'nothing')
    print(`The earlier run failed: ${earlier.ended.message ?? `exit code ${earlier.ended.exitCode}`}`);
  if (changed.length > 0) print(`Changed since the earlier run: ${changed.join(', ')}`);
  if (earlier.trained && !trained)
    print(`${join(out, OUTPUT.model)} is not as the earlier run wrote it; it is made again`);
  if (mode === 'quantize' && earlier.quantized && !quantizationDiffers(earlier.spec, job.spec))
    print(`${artifact} is not as the earlier run wrote it; the model is quantized again`);
  if (mode !== 'nothing' && job.spec.quantize && hasArtifact(artifact)) {
    await checkQuantizationInputs();
    print(`Keeps the earlier INT7 artifact in ${await setArtifactAside(artifact)}`);
  }
  // An artifact of an earlier spec stays valid when the manifest asks for none.
  const state: RunState = {
    ...earlier,
    spec: mode === 'nothing' ? { ...earlier.spec, quantize: job.spec.quantize ?? earlier.spec.quantize } : job.spec,
    attempt: earlier.attempt + (mode === 'nothing' ? 0 : 1),
    trained,
    quantized: quantized || (mode === 'nothing' && earlier.quantized),
    ended: mode === 'nothing' ? earlier.ended : null,
  };
  return { mode, state };
}

/**
 * Whether the artifact is there that the quantization of this spec gives. A run that was killed after its last file has
 * not recorded it, but the report says that it is of this run. Whether such a run has also published it to an object
 * store is unknown.
 */
async function isQuantized(earlier: RunState, { spec }: FaceTrainJob, artifact: string): Promise<boolean> {
  if (!spec.quantize || quantizationDiffers(earlier.spec, spec)) return false;
  const { output } = spec.quantize;
  const isHere = !output || parseStorageUri(output.uri).scheme !== 's3';
  const isUnrecorded = earlier.ended === null && isHere && writerOfArtifact(artifact)?.uid === quantizeJobUid(earlier);
  return (earlier.quantized || isUnrecorded) && (await isArtifactWhole(artifact));
}

function modeOf({ spec }: FaceTrainJob, trained: boolean, quantized: boolean, hasWork: boolean): RunMode {
  if (!trained) return hasWork ? 'continue' : 'begin';
  return spec.quantize && !quantized ? 'quantize' : 'nothing';
}

/** How long a process of the earlier run may take to end: the longest of what its pod templates say. */
function graceSeconds(out: string, job: FaceTrainJob): number {
  const earlier = readState(stateFile(out));
  const { trainers, quantize } = earlier && !isFormer(earlier) ? earlier.spec : job.spec;
  const templates = [trainers.podTemplate, ...(quantize ? [quantize.quantizer.podTemplate] : [])];
  return Math.max(
    ...templates.map((template) => {
      const pod = template?.spec as { terminationGracePeriodSeconds?: number } | undefined;
      return pod?.terminationGracePeriodSeconds ?? DEFAULT_TERMINATION_GRACE_SECONDS;
    }),
  );
}

/**
 * Takes the lock that the trainers of an earlier run hold. A run that was killed leaves them behind: they write a
 * checkpoint and end. One that takes longer than `grace` seconds is killed, as the kubelet would.
 */
async function waitForTrainers(path: string, grace: number, { signal, print }: TakeOptions): Promise<FileLock> {
  const deadline = Date.now() + grace * 1000;
  for (let announced = false; ; announced = true) {
    const lock = FileLock.take(path);
    if (lock) return lock;
    const left = processesWithOpen(realpathSync(path)).filter((pid) => pid !== process.pid);
    if (!announced)
      print(
        `Waits for trainers of an earlier run to write their checkpoint and end, at most ${grace} s ` +
          `(processes ${left.join(', ')})`,
      );
    if (Date.now() > deadline + KILL_MILLISECONDS) throw folderInUse(path, left.join(', ') || 'unknown');
    if (Date.now() > deadline) for (const pid of left) kill(pid);
    await delay(POLL_MILLISECONDS, undefined, { signal });
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended meanwhile.
  }
}

const refusal = (subject: string, found: string, allowed: string, cause?: unknown) =>
  new FacetrainError({ code: 'InvalidArgument', subject, found, allowed, cause });

function refuseForeignFolder(out: string): void {
  if (!existsSync(out)) return;
  let names: string[];
  try {
    names = readdirSync(out);
  } catch (error) {
    throw storageError(out, error);
  }
  // The state folder alone: a run was killed before it had written run.json.
  if (names.some((name) => name !== STATE_FOLDER) && !existsSync(stateFile(out)))
    throw refusal(out, 'is not empty, and no run of facetrain made it', 'choose another folder with --out');
}

/** Refuses to publish over the artifact of another job. */
function refuseForeignArtifact(paths: RunPaths, { spec }: FaceTrainJob): void {
  if (spec.quantize && hasArtifact(paths.artifact) && !isOwnArtifact(paths, paths.artifact))
    throw refusal(
      paths.artifact,
      'holds an artifact, or another manifest.json, that no run of this job has made',
      'choose another spec.quantize.output, or move it away',
    );
}

const folderInUse = (out: string, processes: string) =>
  refusal(out, `process ${processes} is running a job there`, 'wait for it, or choose another folder with --out');

const otherJob = (out: string, name: string) =>
  refusal(
    out,
    `holds the run of another job, ${JSON.stringify(name)}`,
    'choose another folder with --out; nothing of it was changed',
  );

function otherTraining(
  out: string,
  earlier: RunState,
  { spec }: FaceTrainJob,
  fields: string[],
  trained: boolean,
): FacetrainError {
  const folder = trained ? 'a trained model' : 'checkpoints';
  const trainOn =
    trained && fields.every((path) => path === 'spec.epochs') && spec.epochs > earlier.spec.epochs
      ? `; to train on, copy ${pathsOf(out, earlier.job, earlier.spec).checkpoints}, ` +
        'name the copy in spec.checkpoint.uri, and use --out'
      : '';
  return refusal(
    out,
    `holds ${folder} of this job with other values of ${fields.join(', ')}`,
    `give the values of the earlier run, choose another folder with --out, or start anew with --fresh${trainOn}`,
  );
}

/** A process of a former version, which has no lock. Another program may have got its number since. */
function isRunning(pid: number): boolean {
  try {
    return (
      pid !== process.pid &&
      /(^|[/\0])(facetrain|cli\/src\/main\.ts)(\0|$)/.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))
    );
  } catch {
    return false;
  }
}

async function makeStateFolder(path: string): Promise<void> {
  try {
    await makeFolder(path);
  } catch (error) {
    throw storageError(path, error);
  }
}
