/** What follows from a stage: children to make, and what is left of attempts that are over. */
import type { JobView } from './attempt.ts';
import { type CleanPodPolicy, deleteCurrentPods, deleteOlderObjects, deleteOlderPods } from './cleanup.ts';
import type { ObservedObject } from './observed.ts';
import type { Action } from './plan.ts';
import type { Stage } from './stage.ts';

/** @param isOver the status says that the current attempt was the last. What only this plan has found out is acted upon by the next. */
export function actionsOf(
  stage: Stage,
  view: JobView,
  objects: ObservedObject[],
  policy: CleanPodPolicy,
  isOver: boolean,
): Action[] {
  if (stage.name === 'Restart' || stage.name === 'Replace') return [];
  // None spares only the pods of a finished job: while one is quantized, its trainers must not go on.
  const isFinished = stage.name === 'Succeeded' || stage.name === 'Failed';
  const ofLast = isOver ? deleteCurrentPods(view, policy === 'None' && !isFinished ? 'Running' : policy) : [];
  return [...deleteOlderPods(view, policy), ...deleteOlderObjects(view, objects), ...ofLast, ...creations(stage)];
}

function creations(stage: Stage): Action[] {
  switch (stage.name) {
    case 'Active':
      return [...(stage.updates ?? []), ...stage.create.map((object): Action => ({ type: 'create', object }))];
    case 'Quantizing':
      return stage.actions;
    default:
      return [];
  }
}
