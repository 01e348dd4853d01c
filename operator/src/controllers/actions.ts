/** What follows from a stage: children to make, and what is left of attempts that are over. */
import type { JobView } from './attempt.ts';
import { currentPods, olderObjects, olderPods, type CleanPodPolicy } from './cleanup.ts';
import type { ObservedObject } from './observed.ts';
import type { Action } from './plan.ts';
import type { Stage } from './stage.ts';

export function actionsOf(stage: Stage, view: JobView, objects: ObservedObject[], policy: CleanPodPolicy): Action[] {
  const cleanup = [...olderPods(view, policy), ...olderObjects(view, objects)];
  switch (stage.name) {
    case 'Restart':
    case 'Replace':
      return [];
    case 'Active':
      return [...cleanup, ...stage.create.map((object): Action => ({ type: 'create', object }))];
    case 'Quantizing':
      // The job goes on, so that its trainers must not; None spares only the pods of a finished job.
      return [...stage.actions, ...(stage.recorded ? [...cleanup, ...currentPods(view, policy === 'None' ? 'Running' : policy)] : [])];
    case 'Succeeded':
    case 'Failed':
      return view.status.completionTime === undefined ? [] : [...cleanup, ...currentPods(view, policy)];
    default:
      return cleanup;
  }
}
