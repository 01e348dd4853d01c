/** The options that say what a model reads. */
import {
  DEFAULT_CHANNEL_ORDER,
  FacetrainError,
  INPUT_RANGES,
  type ModelInput,
  type QuantizeReport,
  rangeText,
} from '@facetrain/api';

/** Order of the colors where neither an option nor the file says it. */
export const DEFAULT_ORDER = DEFAULT_CHANNEL_ORDER.toLowerCase() as 'rgb' | 'bgr';

export interface InputRangeOptions {
  inputRange?: keyof typeof INPUT_RANGES;
  inputMean?: number[];
  inputStd?: number[];
}

/** @returns null when no option says it @throws FacetrainError InvalidArgument for options that do not fit together */
export function givenRange({ inputRange, inputMean, inputStd }: InputRangeOptions): ModelInput | null {
  if (inputRange === undefined && inputMean === undefined && inputStd === undefined) return null;
  if (inputRange !== undefined && inputMean === undefined && inputStd === undefined) {
    const { mean, std } = INPUT_RANGES[inputRange];
    return { mean: [...mean], std: [...std] };
  }
  if (inputRange === undefined && inputMean && inputStd) return { mean: inputMean, std: inputStd };
  const given = Object.entries({ '--input-range': inputRange, '--input-mean': inputMean, '--input-std': inputStd });
  throw new FacetrainError({
    code: 'InvalidArgument',
    subject: given.flatMap(([name, value]) => (value === undefined ? [] : [name])).join(' and '),
    found: 'do not say one range',
    allowed: '--input-range alone, or --input-mean and --input-std',
  });
}

const SOURCES = {
  given: 'as given',
  metadata: 'by the file’s metadata',
  type: 'by its type',
  head: 'by the file’s first nodes',
  default: 'by default: nothing says it',
};

/**
 * RGB, NHWC, uint8, 0..255 (by its type). What is NCHW and float32 is not named.
 * @param channelOrder rgb or bgr, or why it is not known
 */
export function inputText(
  { source, layout, elementType, ...range }: NonNullable<QuantizeReport['source']['input']>,
  channelOrder: string,
): string {
  const order = channelOrder === 'rgb' || channelOrder === 'bgr' ? channelOrder.toUpperCase() : channelOrder;
  const parts = [order, layout, elementType, rangeText(range)];
  return `${parts.filter(Boolean).join(', ')} (${SOURCES[source]})`;
}
