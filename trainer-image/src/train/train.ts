/**
 * Training, from a configuration to a model and its report. Every rank runs this; the ranks meet in the session's
 * collectives. Set-up, loop and end follow one another in train().
 */
import { join } from 'node:path';
import type { TrainerConfig } from '@facetrain/api';
import { removeUnfinished } from '../checkpoint/directory.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';
import { Evaluator } from './evaluator.ts';
import { History } from './history.ts';
import { JobCheckpoints } from './job-checkpoints.ts';
import { isDue, learningRateAt, scheduleOf } from './schedule.ts';
import { openSession } from './session.ts';
import { trainReport, writeModel, writeReport } from './training-output.ts';
import { backboneGraph, preflight } from './training-preflight.ts';

const LOG_EVERY_MS = 10_000;

/**
 * `stopped`: a rank was told to stop, and what was trained is in a checkpoint.
 * @throws FacetrainError for refused input, a lost peer, a loss that is not finite
 */
export async function train(config: TrainerConfig, ranks: Ranks, program: Program): Promise<'completed' | 'stopped'> {
  const { log, progress, signal } = program;
  const { rank } = ranks;
  const startedAt = new Date();
  // Every rank has the same to log about steps and checkpoints; by default only rank 0 logs it.
  const level = rank === 0 ? 'info' : 'debug';

  // ---- Set-up. Everything that can be refused is refused first, before ranks wait for each other. ----
  const graph = await backboneGraph(config);
  const dataset = await preflight(config, graph, ranks, program);
  const { numClasses, stepsPerEpoch, totalSteps } = dataset;
  const evaluator = await Evaluator.open(config, ranks, program);
  // Safe before the rendezvous: no rank writes a checkpoint before rank 0 has arrived there.
  if (rank === 0)
    for (const directory of await removeUnfinished(config.checkpoint.directory))
      log.info({ directory }, 'removed an unfinished checkpoint');

  progress.update({ stage: 'Rendezvous', totalSteps });
  const session = await openSession(config, graph, numClasses, ranks, program);

  progress.update({ stage: 'Loading' });
  const checkpoints = new JobCheckpoints(session, config, dataset, ranks, program);
  const resumed = await checkpoints.resume();
  const history = new History(totalSteps, stepsPerEpoch, config.globalBatchSize, resumed?.history);
  const schedule = scheduleOf(config, dataset);
  /** Steps done, those of earlier attempts included. */
  let done = resumed?.step ?? 0;

  const show = (stage: 'Training' | 'Exporting') =>
    progress.update({
      stage,
      step: done,
      epoch: done / stepsPerEpoch,
      loss: history.lossLast,
      imagesPerSecond: history.recentImagesPerSecond,
      etaSeconds: history.etaSeconds(done),
      evaluations: evaluator.newest,
    });
  const logStep = (learningRate: number) => {
    const { lossLast: loss, recentImagesPerSecond: imagesPerSecond } = history;
    log[level]({ step: done, totalSteps, epoch: done / stepsPerEpoch, loss, learningRate, imagesPerSecond }, 'trained');
  };

  // ---- The loop ----
  let stopped = false;
  let loggedAt = performance.now();
  show('Training');
  while (done < totalSteps && !stopped) {
    const learningRate = learningRateAt(done, schedule);
    const stepStart = performance.now();
    // A signal reaches one rank before another, and clocks differ. So ranks vote, in the step's own all-reduce, and all
    // of them do what the votes say.
    const { loss, votes } = await session.step(done, learningRate, {
      stop: signal.aborted,
      checkpoint: checkpoints.isOverdue(),
    });
    history.add({ step: done, loss, learningRate, seconds: (performance.now() - stepStart) / 1000 });
    done += 1;
    progress.update({ learningRate });
    show('Training');
    if (done % stepsPerEpoch === 0 || done === totalSteps || performance.now() - loggedAt > LOG_EVERY_MS) {
      loggedAt = performance.now();
      logStep(learningRate);
    }

    // The checkpoint of the last step comes before the final evaluation: losing a machine during that costs no step.
    if (votes.stop || votes.checkpoint || done === totalSteps || isDue(done, config.checkpoint, stepsPerEpoch))
      await checkpoints.save(done, history.forCheckpoint);
    stopped = votes.stop && done < totalSteps;
    // The outcome is not needed here: after an evaluation that a stop cut short, the next step votes to stop.
    if (!stopped && done < totalSteps && isDue(done, config.evaluation, stepsPerEpoch))
      await evaluator.evaluate(session, graph.input, done);
    show('Training');
  }

  // ---- The end: the final evaluation, the model, and the report, which vouches for everything before it. ----
  stopped ||= (await evaluator.evaluate(session, graph.input, done)) === 'stopped';
  if (!stopped && rank === 0) {
    show('Exporting');
    const model = await writeModel(config.outputDirectory, await session.exportGraph());
    const report = trainReport(config, { startedAt, dataset, model, ranks, session, resumed, history, evaluator });
    await writeReport(config.outputDirectory, report);
    log.info(
      { directory: join(config.outputDirectory, 'model'), parameters: model.parameters, evaluations: evaluator.newest },
      'model and report written',
    );
  }
  // A rank that leaves closes its sockets, which another rank may still need.
  await session.barrier();
  await session.close();
  if (!stopped) progress.update({ stage: 'Done' });
  return stopped ? 'stopped' : 'completed';
}
