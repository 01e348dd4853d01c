/**
 * Training, from a configuration to a model and its report. Every rank runs this; the ranks meet in the session's
 * collectives. Set-up, loop and end follow one another in train().
 */
import { join } from 'node:path';
import { OUTPUT, sampleRateAt, sampleRateSteps, type TrainerConfig } from '@facetrain/api';
import type { TrainingSessionContract } from '@facetrain/native';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';
import { isStop } from '../program/stop-signal.ts';
import { BadPictures } from './bad-pictures.ts';
import { CurveEvents } from './curve-events.ts';
import { Evaluator } from './evaluator.ts';
import { finalProgress, finishedTraining } from './finished-training.ts';
import { History } from './history.ts';
import { JobCheckpoints } from './job-checkpoints.ts';
import { JobFolders } from './job-folders.ts';
import { KeptSteps } from './kept-steps.ts';
import { isCheckpointDue, isDue, learningRateAt, scheduleOf } from './schedule.ts';
import { openSession } from './session.ts';
import { StartTimes } from './start-times.ts';
import { trainReport, writeModel, writeReport } from './training-output.ts';
import { backboneGraph, preflight } from './training-preflight.ts';

const LOG_EVERY_MS = 10_000;

/** `stopped`: a rank got a stop signal; a checkpoint was written. */
type Outcome = 'completed' | 'stopped';

/**
 * @throws FacetrainError for refused input, a lost peer, a loss that is not finite; FencedOff when a newer attempt has
 * taken over the folders of this one
 */
export async function train(config: TrainerConfig, ranks: Ranks, program: Program): Promise<Outcome> {
  const folders = new JobFolders(config, program);
  try {
    return await trainIn(folders, config, ranks, program);
  } catch (error) {
    // A process that was frozen also finds that its peers are gone, which says less.
    throw isStop(error, program.signal) ? error : await folders.explain(error);
  } finally {
    folders.close();
  }
}

