/** The objects that a job should have: which are missing, and what prevents their creation. */
import type { JobView } from './attempt.ts';
import type { Blocker } from './blocker.ts';
import type { ChildObject } from './objects.ts';
import type { ObservedObject, RefusedChild } from './observed.ts';
import { Reason } from './reasons.ts';
import { refusalBlocker } from './refusal.ts';
import type { Stage } from './stage.ts';

/**
 * An object that should exist. It is identified by kind and name, a pod by its rank, and made only if it is missing.
 */
export interface Child {
  kind: ChildObject['kind'];
  /** Of a PodGroup. */
  apiVersion?: string;
  name: string;
  /** Of a pod. Two pods of one rank must never run, whatever their names are. */
  rank?: number;
  make: () => ChildObject;
}

/**
 * The children that do not exist, in the given order, which is the order of creation. Once all pods of an attempt were
 * created none is created again: a missing one is either not in the executor's cache yet, or was removed, and then its
 * process may still run.
 */
export function missingChildren(children: Child[], view: JobView, objects: ObservedObject[]): Child[] {
  const existing = new Set(objects.filter(({ owned }) => owned).map(keyOf));
  return children.filter((child) =>
    child.rank === undefined
      ? !existing.has(keyOf(child))
      : view.startedAt === undefined && view.ranks[child.rank] === undefined,
  );
}

const keyOf = ({ kind, apiVersion = '', name }: Pick<Child, 'kind' | 'apiVersion' | 'name'>): string =>
  `${apiVersion} ${kind}/${name}`;

interface Creation {
  /** Missing children. */
  create: Child[];
  /** Children whose names must not be taken: those of this stage, and those that a later stage will create. */
  reserved: Child[];
  objects: ObservedObject[];
  refused: RefusedChild | undefined;
  /** As in ObservedFaceTrainJob. */
  predecessorPods?: ObservedObject[] | undefined;
  /** As in ObservedFaceTrainJob. */
  jobsBefore?: string[];
  /** Checks the spec for what its schema cannot check. */
  findConflict?: () => Blocker | null;
}

/** @param hint added to the message if the user has to act, or if the API server refused an object */
export function blockedBy({ reason, message, temporary, refusal }: Blocker, hint = ''): Stage {
  const text = temporary && !refusal ? message : `${message}${hint}`;
  return { name: temporary ? 'Waiting' : 'Blocked', reason, message: text, ...(refusal && { refusal }) };
}

/** @returns null if nothing is missing, or if nothing prevents the creation */
export function findBlocker({
  create,
  reserved,
  objects,
  refused,
  predecessorPods = [],
  jobsBefore = [],
  findConflict,
}: Creation): Blocker | null {
  if (create.length === 0) return null;
  if (predecessorPods.length > 0) return predecessorBlocker(`pod ${predecessorPods[0]!.name}`, 'ended');
  if (jobsBefore.length > 0)
    return {
      reason: Reason.outputInUse,
      message: `${jobsBefore[0]} writes to the same folder and has not finished`,
      temporary: true,
    };
  // An object of another owner is neither changed nor adopted.
  const foreign = objects.find((object) => !object.owned && reserved.some((child) => keyOf(child) === keyOf(object)));
  if (foreign?.leftover) return predecessorBlocker(`${foreign.kind} ${foreign.name}`, 'gone');
  if (foreign) {
    const found = `${foreign.kind} ${foreign.name} exists and does not belong to this job`;
    return { reason: Reason.nameTaken, message: `${found}; delete it, or give the job another name` };
  }
  // Only a pod has the template; pods that run go on.
  const conflict = create.some(({ rank }) => rank !== undefined) ? (findConflict?.() ?? null) : null;
  if (conflict !== null) return conflict;
  return refused && create.some(({ kind, name }) => kind === refused.kind && name === refused.name)
    ? refusalBlocker(refused)
    : null;
}

const predecessorBlocker = (what: string, change: 'ended' | 'gone'): Blocker => ({
  reason: Reason.stopping,
  message: `${what} of an earlier job of this name has not ${change} yet`,
  temporary: true,
});
