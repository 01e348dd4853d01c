/** `facetrain eval --templates`: the 1:1 protocol of IJB-B and IJB-C. */

import { counted } from '@facetrain/api';
import { Model } from '@facetrain/native';
import { checkNotConstant } from '@facetrain/trainer/verification/check-embeddings';
import { embedTemplates, verifyTemplates } from '@facetrain/trainer/verification/evaluate-templates';
import { readGroups } from '@facetrain/trainer/verification/groups';
import { readTemplateProtocol } from '@facetrain/trainer/verification/template-protocol';
import { percent, type StatusLine, table } from '../terminal-output.ts';
import { groupsTable, type ModelToEvaluate, openForEvaluation, ratesTable } from './eval.ts';
import { inputText } from './input-range.ts';

export interface TemplatesOptions extends ModelToEvaluate {
  /** Folder of the protocol. */
  templates: string;
  /** A text file with a group for each pair. */
  groups?: string;
}

/** @throws FacetrainError InvalidVerificationSet, InvalidModel, InvalidArgument, NotANumber */
export async function evaluateTemplates(
  { templates: folder, groups: groupsFile, ...options }: TemplatesOptions,
  line: StatusLine,
  signal: AbortSignal,
) {
  const file = options.model;
  const protocol = await readTemplateProtocol(folder);
  const groups = groupsFile === undefined ? undefined : await readGroups(groupsFile, protocol.same.length);
  const { embedder, graph, range, kind, channelOrder } = await openForEvaluation(options);
  try {
    const start = performance.now();
    const templates = await embedTemplates(embedder, protocol, {
      input: graph.input,
      channelOrder,
      flip: true,
      signal,
      onBatch: (done, total) => line.show('Embedding', `${done} of ${total} pictures`),
    });
    line.clear();
    const seconds = (performance.now() - start) / 1000;
    checkNotConstant(templates.unit, embedder.dim, file);
    const verification = verifyTemplates(templates, embedder.dim, protocol, groups);
    const device = embedder instanceof Model ? embedder.device : 'cpu';
    const aligned = protocol.pictures[0]!.landmarks !== null;
    return {
      json: {
        ...verification,
        runtime: kind,
        device,
        model: file,
        protocol: folder,
        channelOrder,
        input: range,
        seconds,
        imagesPerSecond: protocol.pictures.length / seconds,
      },
      text: table([
        ['Model', `${file} (${kind.toUpperCase()}, on ${device === 'cuda' ? 'a GPU' : 'the CPU'})`],
        ['Input', inputText(range, channelOrder)],
        [
          'Templates',
          `${verification.templates} of ${verification.media} media, ${counted(verification.pictures, 'picture')}` +
            (aligned ? ', aligned by five points and weighted by the detector' : ''),
        ],
        ['Pairs', `${verification.positives} of one person, ${verification.negatives} of different people`],
        ...ratesTable(verification),
        ...(verification.groups
          ? [['Groups', `at the threshold of FAR ${verification.groups.far}`] as [string, string]]
          : []),
        ...groupsTable(verification.groups?.figures ?? []),
        ['Quality', `lengths of templates; false rejects at the threshold of FAR ${verification.byNorm.far}`],
        ...verification.byNorm.figures.map(({ from, to, pairs, falseRejects, ...rest }): [string, string] => [
          `  ${from.toPrecision(3)} to ${to.toPrecision(3)}`,
          `${falseRejects} of ${counted(pairs, 'pair')}; ${percent(rest.falseRejectRateFromHere)} without worse ones`,
        ]),
        ['Speed', `${(protocol.pictures.length / seconds).toFixed(1)} pictures/s, each with its mirror image`],
      ]),
    };
  } finally {
    await embedder.close();
  }
}
