/**
 * Estimates the memory that a graph's values need to embed pictures, before any is allocated: a file of a few bytes can
 * ask for any amount. The estimates are lower bounds (no workspace of an operator, no weights), so what is refused
 * cannot run.
 */
import { counted, FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode } from '@facetrain/native';
import { inferShapes } from './infer-shapes.ts';

/** Values are float32. */
const BYTES = 4;
/** Operators whose output shares the memory of their input. */
const VIEWS = new Set(['Flatten', 'Reshape', 'Squeeze', 'Unsqueeze']);

export interface MemoryUse {
  /** The node at which most memory is needed. */
  node: GraphNode;
  /** The shape of its output. */
  shape: number[];
  bytes: number;
}

const bytesOf = (shape: number[] | undefined) => (shape ?? []).reduce((total, dim) => total * dim, shape ? BYTES : 0);

/**
 * The most bytes of values that are there at once while `batch` pictures are embedded, each freed after its last reader
 * (native/model/executor.cc). Values of unknown shape count nothing.
 */
export function embeddingMemory(graph: Graph, batch: number): MemoryUse | undefined {
  const shapes = inferShapes(graph, batch);
  const isComputed = (name: string) => name !== '' && !Object.hasOwn(graph.initializers, name);
  const lastReader = new Map(graph.nodes.flatMap(({ inputs }, i) => inputs.map((name) => [name, i] as const)));
  let live = bytesOf(shapes.get(graph.input.name));
  let most: MemoryUse | undefined;
  graph.nodes.forEach((node, i) => {
    const shape = shapes.get(node.outputs[0]!);
    if (!VIEWS.has(node.op)) live += bytesOf(shape);
    if (shape && (!most || live > most.bytes)) most = { node, shape, bytes: live };
    if (!VIEWS.has(node.op))
      for (const name of new Set(node.inputs))
        if (isComputed(name) && lastReader.get(name) === i) live -= bytesOf(shapes.get(name));
  });
  return most;
}

const gibibytes = (bytes: number) => `${(bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1)} GiB`;

/** @throws FacetrainError InsufficientMemory when a batch of pictures cannot be embedded */
export function checkEmbeddingMemory(graph: Graph, subject: string, batch: number): void {
  const doing = `embedding ${counted(batch, 'picture')}`;
  checkMemory(embeddingMemory(graph, batch), { subject, doing, allowed: 'more memory, or a smaller model' });
}

/**
 * Compares an estimate with what this process can still get: of the machine, or within the limits of its cgroups.
 * @param subject the model's file
 * @throws FacetrainError InsufficientMemory, naming node, size and limit
 */
function checkMemory(
  use: MemoryUse | undefined,
  { subject, doing, allowed }: { subject: string; doing: string; allowed: string },
): void {
  const limit = process.availableMemory();
  if (!use || use.bytes <= limit) return;
  const { node, shape, bytes } = use;
  throw new FacetrainError({
    code: 'InsufficientMemory',
    subject: `${subject}: node "${node.name}" (${node.op})`,
    found: `${doing} needs ${gibibytes(bytes)} there at least (a value of [${shape.join(', ')}])`,
    allowed: `the ${gibibytes(limit)} that are available: ${allowed}`,
  });
}
