/**
 * Carries out the operator's plans on this machine: the same planner, with processes in place of pods, a map in place
 * of the API server, and folders in place of volumes. It decides nothing: it observes, plans, and acts by the plan.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import {
  ExitCode,
  type FaceTrainJob,
  type FaceTrainJobStatus,
  FacetrainError,
  PROGRESS_PATH,
  Progress,
  type QuantizeJob,
  type QuantizeJobStatus,
} from '@facetrain/api';
import {
  type Action,
  type ChildObject,
  type ConfigMap,
  type Environment,
  type JobIdentity,
  type ObservedObject,
  type ObservedPod,
  observedProgress,
  type Plan,
  type PlanEvent,
  type Pod,
  planFaceTrainJob,
  planQuantizeJob,
  type QuantizeJobObject,
} from '@facetrain/planner';
import { type ArtifactSummary, readArtifactManifest } from './artifact-manifest.ts';
import { parseQuantizeJob } from './planned-config.ts';
import { PodProcess } from './pod-process.ts';
import { quantizeJobUid } from './run-state.ts';

/** Codes of a job that has failed. */
const FAILURE_CODES = new Set<ExitCode>(
  Object.values(ExitCode).filter(
    (code) => code !== ExitCode.success && code !== ExitCode.interrupted && code !== ExitCode.preempted,
  ),
);

/** Between two requests for the progress of a gang. */
const POLL_MILLISECONDS = 500;
const PROGRESS_TIMEOUT_MILLISECONDS = 2_000;

export type JobKind = 'FaceTrainJob' | 'QuantizeJob';

/** Is called as a job proceeds. */
export interface JobListener {
  /**
   * After every plan.
   * @param progress the last report of rank 0, or of the quantizer
   */
  onStatus(kind: JobKind, status: FaceTrainJobStatus | QuantizeJobStatus, progress: Progress | undefined): void;
  onEvent(kind: JobKind, event: PlanEvent): void;
}

export interface ExecutorOptions {
  environment: Environment;
  /** For logs and termination messages. */
  folder: string;
  /** Where rank 0 and the quantizer serve /v1/progress. */
  progressPort: number;
  /** A descriptor that every process inherits. */
  lock: number;
  listener: JobListener;
}

/** What a FaceTrainJob keeps of an earlier run, and where it writes down how far it has come. */
export interface JobMemory {
  /** The first attempt of this run. */
  attempt: number;
  /** The model is trained. */
  trained: boolean;
  /** Called before the trainers of an attempt start. */
  recordAttempt(attempt: number): Promise<void>;
  recordTrained(): Promise<void>;
}

/** How a job has failed: its exit code, and the signal that ended a process, in words. */
export interface ProcessFailure {
  exitCode: ExitCode;
  killedBy?: string;
}

/** One job with its status, pods and other objects; the part that both kinds share. */
abstract class LocalJob<Status extends FaceTrainJobStatus | QuantizeJobStatus> {
  abstract readonly kind: JobKind;
  status: Status = {} as Status;
  readonly pods = new Map<string, PodProcess>();
  /** The QuantizeJob that a plan of a FaceTrainJob has created. */
  quantizeJob: LocalQuantizeJob | undefined;
  protected readonly identity: JobIdentity;
  protected readonly options: ExecutorOptions;
  protected progress: Progress | undefined;
  readonly #objects = new Map<string, { object: ChildObject; uid: string }>();
  #wake = () => {};

  constructor(identity: JobIdentity, options: ExecutorOptions) {
    this.identity = identity;
    this.options = options;
  }

  protected abstract plan(now: Date): Plan<Status>;

  /** Called with a new status before the actions of its plan. */
  protected async remember(_status: Status): Promise<void> {}

  get finished(): boolean {
    return (this.status.conditions ?? []).some(
      ({ type, status }) => (type === 'Succeeded' || type === 'Failed') && status === 'True',
    );
  }

  /** The processes of this job and of its QuantizeJob that have not ended. */
  running(): PodProcess[] {
    return [...[...this.pods.values()].filter((pod) => !pod.ended), ...(this.quantizeJob?.running() ?? [])];
  }

