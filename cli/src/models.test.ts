/**
 * The commands read the same models: inspect, eval, quantize and the start of a training all accept a file, or all
 * refuse it by the same code and subject. No error is a defect.
 */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, suite, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { ExitCode, FacetrainError } from '@facetrain/api';
import type { Tensor } from '@facetrain/native';
import { decodeModel, encodeModel, type ModelProto } from '@facetrain/trainer/onnx/proto';
import { createBoard } from '@facetrain/trainer/program/progress-board';
import { writeDataset } from '@facetrain/trainer/testing/dataset-fixtures';
import {
  ACTIVATIONS,
  ENDS,
  fileOf,
  HEADS,
  SIDE,
  type Spelling,
  type Step,
  SWAPS,
  scalar,
  VECTORS,
} from '@facetrain/trainer/testing/graph-spellings';
import { noise } from '@facetrain/trainer/testing/onnx-oracles';
import { openSession } from '@facetrain/trainer/train/session';
import { backboneGraph } from '@facetrain/trainer/train/training-preflight';
import { pino } from 'pino';
import { readable } from './command-action.ts';
import { makePairs } from './commands/dataset-pairs.ts';
import { evaluate } from './commands/eval.ts';
import { inspect } from './commands/inspect.ts';
import { quantize } from './commands/quantize.ts';
import { checkInputs } from './local/check-inputs.ts';
import { plannedTrainerConfig } from './local/planned-config.ts';
import { freePorts } from './local/ports.ts';
import { readFaceTrainJob } from './manifest.ts';
import { StatusLine } from './terminal-output.ts';
import { writeTinyJob } from './testing/run-cli.ts';

const IDENTITIES = 20;
const PICTURES = 60;

let folder: string;
let data: string;
let pairs: string;
const { signal } = new AbortController();

/** Shows nothing. */
class NoLine extends StatusLine {
  override show(): void {}
  override print(): void {}
  override clear(): void {}
}
const line = new NoLine();

/** A BMP of a color of its own with noise on it: networks with random weights tell such pictures apart. */
function picture(seed: number): Buffer {
  const row = Math.ceil((SIDE * 3) / 4) * 4;
  const file = Buffer.alloc(54 + row * SIDE);
  file.write('BM');
  file.writeUInt32LE(file.length, 2);
  file.writeUInt32LE(54, 10);
  file.writeUInt32LE(40, 14);
  file.writeInt32LE(SIDE, 18);
  file.writeInt32LE(SIDE, 22);
  file.writeUInt16LE(1, 26);
  file.writeUInt16LE(24, 28);
  const values = noise(3 + row * SIDE, seed * 7919);
  for (let i = 0; i < row * SIDE; i++)
    file[54 + i] = Math.round((values[i % 3]! * 0.7 + values[3 + i]! * 0.3 + 1) * 127);
  return file;
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-models-'));
  data = join(folder, 'data');
  const records = Array.from({ length: PICTURES }, (_, i) => ({ label: i % IDENTITIES, jpeg: picture(i + 1) }));
  writeDataset(data, `${IDENTITIES},${SIDE},${SIDE}`, records);
  pairs = join(folder, 'pairs.bin');
  await makePairs(data, { pairs: 20, seed: 0, output: pairs }, line, signal);
});
after(() => rm(folder, { recursive: true }));

type Command = (file: string, output: string | undefined, scratch: string) => Promise<unknown>;
const named = (output: string | undefined) => (output === undefined ? {} : { output });

/** The start of a training: the checks in front of a run, and then those of a rank, up to its first step. */
async function startTraining(file: string, output: string | undefined, scratch: string): Promise<void> {
  const manifest = await writeTinyJob(scratch, (spec) => {
    Object.assign(spec, { dataset: { uri: `file://${data}` }, globalBatchSize: 4, trainers: { replicas: 1 } });
    spec.model = { onnx: { uri: `file://${file}`, ...named(output) } };
  });
  const job = await readFaceTrainJob(manifest);
  await checkInputs(job, scratch, signal);
  const config = plannedTrainerConfig(job, 'uid', scratch);
  const [masterPort] = (await freePorts(1)) as [number];
  const ranks = { rank: 0, size: 1, masterAddr: '127.0.0.1', masterPort, localRank: 0, localSize: 1 };
  const program = { log: pino({ level: 'silent' }), progress: createBoard(config.job, 'Preflight'), signal };
  const graph = await backboneGraph(config);
  const dataset = { images: PICTURES, numClasses: IDENTITIES, stepsPerEpoch: 1 };
  const session = await openSession({ ...config, device: 'cpu', computeThreads: 1 }, graph, dataset, ranks, program);
  await session.close();
}

