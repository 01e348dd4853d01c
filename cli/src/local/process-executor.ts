/**
 * Executes the operator's plans on this machine: the same state machine, with processes in place of pods, a map in place of
 * the API server, and folders in place of volumes. It decides nothing; it observes, asks the planner, and does what the plan says.
 */
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  ArtifactManifest,
  ExitCode,
  type FaceTrainJob,
  type FaceTrainJobStatus,
  PROGRESS_PATH,
  Progress,
  parseDocument,
  QuantizeJob,
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
  planFaceTrainJob,
  planQuantizeJob,
} from '@facetrain/planner';
import { PodProcess } from './pod-process.ts';

/** How often the progress of a gang is asked for. */
const POLL_MILLISECONDS = 500;
const ANSWER_MILLISECONDS = 2_000;

export interface Watcher {
  /** After every look: what the job's status is, and what its rank 0 (or its quantizer) said last. */
  onStatus(
    kind: 'FaceTrainJob' | 'QuantizeJob',
    status: FaceTrainJobStatus | QuantizeJobStatus,
    progress: Progress | undefined,
  ): void;
  onEvent(kind: 'FaceTrainJob' | 'QuantizeJob', event: PlanEvent): void;
}

interface Surroundings {
  environment: Environment;
  /** For logs and termination messages. */
  folder: string;
  progressPort: number;
  watcher: Watcher;
}

/** What exists for one job: its children and its status; the parts that both kinds share. */
abstract class LocalJob<Status extends FaceTrainJobStatus | QuantizeJobStatus> {
  abstract readonly kind: 'FaceTrainJob' | 'QuantizeJob';
  status: Status = {} as Status;
  protected readonly identity: JobIdentity;
  protected readonly around: Surroundings;
  protected progress: Progress | undefined;
  readonly pods = new Map<string, PodProcess>();
  readonly #objects = new Map<string, { object: ChildObject; uid: string }>();
  #wake = () => {};

  constructor(identity: JobIdentity, around: Surroundings) {
    this.identity = identity;
    this.around = around;
  }

  protected abstract plan(now: Date): Plan<Status>;
  /** A child that has a planner of its own; undefined for all others. */
  protected adopt(_object: ChildObject, _uid: string): LocalQuantizeJob | undefined {
    return undefined;
  }
  child: LocalQuantizeJob | undefined;

  get finished(): boolean {
    return (this.status.conditions ?? []).some(
      ({ type, status }) => (type === 'Succeeded' || type === 'Failed') && status === 'True',
    );
  }

  /** Every process of this job and of its children that has not ended. */
  running(): PodProcess[] {
    return [...[...this.pods.values()].filter((pod) => !pod.ended), ...(this.child?.running() ?? [])];
  }

