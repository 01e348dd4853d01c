/** Children that should be there, told by name, and made only if they are not. */
import type { JobView } from './attempt.ts';
import type { ChildObject } from './objects.ts';
import type { ObservedObject, RefusedChild } from './observed.ts';
import { Reason } from './reasons.ts';
import type { Stage } from './stage.ts';

export interface Child {
  kind: ChildObject['kind'];
  name: string;
  make: () => ChildObject;
}

/** In the order given, which is the order they are created in. */
export function missingChildren(children: Child[], view: JobView, objects: ObservedObject[]): Child[] {
  const there = new Set([
    ...objects.filter(({ owned }) => owned).map(({ kind, name }) => `${kind}/${name}`),
    ...view.ranks.map((pod) => `Pod/${pod?.name}`),
  ]);
  return children.filter(({ kind, name }) => !there.has(`${kind}/${name}`));
}

interface Creation {
  /** Missing children. */
  create: Child[];
  /** Names that must be free: those of the children, and of what a later stage will make. */
  reserved: Child[];
  objects: ObservedObject[];
  refused: RefusedChild | undefined;
  predecessors?: string[] | undefined;
  /** Jobs that come first in a folder that this one must have for itself. */
  jobsBefore?: string[];
  /** What the schema cannot see in a spec: the field's path and why; null when all is well. */
  findConflict?: () => Blocker | null;
}

export interface Blocker {
  reason: string;
  message: string;
  /** It goes away by itself. */
  temporary?: true;
}

/** @param more to say where only a change can help */
export const blockedBy = ({ reason, message, temporary }: Blocker, more = ''): Stage =>
  temporary ? { name: 'Waiting', reason, message } : { name: 'Refused', reason, message: `${message}${more}` };

/** Why what is missing cannot be made; null when nothing is missing, or nothing is in the way. */
export function findBlocker({
  create,
  reserved,
  objects,
  refused,
  predecessors = [],
  jobsBefore = [],
  findConflict,
}: Creation): Blocker | null {
  if (create.length === 0) return null;
  if (predecessors.length > 0) return predecessorBlocker(`pod ${predecessors[0]}`, 'ended');
  if (jobsBefore.length > 0)
    return {
      reason: Reason.outputInUse,
      message: `${jobsBefore[0]} writes to the same folder and has not finished`,
      temporary: true,
    };
  // Never touched, and never adopted.
  const foreign = objects.find(
    (object) => !object.owned && reserved.some(({ kind, name }) => object.kind === kind && object.name === name),
  );
  if (foreign?.leftover) return predecessorBlocker(`${foreign.kind} ${foreign.name}`, 'gone');
  if (foreign) {
    return {
      reason: Reason.nameTaken,
      message: `${foreign.kind} ${foreign.name} exists and does not belong to this job; delete it, or give the job another name`,
    };
  }
  const invalid = findConflict?.() ?? null;
  if (invalid !== null) return invalid;
  if (refused && create.some(({ kind, name }) => kind === refused.kind && name === refused.name)) {
    return { reason: Reason.childRefused, message: `${refused.kind} ${refused.name}: ${refused.message}` };
  }
  return null;
}

const predecessorBlocker = (what: string, how: string): Blocker => ({
  reason: Reason.stopping,
  message: `${what} of an earlier job of this name has not ${how} yet`,
  temporary: true,
});
