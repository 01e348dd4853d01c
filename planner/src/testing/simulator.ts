/**
 * A cluster in memory, with an executor that carries out plans, for property tests. The executor may crash after any
 * action or write of a status. After every write the simulator checks that no two attempts of a job are alive, as far
 * as the API server shows it.
 *
 * The processes of rank 0 are simulated apart from their pods, since they may outlive them: a pod that is deleted by
 * force, or removed while its node is silent, leaves a process that goes on writing to the folder of checkpoints.
 */
import assert from 'node:assert/strict';
import { type FaceTrainJob, type FaceTrainJobStatus, QuantizeJobSpec, type QuantizeJobStatus } from '@facetrain/api';
import { isAlive, type JobStatus } from '../attempt.ts';
import { concurrentGroups } from '../concurrent-actions.ts';
import { planFaceTrainJob } from '../facetrainjob/plan-facetrainjob.ts';
import { Label } from '../names.ts';
import type { ChildObject, Pod } from '../objects.ts';
import type {
  JobIdentity,
  ObservedFaceTrainJob,
  ObservedObject,
  ObservedPod,
  ObservedProgress,
  ObservedQuantizeJob,
  RefusedChild,
} from '../observed.ts';
import type { Action, Plan, PlanEvent } from '../plan.ts';
import { planQuantizeJob } from '../quantizejob/plan-quantizejob.ts';
import { timestamp } from '../time.ts';
import { START } from './builders.ts';
import { CheckpointFolder, type WriterProcess } from './checkpoint-folder.ts';
import { testEnvironment } from './test-environment.ts';

interface Job<Spec, Status> {
  identity: JobIdentity;
  spec: Spec;
  status: Status;
}
type AnyJob = Job<{ suspend: boolean }, JobStatus>;

interface SimulatedObject extends ObservedObject {
  owner: string;
}
export interface SimulatedPod extends ObservedPod {
  owner: string;
}

/** Whether no kubelet ends what runs in the pod. */
const isOutOfReach = ({ lostNode, silentNode }: ObservedPod): boolean =>
  lostNode !== undefined || silentNode !== undefined;

/** Upper bound of the plans after which nothing may be left to do. */
const MAX_PLANS = 12;

export class Simulator {
  now = START;
  readonly trainJob: Job<FaceTrainJob['spec'], FaceTrainJobStatus> & Pick<ObservedFaceTrainJob, 'othersWaitForQuota'>;
  quantizeJob: Job<QuantizeJobSpec, QuantizeJobStatus> | null = null;
  pods: SimulatedPod[] = [];
  objects: SimulatedObject[] = [];
  events: PlanEvent[] = [];
  /** Every status of the FaceTrainJob that was written. */
  statuses: FaceTrainJobStatus[] = [];
  progress: ObservedProgress | undefined;
  podGroupApis: ObservedFaceTrainJob['podGroupApis'];
  /** The cluster starts containers again by their rules. */
  servesRestartRules: boolean;
  /** Every action and every written status, in order. */
  writes: string[] = [];
  deleted = false;
  readonly folder: CheckpointFolder;
  /** Every process of rank 0 that was ever started, with the uid of its pod. */
  readonly processes: { pod: string; process: WriterProcess }[] = [];
  /** The API server's admission: why an object is not created; null: it is. */
  admit: (object: ChildObject) => string | Pick<RefusedChild, 'message' | 'failed'> | null = () => null;
  /** Other input of the planner of the FaceTrainJob. */
  observeMore: () => Partial<ObservedFaceTrainJob> = () => ({});
  /** What was refused since the last plan of the FaceTrainJob. */
  private refused: RefusedChild | undefined;
  private slowStart = false;
  private uids = 0;

  /** @param fenced whether the storage enforces that only the newest process writes */
  constructor({ identity, spec, status, podGroupApis, servesRestartRules }: ObservedFaceTrainJob, fenced = true) {
    this.folder = new CheckpointFolder(fenced);
    this.trainJob = { identity, spec, status };
    this.podGroupApis = podGroupApis;
    this.servesRestartRules = servesRestartRules ?? false;
  }

  advance(seconds: number): void {
    this.now = new Date(this.now.getTime() + 1000 * seconds);
  }

  change(spec: Partial<FaceTrainJob['spec']>): void {
    this.trainJob.spec = { ...this.trainJob.spec, ...spec };
    this.trainJob.identity = { ...this.trainJob.identity, generation: this.trainJob.identity.generation + 1 };
  }

  livePods(): SimulatedPod[] {
    return this.pods.filter(isAlive);
  }

  /** Removes pods that are being deleted. Their processes have ended, if their kubelet could tell. */
  removeDeletedPods(): void {
    for (const pod of this.pods) if (pod.deleting && !isOutOfReach(pod)) this.endProcess(pod);
    this.pods = this.pods.filter((pod) => !pod.deleting);
  }

  /** Starts the program of a pod, if it is rank 0 of the training and has not started yet. */
  startProcess(pod: SimulatedPod): void {
    if (this.processOf(pod)) return;
    this.startAgain(pod);
  }

