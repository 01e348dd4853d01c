/**
 * One look at one job: observe, plan, act in order, write the status, tell the events. The first action that fails ends it, with nothing written; the next look
 * starts from what is really there.
 */
import { isDeepStrictEqual } from 'node:util';
import { API_VERSION } from '@facetrain/api';
import type { JobStatus } from '@facetrain/planner/attempt';
import { concurrentGroups, createsPod } from '@facetrain/planner/concurrent-actions';
import type { JobKind } from '@facetrain/planner/names';
import type { ChildObject } from '@facetrain/planner/objects';
import type { JobIdentity, ObservedObject, RefusedChild } from '@facetrain/planner/observed';
import type { Action, Plan } from '@facetrain/planner/plan';
import type { Logger } from 'pino';
import { hasReason, isRefusal } from '../runtime/api-error.ts';
import type { Cache } from '../runtime/cache.ts';
import type { Client } from '../runtime/client.ts';
import type { EventRecorder } from '../runtime/event-recorder.ts';
import { mergePatch } from '../runtime/merge-patch.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import { slowStart } from '../runtime/slow-start.ts';
import { identityOf, observeObject } from './observe.ts';
import { type JobObject, resourceOf } from './resources.ts';

/** Between two writes of a status that say the same in other numbers. */
const DETAIL_MILLISECONDS = 1_000;
/** Requests for one job that are under way together. */
const MAX_TOGETHER = 16;

type AnyCache = Pick<Cache<KubernetesObject>, 'put'>;

export interface ExecutorOptions {
  kind: JobKind;
  resource: Resource<JobObject>;
  client: Client;
  /** Where the answers to writes go, by kind; the job's own kind is one. */
  caches: Partial<Record<ChildObject['kind'] | JobKind, AnyCache>>;
  events: EventRecorder;
  podGroupApi: string | null;
}

/** An action that the server answered with something that the planner has to be shown. */
interface Setback {
  refused?: RefusedChild;
  foreign?: ObservedObject;
}

export class Executor {
  readonly #options: ExecutorOptions;
  /** By the job's uid: what was refused since its last look. */
  readonly #refused = new Map<string, RefusedChild>();
  /** By the job's uid: objects of others under names that its children must have. */
  readonly #foreign = new Map<string, ObservedObject>();
  /** By the job's uid: when its status was last written, by performance.now(). */
  readonly #writtenAt = new Map<string, number>();

  constructor(options: ExecutorOptions) {
    this.#options = options;
  }

