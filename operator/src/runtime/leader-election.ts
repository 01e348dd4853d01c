/**
 * Leader election: of several replicas, the one whose name is in a Lease acts, as long as it renews that Lease.
 *
 * As in client-go, clocks of different machines are never compared. Another holder counts as dead when its Lease has
 * not changed for leaseDurationSeconds by this replica's own clock. A leader that cannot renew stops after
 * renewDeadlineSeconds, which is less, so it has stopped before another may start. What stops it is in leadership.ts.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { isApiError } from './api-error.ts';
import { type Client, untilAborted } from './client.ts';
import type { Leadership } from './leadership.ts';
import { defineResource, type KubernetesObject } from './resource.ts';

export interface Lease extends KubernetesObject {
  spec?: {
    holderIdentity?: string;
    leaseDurationSeconds?: number;
    acquireTime?: string;
    renewTime?: string;
    leaseTransitions?: number;
  };
}
export const leases = defineResource<Lease>('coordination.k8s.io/v1', 'leases');

/** The times of an election, in seconds. */
export interface ElectionTimes {
  /** How long others wait for a leader that does not renew. The API takes whole seconds. */
  durationSeconds: number;
  /** After this time without a renewal a leader stops. The difference to the duration is for its last requests. */
  renewDeadlineSeconds: number;
  /** Between two tries to take or to renew the Lease. */
  retrySeconds: number;
}

/**
 * The times for a duration of the Lease: 8, 6 and 1.6 s. client-go's defaults are 15, 10 and 2 s. A shorter Lease is
 * free sooner after its leader was killed; as a share of it, the leader gets a little longer here for its renewals.
 */
export const electionTimes = (durationSeconds: number): ElectionTimes => ({
  durationSeconds,
  renewDeadlineSeconds: (durationSeconds * 3) / 4,
  retrySeconds: durationSeconds / 5,
});

export interface ElectionOptions extends ElectionTimes {
  client: ElectionClient;
  namespace: string;
  name: string;
  /** Unique among replicas, and among restarts of one. */
  identity: string;
  log: Logger;
  /** Begins and ends with the election; what it guards can write in between alone. */
  leadership: Leadership;
  /** Called when this replica becomes the leader, and when it no longer is. */
  onChange?: (isLeading: boolean) => void;
}
type LeaseRequests = Pick<Client, 'get' | 'create' | 'replace'>;
export interface ElectionClient {
  guardedBy(guard: Parameters<Client['guardedBy']>[0]): LeaseRequests;
}

const JITTER = 0.2;
/** How long a stop waits for the answer to a request for the Lease. */
const LAST_ANSWER_MILLISECONDS = 1_000;
/** Longest time to give the Lease up: a pod that stops may be killed meanwhile. */
const RELEASE_MILLISECONDS = 5_000;
const microTime = (): string => new Date().toISOString().replace(/(\.\d{3})Z$/, '$1000Z');

/** A signal that aborts some time after another has. */
function delayed(signal: AbortSignal, milliseconds: number): AbortSignal {
  const controller = new AbortController();
  const abortLater = () => void setTimeout(() => controller.abort(signal.reason), milliseconds).unref();
  if (signal.aborted) abortLater();
  else signal.addEventListener('abort', abortLater, { once: true });
  return controller.signal;
}

export class LeaderElection {
  readonly #options: ElectionOptions;
  #lease: Lease | undefined;
  /** When the Lease was last seen to have changed, by performance.now(). */
  #changedAt = 0;

  /** @throws RangeError unless a leader stops before others start, and can try more than once to renew */
  constructor(options: ElectionOptions) {
    const { durationSeconds, renewDeadlineSeconds, retrySeconds } = options;
    if (renewDeadlineSeconds >= durationSeconds)
      throw new RangeError(`renewDeadlineSeconds ${renewDeadlineSeconds}: must be less than ${durationSeconds}`);
    if (retrySeconds * (1 + JITTER) >= renewDeadlineSeconds)
      throw new RangeError(`retrySeconds ${retrySeconds}: must be less than ${renewDeadlineSeconds / (1 + JITTER)}`);
    this.#options = options;
  }

