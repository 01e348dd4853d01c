/** `facetrain inspect FIRST SECOND`: what differs between two checkpoints. */
import { counted } from '@facetrain/api';
import { type CheckpointComparison, compareCheckpoints, openAt } from '@facetrain/trainer/checkpoint/compare';
import { percent, type StatusLine, table } from '../terminal-output.ts';

/** Tensors that only one has. */
const MOST_NAMED = 5;

/** @throws FacetrainError InvalidCheckpoint, also when one of the paths is no checkpoint; StorageFailed */
export async function inspectTwo(firstPath: string, secondPath: string, line: StatusLine) {
  const [first, second] = [await openAt(firstPath), await openAt(secondPath)];
  const total = Math.min(first.manifest.numClasses, second.manifest.numClasses);
  const comparison = await compareCheckpoints(first, second, (rows) =>
    line.show('Comparing', `${rows} of ${total} class centres`),
  );
  line.clear();
  return {
    json: { type: 'comparison', first: first.directory, second: second.directory, ...comparison },
    text: table([['First', firstPath], ['Second', secondPath], ...rowsOf(comparison)]),
  };
}

function rowsOf({ fields, loss, accuracy, backbone, centres }: CheckpointComparison): [string, string][] {
  const rows: [string, string][] = fields.map(({ field, first, second }) => [
    field,
    `${first ?? 'not told'} → ${second ?? 'not told'}`,
  ]);
  const number = (value: number | null) => (value === null ? 'none' : value.toFixed(3));
  rows.push(['Loss', `${number(loss.first)} → ${number(loss.second)} (mean of the last steps)`]);
  for (const { set, first, second } of accuracy) {
    const share = (value: number | null) => (value === null ? 'not evaluated' : percent(value));
    rows.push([`Accuracy on ${set}`, `${share(first)} → ${share(second)}`]);
  }
  rows.push([
    'Backbone',
    backbone.distance === null
      ? 'not compared: another network, without a tensor of the same name and shape'
      : `moved by ${percent(backbone.distance)} of its length (${counted(backbone.tensors, 'tensor')})`,
  ]);
  for (const { name, distance } of backbone.largest) if (distance > 0) rows.push([`  ${name}`, percent(distance)]);
  const { different } = backbone;
  if (backbone.distance !== null && different.length > 0) {
    const rest = different.length > MOST_NAMED ? ` and ${different.length - MOST_NAMED} more` : '';
    rows.push(['  not in both, or of another shape', `${different.slice(0, MOST_NAMED).join(', ')}${rest}`]);
  }
  if (centres === null) rows.push(['Class centres', 'not compared: embeddings of another length']);
  else {
    const { angle, norm } = centres;
    rows.push(
      ['Class centres', `${centres.compared} compared, ${centres.unchanged} unchanged`],
      [
        '  turned by',
        `${angle.mean.toFixed(2)}° on average, ${angle.median.toFixed(2)}° median, ` +
          `${angle.percentile99.toFixed(2)}° for 1 in 100, ${angle.largest.toFixed(2)}° at most`,
      ],
      ['  norm', `${norm.first.toPrecision(3)} → ${norm.second.toPrecision(3)}`],
    );
    for (const { row, degrees } of centres.largest) rows.push([`  class ${row}`, `${degrees.toFixed(2)}°`]);
  }
  return rows;
}
