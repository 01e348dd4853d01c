/**
 * What arithmetic with constants and batch norms compute in evaluation: y = scale·x + offset for each channel. Pure.
 */

export interface ChannelMap {
  scale: Float32Array;
  offset: Float32Array;
}

/**
 * Add, Sub, Mul or Div with a constant of one value for each channel.
 * @param isFirst whether the constant is the first operand
 * @returns null for any other operator, and for a division that is no scaling: by zero, or of the constant
 */
export function arithmeticMap(op: string, constant: Float32Array, isFirst: boolean): ChannelMap | null {
  const ones = new Float32Array(constant.length).fill(1);
  const zeros = new Float32Array(constant.length);
  switch (op) {
    case 'Add':
      return { scale: ones, offset: constant };
    case 'Mul':
      return { scale: constant, offset: zeros };
    case 'Sub':
      return isFirst
        ? { scale: ones.map((one) => -one), offset: constant }
        : { scale: ones, offset: constant.map((value) => -value) };
    case 'Div':
      return isFirst || constant.includes(0) ? null : { scale: constant.map((value) => 1 / value), offset: zeros };
    default:
      return null;
  }
}

/** BatchNormalization by its inputs 1 to 4. A scale is not finite where variance + epsilon is not positive. */
export function batchNormMap(
  [gamma, beta, mean, variance]: [Float32Array, Float32Array, Float32Array, Float32Array],
  epsilon: number,
): ChannelMap {
  const scale = gamma.map((value, channel) => value / Math.sqrt(variance[channel]! + epsilon));
  return { scale, offset: beta.map((value, channel) => value - mean[channel]! * scale[channel]!) };
}
