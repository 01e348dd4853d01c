/**
 * Restarts in place: the kubelet starts the trainers of a gang again in their pods, and their attempt goes on.
 *
 * A third of the time until a gang trains again is what new pods cost: sandboxes, volumes, and the container that
 * fetches data. And the steps in memory (checkpoint.inMemory) are lost with the pods. So the pods have rules by which
 * the kubelet starts a trainer again that SIGKILL ended, or that has lost a peer (`restartPolicyRules` of a container;
 * Kubernetes 1.35). The kubelet does so whatever the planner decides. The planner counts, and replaces the pods where
 * it has to:
 *
 * - `status.trainers.containerRestarts` says how many restarts of this attempt are counted. A trainer that was started
 *   again more often has had a failure that is not counted yet. One that was started again less often has not followed
 *   its gang yet, and that its program ends is no failure of its own.
 * - The cause is looked for as among pods that have ended (failure.ts): the end of the program before the present one
 *   stands for the end of the pod.
 * - New pods take over when the failure is none of these; when the restart has to wait (restarts.ts), for the kubelet
 *   waits longer; and when not all trainers start again.
 *
 * Why, and what else was weighed: docs/decisions/0058-restarts-of-containers-in-their-pods.md.
 */
import { ExitCode, type FaceTrainJobSpec, type FaceTrainJobStatus, type Restarts } from '@facetrain/api';
import { isAlive, type JobView, outcomeOf } from './attempt.ts';
import type { Environment } from './environment.ts';
import type { Failure } from './failure.ts';
import type { Container } from './objects.ts';
import type { ObservedPod } from './observed.ts';
import { hasDefaultImage } from './pod.ts';
import { backoffEnd } from './restarts.ts';
import { KILLED, RESTART_SECONDS } from './starts.ts';
import { secondsSince, soonest } from './time.ts';

/** Kubernetes' reason for a container that exceeded its limit, with the exit code of SIGKILL. */
const OUT_OF_MEMORY = 'OOMKilled';

/** Exit codes after which a new start in the same pod helps, whatever the node is. */
const RESTARTABLE = [ExitCode.peerLost, KILLED];
/**
 * With steps in memory also an unforeseen failure: new pods would lose the steps. Not the signals of a crash (SIGSEGV,
 * SIGABRT, SIGBUS): such a program may have written anywhere, also to the kept steps, which have no digests.
 */
const RESTARTABLE_WITH_STEPS = [ExitCode.failure, ...RESTARTABLE];

/**
 * The fields by which the kubelet starts the trainer's container again.
 *
 * None for an exit code that the failure policy names, nor where nothing may restart. Nor where pods of a finished job
 * are kept: trainers whose job has failed would be started again for ever. Nor with an image of another release: of one
 * from before restarts in place, a rank that is back first would look for its peers at a rank 0 that is gone. An image
 * that keeps steps in memory knows them.
 */
export function restartRules(
  { failurePolicy: { maxRestarts, rules }, cleanPodPolicy, checkpoint, trainers }: FaceTrainJobSpec,
  environment: Environment,
): Pick<Container, 'restartPolicy' | 'restartPolicyRules'> {
  if (maxRestarts === 0 || cleanPodPolicy === 'None') return {};
  if (!checkpoint.inMemory && !hasDefaultImage(trainers, environment)) return {};
  const restartable = checkpoint.inMemory ? RESTARTABLE_WITH_STEPS : RESTARTABLE;
  const values = restartable.filter((code) => !rules.some(({ exitCodes }) => exitCodes?.includes(code)));
  if (values.length === 0) return {};
  return {
    restartPolicy: 'Never',
    restartPolicyRules: [{ action: 'Restart', exitCodes: { operator: 'In', values } }],
  };
}

/** When the gang of the current attempt was last started; undefined: its pods were not all created yet. */
export const gangStart = ({
  attemptStartTime,
  trainers,
  restarts,
}: Pick<FaceTrainJobStatus, 'attemptStartTime' | 'trainers' | 'restarts'>): string | undefined =>
  attemptStartTime !== undefined && trainers?.containerRestarts ? restarts?.lastTime : attemptStartTime;