  /** What the server has that no cache shows. A refusal is told once; whether a name is still taken is asked each time. */
  async memory({ uid, namespace }: JobIdentity): Promise<{ refused?: RefusedChild; foreign: ObservedObject[] }> {
    const refused = this.#refused.get(uid);
    this.#refused.delete(uid);
    const foreign = this.#foreign.get(uid);
    if (foreign && !(await this.#isThere(foreign, namespace))) this.#foreign.delete(uid);
    return { ...(refused && { refused }), foreign: [...(this.#foreign.has(uid) ? [foreign!] : [])] };
  }

  forget(uid: string): void {
    this.#refused.delete(uid);
    this.#foreign.delete(uid);
    this.#writtenAt.delete(uid);
  }

  /** @returns seconds after which to look again, null: only when something changes */
  async execute(job: JobObject, plan: Plan<JobStatus>, log: Logger): Promise<number | null> {
    const identity = identityOf(job);
    for (const group of concurrentGroups(plan.actions)) {
      const setback = await this.#together(group, identity, log);
      if (!setback) continue;
      if (setback.refused) this.#refused.set(identity.uid, setback.refused);
      if (setback.foreign) this.#foreign.set(identity.uid, setback.foreign);
      return 0;
    }
    if (plan.actions.some(({ type }) => type === 'deleteJob')) return null;
    const patch = mergePatch({ ...job.status }, { ...plan.status });
    const wait = this.#mayWait(job, plan.status, patch);
    if (wait > 0) return wait / 1000;
    if (Object.keys(patch).length > 0) {
      await this.#writeStatus(job, patch);
      const { kind, events } = this.#options;
      const { name, namespace, uid } = identity;
      for (const { type, reason, message } of plan.events) {
        log.info({ event: reason }, message);
        events.emit(
          { apiVersion: API_VERSION, kind, name, namespace, uid },
          { type, reason, action: 'Reconcile', message },
        );
      }
    }
    return plan.requeueAfterSeconds;
  }

  /** Carries out actions that do not depend on each other. @returns the first setback, after which none was begun */
  async #together(actions: Action[], job: JobIdentity, log: Logger): Promise<Setback | null> {
    let setback: Setback | null = null;
    // A gang that the server refuses should cost one request, and not one for each pod.
    const first = createsPod(actions[0]!) ? 1 : MAX_TOGETHER;
    await slowStart(actions, { first, most: MAX_TOGETHER }, async (action) => {
      const met = await this.#act(action, job, log);
      setback ??= met;
      return met === null;
    });
    return setback;
  }

  async #act(action: Action, job: JobIdentity, log: Logger): Promise<Setback | null> {
    const { client, caches, podGroupApi, resource, kind } = this.#options;
    const { namespace } = job;
    switch (action.type) {
      case 'create':
        return this.#create(action.object, job, log);
      case 'delete': {
        log.debug({ kind: action.kind, child: action.name, reason: action.reason }, 'delete');
        const answer = await gone(
          client.delete(resourceOf(action.kind, podGroupApi), namespace, action.name, action.uid, action.force && 0),
        );
        // What is deleted by force is gone, whatever the answer says of it.
        if (isObject(answer) && !action.force) caches[action.kind]?.put(answer);
        return null;
      }
      case 'patch': {
        const { name, uid, spec, labels } = action;
        log.debug({ kind: action.kind, child: name, spec }, 'patch');
        const answer = await client.patch(resourceOf(action.kind, podGroupApi), namespace, name, {
          metadata: { uid, ...(labels && { labels }) },
          spec,
        });
        caches[action.kind]?.put(answer);
        return null;
      }
      case 'deleteJob': {
        log.info({ reason: action.reason }, 'delete the job');
        const answer = await gone(client.delete(resource, namespace, job.name, job.uid));
        if (isObject(answer)) caches[kind]?.put(answer);
        return null;
      }
    }
  }

  async #create(object: ChildObject, job: JobIdentity, log: Logger): Promise<Setback | null> {
    const { client, caches, podGroupApi } = this.#options;
    const { kind } = object;
    const { name } = object.metadata;
    const resource = resourceOf(kind, podGroupApi);
    log.debug({ kind, child: name }, 'create');
    try {
      // A pod is made of a template, which no schema has checked: what is misspelt there would be silently left out.
      caches[kind]?.put(await client.create(resource, job.namespace, object, kind === 'Pod'));
      return null;
    } catch (error) {
      if (isRefusal(error)) return { refused: { kind, name, message: error.serverMessage } };
      if (!hasReason(error, 'AlreadyExists')) throw error;
    }
    // By an earlier look of ours that the cache has not caught up with, or by somebody else.
    const there = await client.get(resource, job.namespace, name);
    const observed = observeObject(kind, there, job, this.#options.kind);
    if (!observed.owned) return { foreign: observed };
    caches[kind]?.put(there);
    return null;
  }

  async #isThere({ kind, name, uid }: ObservedObject, namespace: string): Promise<boolean> {
    const { client, podGroupApi } = this.#options;
    const there = await client.get(resourceOf(kind, podGroupApi), namespace, name).catch((error: unknown) => {
      if (!hasReason(error, 'NotFound')) throw error;
    });
    return there?.metadata.uid === uid;
  }

  /** @returns for how many milliseconds a change of the status need not be written: while the pods of a gang start or end, each of them changes a count. */
  #mayWait(
    { status: before = {}, metadata: { uid } }: JobObject,
    after: JobStatus,
    patch: Record<string, unknown>,
  ): number {
    const { conditions, trainers, ...others } = patch;
    if ((conditions ?? trainers) === undefined || Object.keys(others).length > 0) return 0;
    const state = ({ conditions: all = [] }: JobStatus) => all.map(({ message: _, ...condition }) => condition);
    if (!isDeepStrictEqual(state(before), state(after))) return 0;
    return (this.#writtenAt.get(uid) ?? -Infinity) + DETAIL_MILLISECONDS - performance.now();
  }

  /** A conflict when the job has changed since it was observed: then the plan was for another job. */
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
}

/** To delete what is gone, or what has another uid by now, is no error. */
function gone<T>(deletion: Promise<T>): Promise<T | null> {
  return deletion.catch((error: unknown) => {
    if (hasReason(error, 'NotFound', 'Conflict')) return null;
    throw error;
  });
}

/** The server answers a deletion with the object as long as it is still there, else with a Status. */
const isObject = (answer: Partial<KubernetesObject> | null): answer is KubernetesObject =>
  answer?.metadata?.uid !== undefined;