  /**
   * Waits for the Lease, then runs `work`. The signal of `work` aborts when `signal` does, or when the Lease is lost.
   * The Lease is released when the work has ended.
   *
   * @throws LeadershipLost when the Lease was lost: another replica may lead. It does not wait for the work then, as
   *   the process has to end at once.
   */
  async lead(signal: AbortSignal, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const { log, name, identity, onChange, leadership } = this.#options;
    log.info({ lease: name, identity }, 'waiting for the lease');
    if (!(await this.#acquire(signal))) return;
    log.info({ lease: name, identity }, 'leading');
    onChange?.(true);
    const ended = new AbortController();
    const renewing = this.#renew(ended.signal);
    const lost = Promise.withResolvers<never>();
    const onLost = () => lost.reject(leadership.signal.reason);
    leadership.signal.addEventListener('abort', onLost, { once: true });
    const working = work(AbortSignal.any([signal, leadership.signal]));
    try {
      await Promise.race([working, lost.promise]);
    } catch (error) {
      if (leadership.signal.aborted) {
        log.error({ lease: name, identity }, (leadership.signal.reason as Error).message);
        working.catch(() => {}); // fails because the guard refuses its requests
      }
      throw error;
    } finally {
      leadership.signal.removeEventListener('abort', onLost);
      ended.abort();
      onChange?.(false);
      if (!leadership.signal.aborted) {
        await renewing;
        await this.#release();
      }
    }
  }

  /** @returns whether this replica leads; false: the signal has aborted */
  async #acquire(signal: AbortSignal): Promise<boolean> {
    const { leadership, renewDeadlineSeconds } = this.#options;
    // A request that is aborted may have taken the Lease nevertheless, and then nobody would give it back.
    const stopped = delayed(signal, LAST_ANSWER_MILLISECONDS);
    while (!signal.aborted) {
      const begun = leadership.now;
      const limit = AbortSignal.timeout(Math.ceil(1000 * renewDeadlineSeconds));
      if (await this.#tryAcquireOrRenew(AbortSignal.any([stopped, limit]))) {
        leadership.renewed(begun);
        if (signal.aborted) {
          await this.#release();
          return false;
        }
        // 0: the answer took so long that another may have taken the Lease meanwhile.
        if (leadership.millisecondsLeft > 0) return true;
      }
      await this.#pause(signal);
    }
    return false;
  }

  /** Renews until the signal aborts, or the Lease is lost: not renewed in time, or held by another. */
  async #renew(signal: AbortSignal): Promise<void> {
    const { renewDeadlineSeconds, retrySeconds, leadership, name } = this.#options;
    for (let next = 1000 * retrySeconds; ; ) {
      await delay(next, undefined, { signal }).catch(() => {});
      if (signal.aborted) return;
      const begun = leadership.now;
      const left = leadership.millisecondsLeft;
      // An answer that does not come may be that of a dead connection: half of the time is left for another try, whose
      // connection is new.
      const limit = left > 500 * renewDeadlineSeconds ? left / 2 : left;
      if (left > 0 && (await this.#tryAcquireOrRenew(AbortSignal.timeout(Math.ceil(limit))))) leadership.renewed(begun);
      next = Math.max(0, 1000 * retrySeconds - (leadership.now.monotonic - begun.monotonic));
      if (this.#isHeldByAnother())
        return leadership.end(`lease ${name} was taken by ${this.#lease?.spec?.holderIdentity}`);
      if (leadership.millisecondsLeft === 0)
        return leadership.end(`lease ${name} could not be renewed for ${renewDeadlineSeconds} s`);
    }
  }

  #isHeldByAnother(): boolean {
    const holder = this.#lease?.spec?.holderIdentity;
    return holder !== undefined && holder !== '' && holder !== this.#options.identity;
  }

  /**
   * Takes the Lease or renews it, until the signal aborts.
   *
   * @returns false when another replica holds it, and on any error
   */
  async #tryAcquireOrRenew(signal: AbortSignal): Promise<boolean> {
    const { namespace, name, identity, durationSeconds, log } = this.#options;
    const client = this.#options.client.guardedBy(untilAborted(signal));
    try {
      const now = microTime();
      const mine = {
        holderIdentity: identity,
        leaseDurationSeconds: durationSeconds,
        acquireTime: now,
        renewTime: now,
        leaseTransitions: 0,
      };
      // A Lease of this replica was last written by it, so it need not be read first.
      const lease = this.#lease?.spec?.holderIdentity === identity ? this.#lease : await this.#read(client);
      if (lease === undefined) {
        this.#setLease(
          await client.create(leases, namespace, {
            apiVersion: leases.apiVersion,
            kind: 'Lease',
            metadata: { name, namespace },
            spec: mine,
          }),
        );
        return true;
      }
      const {
        holderIdentity = '',
        leaseDurationSeconds = durationSeconds,
        acquireTime,
        leaseTransitions = 0,
      } = lease.spec ?? {};
      const isMine = holderIdentity === identity;
      if (!isMine && holderIdentity !== '' && performance.now() - this.#changedAt < 1000 * leaseDurationSeconds)
        return false;
      const spec = {
        ...mine,
        acquireTime: isMine ? (acquireTime ?? now) : now,
        leaseTransitions: isMine ? leaseTransitions : leaseTransitions + 1,
      };
      this.#setLease(await client.replace(leases, namespace, name, { ...lease, spec }));
      return true;
    } catch (error) {
      if (isApiError(error, 'Conflict', 'AlreadyExists', 'NotFound')) await this.#read(client).catch(() => {});
      log.debug({ err: error, lease: name }, 'lease neither taken nor renewed');
      return false;
    }
  }

  async #read(client: LeaseRequests): Promise<Lease | undefined> {
    const { namespace, name } = this.#options;
    try {
      return this.#setLease(await client.get(leases, namespace, name));
    } catch (error) {
      if (!isApiError(error, 'NotFound')) throw error;
      this.#lease = undefined;
      return undefined;
    }
  }