const COMMANDS: Record<string, Command> = {
  inspect: (file, output) => inspect(file, { output }),
  eval: (model, output) => evaluate({ model, pairs, channelOrder: 'rgb', threads: 1, ...named(output) }, line, signal),
  quantize: async (model, output, scratch) => {
    const out = join(scratch, 'out');
    const options = {
      images: 8,
      maxBadPictures: 0,
      seed: 0,
      rounds: 0,
      budget: 0,
      channelOrder: 'rgb',
      threads: 1,
      fresh: false,
      strict: false,
    } as const;
    await quantize({ model, calibration: data, out, ...options, ...named(output) }, line, signal).catch(
      async (error: unknown) => {
        const left = (await readdir(out).catch(() => [])).filter((name) => name !== 'fences');
        assert.deepEqual(left, [], 'nothing is half-written');
        throw error;
      },
    );
  },
  train: startTraining,
};

interface Row {
  bytes: () => Uint8Array | string;
  /** Files beside the model. */
  beside?: Record<string, Uint8Array>;
  output?: string;
  /** All refuse with this message; absent: all accept. */
  refused?: RegExp;
  /** The quantizer alone refuses. */
  quantizer?: RegExp;
  /** All but the quantizer refuse. */
  others?: RegExp;
}

const spelt = (spelling: Spelling): Row => ({ bytes: () => fileOf(spelling) });
/** Random arithmetic outweighs the pictures unless they are strong: embeddings that are alike are refused. */
const strong: Step = (b, x) => b.node('Mul', [x, scalar(8)]);
const all = (part: keyof Spelling, table: Record<string, unknown>, others: Spelling = {}): Record<string, Row> =>
  Object.fromEntries(
    Object.entries(table).map(([name, value]) => [`${part}: ${name}`, spelt({ ...others, [part]: value } as Spelling)]),
  );

type Proto = ModelProto & { graph: NonNullable<ModelProto['graph']> };
/** The file of the plain network after a change. */
const changed = (change: (model: Proto) => void): (() => Uint8Array) => {
  return () => {
    const model = decodeModel(fileOf({})) as Proto;
    change(model);
    return encodeModel(model);
  };
};
const weight = ({ graph }: Proto) => graph.initializer[0]!;
const nodeOf = ({ graph }: Proto, op: string) => graph.node.find(({ opType }) => opType === op)!;
const ints = (model: Proto, op: string, name: string, values: number[]) => {
  const node = nodeOf(model, op);
  node.attribute = [...node.attribute.filter((other) => other.name !== name), { name, type: 7, ints: values }];
};
const perColor = (...values: [number, number, number]): Tensor => ({
  dims: [1, 3, 1, 1],
  data: Float32Array.from(values),
});
const inFront = (step: Step): Row => spelt({ swap: step });
const behindStem = (step: Step, want: Pick<Row, 'others' | 'refused'> = {}): Row => ({
  ...spelt({ swap: strong, activation: step }),
  ...want,
});

/** Puts every weight of the plain network into one file beside the model. */
const EXTERNAL: Uint8Array[] = [];
const external = changed(({ graph }) => {
  for (const tensor of graph.initializer) {
    const offset = EXTERNAL.reduce((sum, { length }) => sum + length, 0);
    EXTERNAL.push(tensor.rawData!);
    const length = tensor.rawData!.length;
    tensor.dataLocation = 1;
    tensor.externalData = Object.entries({ location: 'weights.data', offset, length }).map(([key, value]) => ({
      key,
      value: String(value),
    }));
    tensor.rawData = new Uint8Array();
  }
})();

const secondOutput = changed(({ graph }) => {
  graph.output.push({ name: graph.node[0]!.output[0]! });
});

