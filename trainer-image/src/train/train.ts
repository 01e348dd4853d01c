/** Training, from a configuration to a model and its report. Every rank runs this; they meet in the session's collectives. */
import { join } from 'node:path';
import { type CheckpointManifest, FacetrainError, type TrainerConfig } from '@facetrain/api';
import { TrainingSession } from '@facetrain/native';
import { findNewest, openCheckpoint, removeUnfinished } from '../checkpoint/directory.ts';
import { loadCheckpoint } from '../checkpoint/load.ts';
import { saveCheckpoint } from '../checkpoint/save.ts';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import { computeThreads, type Ranks } from '../program/ranks.ts';
import { unlessStopped } from '../program/stop-signal.ts';
import { History } from './history.ts';
import { Evaluator } from './rank-evaluator.ts';
import { isDue, learningRateAt } from './schedule.ts';
import { writeModel, writeReport } from './training-output.ts';
import { backboneGraph, generalMargin, preflight } from './training-preflight.ts';

const LOG_EVERY_MS = 10_000;

/**
 * `stopped`: a rank was told to stop, and what was trained is in a checkpoint.
 * @throws FacetrainError for refused input, a lost peer, a loss that is not finite
 */
export async function train(config: TrainerConfig, ranks: Ranks, program: Program): Promise<'completed' | 'stopped'> {
  const { log, progress, signal } = program;
  const { rank } = ranks;
  const startedAt = new Date();
  const tick = () => progress.tick();
  // What all ranks would say alike, rank 0 says.
  const level = rank === 0 ? 'info' : 'debug';

  // Whatever can be refused is refused here, before ranks wait for each other.
  const graph = await backboneGraph(config);
  const { images, identities, numClasses, stepsPerEpoch, totalSteps } = await preflight(config, graph, ranks, program);
  const evaluator = await Evaluator.open(config, ranks, program);
  // Nobody can write before every rank has come to the rendezvous, and rank 0 comes after this.
  if (rank === 0)
    for (const directory of await removeUnfinished(config.checkpoint.directory))
      log.info({ directory }, 'removed an unfinished checkpoint');

  progress.update({ stage: 'Rendezvous', totalSteps });
  const threads = computeThreads(config.computeThreads, ranks);
  log.info(
    { size: ranks.size, master: `${ranks.masterAddr}:${ranks.masterPort}`, computeThreads: threads },
    'meeting the other ranks',
  );
  const { loss, optimizer, augment } = config;
  const opening = TrainingSession.open({
    graph,
    seed: config.seed,
    numClasses,
    margin: generalMargin(loss.margin),
    scale: loss.scale,
    sampleRate: loss.sampleRate,
    interclassFilter: loss.interclassFilter,
    momentum: optimizer.momentum,
    weightDecay: optimizer.weightDecay,
    gradientClipNorm: optimizer.gradientClipNorm,
    data: {
      directory: config.dataset.path,
      globalBatchSize: config.globalBatchSize,
      ...augment,
      channelOrder: config.model.channelOrder,
      loaderThreads: config.loaderThreads,
    },
    comm: {
      rank,
      size: ranks.size,
      localRank: ranks.localRank,
      localSize: ranks.localSize,
      masterAddr: ranks.masterAddr,
      masterPort: ranks.masterPort,
      rendezvousTimeoutMs: config.rendezvousTimeoutSeconds * 1000,
      collectiveTimeoutMs: config.collectiveTimeoutSeconds * 1000,
    },
    computeThreads: threads,
    device: config.device,
  });
  const session = await unlessStopped(signal, withinDeadline(opening, config, ranks));
  log.info({ device: session.device }, 'met the other ranks');

  progress.update({ stage: 'Loading' });
  // Rank 0's view of the folder decides: on a network file system the others may see an older one.
  const newest = rank === 0 ? await findNewest(config.checkpoint.directory) : undefined;
  const resumeStep = (await gatherJson(session, newest?.manifest.step ?? null))[0] ?? null;
  const resumed = resumeStep === null ? undefined : await openCheckpoint(config.checkpoint.directory, resumeStep);
  if (resumed) {
    await loadCheckpoint(session, resumed, {
      job: config.checkpoint.shared ? null : config.job.name,
      seed: config.seed,
      numClasses,
      totalSteps,
      onFile: tick,
    });
    const { step, time, job, worldSize } = resumed.manifest;
    progress.update({ checkpoint: { step, time } });
    // A job that was deleted and created again has another uid; its work is not lost for that.
    log.info({ step, writtenBy: job, worldSize, directory: resumed.directory }, 'resumed from a checkpoint');
  }

  const history = new History(totalSteps, stepsPerEpoch, config.globalBatchSize, resumed?.manifest.history);
  let done = resumeStep ?? 0;
  let saved = { step: done, at: performance.now() };
  const schedule = {
    ...config.schedule,
    warmupSteps: config.schedule.warmupEpochs * stepsPerEpoch,
    totalSteps,
    learningRate: optimizer.learningRate,
  };

  const show = (stage: 'Training' | 'Evaluating' | 'Checkpointing' | 'Exporting') =>
    progress.update({
      stage,
      step: done,
      epoch: done / stepsPerEpoch,
      loss: history.lossLast,
      imagesPerSecond: history.recentImagesPerSecond,
      etaSeconds: history.etaSeconds(done),
      evaluations: evaluator.newest,
    });

  const checkpoint = async () => {
    if (saved.step === done) return;
    show('Checkpointing');
    const { directory, keep } = config.checkpoint;
    const job: CheckpointManifest['job'] = { name: config.job.name, uid: config.job.uid };
    const time = new Date();
    await saveCheckpoint(session, {
      root: directory,
      keep,
      job,
      step: done,
      seed: config.seed,
      numClasses,
      history: history.carried,
      time,
      rank,
      worldSize: ranks.size,
      onFile: tick,
    });
    saved = { step: done, at: performance.now() };
    progress.update({ checkpoint: { step: done, time: time.toISOString() } });
    log[level]({ step: done }, 'checkpoint written');
  };
  const evaluate = async () => {
    show('Evaluating');
    return evaluator.evaluate(session, graph.input, done);
  };

  const exportModel = async () => {
    if (rank !== 0) return;
    show('Exporting');
    const model = await writeModel(config.outputDirectory, await session.exportGraph());
    await writeReport(config.outputDirectory, {
      schemaVersion: 1,
      job: config.job,
      startedAt: startedAt.toISOString(),
      finishedAt: new Date().toISOString(),
      dataset: { path: config.dataset.path, images, identities },
      model,
      trainers: ranks.size,
      device: session.device,
      steps: totalSteps,
      resumedFromStep: resumeStep,
      trainSeconds: history.trainSeconds,
      imagesPerSecond: history.imagesPerSecond,
      lossFirst: history.lossFirst!,
      lossLast: history.lossLast!,
      history: history.intervals,
      evaluations: evaluator.results,
      config,
    });
    log.info(
      { directory: join(config.outputDirectory, 'model'), parameters: model.parameters, evaluations: evaluator.newest },
      'model and report written',
    );
  };

  let loggedAt = performance.now();
  show('Training');
  let stopped = false;
  while (done < totalSteps && !stopped) {
    const learningRate = learningRateAt(done, schedule);
    const started = performance.now();
    // Time passes differently on every rank, and signals reach one before the other: what follows from them is agreed on by vote.
    const overdue =
      rank === 0 &&
      config.checkpoint.everySeconds !== null &&
      started - saved.at >= config.checkpoint.everySeconds * 1000;
    const { loss, votes } = await session.step(done, learningRate, { stop: signal.aborted, checkpoint: overdue });
    history.add({ step: done, loss, learningRate, seconds: (performance.now() - started) / 1000 });
    done += 1;
    progress.update({ learningRate });
    show('Training');
    if (done % stepsPerEpoch === 0 || done === totalSteps || performance.now() - loggedAt > LOG_EVERY_MS) {
      loggedAt = performance.now();
      log[level](
        {
          step: done,
          totalSteps,
          epoch: done / stepsPerEpoch,
          loss: history.lossLast,
          learningRate,
          imagesPerSecond: history.recentImagesPerSecond,
        },
        'trained',
      );
    }

    if (votes.stop || votes.checkpoint || done === totalSteps || isDue(done, config.checkpoint, stepsPerEpoch))
      await checkpoint();
    stopped = votes.stop && done < totalSteps;
    // One that a stop cuts short is followed by a step, and that by a stop.
    if (!stopped && done < totalSteps && isDue(done, config.evaluation, stepsPerEpoch)) await evaluate();
    show('Training');
  }

  stopped ||= (await evaluate()) === 'stopped';
  if (!stopped) await exportModel();
  // No rank leaves, and takes its sockets with it, while another still needs it.
  await session.barrier();
  await session.close();
  if (!stopped) progress.update({ stage: 'Done' });
  return stopped ? 'stopped' : 'completed';
}

/**
 * The native half has a deadline for a master that refuses or is not there; one that accepts the connection and then says nothing would hold it for
 * ever. What comes after the rendezvous is one collective.
 */
async function withinDeadline<T>(
  opening: Promise<T>,
  config: TrainerConfig,
  { masterAddr, masterPort }: Ranks,
): Promise<T> {
  const seconds = config.rendezvousTimeoutSeconds + config.collectiveTimeoutSeconds;
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(
      reject,
      seconds * 1000,
      new FacetrainError({
        code: 'RendezvousTimeout',
        subject: `MASTER_ADDR:MASTER_PORT ${masterAddr}:${masterPort}`,
        found: `no answer within ${seconds} s`,
        allowed: 'an address at which rank 0 listens, and all ranks started within the time limit',
      }),
    );
  });
  try {
    return await Promise.race([opening, deadline]);
  } finally {
    clearTimeout(timer);
  }
}
