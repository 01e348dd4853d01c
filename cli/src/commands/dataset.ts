/** `facetrain dataset check`: reads and decodes a whole dataset, to find before a training what would stop it. */
import { inspectDataset } from '@facetrain/native';
import { bytes, percent, type StatusLine, table } from '../terminal-output.ts';

export async function checkDataset(folder: string, line: StatusLine, signal: AbortSignal) {
  const info = await inspectDataset(folder, {
    decode: 'all',
    signal,
    onProgress: ({ done, total }) => line.show('Decoding', `${done} of ${total} pictures`),
  });
  line.clear();
  const { images, identities, identitiesSeen, labelMin, labelMax, height, width } = info;
  const seen = `${identitiesSeen} occur (${percent(identitiesSeen / identities)})`;
  return {
    json: info,
    text: table([
      ['Dataset', folder],
      ['Pictures', `${images} of ${height}x${width}, all decoded`],
      ['Identities', `${identities}, of which ${seen}; labels ${labelMin} to ${labelMax}`],
      ['Size', bytes(info.bytes)],
    ]),
  };
}