  /** Plans and acts until the job has finished and no process is left. */
  async run(signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      await this.#pollProgress();
      const pause = await this.step();
      if (this.finished && this.running().length === 0) return;
      await this.#pause(Math.min(pause, POLL_MILLISECONDS), signal);
    }
  }

  /** Stops every process, which gives trainers the time to write a checkpoint, and waits until none is left. */
  async stop(): Promise<void> {
    for (const pod of this.running()) pod.delete();
    while (this.running().length > 0) await this.#pause(POLL_MILLISECONDS, new AbortController().signal);
  }

  /** Exit code of the process that made the job fail: the first to end with another code than "a peer was lost". */
  get failureExitCode(): number {
    const failed = [...this.pods.values()].map((pod) => pod.observe()).filter((pod) => pod.phase === 'Failed');
    const blamed = failed.filter(({ exitCode }) => exitCode !== ExitCode.peerLost);
    const [first] = (blamed.length > 0 ? blamed : failed).sort((a, b) =>
      (a.finishedAt ?? '').localeCompare(b.finishedAt ?? ''),
    );
    return first?.exitCode ?? this.child?.failureExitCode ?? ExitCode.failure;
  }

  /** One reconcile; resolves to the milliseconds after which another is due. */
  protected async step(): Promise<number> {
    if (this.child && !this.child.finished) {
      await this.child.#pollProgress();
      await this.child.step();
    }
    const plan = this.plan(new Date());
    for (const action of plan.actions) this.#execute(action);
    this.status = plan.status;
    for (const event of plan.events) this.around.watcher.onEvent(this.kind, event);
    this.around.watcher.onStatus(this.kind, this.status, this.progress);
    if (plan.actions.length > 0) return 0;
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

  #execute(action: Action): void {
    switch (action.type) {
      case 'create': {
        const { object } = action;
        const { name } = object.metadata;
        if (object.kind === 'Pod') {
          if (this.pods.has(name)) return;
          const configMaps = new Map(
            [...this.#objects.values()].flatMap((entry) =>
              entry.object.kind === 'ConfigMap' ? [[entry.object.metadata.name, entry.object as ConfigMap]] : [],
            ),
          );
          this.progress = undefined;
          this.pods.set(name, new PodProcess(object, randomUUID(), configMaps, this.around.folder, () => this.#wake()));
          return;
        }
        const key = `${object.kind}/${name}`;
        if (this.#objects.has(key)) return;
        const uid = randomUUID();
        this.#objects.set(key, { object, uid });
        this.child ??= this.adopt(object, uid);
        return;
      }
      case 'delete': {
        if (action.kind !== 'Pod') {
          this.#objects.delete(`${action.kind}/${action.name}`);
          return;
        }
        const pod = this.pods.get(action.name);
        if (!pod || pod.uid !== action.uid) return;
        if (pod.ended) this.pods.delete(action.name);
        else pod.delete();
        return;
      }
      case 'patch':
      case 'deleteJob':
        return; // nobody edits a manifest while `facetrain run` has it, and its results stay
    }
  }

  /** Deleted pods whose process has ended are gone, as they are from an API server. */
  protected forgetDeleted(): void {
    for (const [name, pod] of this.pods) if (pod.ended && pod.observe().deleting) this.pods.delete(name);
  }

  async #pollProgress(): Promise<void> {
    this.forgetDeleted();
    if (![...this.pods.values()].some((pod) => !pod.ended)) return;
    try {
      const answer = await fetch(`http://127.0.0.1:${this.around.progressPort}${PROGRESS_PATH}`, {
        signal: AbortSignal.timeout(ANSWER_MILLISECONDS),
      });
      const progress = Progress.parse(await answer.json());
      if (progress.job.uid === this.identity.uid) this.progress = progress;
    } catch {
      // Not up yet, or already gone: what was said last stands.
    }
  }

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

  constructor(identity: JobIdentity, spec: QuantizeJob['spec'], around: Surroundings) {
    super(identity, around);
    this.#spec = spec;
  }

  /** What the quantizer has written, in its own folder even where that was published to an object store; undefined before its manifest is there. */
  get manifest(): ArtifactManifest | undefined {
    const { path } = this.around.environment.storage('output', this.#spec.output, 'write');
    const file = join(path, 'manifest.json');
    if (!existsSync(file)) return undefined;
    return parseDocument(ArtifactManifest, JSON.parse(readFileSync(file, 'utf8')), file, 'InvalidArtifact');
  }

  protected override plan(now: Date): Plan<QuantizeJobStatus> {
    const observed = {
      identity: this.identity,
      spec: this.#spec,
      status: this.status,
      pods: this.observedPods(),
      objects: this.observedObjects(),
    };
    return planQuantizeJob(observed, now, this.around.environment);
  }
}

export class LocalFaceTrainJob extends LocalJob<FaceTrainJobStatus> {
  readonly kind = 'FaceTrainJob';
  readonly #spec: FaceTrainJob['spec'];

  constructor(identity: JobIdentity, spec: FaceTrainJob['spec'], around: Surroundings) {
    super(identity, around);
    this.#spec = spec;
  }

  protected override plan(now: Date): Plan<FaceTrainJobStatus> {
    const progress = this.progress && observedProgress(this.progress);
    const quantizeJob = this.child;
    const observed = {
      identity: this.identity,
      spec: this.#spec,
      status: this.status,
      pods: this.observedPods(),
      objects: this.observedObjects(),
      podGroupApi: null,
      ...(progress ? { progress } : {}),
      ...(quantizeJob ? { quantizeJob: { spec: { suspend: false }, status: quantizeJob.status } } : {}),
    };
    return planFaceTrainJob(observed, now, this.around.environment);
  }

  protected override adopt(object: ChildObject, uid: string): LocalQuantizeJob | undefined {
    if (object.kind !== 'QuantizeJob') return undefined;
    const { apiVersion, kind, metadata, spec } = object;
    const job = parseDocument(
      QuantizeJob,
      { apiVersion, kind, metadata: { name: metadata.name }, spec },
      `QuantizeJob ${metadata.name}`,
      'InvalidManifest',
    );
    return new LocalQuantizeJob(
      { name: metadata.name, namespace: metadata.namespace, uid, generation: 1 },
      job.spec,
      this.around,
    );
  }
}
