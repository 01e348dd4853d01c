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
 * `stopped`: a rank got a stop signal; a checkpoint was written.
 * @throws FacetrainError for refused input, a lost peer, a loss that is not finite
 */
export async function train(config: TrainerConfig, ranks: Ranks, program: Program): Promise<'completed' | 'stopped'> {
  const { log, progress, signal } = program;
  const { rank } = ranks;
  const startedAt = new Date();
  // Steps and checkpoints are the same on every rank, so only rank 0 logs them at the default level.
  const level = rank === 0 ? 'info' : 'debug';

  // ---- Set-up. All input is validated before the ranks wait for each other. ----
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
  /** Those of earlier attempts included. */
  let stepsDone = resumed?.step ?? 0;

  const show = (stage: 'Training' | 'Exporting') =>
    progress.update({
      stage,
      step: stepsDone,
      epoch: stepsDone / stepsPerEpoch,
      loss: history.lossLast,
      imagesPerSecond: history.recentImagesPerSecond,
      etaSeconds: history.etaSeconds(stepsDone),
      evaluations: evaluator.newest,
    });
  const logStep = (learningRate: number) => {
    const { lossLast: loss, recentImagesPerSecond: imagesPerSecond } = history;
    log[level](
      { step: stepsDone, totalSteps, epoch: stepsDone / stepsPerEpoch, loss, learningRate, imagesPerSecond },
      'trained',
    );
  };

  // ---- The loop ----
  let stopped = false;
  let loggedAt = performance.now();
  show('Training');
  while (stepsDone < totalSteps && !stopped) {
    const learningRate = learningRateAt(stepsDone, schedule);
    const stepStart = performance.now();
    // A signal reaches one rank before another, and clocks differ. So ranks vote in the step's all-reduce, and all
    // act on the combined votes.
    const { loss, votes } = await session.step(stepsDone, learningRate, {
      stop: signal.aborted,
      checkpoint: checkpoints.isOverdue(),
    });
    history.add({ step: stepsDone, loss, learningRate, seconds: (performance.now() - stepStart) / 1000 });
    stepsDone += 1;
    progress.update({ learningRate });
    show('Training');
    if (stepsDone % stepsPerEpoch === 0 || stepsDone === totalSteps || performance.now() - loggedAt > LOG_EVERY_MS) {
      loggedAt = performance.now();
      logStep(learningRate);
    }

    // The checkpoint of the last step comes before the final evaluation: losing a machine during that costs no step.
    if (
      votes.stop ||
      votes.checkpoint ||
      stepsDone === totalSteps ||
      isDue(stepsDone, config.checkpoint, stepsPerEpoch)
    )
      await checkpoints.save(stepsDone, history.forCheckpoint);
    stopped = votes.stop && stepsDone < totalSteps;
    // 'stopped' is ignored here: the rank that got the signal votes to stop in the next step.
    if (!stopped && stepsDone < totalSteps && isDue(stepsDone, config.evaluation, stepsPerEpoch))
      await evaluator.evaluate(session, graph.input, stepsDone);
    show('Training');
  }

  // ---- The end: the final evaluation and the model. The report comes last: it exists only if they are complete. ----
  stopped ||= (await evaluator.evaluate(session, graph.input, stepsDone)) === 'stopped';
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
