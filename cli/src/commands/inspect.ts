/** `facetrain inspect`: describes an ONNX model, a checkpoint folder, or an artifact folder. */
import { existsSync, statSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  AnyCheckpointManifest,
  ArtifactManifest,
  BYTES_OF,
  FacetrainError,
  type Gate,
  hasBounds,
  OUTPUT,
  parseDocument,
} from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { checkpointDirectory, completeSteps } from '@facetrain/trainer/checkpoint/directory';
import { readIdentities } from '@facetrain/trainer/checkpoint/retired';
import { describeModel } from '@facetrain/trainer/onnx/describe';
import { type FoundRange, withInputRange } from '@facetrain/trainer/onnx/input-range';
import { checkEmbeddingMemory } from '@facetrain/trainer/onnx/memory';
import { type OnnxModel, readOnnx } from '@facetrain/trainer/onnx/read';
import { fold } from '@facetrain/trainer/quantize/fold';
import { isQuantized } from '@facetrain/trainer/quantize/qdq';
import { bytes, table } from '../terminal-output.ts';
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
  return { json: { type: 'model', ...description }, text: `${JSON.stringify(description, null, 2)}\n` };
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
    ['Written', `${manifest.time}, by ${manifest.worldSize} trainers`],
    ['Step', `${manifest.step} (epoch ${(manifest.step / manifest.stepsPerEpoch).toFixed(2)})`],
    [
      'Class centres',
      `${manifest.numClasses} of ${manifest.embeddingDim} dimensions (${dtype}), in ${rows.length} files`,
    ],
    ...(manifest.schemaVersion === 2
      ? [
          ['Their optimizer', `${manifest.rows.optimizer}; ${bytesPerClass(manifest)} bytes a class`] as [
            string,
            string,
          ],
        ]
      : []),
    ...(manifest.schemaVersion === 2 && manifest.retired
      ? [['Retired', `${manifest.retired.count} classes that were removed or merged`] as [string, string]]
      : []),
    ['Size', bytes([manifest.backbone, ...rows].reduce((sum, file) => sum + file.bytes, 0))],
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
    ['Calibration', `${calibration.images} pictures, seed ${calibration.seed}`],
    ...metricsRows(metrics),
    ['Gate', verdict(gate)],
    ...Object.entries(files).map(([name, file]): [string, string] => [
      name,
      `${bytes(file.bytes)}, sha256 ${file.sha256}`,
    ]),
  ];
}
