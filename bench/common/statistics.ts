/** Mean and standard deviation over seeds, such as "82.39 ± 0.27"; of one value, the value. */
export function meanAndDeviation(values: readonly number[]): string {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  if (values.length === 1) return mean.toFixed(2);
  const square = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return `${mean.toFixed(2)} ± ${Math.sqrt(square / (values.length - 1)).toFixed(2)}`;
}
