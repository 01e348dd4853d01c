/** `facetrain inspect`: describes an ONNX model, a checkpoint folder, or an artifact folder. */
import { existsSync, statSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AnyCheckpointManifest,
  ArtifactManifest,
  BYTES_OF,
  type CheckpointManifest,
  counted,
  FacetrainError,
  type Gate,
  hasBounds,
  OUTPUT,
  parseDocument,
} from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { checkpointDirectory, completeSteps } from '@facetrain/trainer/checkpoint/directory';
import { readIdentities } from '@facetrain/trainer/checkpoint/retired';
import { describeModel, type ModelDescription } from '@facetrain/trainer/onnx/describe';
import { type FoundRange, withInputRange } from '@facetrain/trainer/onnx/input-range';
import { checkEmbeddingMemory } from '@facetrain/trainer/onnx/memory';
import { type OnnxModel, readOnnx } from '@facetrain/trainer/onnx/read';
import { fold } from '@facetrain/trainer/quantize/fold';
import { isQuantized } from '@facetrain/trainer/quantize/qdq';
import { bytes, oneLine, table } from '../terminal-output.ts';
import { inputText } from './input-range.ts';
import { metricsRows } from './metrics-rows.ts';

/**
 * @throws FacetrainError for what is no model, and for a model that `facetrain eval` would refuse, with the same reason
 */
export async function inspect(path: string, { output }: { output?: string | undefined } = {}) {
  if (!existsSync(path))
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: path,
      found: 'no such file or folder',
      allowed: 'an ONNX file, a checkpoint or an artifact folder',
    });
  if (statSync(path).isDirectory() && !(await readdir(path)).some((name) => name.endsWith('.onnx')))
    return inspectFolder(path);
  if (existsSync(join(path, 'manifest.json'))) return inspectFolder(path);
  const model = await readOnnx(path, { output });
  const ranged = withRange(model, path);
  const quantizable = await checkModel(ranged?.graph ?? model.graph, model.file);
  const description = { ...describeModel(model, ranged?.range ?? null), quantizable };
  return { json: { type: 'model', ...description }, text: table(modelRows(model.file, description)) };
}

/** Of the file's metadata, what is shown: values may be any text. */
const LONGEST_VALUE = 200;

function modelRows(file: string, model: ModelDescription & { quantizable: true | string }): [string, string][] {
  const { input, output, outputs = [output], metadata, producer, opsets } = model;
  const value = ({ name, shape }: { name: string; shape: (string | number)[] }) => `${name} [${shape.join(', ')}]`;
  const numbers = (count: number) => count.toLocaleString('en-US');
  const order = input.channelOrder ?? 'order of colors not in the file';
  const reads = input.range
    ? inputText(input.range, order)
    : `${order === input.channelOrder ? order.toUpperCase() : order}, its range not in the file`;
  const made = [producer.name, producer.version].filter(Boolean).join(' ');
  const rows: ([string, string] | false)[] = [
    ['Model', file],
    ['Input', `${value(input)}: ${reads}`],
    ...outputs.map((each, i): [string, string] => [
      i === 0 ? counted(outputs.length, 'Output').slice(2) : '',
      value(each),
    ]),
    model.tail !== undefined && ['Behind these', `${model.tail}: for ONNX Runtime`],
    [
      'Operators',
      Object.entries(model.operators)
        .map(([op, count]) => `${op} ${count}`)
        .join(', '),
    ],
    ['Parameters', numbers(model.parameters)],
    ['Work', model.macs === null ? 'not known' : `${numbers(model.macs)} multiply-accumulates a picture`],
    [
      'Constants',
      Object.entries(model.constantBytes)
        .map(([type, size]) => `${bytes(size)} of ${type}`)
        .join(', '),
    ],
    ...model.removed.map((text, i): [string, string] => [i === 0 ? 'Left out' : '', text]),
    ['Can be quantized', model.quantizable === true ? 'yes' : `no: ${model.quantizable}`],
    [
      'Format',
      [
        `ONNX IR ${model.irVersion}`,
        ...Object.entries(opsets).map(([domain, version]) => `${domain || 'operator set'} ${version}`),
      ].join(', '),
    ],
    made !== '' && ['Made by', made],
    ...Object.entries(metadata).map(([key, text]): [string, string] => [key, oneLine(text).slice(0, LONGEST_VALUE)]),
  ];
  return rows.filter((row) => row !== false).map(([name, text]) => [oneLine(name), oneLine(text)]);
}

/** null when the file does not say its range: other commands want it given then. */
function withRange(model: OnnxModel, subject: string): { graph: Graph; range: FoundRange } | null {
  try {
    return withInputRange(model, { subject });
  } catch (error) {
    if (error instanceof FacetrainError) return null;
    throw error;
  }
}

/**
 * Opens a model as eval and train do, which runs it on two blank pictures.
 * @returns whether it can be quantized; if not, why
 */
async function checkModel(graph: Graph, file: string): Promise<true | string> {
  // The addon loads slowly, so only when it is needed.
  if (isQuantized(graph)) {
    const { openInt7 } = await import('./open-embedder.ts');
    const model = await openInt7(file, { subject: file, computeThreads: 1 });
    await model.close();
    return 'it is quantized';
  }
  const [{ EMBEDDING_BATCH }, { openModel }] = await Promise.all([
    import('@facetrain/native'),
    import('@facetrain/trainer/onnx/open-model'),
  ]);
  checkEmbeddingMemory(graph, file, EMBEDDING_BATCH);
  const model = await openModel(graph, file, { computeThreads: 1 });
  await model.close();
  try {
    fold(graph);
    return true;
  } catch (error) {
    if (error instanceof FacetrainError) return error.message;
    throw error;
  }
}

