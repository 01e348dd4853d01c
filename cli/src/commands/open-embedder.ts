/** Opens a model file for the commands that embed pictures. */
import { readFile } from 'node:fs/promises';
import { FacetrainError } from '@facetrain/api';
import {
  capabilities,
  type Device,
  EMBEDDING_BATCH,
  type Embedder,
  type Graph,
  Int7FileModel,
  type Int7FileOptions,
  LayerModel,
  type ModelOptions,
} from '@facetrain/native';
import { checkEmbeddingMemory } from '@facetrain/trainer/onnx/memory';
import { readError } from '@facetrain/trainer/onnx/model-file';
import { openModel } from '@facetrain/trainer/onnx/open-model';
import type { ModelFiles, OnnxModel } from '@facetrain/trainer/onnx/read';
import { withSubject } from '@facetrain/trainer/onnx/with-subject';
import { fold } from '@facetrain/trainer/quantize/fold';
import { isQuantized } from '@facetrain/trainer/quantize/qdq';

export type Runtime = 'fp32' | 'int7';

/** What runs a model. @param asked what the user has asked for */
export const runtimeOf = (graph: Graph, asked?: Runtime): Runtime => asked ?? (isQuantized(graph) ? 'int7' : 'fp32');

/** @throws FacetrainError InvalidArgument for a GPU, when this build or this machine has none */
export function checkDevice(device: Device | 'auto'): void {
  if (device !== 'cuda') return;
  const { nccl, cudaDevices } = capabilities();
  if (cudaDevices > 0) return;
  throw new FacetrainError({
    code: 'InvalidArgument',
    subject: '--device',
    found: `cuda, but ${nccl ? 'this machine has no CUDA device' : 'this build has no CUDA'}`,
    allowed: nccl ? 'cpu or auto, or a machine with an NVIDIA GPU and its driver' : 'cpu or auto, or a build with CUDA',
  });
}

/**
 * A model of several outputs runs on the CPU, as the quantizer's layers in FP32: the executor of trainings knows one.
 * An INT7 model is read a second time, by the reader of the C library.
 * @param path as the user gave it, for messages
 * @param output the name of the only output that is wanted, which `model` was read with
 * @throws FacetrainError InvalidModel when the model is not of the kind that `runtime` runs; InvalidArgument for an
 * INT7 model, or one of several outputs, on a GPU
 */
export async function openEmbedder(
  path: string,
  model: Pick<OnnxModel & ModelFiles, 'graph' | 'file'>,
  runtime: Runtime,
  { output, ...place }: ModelOptions & { output?: string | undefined },
): Promise<Embedder> {
  const { graph, file } = model;
  const quantized = isQuantized(graph);
  if (quantized !== (runtime === 'int7')) {
    const [found, other] = quantized ? ['an INT7 model', 'int7'] : ['an FP32 model', 'fp32'];
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: path,
      found,
      allowed: `--runtime ${other}, or another model`,
    });
  }
  if (!quantized && !graph.outputs) {
    checkEmbeddingMemory(graph, path, EMBEDDING_BATCH);
    return openModel(graph, path, place);
  }
  const { computeThreads, device } = place;
  if (device === 'cuda') {
    const [kind, what] = quantized ? ['an INT7 model', 'INT7 models'] : ['of several outputs', 'such models'];
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--device',
      found: `cuda, and ${path} is ${kind}`,
      allowed: `cpu or auto: ${what} run on the CPU`,
    });
  }
  if (quantized) return openInt7(file, { subject: path, computeThreads, output });
  // One picture for each thread.
  checkEmbeddingMemory(graph, path, computeThreads);
  try {
    return await LayerModel.open(fold(graph), { computeThreads });
  } catch (error) {
    throw withSubject(path, error);
  }
}

/** @throws FacetrainError StorageFailed, and as Int7FileModel.open */
export async function openInt7(file: string, options: Int7FileOptions): Promise<Int7FileModel> {
  const bytes = await readFile(file).catch((error: unknown) => {
    throw readError(file, error, 'a model.int7.onnx');
  });
  return Int7FileModel.open(bytes, options);
}
