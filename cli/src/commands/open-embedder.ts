/** Opens a model file for the commands that embed pictures. */
import { FacetrainError } from '@facetrain/api';
import {
  capabilities,
  type Device,
  EMBEDDING_BATCH,
  type Embedder,
  type Graph,
  Int7Model,
  LayerModel,
  type ModelOptions,
} from '@facetrain/native';
import { checkEmbeddingMemory } from '@facetrain/trainer/onnx/memory';
import { openModel } from '@facetrain/trainer/onnx/open-model';
import type { OnnxModel } from '@facetrain/trainer/onnx/read';
import { withSubject } from '@facetrain/trainer/onnx/with-subject';
import { fold } from '@facetrain/trainer/quantize/fold';
import { decodeInt7, isQuantized } from '@facetrain/trainer/quantize/qdq';

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
 * @throws FacetrainError InvalidModel when the model is not of the kind that `runtime` runs; InvalidArgument for an
 * INT7 model, or one of several outputs, on a GPU
 */
export async function openEmbedder(
  file: string,
  model: Pick<OnnxModel, 'graph'>,
  runtime: Runtime,
  place: ModelOptions,
): Promise<Embedder> {
  const quantized = isQuantized(model.graph);
  if (quantized !== (runtime === 'int7')) {
    const [found, other] = quantized ? ['an INT7 model', 'int7'] : ['an FP32 model', 'fp32'];
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: file,
      found,
      allowed: `--runtime ${other}, or another model`,
    });
  }
  const { graph } = model;
  if (runtime === 'fp32' && !graph.outputs) {
    checkEmbeddingMemory(graph, file, EMBEDDING_BATCH);
    return openModel(graph, file, place);
  }
  const { computeThreads, device } = place;
  if (device === 'cuda') {
    const [kind, what] = quantized ? ['an INT7 model', 'INT7 models'] : ['of several outputs', 'such models'];
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--device',
      found: `cuda, and ${file} is ${kind}`,
      allowed: `cpu or auto: ${what} run on the CPU`,
    });
  }
  // One picture for each thread; the check counts floats, and integers are of a byte.
  checkEmbeddingMemory(graph, file, quantized ? Math.ceil(computeThreads / 4) : computeThreads);
  try {
    if (!quantized) return await LayerModel.open(fold(graph), { computeThreads });
    const { layers, scales } = decodeInt7(graph);
    return await Int7Model.open(layers, scales, { computeThreads });
  } catch (error) {
    throw withSubject(file, error);
  }
}