  #setLease(lease: Lease): Lease {
    if (lease.metadata.resourceVersion !== this.#lease?.metadata.resourceVersion) this.#changedAt = performance.now();
    this.#lease = lease;
    return lease;
  }

  /** Gives the Lease up, so that the other replicas need not wait until it expires. */
  async #release(): Promise<void> {
    const { namespace, name, log, leadership } = this.#options;
    const lease = this.#lease;
    leadership.end('the lease is given back');
    if (!lease || this.#isHeldByAnother()) return;
    const client = this.#options.client.guardedBy(untilAborted(AbortSignal.timeout(RELEASE_MILLISECONDS)));
    try {
      await client.replace(leases, namespace, name, {
        ...lease,
        spec: { ...lease.spec, holderIdentity: '', leaseDurationSeconds: 1, renewTime: microTime() },
      });
      log.info({ lease: name }, 'lease given back');
    } catch (error) {
      log.warn({ err: error, lease: name }, 'lease not given back; others wait until it is over');
    }
  }

  /** Waits for the next try, or until the Lease of another is over, if that comes first. */
  async #pause(signal: AbortSignal): Promise<void> {
    const { retrySeconds, durationSeconds } = this.#options;
    const retry = 1000 * retrySeconds * (1 + JITTER * Math.random());
    const lease = 1000 * (this.#lease?.spec?.leaseDurationSeconds ?? durationSeconds);
    const left = this.#isHeldByAnother() ? this.#changedAt + lease - performance.now() : 0;
    await delay(left > 0 ? Math.min(retry, left + 1) : retry, undefined, { signal }).catch(() => {});
  }
}