  /**
   * Plans and acts until the job has finished and every process has ended.
   * @throws FacetrainError InvalidManifest for a job that waits for a change: nobody can make one here
   */
  async run(signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      const milliseconds = await this.reconcile();
      if (this.finished && this.running().length === 0) return;
      this.#refuseIfBlocked();
      await this.#pause(Math.min(milliseconds, POLL_MILLISECONDS), signal);
    }
  }

  /** Sends SIGTERM to every process, at which trainers write a checkpoint, and waits until all have ended. */
  async stop(): Promise<void> {
    for (const pod of this.running()) pod.delete();
    while (this.running().length > 0) await this.#pause(POLL_MILLISECONDS, new AbortController().signal);
  }

  /**
   * The end of the process that made the job fail: the first to end with another code than peerLost, for a rank ends
   * with that because another has failed. A code that this command does not document, such as that of a signal, becomes
   * a plain failure; so do those of SIGINT and SIGTERM, which say that this command itself was stopped.
   */
  get failure(): ProcessFailure {
    const failed = [...this.pods.values()].filter((pod) => pod.observe().phase === 'Failed');
    const causes = failed.filter((pod) => pod.observe().exitCode !== ExitCode.peerLost);
    const [first] = (causes.length > 0 ? causes : failed).sort((a, b) =>
      (a.observe().finishedAt ?? '').localeCompare(b.observe().finishedAt ?? ''),
    );
    if (!first) return this.quantizeJob?.failure ?? { exitCode: ExitCode.failure };
    const code = first.observe().exitCode as ExitCode;
    const { signal } = first;
    return {
      exitCode: FAILURE_CODES.has(code) ? code : ExitCode.failure,
      ...(signal && { killedBy: `${first.pod.metadata.name} was ended by ${signal}` }),
    };
  }

  /** Observes, plans, acts and reports once. @returns milliseconds after which to do so again */
  protected async reconcile(): Promise<number> {
    this.#forgetDeletedPods();
    await this.#pollProgress();
    if (this.quantizeJob && !this.quantizeJob.finished) await this.quantizeJob.reconcile();
    const plan = this.plan(new Date());
    await this.remember(plan.status);
    for (const action of plan.actions) this.#execute(action);
    const isNew = plan.status !== this.status;
    this.status = plan.status;
    this.#report(plan.events);
    if (plan.actions.length > 0 || isNew) return 0;
    return plan.requeueAfterSeconds === null ? Infinity : plan.requeueAfterSeconds * 1000;
  }

  protected observedPods(): ObservedPod[] {
    return [...this.pods.values()].map((pod) => pod.observe());
  }

  protected observedObjects(): ObservedObject[] {
    return [...this.#objects.values()].map(({ object, uid }) => ({
      kind: object.kind as ObservedObject['kind'],
      name: object.metadata.name,
      uid,
      owned: true,
    }));
  }

  #refuseIfBlocked(): void {
    const conditions = [...(this.status.conditions ?? []), ...(this.quantizeJob?.status.conditions ?? [])];
    const stalled = conditions.find(({ type, status }) => type === 'Stalled' && status === 'True');
    if (!stalled || this.finished || this.quantizeJob?.finished) return;
    throw new FacetrainError({
      code: 'InvalidManifest',
      subject: `${this.kind} ${this.identity.name}`,
      found: stalled.message,
      allowed: 'a manifest whose job can start on this machine',
    });
  }

  /** An API server no longer lists a deleted pod whose process has ended. */
  #forgetDeletedPods(): void {
    for (const [name, pod] of this.pods) if (pod.ended && pod.observe().deleting) this.pods.delete(name);
  }

  async #pollProgress(): Promise<void> {
    if (![...this.pods.values()].some((pod) => !pod.ended)) return;
    try {
      const response = await fetch(`http://127.0.0.1:${this.options.progressPort}${PROGRESS_PATH}`, {
        signal: AbortSignal.timeout(PROGRESS_TIMEOUT_MILLISECONDS),
      });
      const progress = Progress.parse(await response.json());
      if (progress.job.uid === this.identity.uid) this.progress = progress;
    } catch {
      // The server is not up yet, or has ended: the last report stays.
    }
  }

  #execute(action: Action): void {
    switch (action.type) {
      case 'create':
        if (action.object.kind === 'Pod') this.#startPod(action.object);
        else this.#createObject(action.object);
        return;
      case 'delete':
        if (action.kind === 'Pod') this.#deletePod(action.name, action.uid);
        else this.#objects.delete(`${action.kind}/${action.name}`);
        return;
      case 'patch': // follows an edited manifest; here the manifest is read once
      case 'patchWorkload': // there is no Kueue on a single machine
      case 'deleteJob': // follows ttlSecondsAfterFinished; here the results stay
        return;
    }
  }

  #startPod(pod: Pod): void {
    const { name } = pod.metadata;
    if (this.pods.has(name)) return;
    this.progress = undefined;
    const process = new PodProcess(pod, randomUUID(), this.#configMaps(), this.options, () => this.#wake());
    this.pods.set(name, process);
  }

  #configMaps(): Map<string, ConfigMap> {
    const objects = [...this.#objects.values()].map(({ object }) => object);
    return new Map(objects.flatMap((object) => (object.kind === 'ConfigMap' ? [[object.metadata.name, object]] : [])));
  }

  #createObject(object: ChildObject): void {
    const key = `${object.kind}/${object.metadata.name}`;
    if (this.#objects.has(key)) return;
    const { uid: parent } = this.identity;
    const { attempt = 0 } = this.status;
    const uid = object.kind === 'QuantizeJob' ? quantizeJobUid({ uid: parent, attempt }) : randomUUID();
    this.#objects.set(key, { object, uid });
    if (object.kind === 'QuantizeJob') this.quantizeJob ??= LocalQuantizeJob.fromChild(object, uid, this.options);
  }

  #deletePod(name: string, uid: string): void {
    const pod = this.pods.get(name);
    if (!pod || pod.uid !== uid) return;
    if (pod.ended) this.pods.delete(name);
    else pod.delete();
  }

  #report(events: PlanEvent[]): void {
    const { listener } = this.options;
    for (const event of events) listener.onEvent(this.kind, event);
    listener.onStatus(this.kind, this.status, this.progress);
  }

  /** Ends early when a process starts or ends, and at the signal. */
  async #pause(milliseconds: number, signal: AbortSignal): Promise<void> {
    const woken = new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    await Promise.race([woken, delay(milliseconds, undefined, { signal }).catch(() => {})]);
  }
}

