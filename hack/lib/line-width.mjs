// The width of lines that people write.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './paths.mjs';
import { SetupError } from './steps.mjs';

export const COLUMNS = 120;

/** Text that is written by hand, by its path. The rest is data: JSON, lock files, binaries. */
const CHECKED =
  /\.(ts|mts|mjs|cc|cu|cuh|h|cmake|sh|md|ya?ml|go|lua|toml)$|(^|\/)(Dockerfile|CMakeLists\.txt|NOTES\.txt)$|^\.ci\//;
/** Generated files say so at their top. */
const GENERATED = /\bGenerated\b.*\bdo not edit\b/;

/**
 * @param {string} path
 * @param {string} text
 * @returns {number[]} the numbers of the lines that are too wide, except rows of Markdown tables and lines with a URL,
 *   which cannot be broken
 */
export function wideLines(path, text) {
  if (!CHECKED.test(path)) return [];
  const lines = text.split('\n');
  if (lines.slice(0, 3).some((line) => GENERATED.test(line))) return [];
  return lines.flatMap((line, i) => {
    const breakable = !/https?:\/\//.test(line) && !(path.endsWith('.md') && line.trimStart().startsWith('|'));
    return breakable && [...line].length > COLUMNS ? [i + 1] : [];
  });
}

/**
 * @param {string[]} files relative to the repository
 * @throws SetupError with the file and number of each line that is too wide
 */
export function checkLineWidth(files) {
  const wide = files.flatMap((file) =>
    wideLines(file, readFileSync(join(root, file), 'utf8')).map((line) => `${file}:${line}`),
  );
  if (wide.length > 0) throw new SetupError(`Wider than ${COLUMNS} columns:\n${wide.join('\n')}`);
}
