/** The part of the operator that decides. `facetrain run` and the controllers execute the same plans. */
export type * from './controllers/environment.ts';
export type * from './controllers/objects.ts';
export type * from './controllers/observed.ts';
export type * from './controllers/plan.ts';
export type * from './controllers/planner.ts';
export { planFaceTrainJob } from './controllers/facetrainjob/plan.ts';
export { observedProgress } from './controllers/facetrainjob/progress.ts';
export { readTermination } from './controllers/termination.ts';
export { planQuantizeJob } from './controllers/quantizejob/plan.ts';
export { Label } from './controllers/names.ts';
export { cachePath, fetchContainer } from './controllers/storage.ts';