  /** Starts another program in the pod, if it is rank 0 of the training. */
  startAgain(pod: SimulatedPod): void {
    if (pod.owner !== this.trainJob.identity.uid || pod.rank !== 0) return;
    this.processes.push({ pod: pod.uid, process: this.folder.start(pod.attempt) });
  }

  /** The last program that was started in the pod. */
  processOf(pod: ObservedPod): WriterProcess | undefined {
    return this.processes.findLast((entry) => entry.pod === pod.uid)?.process;
  }

  /** Ends the program of a pod from outside. */
  endProcess(pod: ObservedPod): void {
    const process = this.processOf(pod);
    if (process) process.ended ??= 'killed';
  }

  /**
   * Plans and executes until nothing is left to do.
   *
   * @param crashAfter the executor crashes once, after this many actions and writes; null: it does not crash
   */
  settle(crashAfter: number | null = null): void {
    let budget = crashAfter ?? Infinity;
    for (let round = 0; ; round++) {
      assert(
        round < MAX_PLANS,
        `no steady state after ${MAX_PLANS} plans; last writes ${this.writes.slice(-5).join(', ')}`,
      );
      const before = this.writes.length;
      for (const job of ['trainJob', 'quantizeJob'] as const) {
        budget = this.reconcile(job, budget);
        if (this.deleted) return;
      }
      if (this.writes.length === before && budget > 0) break;
      if (budget <= 0) budget = Infinity;
    }
    this.assertSteady();
  }

  /**
   * Plans and executes the FaceTrainJob as often as its plans ask for without a wait: an object that is refused is
   * planned once more, then the job waits.
   */
  tick(): void {
    this.slowStart = true;
    for (let round = 0; ; round++) {
      assert(round < MAX_PLANS, `no wait after ${MAX_PLANS} plans; last writes ${this.writes.slice(-5).join(', ')}`);
      const before = this.writes.length;
      const wasRefused = this.refused !== undefined;
      this.reconcile('trainJob', Infinity);
      if (this.deleted || (this.writes.length === before && (wasRefused || !this.refused))) return;
    }
  }

  /** Checks that the next plans have no actions and no events, and change no status. */
  assertSteady(): void {
    for (const plan of [this.planTrainJob(), this.quantizeJob && this.planQuantizeJob()]) {
      assert.deepEqual(plan?.actions ?? [], []);
      assert.deepEqual(plan?.events ?? [], []);
    }
    assert.equal(this.planTrainJob().status, this.trainJob.status);
    if (this.quantizeJob) assert.equal(this.planQuantizeJob().status, this.quantizeJob.status);
  }

  private reconcile(which: 'trainJob' | 'quantizeJob', budget: number): number {
    const job: AnyJob | null = this[which];
    if (!job) return budget;
    const plan: Plan<JobStatus> = which === 'trainJob' ? this.planTrainJob() : this.planQuantizeJob();
    // A timer that is over has led to another stage: else an executor would plan again without end.
    assert(plan.requeueAfterSeconds === null || plan.requeueAfterSeconds > 0, `timer ${plan.requeueAfterSeconds}`);
    if (which === 'trainJob') this.refused = undefined;
    // Concurrent actions may end in any order: every other time they run in reverse order. Where pods are refused, the
    // executor's slow start makes the first one first.
    const reversed = this.writes.length % 2 === 1 && !this.slowStart;
    for (const action of concurrentGroups(plan.actions).flatMap((group) => (reversed ? group.toReversed() : group))) {
      if (this.isRefused(action)) return budget;
      this.execute(action, which, job);
      if (--budget <= 0) return 0;
    }
    if (this.deleted) return budget;
    if (plan.status !== job.status) {
      job.status = plan.status;
      if (which === 'trainJob') this.statuses.push(this.trainJob.status);
      this.writes.push(`status of ${job.identity.name}`);
      if (--budget <= 0) return 0;
    }
    this.events.push(...plan.events);
    return budget;
  }

  /** As an executor, notes the first object that is refused, and stops. */
  private isRefused(action: Action): boolean {
    const answer = action.type === 'create' ? this.admit(action.object) : null;
    if (answer === null || action.type !== 'create') return false;
    const refusal = typeof answer === 'string' ? { message: answer } : answer;
    this.refused = { kind: action.object.kind, name: action.object.metadata.name, ...refusal };
    return true;
  }

  planTrainJob(): Plan<FaceTrainJobStatus> {
    return planFaceTrainJob(this.observeTrainJob(), this.now, testEnvironment);
  }
  planQuantizeJob(): Plan<QuantizeJobStatus> {
    return planQuantizeJob(this.observeQuantizeJob(), this.now, testEnvironment);
  }

