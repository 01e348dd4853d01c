/**
 * A process that trains two steps on a CPU and prints the most memory that was resident, in bytes: at the beginning,
 * after that, and after a third step beside a copy of the state. Its argument is JSON: backbone, globalBatchSize,
 * numClasses, sampleRate, rowsPrecision, directory, and if they are to be others than the defaults, rowsOptimizer,
 * rowsPlacement, rowUpdate, microBatchSize and checkpointActivations.
 */
import { readFileSync } from 'node:fs';
import { TrainingSession } from '@facetrain/native';
import { trainingOptions } from '@facetrain/native/testing/training-fixtures';
import { buildBackbone } from '../backbones/backbone.ts';

const { backbone, globalBatchSize, numClasses, sampleRate, rowsPrecision, directory, ...how } = JSON.parse(
  process.argv[2]!,
);
const { microBatchSize = null, checkpointActivations = false } = how;
const { rowsOptimizer = 'sgd', rowsPlacement = 'device', rowUpdate = 'lazy' } = how;

/** VmHWM of proc(5). */
function mostResident(): number {
  return 1024 * Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]);
}

const atFirst = mostResident();
const options = trainingOptions({
  graph: buildBackbone({ backbone, embeddingDim: 512, width: 2, blocks: null, seed: 1 }),
  numClasses,
  sampleRate,
  rowsPrecision,
  rowsOptimizer,
  rowsPlacement,
  rowUpdate,
  microBatchSize,
  checkpointActivations,
  precision: 'fp32',
  computeThreads: 2,
});
Object.assign(options.data, { directory, globalBatchSize });
const session = await TrainingSession.open(options);
for (let step = 0; step < 2; step++) await session.step(step, 0.01);
// A checkpoint reads all rows, so that those which no step has sampled are resident too: zeros are, until then, no
// memory.
const { rows } = session.rowRange;
for (let first = 0; first < rows; first += 8192) await session.saveRows(first, Math.min(8192, rows - first));
const atLast = mostResident();
// What a step gives back serves the copy, until the next step needs it again.
const copy = await session.copyState({ backbone: true });
await session.step(2, 0.01);
process.stdout.write(JSON.stringify({ atFirst, atLast, withCopy: mostResident() }));
await copy?.close();
await session.close();
