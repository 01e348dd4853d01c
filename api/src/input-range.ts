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
