/**
 * One look at one job: observe, plan, act in order, write the status, tell the events. The first action that fails ends it, with nothing written; the next look
 * starts from what is really there.
 */
import type { Logger } from 'pino';
import type { JobStatus } from '../controllers/attempt.ts';
import type { JobKind } from '../controllers/names.ts';
import type { ChildObject } from '../controllers/objects.ts';
import type { JobIdentity, ObservedObject, RefusedChild } from '../controllers/observed.ts';
import type { Action, Plan } from '../controllers/plan.ts';
import { hasReason, isRefusal } from '../runtime/api-error.ts';
import type { Cache } from '../runtime/cache.ts';
import type { Client } from '../runtime/client.ts';
import type { EventRecorder } from '../runtime/events.ts';
import { mergePatch } from '../runtime/merge-patch.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import { API_VERSION } from '@facetrain/api';
import { identityOf, observeObject } from './observe.ts';
import { resourceOf, type JobObject } from './resources.ts';

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
  }

  /** @returns seconds after which to look again, null: only when something changes */
  async execute(job: JobObject, plan: Plan<JobStatus>, log: Logger): Promise<number | null> {
    const identity = identityOf(job);
    for (const together of batches(plan.actions)) {
      const results = await Promise.allSettled(together.map((action) => this.#act(action, identity, log)));
      const failed = results.find((result) => result.status === 'rejected');
      if (failed) throw failed.reason;
      const setback = results.map((result) => (result as PromiseFulfilledResult<Setback | null>).value).find((value) => value !== null);
      if (!setback) continue;
      if (setback.refused) this.#refused.set(identity.uid, setback.refused);
      if (setback.foreign) this.#foreign.set(identity.uid, setback.foreign);
      return 0;
    }
    if (plan.actions.some(({ type }) => type === 'deleteJob')) return null;
    const written = await this.#writeStatus(job, plan.status);
    if (written) {
      const { kind, events } = this.#options;
      const { name, namespace, uid } = identity;
      for (const { type, reason, message } of plan.events) {
        log.info({ attempt: plan.status.attempt, event: reason }, message);
        events.emit({ apiVersion: API_VERSION, kind, name, namespace, uid }, { type, reason, action: 'Reconcile', message });
      }
    }
    return plan.requeueAfterSeconds;
  }

  async #act(action: Action, job: JobIdentity, log: Logger): Promise<Setback | null> {
    const { client, caches, podGroupApi, resource, kind } = this.#options;
    const { namespace } = job;
    switch (action.type) {
      case 'create':
        return this.#create(action.object, job, log);
      case 'delete': {
        log.debug({ kind: action.kind, child: action.name, reason: action.reason }, 'delete');
        const answer = await gone(client.delete(resourceOf(action.kind, podGroupApi), namespace, action.name, action.uid, action.force && 0));
        // What is deleted by force is gone, whatever the answer says of it.
        if (isObject(answer) && !action.force) caches[action.kind]?.put(answer);
        return null;
      }
      case 'patch': {
        const { name, uid, spec, labels } = action;
        log.debug({ kind: action.kind, child: name, spec }, 'patch');
        const answer = await client.patch(resourceOf(action.kind, podGroupApi), namespace, name, { metadata: { uid, ...(labels && { labels }) }, spec });
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
      caches[kind]?.put(await client.create(resource, job.namespace, object));
      return null;
    } catch (error) {
      if (isRefusal(error)) return { refused: { kind, name, message: error.serverMessage } };
      if (!hasReason(error, 'AlreadyExists')) throw error;
    }
    // By an earlier look of ours that the cache has not caught up with, or by somebody else.
    const there = await client.get(resource, job.namespace, name);
    const observed = observeObject(kind, there, job);
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

  /** A conflict when the job has changed since it was observed: then the plan was for another job. */
  async #writeStatus(job: JobObject, status: JobStatus): Promise<boolean> {
    const { client, caches, kind, resource } = this.#options;
    const { name, namespace, resourceVersion, uid } = job.metadata;
    const patch = mergePatch({ ...job.status }, { ...status });
    if (Object.keys(patch).length === 0) return false;
    const written = await client.patch(resource, namespace!, name, { metadata: { resourceVersion, uid }, status: patch }, 'status');
    caches[kind]?.put(written);
    return true;
  }
}

/**
 * Actions in their order, those that may overlap together: pods that are created one after the other do not depend on each other. They are sent 1, 2, 4, ... at a
 * time, so that a gang which the server refuses costs one request and not one for each pod.
 */
function batches(actions: Action[]): Action[][] {
  const isPod = (action: Action | undefined) => action?.type === 'create' && action.object.kind === 'Pod';
  const found: Action[][] = [];
  let size = 1;
  for (const action of actions) {
    const last = found.at(-1);
    if (last && isPod(action) && isPod(last[0]) && last.length < size) {
      last.push(action);
      continue;
    }
    size = isPod(action) && isPod(last?.[0]) ? 2 * size : 1;
    found.push([action]);
  }
  return found;
}

/** To delete what is gone, or what has another uid by now, is no error. */
function gone<T>(deletion: Promise<T>): Promise<T | null> {
  return deletion.catch((error: unknown) => {
    if (hasReason(error, 'NotFound', 'Conflict')) return null;
    throw error;
  });
}

/** The server answers a deletion with the object as long as it is still there, else with a Status. */
const isObject = (answer: Partial<KubernetesObject> | null): answer is KubernetesObject => answer?.metadata?.uid !== undefined;
