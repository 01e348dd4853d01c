/**
 * Leader election: of several replicas, the one whose name is in a Lease acts, as long as it renews that Lease.
 *
 * As in client-go, clocks of different machines are never compared. Another holder counts as dead when its Lease has
 * not changed for leaseDurationSeconds by this replica's own clock. A leader that cannot renew stops after
 * renewDeadlineSeconds, which is less, so it has stopped before another may start.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { isApiError } from './api-error.ts';
import type { Client } from './client.ts';
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

export interface ElectionOptions {
  client: Pick<Client, 'get' | 'create' | 'replace'>;
  namespace: string;
  name: string;
  /** Unique among replicas, and among restarts of one. */
  identity: string;
  log: Logger;
  durationSeconds?: number;
  renewDeadlineSeconds?: number;
  retrySeconds?: number;
  /** Called when this replica becomes the leader, and when it no longer is. */
  onChange?: (isLeading: boolean) => void;
}

export class LeadershipLost extends Error {
  override readonly name = 'LeadershipLost';
}

const JITTER = 0.2;
const microTime = (): string => new Date().toISOString().replace(/(\.\d{3})Z$/, '$1000Z');

export class LeaderElection {
  readonly #options: Required<Omit<ElectionOptions, 'onChange'>> & Pick<ElectionOptions, 'onChange'>;
  #lease: Lease | undefined;
  /** When the Lease was last seen to have changed, by performance.now(). */
  #changedAt = 0;

  constructor(options: ElectionOptions) {
    this.#options = { durationSeconds: 15, renewDeadlineSeconds: 10, retrySeconds: 2, ...options };
  }

  /**
   * Waits for the Lease, then runs `work`. The signal of `work` aborts when `signal` does, or when the Lease is lost.
   * The Lease is released when the work has ended.
   *
   * @throws LeadershipLost when the Lease was lost: another replica may lead
   */
  async lead(signal: AbortSignal, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const { log, name, identity, onChange } = this.#options;
    log.info({ lease: name, identity }, 'waiting for the lease');
    while (!(await this.#tryAcquireOrRenew())) {
      await this.#pause(signal);
      if (signal.aborted) return;
    }
    log.info({ lease: name, identity }, 'leading');
    onChange?.(true);
    const ended = new AbortController();
    let isLost = false;
    const renewing = this.#renew(ended.signal).then((lost) => {
      isLost = lost;
      ended.abort();
    });
    try {
      await work(AbortSignal.any([signal, ended.signal]));
    } finally {
      ended.abort();
      await renewing;
      onChange?.(false);
      if (!isLost) await this.#release();
    }
    if (isLost)
      throw new LeadershipLost(`lease ${name} could not be renewed for ${this.#options.renewDeadlineSeconds} s`);
  }

  /** Renews until the signal aborts. @returns true when the Lease is lost: not renewed in time, or held by another */
  async #renew(signal: AbortSignal): Promise<boolean> {
    const { renewDeadlineSeconds, retrySeconds } = this.#options;
    let renewedAt = performance.now();
    while (!signal.aborted) {
      await delay(1000 * retrySeconds, undefined, { signal }).catch(() => {});
      if (signal.aborted) break;
      const begun = performance.now();
      // The deadline also ends the wait for a request that hangs.
      const left = 1000 * renewDeadlineSeconds - (begun - renewedAt);
      const renewed = await Promise.race([
        this.#tryAcquireOrRenew(),
        delay(Math.max(0, left), false, { signal }).catch(() => false),
      ]);
      if (renewed) renewedAt = begun;
      else if (performance.now() - renewedAt >= 1000 * renewDeadlineSeconds || this.#isHeldByAnother())
        return !signal.aborted;
    }
    return false;
  }

  #isHeldByAnother(): boolean {
    const holder = this.#lease?.spec?.holderIdentity;
    return holder !== undefined && holder !== '' && holder !== this.#options.identity;
  }

  /** Takes the Lease or renews it. @returns false when another replica holds it, and on any error */
  async #tryAcquireOrRenew(): Promise<boolean> {
    const { client, namespace, name, identity, durationSeconds, log } = this.#options;
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
      const lease = this.#lease?.spec?.holderIdentity === identity ? this.#lease : await this.#read();
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
      if (isApiError(error, 'Conflict', 'AlreadyExists', 'NotFound')) await this.#read().catch(() => {});
      log.debug({ err: error, lease: name }, 'lease neither taken nor renewed');
      return false;
    }
  }

  async #read(): Promise<Lease | undefined> {
    const { client, namespace, name } = this.#options;
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
    const { client, namespace, name, log } = this.#options;
    const lease = this.#lease;
    if (!lease || this.#isHeldByAnother()) return;
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

  async #pause(signal: AbortSignal): Promise<void> {
    await delay(1000 * this.#options.retrySeconds * (1 + JITTER * Math.random()), undefined, { signal }).catch(
      () => {},
    );
  }
}
