/** Facetrain for Pulumi programs: the operator, and its jobs as typed resources. */
export { Facetrain, type FacetrainArgs } from './operator-release.ts';
export { FaceTrainJob, QuantizeJob, type JobArgs, type WaitFor } from './jobs.ts';
export type { Inputs } from './inputs.ts';
