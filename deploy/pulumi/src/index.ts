/** Facetrain for Pulumi programs: the operator, and its jobs as typed resources. */

export type { Inputs } from './inputs.ts';
export { FaceTrainJob, type JobArgs, QuantizeJob, type WaitFor } from './jobs.ts';
export { Facetrain, type FacetrainArgs } from './operator-release.ts';
