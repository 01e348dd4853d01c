/** Children that should be there, told by name, and made only if they are not. */
import type { JobView } from './attempt.ts';
import type { ChildObject } from './objects.ts';
import type { ObservedObject } from './observed.ts';
import { Reason } from './reasons.ts';

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
