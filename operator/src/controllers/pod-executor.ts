/**
 * Executes the plan for a job in the cluster: actions in order, then the status, then the events.
 *
 * The first action that fails ends the reconcile, and no status is written. The next reconcile plans again from what
 * exists by then, so a crash between two actions is no special case. A Workload that cannot be changed (Kueue's webhook
 * is down, for example) does not hold back the status: it says what has succeeded, and when the training last moved.
 */
import { isDeepStrictEqual } from 'node:util';
import { API_VERSION } from '@facetrain/api';
import type { JobStatus } from '@facetrain/planner/attempt';
import { concurrentGroups, createsPod } from '@facetrain/planner/concurrent-actions';
import type { JobKind } from '@facetrain/planner/names';
import type { ChildObject } from '@facetrain/planner/objects';
import type { JobIdentity, ObservedObject, RefusedChild } from '@facetrain/planner/observed';
import type { Action, Plan } from '@facetrain/planner/plan';
import { ConditionType } from '@facetrain/planner/reasons';
import type { Logger } from 'pino';
import { ApiError, isApiError, isRefusal } from '../runtime/api-error.ts';
import type { Cache } from '../runtime/cache.ts';
import type { Client } from '../runtime/client.ts';
import type { EventRecorder } from '../runtime/event-recorder.ts';
import { FailingSince } from '../runtime/failing-since.ts';
import { LeadershipLost } from '../runtime/leadership.ts';
import { mergePatch } from '../runtime/merge-patch.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import { slowStart } from '../runtime/slow-start.ts';
import { identityOf, observeObject } from './observe.ts';
import { type CacheName, cacheOf, type JobObject, resourceOf, workloads } from './resources.ts';

/**
 * A status that differs from the last one in counts, messages and the condition Admitted alone is written at most this
 * often. While the pods of a gang start or end, each of them changes a count, and Admitted is followed by Running.
 */
const DETAIL_MILLISECONDS = 5_000;
/** Requests for one job that are under way at the same time. */
const MAX_PARALLEL = 16;

/**
 * An error that is no refusal (an internal error, a webhook or a connection that fails) is tried again for this long
 * before the user is told.
 */
const FAILING_MILLISECONDS = 5_000;

/**
 * A refusal is given to each plan for this long, and only then is the object requested again. A refusal may have other
 * words each time, and writing them to the status makes the job be planned again at once.
 */
const REFUSED_MILLISECONDS = 1_000;

export interface ExecutorOptions {
  kind: JobKind;
  resource: Resource<JobObject>;
  client: Client;
  /** By kind, that of the job included. Gets the server's answer to each write, so that reads return it at once. */
  caches: Partial<Record<CacheName | JobKind, Pick<Cache<KubernetesObject>, 'put'>>>;
  events: EventRecorder;
}

/** Why an object could not be created; input of the planner. */
interface RejectedCreate {
  /**
   * The server refused it: Invalid, Forbidden (a quota, an admission policy) or BadRequest. Or it has failed to create
   * anything for this job for FAILING_MILLISECONDS.
   */
  refused?: RefusedChild;
  /** An object of this name exists and does not belong to the job. */
  foreign?: ObservedObject;
}

/** Earlier creates of a job that the server rejected. */
export interface RejectedCreates {
  refused?: RefusedChild;
  foreign: ObservedObject[];
}

export class Executor {
  readonly #options: ExecutorOptions;
  /** By the job's uid: what was refused last, for which generation, and until when that counts (performance.now()). */
  readonly #refused = new Map<string, { refused: RefusedChild; generation: number; until: number }>();
  /** By the job's uid: objects that do not belong to it, under names that its children must have. */
  readonly #foreign = new Map<string, ObservedObject[]>();
  /** Creates of a job, by its uid. */
  readonly #failing = new FailingSince(FAILING_MILLISECONDS);
  /** By the job's uid: when its status was last written, by performance.now(). */
  readonly #writtenAt = new Map<string, number>();

  constructor(options: ExecutorOptions) {
    this.#options = options;
  }

