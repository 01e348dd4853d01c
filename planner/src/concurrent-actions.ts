/** Which actions of a plan may be under way together. */
import type { Action } from './plan.ts';

/** The actions in their order, neighbours that do not depend on each other as one: pods need what is made before them, but not one another. */
export function concurrentGroups(actions: Action[]): Action[][] {
  const found: Action[][] = [];
  for (const action of actions) {
    const last = found.at(-1);
    if (last && last[0]!.type === action.type && createsPod(last[0]!) === createsPod(action)) last.push(action);
    else found.push([action]);
  }
  return found;
}

export const createsPod = (action: Action): boolean => action.type === 'create' && action.object.kind === 'Pod';
