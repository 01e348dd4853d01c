/** Retries of storage operations. A short outage, as during an upgrade, must not end a long job. */
import { setTimeout as delay } from 'node:timers/promises';
import { ExitCode, FacetrainError } from '@facetrain/api';
import { isForeign } from './s3.ts';

/**
 * For so many milliseconds a request to an object store is repeated, whatever it is for. Half of the default
 * progressDeadlineSeconds of a job: a gang says that its store is away before it counts as hung.
 */
export const PATIENCE_MS = 15 * 60_000;

/**
 * For so many milliseconds a fetch asks a server that it has never reached. A wrong port looks like a store that starts
 * beside the job: the attempt fails, so that the job's status says which address it is, and the next attempts go on
 * asking. With the default maxRestarts these are more than 20 minutes.
 */
const UNREACHED_MS = 5 * 60_000;
/**
 * The same, of any request, for a misdirected one, which no restart mends: its exit code fails the job. But a name
 * server may deny a name for a moment, and a load balancer answer for a store that starts, and an attempt of a job that
 * has trained for days must not end it then.
 */
export const MISDIRECTED_MS = 60_000;

/**
 * Whether a request came to no S3 server: its name does not resolve, or another program has answered.
 * @param cause as the SDK threw it
 */
export const isMisdirected = (cause: unknown): boolean => codeOf(cause) === 'ENOTFOUND' || isForeign(cause);

const codeOf = (cause: unknown): unknown => (cause as { code?: unknown } | undefined)?.code;

/** For how long a fetch asks a store: until its first answer less long than later. */
export class FirstContact {
  #hasAnswered = false;

  /** To be called when the store has answered. */
  readonly answered = (): void => {
    this.#hasAnswered = true;
  };

  /** @param error why the request has failed; a failure of another kind shows that something is there */
  readonly giveUpAfter = (error: FacetrainError): number => {
    const misdirected = isMisdirected(error.cause);
    if (!misdirected && codeOf(error.cause) !== 'ECONNREFUSED') this.#hasAnswered = true;
    if (this.#hasAnswered) return PATIENCE_MS;
    return misdirected ? MISDIRECTED_MS : UNREACHED_MS;
  };

  /** A misdirected request, though it is no transient failure elsewhere. */
  readonly mayPass = ({ cause }: FacetrainError): boolean => isMisdirected(cause);
}

export interface RetryOptions {
  signal: AbortSignal;
  /** Called before each wait, with the failure and the length of the wait in milliseconds. */
  onRetry: (error: FacetrainError, milliseconds: number) => void;
  /** Retries end this many milliseconds after the first failure, by the newest one: PATIENCE_MS by default. */
  giveUpAfter?: number | ((error: FacetrainError) => number);
  /** Failures that may pass besides those that are transient. */
  mayPass?: (error: FacetrainError) => boolean;
  /** The first wait, in milliseconds; each further one is twice as long, up to 10 s. */
  firstWait?: number;
}

const FIRST_WAIT_MILLISECONDS = 1_000;
const LONGEST_WAIT_MILLISECONDS = 10_000;

/**
 * Calls `work` until it succeeds, as long as its failures are transient.
 * @throws the last failure, when it is not transient or the time is up; Error AbortError when the signal is aborted
 */
export async function withRetries<T>(work: () => Promise<T>, options: RetryOptions): Promise<T> {
  const { signal, onRetry, mayPass = () => false } = options;
  const { giveUpAfter = PATIENCE_MS, firstWait = FIRST_WAIT_MILLISECONDS } = options;
  let firstFailure: number | undefined;
  for (let wait = firstWait; ; wait = Math.min(2 * wait, LONGEST_WAIT_MILLISECONDS)) {
    try {
      return await work();
    } catch (error) {
      firstFailure ??= performance.now();
      if (!(error instanceof FacetrainError) || !(isTransient(error) || mayPass(error))) throw error;
      const limit = typeof giveUpAfter === 'number' ? giveUpAfter : giveUpAfter(error);
      if (performance.now() + wait - firstFailure > limit) throw error;
      onRetry(error, wait);
      await delay(wait, undefined, { signal });
    }
  }
}

/** s3Error gives the exit code `failure` to failures that a retry may solve, and `refused` to all others. */
const isTransient = ({ code, exitCode }: FacetrainError): boolean =>
  code === 'StorageFailed' && exitCode === ExitCode.failure;
