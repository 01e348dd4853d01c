/**
 * One of several replicas acts: the one whose name is in a Lease that it keeps renewing.
 *
 * As in client-go, no clock is compared with another machine's: a holder is dead when its Lease has not been seen to change for the
 * Lease's duration by our own clock. Who leads and cannot renew stops before anyone else may think so (renewDeadline < duration).
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { hasReason } from './api-error.ts';
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
  /** Differs between replicas, and between lives of one. */
  identity: string;
  log: Logger;
  durationSeconds?: number;
  renewDeadlineSeconds?: number;
  retrySeconds?: number;
  onChange?: (leads: boolean) => void;
}

export class LeadershipLost extends Error {
  override readonly name = 'LeadershipLost';
}

const JITTER = 0.2;
const microTime = (): string => new Date().toISOString().replace(/(\.\d{3})Z$/, '$1000Z');

export class LeaderElection {
  readonly #options: Required<Omit<ElectionOptions, 'onChange'>> & Pick<ElectionOptions, 'onChange'>;
  #seen: Lease | undefined;
  /** By our own clock, when the Lease was last seen to be another. */
  #seenAt = 0;

  constructor(options: ElectionOptions) {
    this.#options = { durationSeconds: 15, renewDeadlineSeconds: 10, retrySeconds: 2, ...options };
  }

  /**
   * Waits for the Lease, then runs `work`, whose signal says stop when `signal` does or when the Lease is lost. The Lease is given
   * back when the work has ended.
   *
   * @throws LeadershipLost when another may lead
   */
  async lead(signal: AbortSignal, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const { log, name, identity, onChange } = this.#options;
    log.info({ lease: name, identity }, 'waiting for the lease');
    while (!(await this.#try())) {
      await this.#pause(signal);
      if (signal.aborted) return;
    }
    log.info({ lease: name, identity }, 'leading');
    onChange?.(true);
    const over = new AbortController();
    let isLost = false;
    const renewing = this.#renew(over.signal).then((lost) => {
      isLost = lost;
      over.abort();
    });
    try {
      await work(AbortSignal.any([signal, over.signal]));
    } finally {
      over.abort();
      await renewing;
      onChange?.(false);
      if (!isLost) await this.#release();
    }
    if (isLost)
      throw new LeadershipLost(`lease ${name} could not be renewed for ${this.#options.renewDeadlineSeconds} s`);
  }

  /** Resolves to true when the Lease could not be renewed for too long or is another's, to false when the signal says stop. */
  async #renew(signal: AbortSignal): Promise<boolean> {
    const { renewDeadlineSeconds, retrySeconds } = this.#options;
    let renewedAt = performance.now();
    while (!signal.aborted) {
      await delay(1000 * retrySeconds, undefined, { signal }).catch(() => {});
      if (signal.aborted) break;
      const begun = performance.now();
      // A request that hangs must not outlive the deadline.
      const left = 1000 * renewDeadlineSeconds - (begun - renewedAt);
      const renewed = await Promise.race([this.#try(), delay(Math.max(0, left), false, { signal }).catch(() => false)]);
      if (renewed) renewedAt = begun;
      else if (performance.now() - renewedAt >= 1000 * renewDeadlineSeconds || this.#isAnothers())
        return !signal.aborted;
    }
    return false;
  }

  #isAnothers(): boolean {
    const holder = this.#seen?.spec?.holderIdentity;
    return holder !== undefined && holder !== '' && holder !== this.#options.identity;
  }

  /** Takes or renews the Lease; false when it is another's, or on any error. */
  async #try(): Promise<boolean> {
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
      // What is ours was last written by us: no need to read it first.
      const lease = this.#seen?.spec?.holderIdentity === identity ? this.#seen : await this.#read();
      if (lease === undefined) {
        this.#see(
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
      if (!isMine && holderIdentity !== '' && performance.now() - this.#seenAt < 1000 * leaseDurationSeconds)
        return false;
      const spec = {
        ...mine,
        acquireTime: isMine ? (acquireTime ?? now) : now,
        leaseTransitions: isMine ? leaseTransitions : leaseTransitions + 1,
      };
      this.#see(await client.replace(leases, namespace, name, { ...lease, spec }));
      return true;
    } catch (error) {
      if (hasReason(error, 'Conflict', 'AlreadyExists', 'NotFound')) await this.#read().catch(() => {});
      log.debug({ err: error, lease: name }, 'lease neither taken nor renewed');
      return false;
    }
  }

  async #read(): Promise<Lease | undefined> {
    const { client, namespace, name } = this.#options;
    try {
      return this.#see(await client.get(leases, namespace, name));
    } catch (error) {
      if (!hasReason(error, 'NotFound')) throw error;
      this.#seen = undefined;
      return undefined;
    }
  }

  #see(lease: Lease): Lease {
    if (lease.metadata.resourceVersion !== this.#seen?.metadata.resourceVersion) this.#seenAt = performance.now();
    this.#seen = lease;
    return lease;
  }

  /** Nobody need wait for what is given back. */
  async #release(): Promise<void> {
    const { client, namespace, name, log } = this.#options;
    const lease = this.#seen;
    if (!lease || this.#isAnothers()) return;
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
