/** The range of a model's input: what the bytes of a picture become. */

/**
 * Usual ranges of a model's input, by the name that the command line has for them: (pixel − mean) / std, with a pixel
 * from 0 to 255.
 */
export const INPUT_RANGES = {
  '-1..1': { mean: [127.5], std: [127.5] },
  '0..1': { mean: [0], std: [255] },
  '0..255': { mean: [0], std: [1] },
} as const;

/** "0..255", or mean and standard deviation of other ranges. */
export function rangeText({ mean, std }: { mean: number[]; std: number[] }): string {
  for (const [name, usual] of Object.entries(INPUT_RANGES))
    if (mean.every((value) => value === usual.mean[0]) && std.every((value) => value === usual.std[0])) return name;
  const list = (values: number[]) =>
    values.every((value) => value === values[0]) ? String(values[0]) : values.join(', ');
  return `(pixel − mean) / std with mean ${list(mean)} and std ${list(std)}`;
}

/**
 * The range behind an affine map for each channel: what the map makes of a picture that was brought into `range`, as
 * one map from the pixels on.
 * @param range one number for all channels, or one for each
 */
export function rangeBehind(
  { mean, std }: { mean: readonly number[]; std: readonly number[] },
  { scale, offset }: { scale: readonly number[]; offset: readonly number[] },
): { mean: number[]; std: number[] } {
  const at = (values: readonly number[], channel: number) => values[values.length === 1 ? 0 : channel]!;
  return {
    mean: scale.map((value, c) => at(mean, c) - (offset[c]! * at(std, c)) / value),
    std: scale.map((value, c) => at(std, c) / value),
  };
}
