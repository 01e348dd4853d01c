/**
 * The same functions as exporters spell them. What one reader of a graph accepts all accept (operators.ts), and the
 * embeddings are ONNX Runtime's, up to a positive factor that a normalisation at the end contributes.
 */
import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { LayerModel, Model, type Pictures } from '@facetrain/native';
import { fold } from '../quantize/fold.ts';
import { NODE_OPERATORS } from '../quantize/node-layers.ts';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import {
  ACTIVATIONS,
  DIM,
  ENDS,
  fileOf,
  HEADS,
  long,
  MAP,
  SIDE,
  type Spelling,
  type Step,
  SWAPS,
  scalar,
  VECTORS,
} from '../testing/graph-spellings.ts';
import { noise, runOrt } from '../testing/onnx-oracles.ts';
import { COMPOSITE_OPERATORS } from './composites.ts';
import { describeModel } from './describe.ts';
import { CANONICAL_OPERATORS, FLOAT_OPERATORS } from './operators.ts';
import { parseOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

/** Largest distance of a cosine from 1: float32 in another order of summation. */
const TOLERANCE = 1e-5;

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, i) => sum + value * y[i]!, 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

const COUNT = 3;
const PIXELS = Uint8Array.from(noise(COUNT * SIDE * SIDE * 3, 3), (value) => Math.round((value + 1) * 127));
const PICTURES: Pictures = { count: COUNT, height: SIDE, width: SIDE, channelOrder: 'rgb', data: PIXELS };
const VALUES = Float32Array.from(PIXELS, (_, at) => {
  const area = SIDE * SIDE;
  const [picture, channel, pixel] = [Math.floor(at / (3 * area)), Math.floor(at / area) % 3, at % area];
  return PIXELS[(picture * area + pixel) * 3 + channel]! / 127.5 - 1;
});

/** Reads a file as every command does, and compares both readers with ONNX Runtime. */
async function agrees(bytes: Uint8Array): Promise<void> {
  const model = parseOnnx(bytes, 'spelling.onnx');
  assert.deepEqual(describeModel(model, null).output.shape, ['N', DIM]);
  assert.deepEqual(parseOnnx(encodeOnnx(model.graph), 'again.onnx').graph, model.graph, 'what is written is normal');
  for (const { op } of model.graph.nodes) assert.ok((CANONICAL_OPERATORS as readonly string[]).includes(op), op);
  const [expected] = await runOrt(bytes, VALUES);
  const readers = {
    executor: await Model.open(model.graph, { computeThreads: 1 }),
    quantizer: await LayerModel.open(fold(model.graph), { computeThreads: 1 }),
  };
  for (const [name, reader] of Object.entries(readers)) {
    const found = await reader.embed(PICTURES);
    await reader.close();
    for (let i = 0; i < COUNT; i++) {
      const [a, b] = [found, expected!.data].map((all) => all.slice(i * DIM, (i + 1) * DIM)) as [
        Float32Array,
        Float32Array,
      ];
      assert.ok(1 - cosine(a, b) < TOLERANCE, `${name}: cosine ${cosine(a, b)}`);
    }
  }
}

suite('every spelling is read by executor and quantizer, as ONNX Runtime does', () => {
  const one = <T>(part: string, table: Record<string, T>, spelling: (value: T) => Spelling) => {
    for (const [name, value] of Object.entries(table)) test(`${part}: ${name}`, () => agrees(fileOf(spelling(value))));
  };
  one('colors', SWAPS, (swap) => ({ swap }));
  one('activation', ACTIVATIONS, (activation) => ({ activation }));
  one('vectors', VECTORS, (vectors) => ({ vectors }));
  one('head', HEADS, (head) => ({ head }));
  one('end', ENDS, (end) => ({ end }));

  test('any combination of them', async () => {
    let state = 20;
    const pick = <T>(table: Record<string, T>): T => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const values = Object.values(table);
      return values[Math.floor((state / 2 ** 32) * values.length)]!;
    };
    for (let i = 0; i < 60; i++) {
      const spelling = {
        swap: pick(SWAPS),
        activation: pick(ACTIVATIONS),
        vectors: pick(VECTORS),
        head: pick(HEADS),
        end: pick(ENDS),
      };
      await agrees(fileOf(spelling));
    }
  });
});

test('what was removed is named', () => {
  const { removed } = parseOnnx(fileOf({ end: ENDS['ReduceL2 and Max']! }), 'norm.onnx');
  assert.equal(removed.length, 1);
  assert.match(removed[0]!, /^node "Div_\d+" \(Div\), which normalises the embedding/);
  assert.deepEqual(parseOnnx(fileOf({}), 'plain.onnx').removed, []);
});

test('what looks like a normalisation and is none stays', () => {
  const signed: Step = (b, x) => b.node('Div', [x, b.node('ReduceSum', [x, long(1)])]);
  const affine: Step = (b, x) => b.batchNorm(b.node('LpNormalization', [x], { axis: 1 }), DIM);
  const negative: Step = (b, x) => b.node('Mul', [b.node('LpNormalization', [x], { axis: 1 }), scalar(-1)]);
  for (const end of [signed, affine, negative]) {
    const { graph, removed } = parseOnnx(fileOf({ end }), 'no-norm.onnx');
    assert.deepEqual(removed, []);
    assert.ok(graph.nodes.some(({ op }) => op === 'ReduceSum' || op === 'LpNormalization'));
  }
});

/** The message of the error that a step ends with. */
async function refusal(action: () => unknown): Promise<string> {
  try {
    await action();
  } catch (error) {
    assert.ok(error instanceof FacetrainError, String(error));
    return error.message;
  }
  return 'accepted';
}

suite('what one reader refuses all refuse, by the name of the operator and its node', () => {
  const pixel: Step = (b, x) => b.node('Pad', [x, long(0, 0, 1, 1, 0, 0, 1, 1)]);
  const refused: Record<string, [Step, RegExp]> = {
    Mish: [(b, x) => b.node('Mish', [x]), /node ["']Mish_1["'] \(Mish\)/],
    'Pad in front of a batch norm': [(b, x) => b.batchNorm(pixel(b, x), MAP), /node "Pad_1" \(Pad\) pads in front of/],
    'a mean over one axis': [(b, x) => b.node('Add', [x, b.node('ReduceMean', [x], { axes: [3] })]), /ReduceMean_1/],
    If: [(b, x) => b.node('If', [x]), /operator If is not supported|["']If_1["'] \(If\)/],
  };
  for (const [name, [activation, message]] of Object.entries(refused))
    test(name, async () => {
      const read = () => parseOnnx(fileOf({ activation }), 'm.onnx').graph;
      for (const reader of [() => Model.open(read(), { computeThreads: 1 }), () => fold(read())])
        assert.match(await refusal(reader), message);
    });
});

test('the table of operators is what the readers say of themselves', async () => {
  const b = new GraphBuilder();
  const unknown = b.graph(b.flatten(b.node('Mystery', ['data'])));
  const listed = (message: string) => (/one of ([\w, ]+)$/.exec(message)?.[1] ?? '').split(', ');
  const executor = listed(await refusal(() => Model.open(unknown, { computeThreads: 1 })));
  const quantizer = listed(await refusal(() => fold(unknown)));
  const written = [...COMPOSITE_OPERATORS, 'Upsample'];
  assert.deepEqual(quantizer, [...new Set([...CANONICAL_OPERATORS, ...NODE_OPERATORS, ...written])].toSorted());
  for (const op of [...CANONICAL_OPERATORS, ...FLOAT_OPERATORS]) assert.ok(executor.includes(op), op);
});
