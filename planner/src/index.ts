/**
 * The planners: what an operator, or `facetrain run`, has to do next about a job.
 *
 * An executor observes a job (`ObservedFaceTrainJob`), calls `planFaceTrainJob` or `planQuantizeJob`, and carries the
 * `Plan` out. Its `Environment` defines where pods find their storage and each other. `readTermination`
 * and `observedProgress` turn what a pod reports into observations; `Label`, `CONTAINER` and `cachePath` name what both
 * sides have to find.
 */
export type * from './environment.ts';
export { planFaceTrainJob } from './facetrainjob/plan-facetrainjob.ts';
export { CONTAINER, Label } from './names.ts';
export type * from './objects.ts';
export type * from './observed.ts';
export { observedProgress } from './observed-progress.ts';
export type * from './plan.ts';
export { cachePath, fetchContainer } from './pod-storage.ts';
export { planQuantizeJob } from './quantizejob/plan-quantizejob.ts';
export { readTermination } from './read-termination.ts';
