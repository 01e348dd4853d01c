/** The actions that follow from a stage: children to create, and deletions of the objects of earlier attempts. */
import type { JobView } from './attempt.ts';
import {
  type CleanPodPolicy,
  deleteCurrentPods,
  deleteLeftovers,
  deleteOlderObjects,
  deleteOlderPods,
  deletePlaceholders,
} from './cleanup.ts';
import type { ObservedQuantizeJob } from './observed.ts';
import type { Action } from './plan.ts';
import { countsEndedPods } from './refusal.ts';
import type { Stage } from './stage.ts';

/**
 * @param isOver whether the current attempt was the last one, by the observed status. If only this plan found
 *   that out, the next plan deletes its pods.
 * @param givesWay whether a quota that counts what the last attempt keeps refuses the job that follows: nothing is kept
 */
export function actionsOf(
  stage: Stage,
  view: JobView,
  { objects, predecessorPods = [] }: Pick<ObservedQuantizeJob, 'objects' | 'predecessorPods'>,
  wantedPolicy: CleanPodPolicy,
  isOver: boolean,
  givesWay = false,
): Action[] {
  const policy = givesWay ? 'All' : wantedPolicy;
  if (stage.name === 'Restart' || stage.name === 'Replace' || stage.name === 'Release') return [];
  // Policy None keeps the pods of a finished job only. A job that is being quantized is not finished: its trainers are
  // stopped.
  const isFinished = stage.name === 'Succeeded' || stage.name === 'Failed';
  const finalPods = isOver ? deleteCurrentPods(view, policy === 'None' && !isFinished ? 'Running' : policy) : [];
  // Pods that have ended give way to those of this attempt. Why they ended is in the status.
  const olderPods = stage.name === 'Waiting' && countsEndedPods(stage.refusal) ? 'All' : policy;
  // A ResourceQuota may count PodGroups.
  const kindsOfLast = !isOver ? [] : givesWay ? (['PodGroup', 'ConfigMap'] as const) : (['PodGroup'] as const);
  return [
    ...deleteLeftovers([...predecessorPods, ...objects]),
    ...deleteOlderPods(view, olderPods),
    ...deleteOlderObjects(view, objects, kindsOfLast),
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
