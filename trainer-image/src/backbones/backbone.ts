/**
 * The built-in backbones as ONNX graphs with initial weights: input `data` [N, 3, 112, 112], output `embedding`
 * [N, embeddingDim].
 */
import type { BACKBONES } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { IRESNET_BLOCKS, iresnet } from './iresnet.ts';
import { MOBILEFACENET_BLOCKS, mobilefacenet } from './mobilefacenet.ts';

export interface BackboneOptions {
  backbone: (typeof BACKBONES)[number];
  embeddingDim: number;
  /** Multiplier of mobilefacenet's channels; the iresnets do not use it. */
  width: number;
  /** Blocks in each of the four stages; null means the backbone's own numbers. */
  blocks: number[] | null;
  /** Of the initial weights. null: the weights have shapes and no values, which takes no time and no memory. */
  seed: number | null;
}

const BLOCKS: Record<BackboneOptions['backbone'], number[]> = {
  iresnet18: IRESNET_BLOCKS[18],
  iresnet34: IRESNET_BLOCKS[34],
  iresnet50: IRESNET_BLOCKS[50],
  iresnet100: IRESNET_BLOCKS[100],
  iresnet200: IRESNET_BLOCKS[200],
  mobilefacenet: MOBILEFACENET_BLOCKS,
};

/** The options must have been checked by api's TrainerConfig. */
export function buildBackbone({ backbone, embeddingDim, width, blocks: chosen, seed }: BackboneOptions): Graph {
  const blocks = chosen ?? BLOCKS[backbone];
  return backbone === 'mobilefacenet'
    ? mobilefacenet({ blocks, width, embeddingDim, seed })
    : iresnet({ blocks, embeddingDim, seed });
}