async function trainIn(folders: JobFolders, config: TrainerConfig, ranks: Ranks, program: Program): Promise<Outcome> {
  const { log, progress, signal } = program;
  const { rank } = ranks;
  const startedAt = new Date();
  const start = new StartTimes();
  start.end('program');
  // Steps and checkpoints are the same on every rank, so only rank 0 logs them at the default level.
  const level = rank === 0 ? 'info' : 'debug';

  // ---- Set-up. All input is validated before the ranks wait for each other. ----
  const graph = await backboneGraph(config);
  const dataset = await preflight(config, graph, ranks, program);
  const { stepsPerEpoch, totalSteps } = dataset;
  const badPictures = new BadPictures(config.dataset, dataset, ranks, program);
  const evaluator = await Evaluator.open(config, dataset, ranks, program);
  if (rank === 0) await folders.claim();
  start.end('preflight');

  progress.update({ stage: 'Rendezvous', totalSteps });
  const session = await openSession(config, graph, dataset, ranks, program);
  await folders.share(session);
  start.end('rendezvous');

  progress.update({ stage: 'Loading' });
  if (await wasFinished(session, folders, config, ranks, program)) return leave(session, 'completed');
  const store = folders.checkpoints();
  if (rank === 0)
    for (const directory of await store.removeUnfinished((message) => log.warn(message)))
      log.info({ directory }, 'removed an unfinished checkpoint');
  const checkpoints = new JobCheckpoints(session, store, config, dataset, ranks, program);
  const kept = await KeptSteps.open(session, config, dataset, ranks, program);
  const resumed = await checkpoints.resume(kept);
  const { name: job, attempt } = config.job;
  const history = new History(
    { totalSteps, stepsPerEpoch, globalBatchSize: config.globalBatchSize },
    { job, attempt, startedAt: startedAt.toISOString(), trainers: ranks.size, device: session.device },
    resumed,
  );
  evaluator.resume(resumed?.curves.evaluations ?? []);
  const schedule = scheduleOf(config, dataset);
  const rateChanges = sampleRateSteps(config.loss, stepsPerEpoch);
  /** Those of earlier attempts included. */
  let stepsDone = resumed?.step ?? 0;
  let skippedSteps = (await session.lossScale())?.skippedSteps;

  const curves = () => ({ ...history.curves, evaluations: evaluator.curve });
  /** What the state after the steps done is kept with. */
  const recorded = () => ({ history: history.forCheckpoint, curves: curves() });
  const show = (stage: 'Training' | 'Exporting') =>
    progress.update({
      stage,
      step: stepsDone,
      epoch: stepsDone / stepsPerEpoch,
      loss: history.lossLast,
      imagesPerSecond: history.recentImagesPerSecond,
      stageSeconds: history.recentStageSeconds,
      etaSeconds: history.etaSeconds(stepsDone),
      evaluations: evaluator.newest,
    });
  const logStep = (learningRate: number, sampleRate: number) => {
    const { lossLast: loss, recentImagesPerSecond: imagesPerSecond, recentStageSeconds: stageSeconds } = history;
    const epoch = stepsDone / stepsPerEpoch;
    log[level](
      { step: stepsDone, totalSteps, epoch, loss, learningRate, sampleRate, imagesPerSecond, stageSeconds },
      'trained',
    );
  };

  const isRecalled = resumed !== undefined && resumed.step > (resumed.checkpoint?.step ?? 0);
  if (!isRecalled)
    await kept.begin(
      stepsDone,
      { history: history.forCheckpoint, interval: history.interval },
      checkpoints.identities,
      resumed?.checkpoint ?? null,
    );
  // The end may have come between the step and its checkpoint.
  else if (stepsDone === totalSteps) await checkpoints.save(stepsDone, recorded());
  else if (isCheckpointDue(stepsDone, config, stepsPerEpoch)) await checkpoints.begin(stepsDone, recorded());
  await kept.keepCurves(curves);
  start.end('loading');
  await using events = new CurveEvents(
    rank === 0 ? folders.output : null,
    { job, startedAt },
    (isLast) => ({
      startedAt: startedAt.toISOString(),
      attempts: history.curves.attempts,
      history: isLast || !history.isIntervalOpen ? history.intervals : history.intervals.slice(0, -1),
      evaluations: evaluator.results,
    }),
    log,
  );

  const evaluate = async () => {
    const outcome = await evaluator.evaluate(session, graph.input, stepsDone, () => checkpoints.advanceWithoutStep());
    if (outcome === 'stopped') return;
    await checkpoints.noteEvaluation(stepsDone, evaluator.curve);
    await kept.keepCurves(curves);
    events.write();
  };
  // The end, or a stop, may have come between a checkpoint and its evaluation.
  if (stepsDone > 0 && stepsDone < totalSteps && isDue(stepsDone, config.evaluation, stepsPerEpoch)) {
    // Rank 0 alone knows of all evaluations.
    const [isEvaluated] = await gatherJson(session, evaluator.has(stepsDone));
    if (!isEvaluated) await evaluate();
  }

  // ---- The loop ----
  let stopped = false;
  let loggedAt = performance.now();
  /** What the state of the step before took to be kept. */
  let keepingMs = 0;
  show('Training');
  while (stepsDone < totalSteps && !stopped) {
    const learningRate = learningRateAt(stepsDone, schedule);
    const sampleRate = sampleRateAt(stepsDone, config.loss.sampleRate, rateChanges);
    const stepStart = performance.now();
    // A signal reaches one rank before another, and clocks differ. So ranks vote in the step's all-reduce, and all
    // act on the combined votes.
    folders.throwIfLost();
    checkpoints.throwIfFailed();
    const { loss, votes, replaced, stageSeconds, ...result } = await session.step(stepsDone, learningRate, {
      stop: signal.aborted,
      checkpoint: checkpoints.isOverdue(),
      writing: checkpoints.voteWriting(),
    });
    const seconds = (performance.now() - stepStart + keepingMs) / 1000;
    history.add({ step: stepsDone, loss, learningRate, sampleRate, seconds, stageSeconds, time: new Date() });
    if (stageSeconds) progress.addStep(stageSeconds);
    if (result.skippedSteps !== skippedSteps) {
      skippedSteps = result.skippedSteps;
      log[level]({ step: stepsDone, skippedSteps }, 'a gradient overflowed: skipped a step, with a smaller loss scale');
    }
    badPictures.add(replaced);
    stepsDone += 1;
    const keepStart = performance.now();
    await kept.keep(stepsDone, { history: history.forCheckpoint, interval: history.interval });
    if (!history.isIntervalOpen) await kept.keepCurves(curves);
    keepingMs = performance.now() - keepStart;
    if (start.end('step')) log.info({ step: stepsDone, startSeconds: start.seconds }, 'first step');
    progress.update({ learningRate, sampleRate });
    show('Training');
    if (stepsDone % stepsPerEpoch === 0 || stepsDone === totalSteps || performance.now() - loggedAt > LOG_EVERY_MS) {
      loggedAt = performance.now();
      logStep(learningRate, sampleRate);
    }

    if (stepsDone % stepsPerEpoch === 0 || stepsDone === totalSteps) await badPictures.exchange(session);

    await checkpoints.advance(votes);
    // The checkpoint of the last step is complete before the final evaluation: losing a machine then costs no step.
    if (votes.stop || stepsDone === totalSteps) await checkpoints.save(stepsDone, recorded());
    else if (votes.checkpoint || isCheckpointDue(stepsDone, config, stepsPerEpoch))
      await checkpoints.begin(stepsDone, recorded());
    events.writeFromTimeToTime();
    stopped = votes.stop && stepsDone < totalSteps;
    // 'stopped' is ignored here: the rank that got the signal votes to stop in the next step.
    if (!stopped && stepsDone < totalSteps && isDue(stepsDone, config.evaluation, stepsPerEpoch)) await evaluate();
    show('Training');
  }

  // ---- The end: the final evaluation and the model. The report comes last: it exists only if they are complete. ----
  stopped ||= (await evaluator.evaluate(session, graph.input, stepsDone)) === 'stopped';
  if (!stopped) await checkpoints.noteEvaluation(stepsDone, evaluator.curve);
  if (!stopped && rank === 0) {
    show('Exporting');
    const model = await writeModel(folders.output, await session.exportGraph(), config.model.channelOrder);
    const report = trainReport(config, {
      startedAt,
      dataset,
      model,
      ranks,
      session,
      resumed,
      history,
      evaluator,
      badPictures,
      skippedSteps,
      checkpoints: checkpoints.statistics,
    });
    await events.close();
    await writeReport(folders.output, report);
    log.info(
      { directory: join(config.outputDirectory, 'model'), parameters: model.parameters, evaluations: evaluator.newest },
      'model and report written',
    );
  }
  if (!stopped) progress.update({ stage: 'Done' });
  return await leave(session, stopped ? 'stopped' : 'completed');
}

/** A collective: whether an earlier attempt has finished this very training. Rank 0 decides for all. */
async function wasFinished(
  session: TrainingSessionContract,
  folders: JobFolders,
  config: TrainerConfig,
  { rank }: Ranks,
  { log, progress }: Program,
): Promise<boolean> {
  const report = rank === 0 ? await finishedTraining(folders.output, config) : undefined;
  const [finished] = await gatherJson(session, report !== undefined);
  if (report) {
    const [step] = await folders.checkpoints().list();
    progress.update(finalProgress(report, step === report.steps ? { step, time: report.finishedAt } : null));
    log.info({ report: join(config.outputDirectory, OUTPUT.trainReport) }, 'finished by an earlier attempt');
  }
  return finished!;
}

/** A collective. A rank that leaves closes its sockets, which another rank may still need. */
async function leave(
  session: TrainingSessionContract & { close(): Promise<void> },
  outcome: Outcome,
): Promise<Outcome> {
  await session.barrier();
  await session.close();
  return outcome;
}