class LocalQuantizeJob extends LocalJob<QuantizeJobStatus> {
  readonly kind = 'QuantizeJob';
  readonly #spec: QuantizeJob['spec'];

  constructor(identity: JobIdentity, spec: QuantizeJob['spec'], options: ExecutorOptions) {
    super(identity, options);
    this.#spec = spec;
  }

  static fromChild(object: QuantizeJobObject, uid: string, options: ExecutorOptions) {
    const { name, namespace } = object.metadata;
    const job = parseQuantizeJob(object);
    const identity = { name, namespace, uid, generation: 1 };
    return new LocalQuantizeJob(identity, job.spec, options);
  }

  /**
   * The artifact's manifest; undefined until the quantizer has written it. It is read from the quantizer's own folder,
   * where it also lies when the artifact was published to an object store.
   */
  get manifest(): ArtifactSummary | undefined {
    return readArtifactManifest(this.options.environment.storage('output', this.#spec.output, 'write').path);
  }

  protected override plan(now: Date): Plan<QuantizeJobStatus> {
    const observed = {
      identity: this.identity,
      spec: this.#spec,
      status: this.status,
      pods: this.observedPods(),
      objects: this.observedObjects(),
    };
    return planQuantizeJob(observed, now, this.options.environment);
  }
}

export class LocalFaceTrainJob extends LocalJob<FaceTrainJobStatus> {
  readonly kind = 'FaceTrainJob';
  readonly #spec: FaceTrainJob['spec'];
  readonly #memory: JobMemory;

  constructor(identity: JobIdentity, spec: FaceTrainJob['spec'], options: ExecutorOptions, memory: JobMemory) {
    super(identity, options);
    this.#spec = spec;
    this.#memory = memory;
    const { attempt, trained } = memory;
    this.status = { attempt, ...(trained && { trainingCompletionTime: new Date().toISOString() }) };
  }

  protected override async remember({ attempt, trainingCompletionTime }: FaceTrainJobStatus): Promise<void> {
    await this.#memory.recordAttempt(attempt ?? 0);
    if (trainingCompletionTime !== undefined) await this.#memory.recordTrained();
  }

  protected override plan(now: Date): Plan<FaceTrainJobStatus> {
    const progress = this.progress && observedProgress(this.progress);
    const observed = {
      identity: this.identity,
      spec: this.#spec,
      status: this.status,
      pods: this.observedPods(),
      objects: this.observedObjects(),
      podGroupApis: {},
      ...(progress ? { progress } : {}),
      ...(this.quantizeJob ? { quantizeJob: { spec: { suspend: false }, status: this.quantizeJob.status } } : {}),
    };
    return planFaceTrainJob(observed, now, this.options.environment);
  }
}
