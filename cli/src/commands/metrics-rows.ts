/** The accuracy of an INT7 model beside FP32, as rows of a table. */

import type { GroupComparison, Metrics } from '@facetrain/api';
import { counted } from '@facetrain/api';
import { percent } from '../terminal-output.ts';

const SOURCES = {
  evaluation: 'pictures of the verification sets, mirror images included',
  heldOut: 'pictures that the search has not seen',
  calibration: 'calibration picture, which the search has seen',
};

export const MEASURED_ON = 'Measured on';

export function metricsRows({
  meanCosine,
  percentile1Cosine,
  worstCosine,
  comparisons,
  outputs = [],
  measuredOn,
}: Metrics): [string, string][] {
  const low = `${percentile1Cosine.toFixed(4)} for the worst picture in a hundred`;
  const lowest = worstCosine === undefined ? '' : `, ${worstCosine.toFixed(4)} for the worst of all`;
  return [
    [outputs.length > 0 ? 'Cosine of outputs' : 'Embedding cosine', `${meanCosine.toFixed(4)} mean, ${low}${lowest}`],
    ...(measuredOn ? [[MEASURED_ON, `${measuredOn.pictures} ${SOURCES[measuredOn.source]}`] as [string, string]] : []),
    ...outputs.map(({ name, meanCosine: mean, worstCosine: worst, top1Agreement }): [string, string] => [
      `Output ${name}`,
      [
        `${mean.toFixed(4)} mean`,
        ...(worst === undefined ? [] : [`${worst.toFixed(4)} worst`]),
        ...(top1Agreement === null ? [] : [`same largest number ${percent(top1Agreement)}`]),
      ].join(', '),
    ]),
    ...comparisons.flatMap(({ set, groups = [], ...all }) => [
      accuracyRow(set, all),
      ...groups.map(({ group, ...of }) => accuracyRow(`${set}, ${group}`, of)),
    ]),
  ];
}

function accuracyRow(
  what: string,
  { fp32, int7, pairs }: Pick<GroupComparison, 'pairs'> & Record<'fp32' | 'int7', { accuracy: number }>,
): [string, string] {
  return [
    `Accuracy on ${what}`,
    `${percent(fp32.accuracy)} FP32, ${percent(int7.accuracy)} INT7 (${counted(pairs, 'pair')})`,
  ];
}
