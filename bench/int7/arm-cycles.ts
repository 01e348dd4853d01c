/**
 * Cycles of the INT7 runtime's convolutions on ARM, beside int8 without the bound of seven bits. Nothing runs: the
 * innermost loops are taken from the cross compiler's output, and llvm-mca schedules them with its models of
 * processors. Memory and caches are not part of that. `npm run bench -- int7-arm`.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..', '..');

/** Processors of llvm-mca. LLVM 14 has no model of its own for the A76, and takes that of the A57. */
const PROCESSORS = ['cortex-a53', 'cortex-a55', 'cortex-a76'] as const;
type Processor = (typeof PROCESSORS)[number];
/** A53 and its like have no dot products. */
const WITHOUT_DOT_PRODUCTS: readonly Processor[] = ['cortex-a53'];

/** Steps of four products whose sums stay in int16: four is the least for any weights, eight the paper's. */
const CHUNKS = [4, 8, 16, 32];

/** The instructions of a loop: those of the loop around it before and after, and its own. */
interface Loop {
  before: string[];
  body: string[];
  after: string[];
}

function assembly(file: string, options: string[]): string[] {
  const folder = mkdtempSync(join(tmpdir(), 'facetrain-arm-cycles-'));
  try {
    const output = join(folder, 'kernels.s');
    // The options of native/CMakeLists.txt for a release.
    const common = ['-std=c++20', '-O3', '-DNDEBUG', '-fPIC', '-ffp-contract=off', '-I', join(root, 'native')];
    execFileSync('aarch64-linux-gnu-g++', [...common, ...options, '-S', join(root, file), '-o', output]);
    return readFileSync(output, 'utf8').split('\n');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Range {
  first: number;
  last: number;
}

/** The loops of the function whose mangled name contains `name`, by their lines in its body. */
function loopsOf(lines: string[], name: string): { body: string[]; loops: Range[] } {
  const start = lines.findIndex((line) => /^\w+:/.test(line) && line.includes(name));
  if (start < 0) throw new Error(`no function ${name} in the compiler's output`);
  const end = lines.findIndex((line, index) => index > start && line.startsWith('\t.size'));
  const body = lines.slice(start, end);
  const labels = new Map(body.flatMap((line, index) => (/^\.L\w+:/.test(line) ? [[line.slice(0, -1), index]] : [])));
  const loops = body.flatMap((line, last) => {
    const target = /^\t(?:b\.?\w*|cbn?z|tbn?z)\t(?:.*, )?(\.L\w+)$/.exec(line)?.[1];
    const first = target === undefined ? undefined : labels.get(target);
    return first !== undefined && first < last ? [{ first, last }] : [];
  });
  return { body, loops };
}

const isWithin = (a: Range, b: Range) => a !== b && b.first <= a.first && a.last <= b.last;
const instructionsOf = (body: string[], first: number, last: number) =>
  body.slice(first, last).filter((line) => /^\t[a-z]/.test(line) && !line.startsWith('\t.'));

/** The loop with the most products in a function. */
function innermostLoop(lines: string[], name: string): Loop {
  const { body, loops } = loopsOf(lines, name);
  const instructions = (first: number, last: number) => instructionsOf(body, first, last);
  const products = ({ first, last }: Range) =>
    instructions(first, last).filter((line) => /^\t(smlal2?|smull2?|sdot)\t/.test(line)).length;
  const inner = loops
    .filter((loop) => !loops.some((other) => isWithin(other, loop)))
    .sort((a, b) => products(b) - products(a))[0];
  if (!inner || products(inner) === 0) throw new Error(`${name}: no loop with products in the compiler's output`);
  const outer = loops
    .filter((loop) => isWithin(inner, loop) && loop.first < inner.first)
    .sort((a, b) => a.last - a.first - (b.last - b.first))[0];
  return {
    before: outer ? instructions(outer.first, inner.first) : [],
    body: instructions(inner.first, inner.last + 1),
    after: outer ? instructions(inner.last + 1, outer.last + 1) : [],
  };
}

/** One round of a function's only outer loop, in which every loop runs `times` times. */
function wholeLoop(lines: string[], name: string, times: number): string[] {
  const { body, loops } = loopsOf(lines, name);
  const outer = loops.filter((loop) => !loops.some((other) => isWithin(loop, other)));
  if (outer.length !== 1) throw new Error(`${name}: ${outer.length} outer loops in the compiler's output`);
  const { first: start, last: end } = outer[0]!;
  const inner = loops.filter((loop) => isWithin(loop, outer[0]!)).sort((a, b) => a.first - b.first);
  let at = start;
  const round = inner.flatMap(({ first, last }) => {
    const before = instructionsOf(body, at, first);
    at = last + 1;
    return [
      ...before,
      ...Array<string[]>(times)
        .fill(instructionsOf(body, first, last + 1))
        .flat(),
    ];
  });
  return [...round, ...instructionsOf(body, at, end + 1)];
}

function cycles(processor: Processor, instructions: string[], iterations: number): number {
  const options = ['-mtriple=aarch64', `-mcpu=${processor}`, `-iterations=${iterations}`, '-all-views=0'];
  const output = execFileSync('llvm-mca', [...options, '-summary-view'], {
    input: `${instructions.join('\n')}\n`,
    encoding: 'utf8',
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  return Number(/Total Cycles: +(\d+)/.exec(output)![1]) / iterations;
}

const neon = innermostLoop(assembly('native/int7/kernels_neon.cc', []), 'conv_tileILi3ELi1E');
const dots = assembly('native/int7/kernels_neondot.cc', ['-march=armv8.2-a+dotprod']);
const dot = innermostLoop(dots, 'conv_tileILi5ELi1E');
const int8 = innermostLoop(assembly('bench/int7/int8_smlal.cc', []), 'int8_tile');

/** Channels of input and of output: by them it depends what Winograd's transforms cost. */
const CHANNELS = 64;
const winograd = assembly('native/int7/winograd_neon.cc', []);
/** Eight channels of five tiles, for 16 channels of output. */
const winogradProducts = { body: innermostLoop(winograd, 'multiply_someILi5E').body, count: 8 * 5 * 16 };

/** One tile of `outputs` x `outputs` pixels. `axis`: the mangled name of its transforms. */
function winogradTile(processor: Processor, axis: string, outputs: number): { cycles: number; macs: number } {
  const inputs = outputs + 2;
  const ofLoop = (name: string, channels: number) =>
    (cycles(processor, wholeLoop(winograd, `${name}INS0_${axis}`, inputs), 20) * CHANNELS) / channels;
  const products = CHANNELS * CHANNELS * inputs * inputs;
  return {
    cycles:
      (cycles(processor, winogradProducts.body, 200) * products) / winogradProducts.count +
      ofLoop('winograd_transform', 8) +
      ofLoop('winograd_finish', 4),
    macs: CHANNELS * CHANNELS * 9 * outputs * outputs,
  };
}

/** The innermost loop of a function with the fewest instructions. */
function shortestLoop(lines: string[], name: string): string[] {
  const { body, loops } = loopsOf(lines, name);
  return loops
    .filter((loop) => !loops.some((other) => isWithin(other, loop)))
    .map(({ first, last }) => instructionsOf(body, first, last + 1))
    .sort((a, b) => a.length - b.length)[0]!;
}

/** Two neighboring pixels by Winograd along rows, of whose weights none exceed a byte when they are added. */
function rowTile(processor: Processor): { cycles: number; macs: number } {
  const products = CHANNELS * CHANNELS * 4 * 3;
  return {
    cycles:
      (cycles(processor, dot.body, 200) * products) / (4 * 5 * 64) +
      (cycles(processor, shortestLoop(dots, 'row_transform'), 200) * CHANNELS) / 16 +
      (cycles(processor, shortestLoop(dots, 'row_finish'), 200) * CHANNELS) / 4,
    macs: CHANNELS * CHANNELS * 9 * 2,
  };
}

/** Each returns cycles and multiply-accumulates of one round: steps x pixels x 16 channels x 4 bytes. */
const kernels: Record<string, (processor: Processor) => { cycles: number; macs: number } | undefined> = {
  'int8, SADALP after two products': (processor) => ({ cycles: cycles(processor, int8.body, 200), macs: 2 * 2 * 64 }),
  ...Object.fromEntries(
    CHUNKS.map((chunk) => [
      `INT7, int16 sums of ${chunk} products`,
      (processor: Processor) => ({
        cycles: cycles(processor, [...neon.before, ...Array(chunk).fill(neon.body).flat(), ...neon.after], 20),
        macs: chunk * 3 * 64,
      }),
    ]),
  ),
  [`INT7, F(2x2,3x3), ${CHANNELS} channels`]: (processor) => winogradTile(processor, '3Two', 2),
  [`INT7, F(4x4,3x3), ${CHANNELS} channels`]: (processor) => winogradTile(processor, '4Four', 4),
  'INT7, dot products': (processor) =>
    WITHOUT_DOT_PRODUCTS.includes(processor)
      ? undefined
      : { cycles: cycles(processor, dot.body, 200), macs: 4 * 5 * 64 },
  [`INT7, dot products, F(2,3) along rows, ${CHANNELS} channels`]: (processor) =>
    WITHOUT_DOT_PRODUCTS.includes(processor) ? undefined : rowTile(processor),
};

console.log(`Cycles for 100 multiply-accumulates of a convolution, by llvm-mca`);
console.log(['', ...PROCESSORS].map((title, index) => (index ? title.padStart(12) : title.padEnd(52))).join(''));
const result: Record<string, Record<string, number>> = {};
for (const [name, kernel] of Object.entries(kernels)) {
  const row = PROCESSORS.map((processor) => {
    const found = kernel(processor);
    if (found === undefined) return '-';
    const hundred = (100 * found.cycles) / found.macs;
    result[name] = { ...result[name], [processor]: hundred };
    return hundred.toFixed(1);
  });
  console.log([name.padEnd(52), ...row.map((value) => value.padStart(12))].join(''));
}
console.log(JSON.stringify(result));
