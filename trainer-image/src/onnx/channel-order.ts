/** The order of the colors that a model reads, as our own exports say it. */

export type ChannelOrder = 'rgb' | 'bgr';

/** In an ONNX file's metadata_props: rgb or bgr. */
export const CHANNEL_ORDER_METADATA = 'facetrain.channelOrder';

/** @returns undefined when the file does not say it: no graph shows the order of its colors */
export function channelOrderOf(metadata: Record<string, string>): ChannelOrder | undefined {
  const order = metadata[CHANNEL_ORDER_METADATA];
  return order === 'rgb' || order === 'bgr' ? order : undefined;
}
