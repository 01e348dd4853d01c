/** The actions that follow from a stage: children to create, and deletions of the objects of earlier attempts. */
import type { JobView } from './attempt.ts';
import {
  type CleanPodPolicy,
  deleteCurrentPods,
  deleteOlderObjects,
  deleteOlderPods,
  deletePlaceholders,
} from './cleanup.ts';
import type { ObservedObject } from './observed.ts';
import type { Action } from './plan.ts';
import { countsEndedPods } from './refusal.ts';
import type { Stage } from './stage.ts';

/**
 * @param isOver whether the current attempt was the last one, by the observed status. If only this plan found
 *   that out, the next plan deletes its pods.
 */
export function actionsOf(
  stage: Stage,
  view: JobView,
  objects: ObservedObject[],
  policy: CleanPodPolicy,
  isOver: boolean,
): Action[] {
  if (stage.name === 'Restart' || stage.name === 'Replace' || stage.name === 'Release') return [];
  // Policy None keeps the pods of a finished job only. A job that is being quantized is not finished: its trainers are
  // stopped.
  const isFinished = stage.name === 'Succeeded' || stage.name === 'Failed';
  const finalPods = isOver ? deleteCurrentPods(view, policy === 'None' && !isFinished ? 'Running' : policy) : [];
  // Pods that have ended give way to those of this attempt. Why they ended is in the status.
  const olderPods = stage.name === 'Waiting' && countsEndedPods(stage.refusal) ? 'All' : policy;
  return [
    ...deleteOlderPods(view, olderPods),
    ...deleteOlderObjects(view, objects, isOver),
    ...finalPods,
    ...(isOver ? deletePlaceholders(view.placeholders) : []),
    ...stageActions(stage),
  ];
}

function stageActions(stage: Stage): Action[] {
  switch (stage.name) {
    case 'Active':
      return [...(stage.updates ?? []), ...stage.create.map((object): Action => ({ type: 'create', object }))];
    case 'Quantizing':
    case 'Queued':
      return stage.actions;
    default:
      return [];
  }
}
