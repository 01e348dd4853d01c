/** Builders of observations for tests: makeJob('a').replicas(4).suspended().observe(...). */
import {
  API_VERSION,
  type Condition,
  FaceTrainJob,
  type FaceTrainJobStatus,
  QuantizeJob,
  type QuantizeJobStatus,
} from '@facetrain/api';
import type {
  ObservedFaceTrainJob,
  ObservedPod,
  ObservedQuantizeJob,
  ObservedWorkload,
  ProgramEnd,
} from '../observed.ts';
import { timestamp } from '../time.ts';
import { WORKLOAD_FINALIZER } from '../workload.ts';

export const START = new Date('2026-01-01T00:00:00Z');
/** The time so many seconds after START. */
export const after = (seconds: number): Date => new Date(START.getTime() + 1000 * seconds);
/** The same as a string, as in a status. */
export const at = (seconds: number): string => timestamp(after(seconds));

type Loose = Record<string, any>;

abstract class JobBuilder {
  readonly name: string;
  protected spec: Loose;
  protected generation = 1;
  protected deletionTimestamp: string | undefined;

  constructor(name: string, spec: Loose) {
    this.name = name;
    this.spec = spec;
  }
  /** Sets fields of the spec, as a manifest would. */
  with(fields: Loose): this {
    this.spec = { ...this.spec, ...fields };
    return this;
  }
  suspended(suspend = true): this {
    return this.with({ suspend });
  }
  failurePolicy(failurePolicy: Loose): this {
    return this.with({ failurePolicy });
  }
  atGeneration(generation: number): this {
    this.generation = generation;
    return this;
  }
  deleting(): this {
    this.deletionTimestamp = at(0);
    return this;
  }
  protected get identity() {
    return {
      name: this.name,
      namespace: 'default',
      uid: `uid-${this.name}`,
      generation: this.generation,
      deletionTimestamp: this.deletionTimestamp,
    };
  }
}

export class FaceTrainJobBuilder extends JobBuilder {
  replicas(replicas: number): this {
    return this.with({ trainers: { ...this.spec.trainers, replicas } });
  }
  trainers(fields: Loose): this {
    return this.with({ trainers: { ...this.spec.trainers, ...fields } });
  }
  quantized(quantize: Loose = {}): this {
    return this.with({ quantize });
  }
  parse(): FaceTrainJob['spec'] {
    return FaceTrainJob.parse({
      apiVersion: API_VERSION,
      kind: 'FaceTrainJob',
      metadata: { name: this.name },
      spec: this.spec,
    }).spec;
  }
  /** @param observation other fields of the observation */
  observe(
    status: FaceTrainJobStatus = {},
    pods: ObservedPod[] = [],
    observation: Partial<ObservedFaceTrainJob> = {},
  ): ObservedFaceTrainJob {
    return {
      identity: this.identity,
      spec: this.parse(),
      status,
      pods,
      objects: [],
      podGroupApis: {},
      ...observation,
    };
  }
}

export class QuantizeJobBuilder extends JobBuilder {
  parse(): QuantizeJob['spec'] {
    return QuantizeJob.parse({
      apiVersion: API_VERSION,
      kind: 'QuantizeJob',
      metadata: { name: this.name },
      spec: this.spec,
    }).spec;
  }
  observe(
    status: QuantizeJobStatus = {},
    pods: ObservedPod[] = [],
    observation: Partial<ObservedQuantizeJob> = {},
  ): ObservedQuantizeJob {
    return { identity: this.identity, spec: this.parse(), status, pods, objects: [], ...observation };
  }
}

export const makeJob = (name = 'faces'): FaceTrainJobBuilder =>
  new FaceTrainJobBuilder(name, {
    dataset: { uri: 'pvc://data/faces' },
    model: { backbone: 'mobilefacenet' },
    output: { uri: 'pvc://data/out' },
    globalBatchSize: 64,
    trainers: { replicas: 2 },
  });

export const makeQuantizeJob = (name = 'small'): QuantizeJobBuilder =>
  new QuantizeJobBuilder(name, {
    model: { uri: 'pvc://data/model.onnx' },
    calibration: { dataset: { uri: 'pvc://data/faces' } },
    output: { uri: 'pvc://data/int7' },
  });

export class PodBuilder {
  private readonly pod: ObservedPod;

  constructor(job: string, attempt: number, rank: number) {
    const name = `${job}-${attempt}-${rank}`;
    this.pod = {
      name,
      uid: `uid-${name}`,
      attempt,
      rank,
      phase: 'Pending',
      ready: false,
      deleting: false,
      disrupted: false,
      createdAt: at(0),
    };
  }
  with(fields: Partial<ObservedPod>): this {
    Object.assign(this.pod, fields);
    return this;
  }
  waiting(reason: string, message: string): this {
    return this.with({ waiting: { reason, message } });
  }
  running(node = 'node-1'): this {
    return this.with({ phase: 'Running', ready: true, node });
  }
  succeeded(): this {
    return this.with({ phase: 'Succeeded', ready: false, exitCode: 0 });
  }
  failed(exitCode: number, seconds = 100): this {
    return this.with({ phase: 'Failed', ready: false, exitCode, reason: 'Error', finishedAt: at(seconds) });
  }
  /** Of a trainer that the kubelet starts again, and has started again so often, after the last end. */
  restarts(count = 0, lastEnd?: ProgramEnd, exitCodes = [4, 137]): this {
    return this.with({
      containerRestarts: { exitCodes, count, isRunning: true, ...(lastEnd && { lastEnd }) },
    });
  }
  /** Its program has ended, and its pod goes on. */
  ended(exitCode: number, seconds = 100): this {
    return this.failed(exitCode, seconds).with({ phase: 'Running' });
  }
  terminationMessage(code: string, message: string): this {
    return this.with({ termination: { code, message } });
  }
  deleting(): this {
    return this.with({ deleting: true });
  }
  disrupted(): this {
    return this.with({ disrupted: true });
  }
  build(): ObservedPod {
    return this.pod;
  }
}

export const makePod = (rank: number, attempt = 0, job = 'faces'): PodBuilder => new PodBuilder(job, attempt, rank);

/** A condition since START. */
export const makeCondition = (
  type: string,
  status: 'True' | 'False' = 'True',
  reason = 'Because',
  message = 'words',
): Condition => ({ type, status, reason, message, lastTransitionTime: at(0) });

/** The Workload of the job `faces` with two pods, of which Kueue has said nothing yet. */
export const makeObservedWorkload = (change: Partial<ObservedWorkload> = {}): ObservedWorkload => ({
  name: 'facetrainjob-faces',
  uid: 'w',
  resourceVersion: '1',
  generation: 1,
  deleting: false,
  finalizers: [WORKLOAD_FINALIZER],
  first: 0,
  count: 2,
  reclaimable: 0,
  active: true,
  conditions: [],
  checks: [],
  ...change,
});
