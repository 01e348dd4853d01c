/**
 * Writes a built-in backbone as train_bench reads it, which knows no Node: its nodes and the shapes of its weights.
 *
 *     node bench/train/dump-graph.ts BACKBONE > bench/train/graphs/BACKBONE.graph
 */
import { type BackboneOptions, buildBackbone } from '@facetrain/trainer/backbones/backbone';

/** A word of a line: white space separates words. */
function word(text: string): string {
  if (text === '' || /\s/.test(text)) throw new Error(`"${text}" is no word`);
  return text;
}

const counted = (words: unknown[]) => [words.length, ...words];

function attribute(key: string, value: number | number[] | string) {
  if (typeof value === 'number') return [key, 'number', value];
  return typeof value === 'string' ? [key, 'text', word(value)] : [key, 'list', ...counted(value)];
}

/** Lines of words: the input, the output, each constant, each node. */
export function dumpGraph(backbone: BackboneOptions['backbone']): string {
  const graph = buildBackbone({ backbone, embeddingDim: 512, width: 2, blocks: null, seed: 1 });
  const { input, output } = graph;
  const lines: unknown[][] = [
    ['input', input.name, input.channels, input.height, input.width],
    ['output', output.name, output.dim],
  ];
  for (const [name, { dims, data }] of Object.entries(graph.initializers)) {
    if (!(data instanceof Float32Array)) throw new Error(`${name} is no tensor of floats`);
    lines.push(['floats', word(name), ...counted(dims)]);
  }
  for (const { name, op, inputs, outputs, attributes } of graph.nodes) {
    const pairs = Object.entries(attributes).map(([key, value]) => attribute(key, value));
    lines.push([
      ...['node', word(name), op, ...counted(inputs.map(word)), ...counted(outputs.map(word))],
      ...[pairs.length, ...pairs.flat()],
    ]);
  }
  return `${lines.map((line) => line.join(' ')).join('\n')}\n`;
}

const [backbone] = process.argv.slice(2);
if (import.meta.main && backbone) process.stdout.write(dumpGraph(backbone as BackboneOptions['backbone']));