  /**
   * What the server answered to earlier creates, which no cache shows. A refusal is returned for REFUSED_MILLISECONDS,
   * or until the spec changes; the plan after that tries again. Whether a foreign object still exists is read from the
   * server each time.
   */
  async rejectedCreates({ uid, namespace, generation }: JobIdentity): Promise<RejectedCreates> {
    const last = this.#refused.get(uid);
    const isCurrent = last !== undefined && last.generation === generation && performance.now() < last.until;
    if (!isCurrent) this.#refused.delete(uid);
    const refused = isCurrent ? last.refused : undefined;
    const exist = await Promise.all(
      (this.#foreign.get(uid) ?? []).map(async (object) => ((await this.#exists(object, namespace)) ? [object] : [])),
    );
    const foreign = exist.flat();
    if (foreign.length > 0) this.#foreign.set(uid, foreign);
    else this.#foreign.delete(uid);
    return { ...(refused && { refused }), foreign };
  }

  forget(uid: string): void {
    this.#refused.delete(uid);
    this.#foreign.delete(uid);
    this.#failing.end(uid);
    this.#writtenAt.delete(uid);
  }

  /** @returns seconds after which to reconcile again; null: only after a change */
  async execute(job: JobObject, plan: Plan<JobStatus>, log: Logger): Promise<number | null> {
    const identity = identityOf(job);
    let workloadError: unknown;
    for (const group of concurrentGroups(plan.actions)) {
      const rejected = await this.#runGroup(group, identity, log).catch((error: unknown) => {
        if (group[0]!.type !== 'patchWorkload') throw error;
        workloadError = error;
        return null;
      });
      if (!rejected) continue;
      if (rejected.refused) {
        const { uid, generation } = identity;
        this.#refused.set(uid, {
          refused: rejected.refused,
          generation,
          until: performance.now() + REFUSED_MILLISECONDS,
        });
      }
      return 0;
    }
    if (plan.actions.some(({ type }) => type === 'deleteJob')) return null;
    const patch = mergePatch({ ...job.status }, { ...plan.status });
    const delay = this.#statusDelay(job, plan.status, patch);
    const isWritten = delay <= 0 && Object.keys(patch).length > 0;
    if (isWritten) {
      await this.#writeStatus(job, patch);
      this.#emitEvents(identity, plan, log);
    }
    if (workloadError !== undefined) throw workloadError;
    if (isWritten) return 0;
    return delay > 0 ? Math.min(delay / 1000, plan.requeueAfterSeconds ?? Infinity) : plan.requeueAfterSeconds;
  }

  /** Executes actions that do not depend on each other. @returns the first rejection, after which no action is begun */
  async #runGroup(actions: Action[], job: JobIdentity, log: Logger): Promise<RejectedCreate | null> {
    let first: RejectedCreate | null = null;
    // A gang whose pods the server refuses costs one request, not one for each pod.
    const initial = createsPod(actions[0]!) ? 1 : MAX_PARALLEL;
    await slowStart(actions, { initial, max: MAX_PARALLEL }, async (action) => {
      const rejected = await this.#act(action, job, log);
      first ??= rejected;
      return rejected === null;
    });
    return first;
  }

  async #act(action: Action, job: JobIdentity, log: Logger): Promise<RejectedCreate | null> {
    const { client, caches, resource, kind } = this.#options;
    const { namespace } = job;
    switch (action.type) {
      case 'create':
        return this.#create(action.object, job, log);
      case 'delete': {
        log.debug({ kind: action.kind, child: action.name, reason: action.reason }, 'delete');
        const answer = await ignoreMissing(
          client.delete(
            resourceOf(action.kind, action.apiVersion),
            namespace,
            action.name,
            action.uid,
            action.force && 0,
          ),
        );
        // The answer to a forced deletion may still be the object, which is gone by then: it must not enter the cache.
        if (isObject(answer) && !action.force) caches[cacheOf(action.kind, action.apiVersion)]?.put(answer);
        return null;
      }
      case 'patch': {
        const { name, uid, spec, labels } = action;
        log.debug({ kind: action.kind, child: name, spec }, 'patch');
        const answer = await client.patch(resourceOf(action.kind), namespace, name, {
          metadata: { uid, ...(labels && { labels }) },
          spec,
        });
        caches[action.kind]?.put(answer);
        return null;
      }
      case 'patchWorkload': {
        const { name, uid, resourceVersion, status, finalizers, ownerReferences, labels } = action;
        log.debug({ kind: action.kind, child: name, reason: action.reason }, 'patch');
        const metadata = {
          uid,
          resourceVersion,
          ...(finalizers && { finalizers }),
          ...(ownerReferences && { ownerReferences }),
          ...(labels && { labels }),
        };
        const answer = await client
          .patch(workloads, namespace, name, { metadata, ...(status && { status }) }, status && 'status')
          .catch((error: unknown) => {
            if (isApiError(error, 'NotFound')) return null;
            throw error;
          });
        // Without its last finalizer a deleted Workload is gone.
        const isGone = answer?.metadata.deletionTimestamp !== undefined && finalizers?.length === 0;
        if (answer && !isGone) caches.Workload?.put(answer);
        return null;
      }
      case 'deleteJob': {
        log.info({ reason: action.reason }, 'delete the job');
        const answer = await ignoreMissing(client.delete(resource, namespace, job.name, job.uid));
        if (isObject(answer)) caches[kind]?.put(answer);
        return null;
      }
    }
  }

  async #create(object: ChildObject, job: JobIdentity, log: Logger): Promise<RejectedCreate | null> {
    const { client, caches } = this.#options;
    const { kind } = object;
    const { name } = object.metadata;
    const apiVersion = kind === 'PodGroup' ? object.apiVersion : undefined;
    const resource = resourceOf(kind, apiVersion);
    const cache = caches[cacheOf(kind, apiVersion)];
    log.debug({ kind, child: name }, 'create');
    try {
      // Pods come from a podTemplate that no schema has checked. Without strict validation the server would silently
      // drop a misspelt field.
      const isStrict = kind === 'Pod';
      cache?.put(await client.create(resource, job.namespace, object, isStrict));
      this.#failing.end(job.uid);
      return null;
    } catch (error) {
      if (isRefusal(error)) return { refused: { kind, name, message: error.serverMessage } };
      if (!isApiError(error, 'AlreadyExists')) {
        if (!this.#fails(error, job)) throw error;
        log.warn({ err: error, kind, child: name }, 'create keeps failing');
        const message = error instanceof ApiError ? error.serverMessage : (error as Error).message;
        return { refused: { kind, name, message, failed: true } };
      }
    }
    // Created by an earlier reconcile, and not in the cache yet; or by another owner.
    const existing = await client.get(resource, job.namespace, name);
    const observed = observeObject(kind, existing, job, this.#options.kind, apiVersion);
    if (!observed.owned) {
      this.#foreign.set(job.uid, [...(this.#foreign.get(job.uid) ?? []), observed]);
      return { foreign: observed };
    }
    cache?.put(existing);
    return null;
  }

  /** Whether creates of this job have failed for so long that the user should know. */
  #fails(error: unknown, { uid }: JobIdentity): boolean {
    if (error instanceof LeadershipLost || isApiError(error, 'Conflict')) return false;
    return this.#failing.lasts(uid);
  }

  async #exists({ kind, apiVersion, name, uid }: ObservedObject, namespace: string): Promise<boolean> {
    const { client } = this.#options;
    const found = await client.get(resourceOf(kind, apiVersion), namespace, name).catch((error: unknown) => {
      if (!isApiError(error, 'NotFound')) throw error;
    });
    return found?.metadata.uid === uid;
  }

  /** @returns for how many milliseconds a change of the status need not be written (DETAIL_MILLISECONDS) */
  #statusDelay(
    { status: before = {}, metadata: { uid } }: JobObject,
    after: JobStatus,
    patch: Record<string, unknown>,
  ): number {
    const { conditions, trainers, ...others } = patch;
    if ((conditions ?? trainers) === undefined || Object.keys(others).length > 0) return 0;
    // A rank that has succeeded is remembered at once: its pod may be removed at any time.
    if ((trainers as { completedRanks?: unknown } | undefined)?.completedRanks !== undefined) return 0;
    const withoutDetails = ({ conditions: all = [] }: JobStatus) =>
      all.flatMap(({ message: _, ...condition }) => (condition.type === ConditionType.admitted ? [] : [condition]));
    if (!isDeepStrictEqual(withoutDetails(before), withoutDetails(after))) return 0;
    return (this.#writtenAt.get(uid) ?? -Infinity) + DETAIL_MILLISECONDS - performance.now();
  }

  /** @throws ApiError Conflict when the job has changed since it was observed: the plan was made for another state */
  async #writeStatus(job: JobObject, patch: Record<string, unknown>): Promise<void> {
    const { client, caches, kind, resource } = this.#options;
    const { name, namespace, resourceVersion, uid } = job.metadata;
    const written = await client.patch(
      resource,
      namespace!,
      name,
      { metadata: { resourceVersion, uid }, status: patch },
      'status',
    );
    this.#writtenAt.set(uid, performance.now());
    caches[kind]?.put(written);
  }

  #emitEvents({ name, namespace, uid }: JobIdentity, plan: Plan<JobStatus>, log: Logger): void {
    const { kind, events } = this.#options;
    for (const { type, reason, message } of plan.events) {
      log.info({ event: reason }, message);
      events.emit(
        { apiVersion: API_VERSION, kind, name, namespace, uid },
        { type, reason, action: 'Reconcile', message },
      );
    }
  }
}

/** A deletion of an object that does not exist, or that has another uid by now, has nothing left to do. */
function ignoreMissing<T>(deletion: Promise<T>): Promise<T | null> {
  return deletion.catch((error: unknown) => {
    if (isApiError(error, 'NotFound', 'Conflict')) return null;
    throw error;
  });
}

/**
 * The server answers a deletion with the object while that still exists (finalizers, a grace period), else with a
 * Status.
 */
const isObject = (answer: Partial<KubernetesObject> | null): answer is KubernetesObject =>
  answer?.metadata?.uid !== undefined;