  observeTrainJob(): ObservedFaceTrainJob {
    const { trainJob, quantizeJob, progress, podGroupApis, servesRestartRules } = this;
    return cloneExceptStatus({
      ...trainJob,
      ...this.childrenOf(trainJob.identity),
      ...(progress && { progress }),
      ...(quantizeJob && { quantizeJob: { spec: { suspend: quantizeJob.spec.suspend }, status: quantizeJob.status } }),
      ...(this.refused && { refused: this.refused }),
      ...this.observeMore(),
      podGroupApis,
      servesRestartRules,
    });
  }
  private observeQuantizeJob(): ObservedQuantizeJob {
    return cloneExceptStatus({ ...this.quantizeJob!, ...this.childrenOf(this.quantizeJob!.identity) });
  }
  private childrenOf({ uid }: JobIdentity): { pods: ObservedPod[]; objects: ObservedObject[] } {
    return {
      pods: this.pods.filter((pod) => pod.owner === uid),
      objects: this.objects.map((object) => ({ ...object, owned: object.owner === uid })),
    };
  }

  private execute(action: Action, which: 'trainJob' | 'quantizeJob', { identity }: AnyJob): void {
    switch (action.type) {
      case 'create':
        this.create(action.object, identity);
        break;
      case 'delete':
        if (action.kind === 'Pod')
          this.pods = this.pods
            .map((pod) => (pod.uid === action.uid ? { ...pod, deleting: true } : pod))
            .filter((pod) => !(pod.uid === action.uid && action.force) && !(pod.deleting && !isAlive(pod)));
        else this.objects = this.objects.filter((object) => object.uid !== action.uid);
        break;
      case 'patch':
        if (action.kind !== 'QuantizeJob') {
          const digest = action.labels![Label.specDigest]!;
          this.objects = this.objects.map((object) =>
            object.uid === action.uid ? { ...object, specDigest: digest } : object,
          );
          break;
        }
        assert.equal(action.name, this.quantizeJob!.identity.name);
        this.quantizeJob!.spec = { ...this.quantizeJob!.spec, ...(action.spec as Partial<QuantizeJobSpec>) };
        break;
      case 'deleteJob':
        assert.equal(which, 'trainJob');
        this.deleted = true;
    }
    const target = action.type === 'create' ? `${action.object.kind}/${action.object.metadata.name}` : '';
    this.writes.push(`${action.type} ${'name' in action ? action.name : target}`);
    this.assertOneAttempt();
  }

  private create(object: ChildObject, owner: JobIdentity): void {
    const { name, labels } = object.metadata;
    const uid = `uid-${++this.uids}`;
    if (object.kind === 'Pod') {
      assert(!this.pods.some((pod) => pod.name === name), `pod ${name} exists`);
      const attempt = Number(labels[Label.attempt]);
      const rank = Number(labels[Label.rank]);
      this.pods.push({
        owner: owner.uid,
        name,
        uid,
        attempt,
        rank,
        phase: 'Pending',
        ready: false,
        deleting: false,
        disrupted: false,
        createdAt: timestamp(this.now),
        ...(labels[Label.specDigest] !== undefined && { specDigest: labels[Label.specDigest] }),
        ...(labels[Label.placeholder] === 'true' && { placeholder: true }),
        ...(labels[Label.gangSize] !== undefined && { gangSize: Number(labels[Label.gangSize]) }),
        ...restartsOf(object),
      });
      // Events address pods by index, so the order must not depend on the order of creation.
      this.pods.sort((a, b) => (a.name < b.name ? -1 : 1));
      return;
    }
    assert(
      !this.objects.some((other) => other.kind === object.kind && other.name === name),
      `${object.kind} ${name} exists`,
    );
    this.objects.push({
      kind: object.kind,
      ...(object.kind === 'PodGroup' && { apiVersion: object.apiVersion }),
      name,
      uid,
      owned: true,
      owner: owner.uid,
      ...(labels[Label.specDigest] !== undefined && { specDigest: labels[Label.specDigest] }),
    });
    if (object.kind === 'QuantizeJob') {
      this.quantizeJob = {
        identity: { name, namespace: object.metadata.namespace, uid, generation: 1 },
        spec: QuantizeJobSpec.parse(object.spec),
        status: {},
      };
    }
  }

  private assertOneAttempt(): void {
    for (const owner of new Set(this.pods.map((pod) => pod.owner))) {
      const attempts = new Set(
        this.livePods()
          .filter((pod) => pod.owner === owner)
          .map((pod) => pod.attempt),
      );
      assert(attempts.size <= 1, `attempts ${[...attempts].join(' and ')} are alive together`);
    }
  }
}

/** As an operator reads them from the pod. */
function restartsOf({ spec: { containers } }: Pod): Pick<ObservedPod, 'containerRestarts'> {
  const exitCodes = containers.flatMap(({ restartPolicyRules = [] }) =>
    restartPolicyRules.flatMap(({ exitCodes }) => exitCodes.values),
  );
  return exitCodes.length > 0 ? { containerRestarts: { exitCodes, count: 0, isRunning: false } } : {};
}

/**
 * A deep copy: a planner that changed its input would be noticed. The status is not copied, as it is compared by
 * identity.
 */
function cloneExceptStatus<T extends { status: unknown }>(observed: T): T {
  return { ...structuredClone(observed), status: observed.status };
}