/** What of the folder of a run, or of one with checkpoints, can be described by itself. */
async function describable(folder: string): Promise<string[]> {
  const newestIn = async (place: string) => (await completeSteps(place).catch(() => []))[0];
  const inside = [OUTPUT.model, OUTPUT.int7].map((name) => join(folder, name)).filter((path) => existsSync(path));
  for (const place of [folder, join(folder, OUTPUT.checkpoints)]) {
    const step = await newestIn(place);
    if (step !== undefined) inside.push(checkpointDirectory(place, step));
  }
  return inside;
}

async function inspectFolder(path: string) {
  const file = join(path, 'manifest.json');
  const refuse = (found: string, cause?: unknown) =>
    new FacetrainError({
      code: 'InvalidArgument',
      subject: path,
      found,
      allowed: 'an ONNX file, a checkpoint (step-…) or an artifact folder, the latter two with a manifest.json',
      cause,
    });
  if (!existsSync(file)) {
    const inside = await describable(path);
    throw refuse(
      `a folder without manifest.json${inside.length > 0 ? `, in which there are ${inside.join(', ')}` : ''}`,
    );
  }
  let manifest: { kind?: unknown };
  try {
    manifest = JSON.parse(await readFile(file, 'utf8')) as { kind?: unknown };
  } catch (cause) {
    throw refuse(`manifest.json is no JSON (${(cause as Error).message})`, cause);
  }
  if (manifest.kind === 'facetrain-int7') {
    const artifact = parseDocument(ArtifactManifest, manifest, file, 'InvalidArtifact');
    return { json: { type: 'artifact', ...artifact }, text: table(artifactRows(path, artifact)) };
  }
  const checkpoint = parseDocument(AnyCheckpointManifest, manifest, file, 'InvalidCheckpoint');
  const { retired: retiredClasses } = await readIdentities({ directory: path, manifest: checkpoint });
  return {
    json: { type: 'checkpoint', ...checkpoint, bytesPerClass: bytesPerClass(checkpoint), retiredClasses },
    text: table(checkpointRows(path, checkpoint)),
  };
}

/** Of a class centre with what its optimizer keeps; null: not known of version 1. */
const bytesPerClass = (manifest: AnyCheckpointManifest) =>
  manifest.schemaVersion === 1
    ? null
    : manifest.rows.tensors.reduce((sum, { columns, dtype }) => sum + columns * BYTES_OF[dtype], 0);

function checkpointRows(path: string, manifest: AnyCheckpointManifest): [string, string][] {
  const rows = manifest.schemaVersion === 1 ? manifest.rows : manifest.rows.files;
  const dtype = manifest.schemaVersion === 1 ? 'float32' : manifest.rows.tensors[0]!.dtype;
  return [
    ['Checkpoint', path],
    ['Job', `${manifest.job.name} (${manifest.job.uid})`],
    ['Written', `${manifest.time}, by ${counted(manifest.worldSize, 'trainer')}`],
    ['Step', `${manifest.step} (epoch ${(manifest.step / manifest.stepsPerEpoch).toFixed(2)})`],
    [
      'Class centres',
      `${manifest.numClasses} of ${counted(manifest.embeddingDim, 'dimension')} (${dtype}), ` +
        `in ${counted(rows.length, 'file')}`,
    ],
    ...(manifest.schemaVersion === 2
      ? [
          ['Their optimizer', `${manifest.rows.optimizer}; ${bytesPerClass(manifest)} bytes a class`] as [
            string,
            string,
          ],
        ]
      : []),
    ...(manifest.schemaVersion === 2 ? recordedRows(manifest) : []),
    ...(manifest.schemaVersion === 2 && manifest.retired
      ? [['Retired', `${counted(manifest.retired.count, 'class')}, removed or merged`] as [string, string]]
      : []),
    ['Size', bytes([manifest.backbone, ...rows].reduce((sum, file) => sum + file.bytes, 0))],
  ];
}

/** How its products were computed, and what it knows of the training before. */
function recordedRows({ precision, bf16, curves }: CheckpointManifest): [string, string][] {
  return [
    ...(precision === undefined
      ? []
      : [
          ['Precision', `${precision.toUpperCase()}${bf16 ? `, on CPUs by ${bf16.join(' and ')}` : ''}`] as [
            string,
            string,
          ],
        ]),
    ...(curves
      ? [
          [
            'Curves',
            `of ${counted(curves.attempts.length, 'attempt')}, in ${counted(curves.intervals.length, 'point')}`,
          ] as [string, string],
        ]
      : []),
  ];
}

function verdict(gate: Gate): string {
  const { passed, failures } = gate;
  if (!hasBounds(gate)) return 'none: the job set no bounds';
  return passed ? 'passed' : failures.join('; ');
}

function artifactRows(
  path: string,
  { source, calibration, metrics, gate, files }: ArtifactManifest,
): [string, string][] {
  return [
    ['INT7 artifact', path],
    ['Source model', `sha256 ${source.sha256}, ${bytes(source.bytes)}`],
    ['Input', source.input ? inputText(source.input, source.channelOrder) : source.channelOrder.toUpperCase()],
    ['Calibration', `${counted(calibration.images, 'picture')}, seed ${calibration.seed}`],
    ...metricsRows(metrics),
    ['Gate', verdict(gate)],
    ...Object.entries(files).map(([name, file]): [string, string] => [
      name,
      `${bytes(file.bytes)}, sha256 ${file.sha256}`,
    ]),
  ];
}
