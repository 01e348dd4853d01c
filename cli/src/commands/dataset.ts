/**
 * `facetrain dataset index` and `facetrain dataset check`. The latter reads and decodes a whole dataset, to find before
 * a training what would stop it or do harm.
 */
import { DEFAULT_MAX_BAD_PICTURES, ExitCode } from '@facetrain/api';
import { type DatasetSummary, indexDataset, inspectDataset, summarizeDataset } from '@facetrain/native';
import { allowedBadPictures } from '@facetrain/trainer/dataset/dataset-preflight';
import { bytes, percent, type StatusLine, table } from '../terminal-output.ts';

/** The exit code is that of a training with the default budget of bad pictures. */
export async function checkDataset(folder: string, line: StatusLine, signal: AbortSignal) {
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
  const allowed = allowedBadPictures(DEFAULT_MAX_BAD_PICTURES, images);
  const listed = badPictures.map(({ name, reason }) => `${name}: ${reason}`);
  if (bad > listed.length) listed.push(`and ${bad - listed.length} more`);
  const seen = `${identitiesSeen} occur (${percent(identitiesSeen / identities)})`;
  return {
    json: { ...info, summary },
    exitCode: bad > allowed ? ExitCode.refused : ExitCode.success,
    text: [
      table([
        ['Dataset', folder],
        ['Pictures', `${images} of ${height}x${width}, all decoded`],
        ['Bad pictures', `${bad}; ${allowed} are allowed by dataset.maxBadPictures ${DEFAULT_MAX_BAD_PICTURES}`],
        ['Identities', `${identities}, of which ${seen}; labels ${labelMin} to ${labelMax}`],
        ['Pictures each', `${summary.least} to ${summary.most}, median ${summary.median}`],
        ...(summary.withOne > 0
          ? [
              ['One picture', `${summary.withOne} identities: more pictures of them, or leave them out`] as [
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

export async function writeIndex(folder: string, line: StatusLine, signal: AbortSignal) {
  line.show('Reading', folder);
  const index = await indexDataset(folder, { signal });
  line.clear();
  return {
    json: { folder, ...index },
    text: table([
      ['Index', `${folder}/facetrain.index`],
      ['Layout', index.layout === 'shards' ? 'tar shards' : 'image folder'],
      ['Pictures', String(index.images)],
      ['Identities', String(index.identities)],
    ]),
  };
}