const TABLE: Record<string, Record<string, Row>> = {
  'spellings of the same function': {
    ...all('swap', SWAPS),
    ...all('activation', ACTIVATIONS, { swap: strong }),
    ...all('vectors', VECTORS),
    ...all('head', HEADS),
    ...all('end', ENDS),
  },
  'the range of the input in the graph': {
    'Sub and Mul': inFront((b, x) => b.node('Mul', [b.node('Sub', [x, scalar(127.5)]), scalar(1 / 127.5)])),
    'Div and Sub': inFront((b, x) => b.node('Sub', [b.node('Div', [x, scalar(127.5)]), scalar(1)])),
    'of ImageNet': inFront((b, x) =>
      b.node('Div', [
        b.node('Sub', [b.node('Div', [x, scalar(255)]), perColor(0.485, 0.456, 0.406)]),
        perColor(0.229, 0.224, 0.225),
      ]),
    ),
    'Mul and Add': inFront((b, x) => b.node('Add', [b.node('Mul', [x, scalar(1 / 128)]), scalar(-1)])),
  },
  'two outputs': {
    named: { bytes: secondOutput, output: 'Gemm_4:0' },
    'none named': { bytes: secondOutput, others: /has 2 outputs: "Gemm_4:0" .*name the embedding: --output NAME/ },
    'another named': { bytes: secondOutput, output: 'other', refused: /has no output "other"; one of its outputs: / },
    'that is no embedding': { bytes: secondOutput, output: 'Conv_0:0', others: /output "Conv_0:0" has shape / },
  },
  'weights in another file': {
    there: { bytes: () => external, beside: { 'weights.data': Buffer.concat(EXTERNAL) } },
    missing: { bytes: () => external, refused: /weights\.data: no such file; the file that holds the weights/ },
    short: { bytes: () => external, beside: { 'weights.data': new Uint8Array(9) }, refused: /weights\.data/ },
  },
  'more memory than there is': Object.fromEntries(
    [2 ** 15, 2 ** 20, 2 ** 30].map((pad) => [
      `padding of ${pad}`,
      {
        bytes: changed((model) => ints(model, 'Conv', 'pads', [pad, pad, pad, pad])),
        refused: /node "\w+" \(\w+\): (embedding|training on) \d+ pictures.* needs [\d.]+ GiB (there )?at least/,
      },
    ]),
  ),
  'operators that the quantizer alone reads': {
    HardSwish: behindStem((b, x) => b.node('HardSwish', [x]), { others: /node ["']HardSwish_\d["'] \(HardSwish\)/ }),
    'Softmax, in FP32': behindStem((b, x) => b.node('Softmax', [x], { axis: 1 }), {
      others: /Softmax_\d["'] \(Softmax\)/,
    }),
  },
  'operators that none reads': Object.fromEntries(
    ['If', 'Loop', 'ConstantOfShape', 'toString', '__proto__'].map((op) => [
      op,
      behindStem((b, x) => b.node(op, [x]), { refused: new RegExp(`node ["']${op}_\\d["'] \\(${op}\\)`) }),
    ]),
  ),
  'operators that are nodes in the quantizer': {
    'Clip to 6': behindStem((b, x) => b.node('Clip', [x, scalar(0), scalar(6)])),
    Sigmoid: behindStem((b, x) => b.node('Sigmoid', [x])),
    Tanh: behindStem((b, x) => b.node('Tanh', [x])),
    MaxPool: behindStem((b, x) => b.node('MaxPool', [x], { kernel_shape: [3, 3], pads: [1, 1, 1, 1] })),
  },
  'other kinds of file, and files that are damaged': {
    nothing: { bytes: () => '', refused: /is empty/ },
    'a web page': { bytes: () => '<!DOCTYPE html><html></html>', refused: /is a web page/ },
    'a pointer of Git LFS': { bytes: () => 'version https://git-lfs.github.com/spec/v1\n', refused: /Git LFS pointer/ },
    gzip: { bytes: () => gzipSync(fileOf({})), refused: /compressed by gzip/ },
    ZIP: { bytes: () => 'PK\x03\x04 and more', refused: /is a ZIP archive/ },
    noise: { bytes: () => Uint8Array.from(noise(999), (value) => value * 255), refused: /cannot be decoded/ },
    'cut short': { bytes: () => fileOf({}).subarray(0, 2000), refused: /cannot be decoded .*cut short/ },
    'NaN in a weight': {
      bytes: changed((model) => {
        const { rawData } = weight(model);
        weight(model).rawData = Buffer.concat([rawData!.subarray(4), Buffer.from(Float32Array.of(NaN).buffer)]);
      }),
      refused: /tensor "Conv_0\.1" holds NaN/,
    },
    'dims beyond 2^53': {
      bytes: changed((m) => (weight(m).dims = [2 ** 32, 2 ** 32])),
      refused: /"Conv_0\.1" has dims/,
    },
    'negative dims': { bytes: changed((m) => (weight(m).dims = [-1, -324])), refused: /"Conv_0\.1" has dims/ },
    'a thousand dims': { bytes: changed((m) => (weight(m).dims = Array(1000).fill(1))), refused: /has 1000 dims; 64/ },
    'an unknown type': { bytes: changed((m) => (weight(m).dataType = 77)), refused: /has element type 77/ },
    'no such weight': { bytes: changed(({ graph }) => graph.initializer.shift()), refused: /reads "Conv_0\.1"/ },
    'a cycle': {
      bytes: changed(({ graph: { node } }) => (node[0]!.input[0] = node[1]!.output[0]!)),
      refused: /"Conv_0" \(Conv\) reads "PRelu_1:0", which no node before it makes/,
    },
    'a value made twice': {
      bytes: changed(({ graph: { node } }) => (node[1]!.output = node[0]!.output)),
      refused: /makes "Conv_0:0" a second time/,
    },
    'a value called __proto__': {
      bytes: changed(({ graph: { node } }) => {
        node[0]!.output = ['__proto__'];
        node[1]!.input[0] = '__proto__';
      }),
      quantizer: /has a node or a value called __proto__/,
    },
    'a stride of 0': { bytes: changed((m) => ints(m, 'Conv', 'strides', [0, 0])), refused: /node 'Conv_0' \(Conv\): / },
    'negative pads': {
      bytes: changed((m) => ints(m, 'Conv', 'pads', [-9, -9, -9, -9])),
      refused: /'Conv_0' \(Conv\): /,
    },
    'a dilation of 2^40': { bytes: changed((m) => ints(m, 'Conv', 'dilations', [2 ** 40, 1])), refused: /Conv_0/ },
    'one pad': { bytes: changed((m) => ints(m, 'Conv', 'pads', [1])), refused: /node 'Conv_0' \(Conv\): / },
    'an operator without inputs': { bytes: changed((m) => (nodeOf(m, 'Gemm').input = [])), refused: /Gemm_4/ },
    'thousands of inputs': {
      bytes: changed(({ graph }) => {
        graph.input = Array.from({ length: 5000 }, (_, i) => ({ ...graph.input[0]!, name: `i${i}` }));
      }),
      refused: /has 5000 inputs: i0, .*, and 4980 more; /,
    },
  },
};

/** What a command makes of a file: null, or its error. */
async function outcome(name: string, file: string, output: string | undefined): Promise<FacetrainError | null> {
  const scratch = await mkdtemp(join(folder, `${name}-`));
  try {
    await COMMANDS[name]!(file, output, scratch);
    return null;
  } catch (error) {
    if (!(error instanceof FacetrainError)) throw new Error(`${name}: a defect`, { cause: error });
    assert.equal(error.exitCode, ExitCode.refused, `${name}: ${error.message}`);
    return error;
  }
}

for (const [kind, rows] of Object.entries(TABLE))
  suite(kind, () => {
    for (const [name, { bytes, beside = {}, output, refused, quantizer, others }] of Object.entries(rows))
      test(name, async () => {
        const home = await mkdtemp(join(folder, 'model-'));
        const file = join(home, 'model.onnx');
        await writeFile(file, bytes());
        for (const [other, content] of Object.entries(beside)) await writeFile(join(home, other), content);
        const subjects = new Set<string>();
        for (const command of Object.keys(COMMANDS)) {
          const error = await outcome(command, file, output);
          const want = refused ?? (command === 'quantize' ? quantizer : others);
          if (!want) assert.equal(error, null, `${command}: ${error?.message}`);
          else {
            assert.match(error?.message ?? `${command} accepts it`, want);
            if (refused || others) subjects.add(`${error!.code} ${error!.subject}`);
          }
        }
        assert.equal(subjects.size, refused || others ? 1 : 0, [...subjects].join('\n'));
      });
  });

test('a broken layer is named by eval and quantize; the others do not run pictures', async () => {
  const file = join(folder, 'broken.onnx');
  const huge: Step = (b, x) => b.node('Mul', [b.node('Mul', [x, scalar(3e38)]), scalar(3e38)]);
  await writeFile(file, fileOf({ activation: huge }));
  const [inspected, evaluated, quantized, trained] = await Promise.all(
    Object.keys(COMMANDS).map((command) => outcome(command, file, undefined)),
  );
  assert.deepEqual([inspected, trained], [null, null]);
  for (const refused of [evaluated, quantized])
    assert.match(refused!.message, /broken\.onnx: node 'Mul_1' \(Mul\) gives values that are not finite \(\d+ of /);
});

test('a message is readable whatever names it holds', () => {
  assert.equal(readable('job.yaml: 2 problems:\n  spec: missing'), 'job.yaml: 2 problems:\n  spec: missing');
  assert.equal(readable('node "\u001b[31m\0"'), 'node "\\x1b[31m\\x00"');
  const cut = readable(`m.onnx: node "${'x'.repeat(1 << 20)}" (If); one of Add`);
  assert.ok(cut.length < 600 && cut.startsWith('m.onnx: node "xxx') && cut.endsWith('xx" (If); one of Add'), cut);
  assert.ok(readable('word '.repeat(100_000)).length < 9000);
});
