/**
 * `facetrain dataset index` and `facetrain dataset check`. The latter reads and decodes a whole dataset, to find before
 * a training what would stop it or do harm.
 */
import { counted, ExitCode } from '@facetrain/api';
import { type DatasetSummary, indexDataset, inspectDataset, summarizeDataset, writeLabels } from '@facetrain/native';
import { allowedBadPictures } from '@facetrain/trainer/dataset/dataset-preflight';
import { bytes, percent, type StatusLine, table } from '../terminal-output.ts';

export interface CheckOptions {
  /** Share of the pictures that may be bad. */
  maxBadPictures: number;
}

/** The exit code is that of a training with the same budget of bad pictures. */
export async function checkDataset(
  folder: string,
  { maxBadPictures }: CheckOptions,
  line: StatusLine,
  signal: AbortSignal,
) {
  const info = await inspectDataset(folder, {
    decode: 'all',
    signal,
    onProgress: ({ done, total }) => line.show('Decoding', `${done} of ${total} pictures`),
  });
  const summary = await summarizeDataset(folder, {
    signal,
    onProgress: ({ done, total }) => line.show('Looking for duplicates', `${done} of ${total} pictures`),
  });
  line.clear();
  const { images, identities, identitiesSeen, labelMin, labelMax, height, width, bad, badPictures } = info;
  const { folders: _, ...figures } = info;
  const allowed = allowedBadPictures(maxBadPictures, images);
  const listed = badPictures.map(({ name, reason }) => `${name}: ${reason}`);
  if (bad > listed.length) listed.push(`and ${bad - listed.length} more`);
  const seen = `${identitiesSeen} occur (${percent(identitiesSeen / identities)})`;
  return {
    json: { ...figures, summary },
    exitCode: bad > allowed ? ExitCode.refused : ExitCode.success,
    text: [
      table([
        ['Dataset', folder],
        ['Pictures', `${images} of ${height}x${width}, all decoded`],
        ['Bad pictures', `${bad}; ${allowed} are allowed by dataset.maxBadPictures ${maxBadPictures}`],
        ['Identities', `${identities}, of which ${seen}; labels ${labelMin} to ${labelMax}`],
        ...(identities < 2 ? [['Too few', 'a training needs two identities or more'] as [string, string]] : []),
        ['Pictures each', `${summary.least} to ${summary.most}, median ${summary.median}`],
        ...(summary.withOne > 0
          ? [
              ['One picture', `${counted(summary.withOne, 'identity')}: more pictures of them, or leave them out`] as [
                string,
                string,
              ],
            ]
          : []),
        ['Duplicates', duplicates(summary)],
        ...summary.across.examples
          .slice(0, 3)
          .map(([first, second]): [string, string] => ['', `${first} is also ${second}`]),
        ['Size', bytes(info.bytes)],
      ]),
      ...listed,
    ].join('\n'),
  };
}

function duplicates({ within, across }: DatasetSummary): string {
  if (within.count + across.count === 0) return 'none: no two pictures have the same bytes';
  const advice = across.count > 0 ? '; the latter are labelled wrongly: remove one of each two' : '';
  return `${within.count} within an identity, ${across.count} across identities${advice}`;
}

export interface IndexOptions {
  /** A list of keys and labels, for RecordIO. */
  labels?: string;
}

const LAYOUTS = { folder: 'image folder', shards: 'tar shards', records: 'RecordIO' } as const;

export async function writeIndex(folder: string, { labels }: IndexOptions, line: StatusLine, signal: AbortSignal) {
  line.show('Reading', folder);
  const index = labels ? await writeLabels(folder, labels, { signal }) : await indexDataset(folder, { signal });
  line.clear();
  return {
    json: { folder, ...index },
    text: table([
      labels ? ['Labels', `${folder}/train.labels`] : ['Index', `${folder}/facetrain.index`],
      ['Layout', LAYOUTS[index.layout]],
      ['Pictures', String(index.images)],
      ['Identities', String(index.identities)],
    ]),
  };
}
