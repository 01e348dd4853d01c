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
export function missing(children: Child[], view: JobView, objects: ObservedObject[]): Child[] {
  const there = new Set([...objects.map(({ kind, name }) => `${kind}/${name}`), ...view.ranks.map((pod) => `Pod/${pod?.name}`)]);
  return children.filter(({ kind, name }) => !there.has(`${kind}/${name}`));
}

/** An object that somebody else made under the name of a child: it is never touched, so the job cannot go on. */
export function nameTaken(children: Child[], objects: ObservedObject[]): { reason: string; message: string } | null {
  const foreign = objects.find((object) => !object.owned && children.some(({ kind, name }) => object.kind === kind && object.name === name));
  if (!foreign) return null;
  return { reason: Reason.nameTaken, message: `${foreign.kind} ${foreign.name} exists and does not belong to this job; delete it, or give the job another name` };
}

interface Making {
  children: Child[];
  /** Names that a later stage will need: better refused now. */
  later: Child[];
  objects: ObservedObject[];
  refused: RefusedChild | undefined;
  /** What the schema cannot see in a spec: the field's path and why; null when all is well. */
  conflict: () => string | null;
}

/** The stage of an attempt that nothing keeps from being there: what is missing of it is made, unless that cannot be. */
export function making({ children, later, objects, refused, conflict }: Making, view: JobView): Stage {
  const create = missing(children, view, objects);
  if (create.length === 0) return { name: 'Active', create: [] };
  const taken = nameTaken([...children, ...later], objects);
  if (taken) return { name: 'Refused', ...taken };
  const message = conflict();
  if (message !== null) return { name: 'Refused', reason: Reason.invalidSpec, message };
  if (refused && create.some(({ kind, name }) => kind === refused.kind && name === refused.name)) {
    return { name: 'Refused', reason: Reason.childRefused, message: `${refused.kind} ${refused.name}: ${refused.message}` };
  }
  return { name: 'Active', create: create.map(({ make }) => make()) };
}
