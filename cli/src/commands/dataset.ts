/** `facetrain dataset check`: everything about a dataset that would stop a training, found before it. */
import { inspectDataset } from '@facetrain/native';
import { bytes, percent, type StatusLine, table } from '../terminal-output.ts';

export async function checkDataset(folder: string, line: StatusLine, signal: AbortSignal) {
  const info = await inspectDataset(folder, {
    decode: 'all',
    signal,
    onProgress: ({ done, total }) => line.show('Decoding', `${done} of ${total} pictures`),
  });
  line.clear();
  return {
    json: info,
    text: table([
      ['Dataset', folder],
      ['Pictures', `${info.images} of ${info.height}x${info.width}, all decoded`],
      [
        'Identities',
        `${info.identities}, of which ${info.identitiesSeen} occur (${percent(info.identitiesSeen / info.identities)}); labels ${info.labelMin} to ${info.labelMax}`,
      ],
      ['Size', bytes(info.bytes)],
    ]),
  };
}
