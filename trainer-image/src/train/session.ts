/** Opens the training session, in which the ranks meet. */
import { FacetrainError, MAX_WAITS_FOR, type Margin, sampleRateSteps, type TrainerConfig } from '@facetrain/api';
import { awaited, type Graph, type TrainingOptions, TrainingSession } from '@facetrain/native';
import { allowedBadPictures, type Preflight } from '../dataset/dataset-preflight.ts';
import { trainingFacts } from '../estimate/plan-training.ts';
import { leastMachineBytes, neededMemory } from '../estimate/training-memory.ts';
import { withSubject } from '../onnx/with-subject.ts';
import type { Program } from '../program/program.ts';
import { computeThreads, type Ranks } from '../program/ranks.ts';
import { abortable } from '../program/stop-signal.ts';

const MODEL_ERRORS: ReadonlySet<string> = new Set(['InvalidModel', 'UnsupportedOperator']);

/** @throws FacetrainError RendezvousTimeout, and those of TrainingSession.open; Stopped after a stop signal */
export async function openSession(
  config: TrainerConfig,
  graph: Graph,
  { numClasses, images, stepsPerEpoch }: Pick<Preflight, 'numClasses' | 'images' | 'stepsPerEpoch'>,
  ranks: Ranks,
  program: Program,
): Promise<TrainingSession> {
  const { log, signal } = program;
  const { loss, optimizer } = config;
  const threads = computeThreads(config.computeThreads, ranks);
  log.info(
    { size: ranks.size, master: `${ranks.masterAddr}:${ranks.masterPort}`, computeThreads: threads },
    'meeting the other ranks',
  );
  const opening = TrainingSession.open({
    graph,
    seed: config.seed,
    numClasses,
    margin: nativeMargin(loss.margin),
    gradient: loss.gradient,
    scale: loss.scale,
    sampleRate: loss.sampleRate,
    sampleRateChanges: sampleRateSteps(loss, stepsPerEpoch),
    interclassFilter: loss.interclassFilter,
    rowsPrecision: loss.rows.precision,
    rowsOptimizer: loss.rows.optimizer,
    rowsPlacement: loss.rows.placement,
    // Only Auto asks, and only on a GPU.
    rowsMemory:
      loss.rows.placement === 'auto' && config.device !== 'cpu'
        ? rowsMemory(config, graph, numClasses, ranks)
        : { deviceBytes: 0, hostBytes: 0 },
    rowUpdate: optimizer.rowUpdate,
    rowsRateFactor: (loss.rows.learningRate ?? optimizer.learningRate) / optimizer.learningRate,
    momentum: optimizer.momentum,
    weightDecay: optimizer.weightDecay,
    gradientClipNorm: optimizer.gradientClipNorm,
    microBatchSize: config.microBatchSize,
    checkpointActivations: config.model.checkpointActivations,
    syncBatchNorm: config.model.syncBatchNorm,
    data: {
      directory: config.dataset.path,
      globalBatchSize: config.globalBatchSize,
      ...config.augment,
      channelOrder: config.model.channelOrder,
      loaderThreads: config.loaderThreads,
      maxBadPictures: allowedBadPictures(config.dataset.maxBadPictures, images),
    },
    comm: {
      rank: ranks.rank,
      size: ranks.size,
      // With the size: an elastic attempt of which no pod was left may have been made anew with another one.
      gang: `${config.job.uid}/${config.job.attempt}/${ranks.size}`,
      localRank: ranks.localRank,
      localSize: ranks.localSize,
      masterAddr: ranks.masterAddr,
      masterPort: ranks.masterPort,
      rendezvousTimeoutMs: config.rendezvousTimeoutSeconds * 1000,
      collectiveTimeoutMs: config.collectiveTimeoutSeconds * 1000,
    },
    computeThreads: threads,
    device: config.device,
    precision: config.precision,
    deterministic: config.deterministic,
  }).catch((error: unknown) => {
    // The parts of a model are named by the executor, which does not know the file.
    const isOfModel = error instanceof FacetrainError && MODEL_ERRORS.has(error.code);
    throw isOfModel && config.model.onnxPath !== null ? withSubject(config.model.onnxPath, error) : error;
  });
  const session = await abortable(signal, watched(opening, config, ranks, program));
  const { device, precision, rowsPlacement, rowsOptimizer } = session;
  const { rowUpdate } = config.optimizer;
  log.info({ device, precision, rowsPlacement, rowsOptimizer, rowUpdate }, 'met the other ranks');
  return session;
}

