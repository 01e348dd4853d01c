/** The contents of an artifact's files, from what a quantization found. Pure. */
import {
  ARTIFACT,
  ArtifactManifest,
  counted,
  hasBounds,
  QuantizeReport,
  rangeText,
  ScalesDocument,
  type StoredFile,
  type TerminationResult,
} from '@facetrain/api';
import type { LayerGraph, Scales } from '@facetrain/native';
import { CHANNEL_ORDER_METADATA, type ChannelOrder } from '../onnx/channel-order.ts';
import { compact } from '../onnx/compact.ts';
import {
  FORMAT_METADATA,
  INT7_FORMAT,
  OUTPUTS_METADATA,
  TAIL_METADATA,
  TENSORRT_FORMAT,
  VERSION_METADATA,
} from '../onnx/read.ts';
import type { Tail } from '../onnx/tail.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { renderQuantizeReport } from '../report/quantize-report-html.ts';
import { digestBytes } from '../storage/digest.ts';
import { type EncodeInt7Options, encodeInt7, WEIGHT_LIMIT } from './qdq.ts';

/**
 * @param origin for the metadata: SHA-256 of the FP32 model's file and of the calibration pixels, and their channel
 * order
 * @param runtime whose form it has (qdq.ts)
 * @param tail of the FP32 model, which the file has behind the layers
 */
export function modelFile(
  graph: LayerGraph,
  scales: Scales,
  origin: { source: string; calibration: string; channelOrder: ChannelOrder },
  runtime: NonNullable<EncodeInt7Options['runtime']> = 'onnxruntime',
  tail?: Tail,
): Uint8Array {
  const { source, calibration, channelOrder } = origin;
  const bits = hasWideOperands(graph, scales) ? ['7', '8'] : ['7'];
  const outputs = graph.outputs ?? [graph.output];
  const metadata = {
    [FORMAT_METADATA]: runtime === 'onnxruntime' ? INT7_FORMAT : TENSORRT_FORMAT,
    [VERSION_METADATA]: tail ? '2' : '1',
    // Of weights and of what they multiply.
    'facetrain.bits': bits.join(', '),
    'facetrain.limit': String(WEIGHT_LIMIT),
    'facetrain.rounding': 'half to even',
    [CHANNEL_ORDER_METADATA]: channelOrder,
    'facetrain.source.sha256': source,
    'facetrain.calibration.sha256': calibration,
    ...(tail && {
      [OUTPUTS_METADATA]: outputs.map(({ name }) => name).join('\n'),
      [TAIL_METADATA]: tail.operators,
    }),
  };
  const { file, layout, elementType } = graph.input;
  const range = `range ${file ? rangeText(file) : '-1..1'}`;
  const input = ['pictures in '.concat(channelOrder.toUpperCase()), range, layout, elementType].filter(Boolean);
  const what = graph.outputs ? `Network of ${counted(graph.outputs.length, 'output')}` : 'Embedding';
  const behind = tail ? ` Behind ${outputs.map(({ name }) => name).join(', ')} in FP32.` : '';
  const doc = `${what} in ${bits.join('- and ')}-bit integers.${behind} Input: ${input.join(', ')}.`;
  const written = encodeInt7(graph, scales, { runtime });
  // Reports, scales.json and messages of the readers have the layers' names. TensorRT was not tried on short files.
  const named = new Set(graph.layers.flatMap(({ name, output }) => [name, output]));
  return encodeOnnx(runtime === 'onnxruntime' ? compact(written, named) : written, {
    ...{ metadata, doc, tail: tail?.file },
  });
}

/** Whether a convolution multiplies activations of 8 bits. */
function hasWideOperands({ layers }: LayerGraph, { tensors }: Scales): boolean {
  return layers.some(
    (layer) => (layer.kind === 'conv' || layer.kind === 'fc') && tensors[layer.input]!.limit !== WEIGHT_LIMIT,
  );
}

export function scalesFile(scales: Scales): string {
  const weights = Object.fromEntries(
    Object.entries(scales.weights).map(([name, { scales: values }]) => [name, Array.from(values)]),
  );
  // Without indentation: it has thousands of numbers, and only programs read it.
  return `${JSON.stringify(ScalesDocument.parse({ schemaVersion: 1, tensors: scales.tensors, weights }))}\n`;
}

/** @param pictures addresses of data with report.worstPictures */
export function reportFiles(report: QuantizeReport, pictures: readonly string[]): Record<string, string> {
  return {
    [ARTIFACT.report]: json(QuantizeReport.parse(report)),
    [ARTIFACT.reportHtml]: renderQuantizeReport(report, pictures),
  };
}

export function manifestFile(report: QuantizeReport, files: Record<string, StoredFile>): string {
  const { parameters: _, removed: __, ...source } = report.source;
  const { calibration, metrics, gate } = report;
  return json(
    ArtifactManifest.parse({
      schemaVersion: 1,
      kind: 'facetrain-int7',
      source,
      calibration,
      metrics,
      gate,
      files,
    }),
  );
}

/** The artifact as a termination message reports it. @param manifest the text of `manifest.json` */
export function artifactStatus(manifest: string): NonNullable<TerminationResult['artifact']> {
  const { files, gate, metrics } = ArtifactManifest.parse(JSON.parse(manifest));
  const { meanCosine, accuracyDrop } = metrics;
  return {
    manifestSha256: digestOf(manifest).sha256,
    bytes: Object.values(files).reduce((sum, file) => sum + file.bytes, 0),
    meanCosine,
    ...(accuracyDrop !== null && { accuracyDrop }),
    gate: hasBounds(gate) ? 'Passed' : 'NotChecked',
  };
}

export function digestOf(content: Uint8Array | string): StoredFile {
  return digestBytes(typeof content === 'string' ? Buffer.from(content) : content);
}

function json(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}
