/** `facetrain head add`: class centres for identities that joined. */

import { availableParallelism } from 'node:os';
import { counted } from '@facetrain/api';
import { type Graph, Model, readLabels, readPictures } from '@facetrain/native';
import { openWhole } from '@facetrain/trainer/checkpoint/directory';
import { addition, type OpenHead } from '@facetrain/trainer/checkpoint/edit-head';
import { folderLabels, haveKeptLabels, labelsMoved, labelsOf } from '@facetrain/trainer/checkpoint/folder-labels';
import { splitName } from '@facetrain/trainer/checkpoint/save';
import { type ChannelOrder, channelOrderOf } from '@facetrain/trainer/onnx/channel-order';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx } from '@facetrain/trainer/onnx/read';
import { lengthOf } from '@facetrain/trainer/verification/check-embeddings';
import { type StatusLine, table } from '../terminal-output.ts';
import { editAll, refuse, steps } from './head.ts';
import { openPlace, type StoreOptions } from './head-place.ts';
import { DEFAULT_ORDER } from './input-range.ts';

export interface AddOptions extends StoreOptions {
  /** The dataset that training goes on with. */
  dataset: string;
  /** Its graph; the weights are those of each checkpoint. */
  model: string;
  /** Of an identity, at most. */
  images: number;
  channelOrder?: ChannelOrder;
  threads?: number;
}

/**
 * @throws FacetrainError InvalidArgument when the dataset has no new identity, or one without a picture that can be
 * used; InvalidDataset, also when the labels of an image folder are no longer whose they were;
 * InvalidModel, InvalidCheckpoint, FencedOff, DiskFull, StorageFailed
 */
export async function addIdentities(where: string, options: AddOptions, line: StatusLine, signal: AbortSignal) {
  const { dataset, model, images, threads = availableParallelism() } = options;
  line.show('Reading', dataset);
  const { labels, folders } = await readLabels(dataset, { signal });
  const numClasses = 1 + labels.reduce((most, label) => Math.max(most, label), -1);
  const read = await readOnnx(model);
  const channelOrder = options.channelOrder ?? channelOrderOf(read.metadata) ?? DEFAULT_ORDER;
  const { graph } = withInputRange(read, { subject: model });
  using place = await openPlace(where, options);
  let added = { first: 0, count: 0 };
  const edited = await editAll(place, line, async (head) => {
    const { manifest } = head.checkpoint;
    const known = labelsOf(manifest);
    if (folders && known && !haveKeptLabels(folders, known)) throw labelsMoved(dataset, folders, known, manifest.step);
    if (folders && !known)
      line.print(`The checkpoint of step ${manifest.step} does not say whose its labels are: not compared`);
    const first = manifest.numClasses;
    const count = Math.max(0, numClasses - first);
    if (count > 0) added = { first, count };
    const pictures = picturesOf(labels, first, count, images);
    const trained = await Model.open(await withWeights(graph, head, model), {
      computeThreads: threads,
      device: 'auto',
    });
    try {
      const directions: (Float32Array | null)[] = [];
      const retired = new Set(head.identities.retired.map((each) => each.class));
      for (const [index, own] of pictures.entries()) {
        if (retired.has(first + index)) {
          directions.push(null);
          continue;
        }
        line.show('Embedding', `step ${manifest.step}, identity ${index + 1} of ${count}`);
        const decoded = await readPictures(dataset, own, { channelOrder, signal });
        const identity = `identity ${first + index} of ${dataset}`;
        if (decoded.count === 0) refuse(identity, 'no picture that can be used', 'one at least');
        directions.push(meanDirection(await trained.embed(decoded, { flip: true, signal }), trained.dim, identity));
      }
      return { ...(await addition(head, directions)), ...(folders && { labels: folderLabels(folders) }) };
    } finally {
      await trained.close();
    }
  });
  if (added.count === 0) line.print(`Every checkpoint has the ${numClasses} classes of ${dataset} already`);
  return {
    json: { added: added.count, firstClass: added.count > 0 ? added.first : null, numClasses, checkpoints: edited },
    text: table([
      [
        'Added',
        `${counted(added.count, 'class')}${added.count > 0 ? `, from ${added.first} on` : ''}: now ${numClasses}`,
      ],
      ['Checkpoints', steps(edited)],
    ]),
  };
}

/** Pictures of each new class, the first ones. */
function picturesOf(labels: ArrayLike<number>, first: number, count: number, most: number): number[][] {
  const pictures: number[][] = Array.from({ length: count }, () => []);
  for (let picture = 0; picture < labels.length; picture++) {
    const own = pictures[labels[picture]! - first];
    if (own && own.length < most) own.push(picture);
  }
  return pictures;
}

/** The graph with the weights of a checkpoint. */
async function withWeights(graph: Graph, { checkpoint }: OpenHead, model: string): Promise<Graph> {
  await using file = await openWhole(checkpoint, checkpoint.manifest.backbone);
  const initializers = { ...graph.initializers };
  for (const stored of file.names) {
    const [part, name] = splitName(stored);
    if (part !== 'tensors') continue;
    const own = initializers[name];
    if (String(own?.dims) !== String(file.dims(stored)))
      refuse(
        model,
        own ? `${name} has the shape [${own.dims}]` : `no weight ${name}`,
        `the backbone of ${checkpoint.directory}, in which it has the shape [${file.dims(stored)}]`,
      );
    initializers[name] = { dims: own!.dims, data: await file.read(stored) };
  }
  return { ...graph, initializers };
}

/** The mean of unit embeddings. @param identity whose pictures they are of */
function meanDirection(embeddings: Float32Array, dim: number, identity: string): Float32Array {
  const mean = new Float32Array(dim);
  for (let picture = 0; picture < embeddings.length / dim; picture++) {
    const length = lengthOf(embeddings, dim, picture, `embedding of a picture of ${identity}`);
    for (let i = 0; i < dim; i++) mean[i]! += embeddings[picture * dim + i]! / length;
  }
  return mean;
}
