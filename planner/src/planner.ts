/** The shape of a planner: pure, and the same for a cluster and for one machine. */
import type { FaceTrainJobStatus, QuantizeJobStatus } from '@facetrain/api';
import type { Environment } from './environment.ts';
import type { ObservedFaceTrainJob, ObservedQuantizeJob } from './observed.ts';
import type { Plan } from './plan.ts';

/** No clock, no randomness, no I/O: the same arguments give the same plan. */
export type PlanFaceTrainJob = (
  observed: ObservedFaceTrainJob,
  now: Date,
  environment: Environment,
) => Plan<FaceTrainJobStatus>;
export type PlanQuantizeJob = (
  observed: ObservedQuantizeJob,
  now: Date,
  environment: Environment,
) => Plan<QuantizeJobStatus>;
