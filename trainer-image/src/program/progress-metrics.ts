/** The progress board as Prometheus metrics. Every scrape reads the board. */
import { type Progress, ProgressStage, stepStages } from '@facetrain/api';
import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import type { Board } from './progress-board.ts';

export function createMetrics(board: Board): Registry {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });

  const { name, uid, attempt } = board.current.job;
  new Gauge({
    name: 'facetrain_info',
    help: 'The job that this program belongs to; always 1.',
    labelNames: ['name', 'uid', 'attempt'],
    registers,
  }).set({ name, uid, attempt: String(attempt) }, 1);

  const values: [string, string, (progress: Progress) => number | null][] = [
    ['facetrain_step', 'Steps done; of the quantizer, layers searched.', (progress) => progress.step],
    ['facetrain_planned_steps', 'Steps in all; 0 while it is not known.', (progress) => progress.totalSteps],
    ['facetrain_epoch', 'Epochs done, with their fraction.', (progress) => progress.epoch],
    ['facetrain_loss', 'Mean loss over the last steps.', (progress) => progress.loss],
    ['facetrain_learning_rate', 'Learning rate of the last step.', (progress) => progress.learningRate],
    [
      'facetrain_sample_rate',
      'Fraction of the negative class centres that the last step scored.',
      (progress) => progress.sampleRate ?? null,
    ],
    ['facetrain_images_per_second', 'Throughput over all ranks.', (progress) => progress.imagesPerSecond],
    ['facetrain_eta_seconds', 'Estimated time until training ends.', (progress) => progress.etaSeconds],
    [
      'facetrain_checkpoint_step',
      'Steps in the newest complete checkpoint.',
      (progress) => progress.checkpoint?.step ?? null,
    ],
    [
      'facetrain_checkpoint_timestamp_seconds',
      'When the newest complete checkpoint was written.',
      (progress) => (progress.checkpoint ? Date.parse(progress.checkpoint.time) / 1000 : null),
    ],
    [
      'facetrain_checkpoint_stall_seconds',
      'Time for which this attempt stood still for checkpoints.',
      (progress) => progress.checkpoints?.stallSeconds ?? null,
    ],
    [
      'facetrain_checkpoints_written',
      'Checkpoints that this attempt has completed.',
      (progress) => progress.checkpoints?.count ?? null,
    ],
    ['facetrain_idle_seconds', 'Time since anything moved.', () => board.idleMs() / 1000],
  ];
  for (const [metric, help, read] of values) {
    new Gauge({
      name: metric,
      help,
      labelNames: [],
      registers,
      collect() {
        const value = read(board.current);
        // A value that is not known yet is absent; 0 would be wrong.
        if (value === null) this.remove();
        else this.set(value);
      },
    });
  }
  new Gauge({
    name: 'facetrain_stage',
    help: 'What the program is doing: 1 for the current stage.',
    labelNames: ['stage'],
    registers,
    collect() {
      for (const stage of ProgressStage.options) this.set({ stage }, board.current.stage === stage ? 1 : 0);
    },
  });
  new Gauge({
    name: 'facetrain_verification_accuracy_ratio',
    help: 'Newest 10-fold accuracy on each verification set.',
    labelNames: ['set'],
    registers,
    collect() {
      for (const { set, accuracy } of board.current.evaluations) this.set({ set }, accuracy);
    },
  });
  new Counter({
    name: 'facetrain_step_stage_seconds_total',
    help: 'Time in training steps by stage, on rank 0; the stages add up. "data" is waiting for the loader.',
    labelNames: ['stage'],
    registers,
    collect() {
      this.reset();
      const total = board.stageSecondsTotal;
      for (const stage of total ? stepStages : []) this.inc({ stage }, total![stage]);
    },
  });
  new Counter({
    name: 'facetrain_activity_total',
    help: 'Moves whenever anything does: steps, evaluation batches, checkpoint files.',
    registers,
    collect() {
      this.reset();
      this.inc(board.current.activity);
    },
  });
  return registry;
}