/** By the estimate of `facetrain plan`. */
function rowsMemory(
  config: TrainerConfig,
  graph: Graph,
  numClasses: number,
  { size, localSize }: Ranks,
): TrainingOptions['rowsMemory'] {
  const gang = { numClasses, replicas: size, ranksPerPod: localSize, maxReplicas: null, device: 'cuda' } as const;
  const facts = trainingFacts(config, graph, gang);
  return {
    deviceBytes: neededMemory({ ...facts, rowsPlacement: 'device' }),
    hostBytes: localSize * leastMachineBytes({ ...facts, rowsPlacement: 'host' }),
  };
}

/** CosFace and ArcFace in the combined form, cos(m1·θ + m2) − m3: the one has m3 alone, the other m2 alone. */
function nativeMargin({ type, ...margin }: Margin): TrainingOptions['margin'] {
  if (type === 'cosface') return { form: 'combined', ...margin, m1: 1, m2: 0 };
  if (type === 'arcface') return { form: 'combined', ...margin, m1: 1, m3: 0 };
  return { form: type, ...margin };
}

/** After so many seconds in the rendezvous, log and progress say whom this rank waits for. */
const SAY_AFTER_SECONDS = 10;
/** How often the words are looked at, and how often the log repeats them. */
const LOOK_SECONDS = 1;
const REPEAT_SECONDS = 60;
/** For the native half, to fail by itself. */
const MARGIN_SECONDS = 5;

/**
 * Says whom the rendezvous waits for while the session opens, and bounds its time.
 *
 * The native half has a deadline for a master that refuses connections or does not exist. A master that accepts the
 * connection and then sends nothing would block it without end. After the rendezvous, opening takes one collective.
 */
async function watched<T>(
  opening: Promise<T>,
  { rendezvousTimeoutSeconds, collectiveTimeoutSeconds }: TrainerConfig,
  { masterAddr, masterPort }: Ranks,
  { log, progress }: Program,
): Promise<T> {
  const start = performance.now();
  const secondsSince = (time: number) => (performance.now() - time) / 1000;
  /** When the rendezvous began: the dataset is opened before. */
  let begunAt: number | undefined;
  let said = '';
  let saidAt = 0;
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<never>((_, reject) => {
    const fail = (found: string) =>
      reject(
        new FacetrainError({
          code: 'RendezvousTimeout',
          subject: `MASTER_ADDR:MASTER_PORT ${masterAddr}:${masterPort}`,
          found,
          allowed: 'an address at which rank 0 listens, and all ranks started within the time limit',
        }),
      );
    timer = setInterval(() => {
      const limit = rendezvousTimeoutSeconds + collectiveTimeoutSeconds;
      if (secondsSince(start) >= limit) return fail(`no answer within ${limit} s`);
      const waitsFor = awaited().slice(0, MAX_WAITS_FOR);
      if (waitsFor === '') return;
      begunAt ??= performance.now();
      const seconds = Math.round(secondsSince(begunAt));
      if (seconds >= rendezvousTimeoutSeconds + MARGIN_SECONDS)
        return fail(`no answer within ${seconds} s; this rank waits for ${waitsFor}`);
      if (seconds < SAY_AFTER_SECONDS) return;
      if (waitsFor !== said) progress.update({ waitsFor });
      else if (secondsSince(saidAt) < REPEAT_SECONDS) return;
      log.warn({ seconds }, `waiting for ${waitsFor}`);
      [said, saidAt] = [waitsFor, performance.now()];
    }, 1000 * LOOK_SECONDS);
  });
  try {
    return await Promise.race([opening, deadline]);
  } finally {
    clearInterval(timer);
    if (said !== '') progress.update({ waitsFor: undefined });
  }
}