/** How often the trainer of this attempt that was started again most often was. */
export const containerRestartsOf = ({ ranks }: JobView): number =>
  Math.max(0, ...ranks.map((pod) => pod?.containerRestarts?.count ?? 0));

/** How many restarts a failure stands for: more than one, if the gang started again while no planner looked. */
export const restartsToCount = (view: JobView): number => Math.max(1, containerRestartsOf(view) - view.restartsInPlace);

/**
 * Whether a restart after this failure leaves the pods as they are: the kubelet has started the trainers again, or is
 * about to, and nothing else has happened to a pod.
 *
 * Only a gang that has trained since its start: then all ranks have met, so all of them lose the one that has failed,
 * and start again. Earlier a rank may be on its way to the others, and meets those that are started again without a new
 * start of its own.
 *
 * @param restarts the status after the restart
 */
export function staysInPods({ disruption }: Failure, restarts: Restarts, view: JobView): boolean {
  if (disruption || !view.hasTrained) return false;
  const countsOnce = restarts.count === (view.status.restarts?.count ?? 0) + 1;
  const waits = backoffEnd(restarts)! > view.now;
  return countsOnce && !waits && view.ranks.every((pod) => pod !== undefined && mayStay(pod, view));
}

function mayStay(pod: ObservedPod, { restartsInPlace: counted, now }: JobView): boolean {
  const { containerRestarts: restarts, phase, deleting, disrupted, lostNode, silentNode } = pod;
  if (!restarts || phase !== 'Running' || deleting || disrupted || lostNode !== undefined || silentNode) return false;
  if (restarts.isGone) return false;
  // One that has not followed the restart before, or was started twice since.
  if (restarts.count < counted || restarts.count > counted + 1) return false;
  if (outcomeOf(pod) === null) return true;
  if (!isRestartable(pod)) return false;
  if (restarts.count > counted) return pod.restarted === true;
  return pod.finishedAt !== undefined && secondsSince(pod.finishedAt, now) < RESTART_SECONDS;
}

/**
 * Words of the kubelet stand for a cause that stays, but for a container that ran out of memory: a new pod has the same
 * limit, and less to go on from.
 */
const isRestartable = ({ containerRestarts, exitCode, reason = 'Error', message }: ObservedPod): boolean =>
  exitCode !== undefined &&
  (containerRestarts?.exitCodes.includes(exitCode) ?? false) &&
  (reason === 'Error' || reason === OUT_OF_MEMORY) &&
  message === undefined;

/**
 * A trainer that does not start again with its gang, which was started again in its pods: it has succeeded meanwhile,
 * its pod has ended, or its program goes on. The others would wait for it in vain.
 */
export function rankLeftBehind(view: JobView): ObservedPod | undefined {
  const left = secondsToFollow(view);
  if (left === null) return undefined;
  const late = lateRanks(view);
  return late.find((pod) => outcomeOf(pod) === 'succeeded' || !isAlive(pod)) ?? (left > 0 ? undefined : late[0]);
}

/** Trainers that were started again less often than their gang. */
const lateRanks = ({ ranks, restartsInPlace }: JobView): ObservedPod[] =>
  ranks.filter(
    (pod) => pod?.containerRestarts !== undefined && pod.containerRestarts.count < restartsInPlace,
  ) as ObservedPod[];

function secondsToFollow(view: JobView): number | null {
  const { lastTime } = view.status.restarts ?? {};
  if (lastTime === undefined || lateRanks(view).length === 0) return null;
  return RESTART_SECONDS - secondsSince(lastTime, view.now);
}

/** Seconds until a trainer that does not start again takes new pods; null if all run or have ended. */
export function secondsToStart(view: JobView): number | null {
  const starting = view.ranks.map((pod) => {
    const finishedAt =
      pod?.containerRestarts?.isRunning === false ? pod.containerRestarts.lastEnd?.finishedAt : undefined;
    if (finishedAt === undefined) return null;
    const left = RESTART_SECONDS - secondsSince(finishedAt, view.now);
    return left > 0 ? left : null;
  });
  return soonest(secondsToFollow(view), ...starting);
}
