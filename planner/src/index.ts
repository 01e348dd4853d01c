/** The part of the operator that decides. `facetrain run` and the controllers execute the same plans. */
export type * from './environment.ts';
export { planFaceTrainJob } from './facetrainjob/plan-facetrainjob.ts';
export { Label } from './names.ts';
export type * from './objects.ts';
export type * from './observed.ts';
export { observedProgress } from './observed-progress.ts';
export type * from './plan.ts';
export { cachePath, fetchContainer } from './pod-storage.ts';
export { planQuantizeJob } from './quantizejob/plan-quantizejob.ts';
export { readTermination } from './read-termination.ts';
