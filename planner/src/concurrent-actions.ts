/** Which actions of a plan may run concurrently. */
import type { Action } from './plan.ts';

/**
 * The actions in their order, in groups whose members do not depend on each other. Pods depend on all that is created
 * before them, but not on other pods.
 */
export function concurrentGroups(actions: Action[]): Action[][] {
  const groups: Action[][] = [];
  for (const action of actions) {
    const last = groups.at(-1);
    if (last && last[0]!.type === action.type && createsPod(last[0]!) === createsPod(action)) last.push(action);
    else groups.push([action]);
  }
  return groups;
}

export const createsPod = (action: Action): boolean => action.type === 'create' && action.object.kind === 'Pod';
