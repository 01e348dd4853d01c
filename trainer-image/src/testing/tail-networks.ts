/** For tests: networks that end with operators that only other runtimes compute (onnx/tail.ts). */
import type { Graph } from '@facetrain/native';
import {
  type AttributeProto,
  AttributeType,
  DATA_TYPES,
  type DataType,
  decodeModel,
  encodeGraph,
  encodeModel,
  type GraphProto,
  type NodeProto,
  type TensorProto,
} from '../onnx/proto.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder } from './graph-fixtures.ts';

const type = (name: DataType) => DATA_TYPES.indexOf(name);
export const integers = (values: number[], dims = [values.length]): TensorProto => ({
  ...{ name: '', dims, dataType: type('INT64'), int64Data: values },
});
export const floats = (values: number[], dims = [values.length]): TensorProto => ({
  ...{ name: '', dims, dataType: type('FLOAT'), floatData: values },
});
export const int = (name: string, i: number): AttributeProto => ({ name, type: AttributeType.INT, i });
export const ints = (name: string, values: number[]): AttributeProto => ({
  ...{ name, type: AttributeType.INTS, ints: values },
});
export const text = (name: string, value: string): AttributeProto => ({
  ...{ name, type: AttributeType.STRING, s: Buffer.from(value) },
});
export const graphOf = (name: string, graph: Partial<GraphProto> & Pick<GraphProto, 'node' | 'output'>) => ({
  ...{ name, type: AttributeType.GRAPH },
  g: encodeGraph({ name, initializer: [], input: [], ...graph }),
});
export const value = (name: string, elemType: DataType = 'FLOAT', dims?: (number | string)[]) => {
  const dim = dims?.map((size) => (typeof size === 'string' ? { dimParam: size } : { dimValue: size }));
  return { name, type: { tensorType: { elemType: type(elemType), ...(dim && { shape: { dim } }) } } };
};

/** Nodes and constants behind a graph. */
export class End {
  readonly nodes: NodeProto[] = [];
  readonly initializers: TensorProto[] = [];

  constant(name: string, tensor: TensorProto): string {
    this.initializers.push({ ...tensor, name });
    return name;
  }

  /** @param outputs names, the first of which names the node. @returns that */
  node(opType: string, input: string[], outputs: string | string[], attribute: AttributeProto[] = [], domain = '') {
    const output = [outputs].flat();
    this.nodes.push({ name: output.find(Boolean)!, opType, input, output, attribute, domain });
    return output.find(Boolean)!;
  }
}

export interface EndOptions {
  outputs: ReturnType<typeof value>[];
  opset?: number;
  domains?: Record<string, number>;
  /** Of the file's input; absent: free; null: it has none. */
  batch?: number | null;
}

/** The file of a graph with an end. */
export function fileWithEnd(
  graph: Graph,
  { nodes, initializers }: End,
  { outputs, opset = 17, domains = {}, batch }: EndOptions,
): Uint8Array {
  const proto = decodeModel(encodeOnnx(graph));
  proto.graph!.node.push(...nodes);
  proto.graph!.initializer.push(...initializers);
  proto.graph!.output = outputs;
  proto.opsetImport = Object.entries({ '': opset, ...domains }).map(([domain, version]) => ({ domain, version }));
  const { dim } = proto.graph!.input[0]!.type!.tensorType!.shape!;
  if (batch !== undefined) dim.splice(0, 1, ...(batch === null ? [] : [{ dimValue: batch }]));
  return encodeModel(proto);
}

const ANCHORS = 2;
const CLASSES = 3;

/**
 * A detector: boxes of anchors and scores of classes, then NonMaxSuppression and the best scores.
 * @param opset from 11 on
 */
export function detector({ opset = 17, batch }: { opset?: number; batch?: number } = {}): Uint8Array {
  const b = new GraphBuilder({ height: 16, width: 16 });
  const stem = b.node('Relu', [b.conv('data', 3, 8, 3, { pad: 1, stride: 2 })]);
  const map = b.node('Relu', [b.conv(stem, 8, 12, 3, { pad: 1 })]);
  const boxes = b.conv(map, 12, 4 * ANCHORS, 1);
  const scores = b.conv(map, 12, CLASSES * ANCHORS, 1);
  const graph = b.graph(scores);
  const end = new End();
  const count = 64 * ANCHORS;
  // The target is computed of the map's sizes, as exporters do.
  const rows = (of: string, width: number, name: string) => {
    end.node('Transpose', [of], `${name}_last`, [ints('perm', [0, 2, 3, 1])]);
    end.node('Shape', [map], `${name}_shape`);
    const zero = end.constant(`${name}_zero`, integers([0]));
    end.node('Gather', [`${name}_shape`, zero], `${name}_batch`, [int('axis', 0)]);
    const rest = end.constant(`${name}_rest`, integers([-1, width]));
    end.node('Concat', [`${name}_batch`, rest], `${name}_target`, [int('axis', 0)]);
    return end.node('Reshape', [`${name}_last`, `${name}_target`], name);
  };
  const offsets = rows(boxes, 4, 'offsets');
  const anchors = end.constant(
    'anchors',
    floats(
      Array.from({ length: count * 4 }, (_, i) => (i % 4 < 2 ? (i * 7) % 64 : ((i * 7) % 64) + 24)),
      [1, count, 4],
    ),
  );
  end.node('Add', [offsets, anchors], 'boxes');
  end.node('Sigmoid', [rows(scores, CLASSES, 'logits')], 'likely');
  end.node('Transpose', ['likely'], 'by_class', [ints('perm', [0, 2, 1])]);
  const limits = [
    end.constant('most', integers([4])),
    end.constant('overlap', floats([0.5])),
    end.constant('least', floats([0.3])),
  ];
  end.node('NonMaxSuppression', ['boxes', 'by_class', ...limits], 'selected');
  const axes = opset < 18 ? [ints('axes', [2])] : [];
  const reduced = opset < 18 ? ['likely'] : ['likely', end.constant('classes', integers([2]))];
  end.node('ReduceMax', reduced, 'best', [...axes, int('keepdims', 0)]);
  end.node('TopK', ['best', end.constant('k', integers([5]))], ['top', 'places'], [int('axis', 1)]);
  // Boxes of the best, of each picture.
  if (opset >= 13) end.node('Unsqueeze', ['places', end.constant('behind', integers([2]))], 'column');
  else end.node('Unsqueeze', ['places'], 'column', [ints('axes', [2])]);
  if (opset >= 12) end.node('GatherND', ['boxes', 'column'], 'top_boxes', [int('batch_dims', 1)]);
  const softmax = opset < 13 ? [] : [int('axis', 1)];
  end.node('Softmax', ['top'], 'shares', softmax);
  const outputs = [
    value('top', 'FLOAT', [batch ?? 'N', 5]),
    value('selected', 'INT64', ['M', 3]),
    value('places', 'INT64', [batch ?? 'N', 5]),
    value('shares', 'FLOAT', [batch ?? 'N', 5]),
    ...(opset >= 12 ? [value('top_boxes', 'FLOAT', [batch ?? 'N', 5, 4])] : []),
  ];
  return fileWithEnd(graph, end, { outputs, opset, ...(batch && { batch }) });
}

/** A recognizer of text: convolutions, two LSTMs with products behind them, scores of letters. */
export function recognizer(): Uint8Array {
  const b = new GraphBuilder({ height: 8, width: 32 });
  const stem = b.node('Relu', [b.conv('data', 3, 8, 3, { pad: 1, stride: 2 })]);
  const map = b.node('MaxPool', [b.node('Relu', [b.conv(stem, 8, 12, 3, { pad: 1 })])], {
    kernel_shape: [4, 1],
    strides: [4, 1],
  });
  const graph = b.graph(map);
  const end = new End();
  const random = (dims: number[]) => {
    const { data } = b.values(dims);
    return floats(
      Array.from(data, (x) => x / 2),
      dims,
    );
  };
  end.node('Squeeze', [map, end.constant('rows', integers([2]))], 'columns');
  end.node('Transpose', ['columns'], 'sequence', [ints('perm', [2, 0, 1])]);
  const lstm = (x: string, size: number, hidden: number, name: string) => {
    const weights = [
      end.constant(`${name}_w`, random([2, 4 * hidden, size])),
      end.constant(`${name}_r`, random([2, 4 * hidden, hidden])),
      end.constant(`${name}_b`, random([2, 8 * hidden])),
    ];
    end.node(
      'LSTM',
      [x, ...weights],
      [`${name}_y`, `${name}_h`],
      [int('hidden_size', hidden), text('direction', 'bidirectional')],
    );
    end.node('Transpose', [`${name}_y`], `${name}_order`, [ints('perm', [0, 2, 1, 3])]);
    return end.node('Reshape', [`${name}_order`, end.constant(`${name}_to`, integers([0, 0, -1]))], name);
  };
  const first = lstm('sequence', 12, 6, 'first');
  end.node('MatMul', [first, end.constant('matrix', random([12, 10]))], 'mixed');
  const second = lstm('mixed', 10, 5, 'second');
  end.node('MatMul', [second, end.constant('letters', random([10, 7]))], 'logits');
  end.node('Softmax', ['logits'], 'likely', [int('axis', 2)]);
  return fileWithEnd(graph, end, { outputs: [value('likely', 'FLOAT', ['T', 'N', 7])] });
}

/** An embedding that an If scales by its largest number; its branches read values and constants around them. */
export function withIf(): Uint8Array {
  const b = new GraphBuilder();
  const vector = b.gemm(b.flatten(b.node('Relu', [b.conv('data', 3, 8, 3, { pad: 1, stride: 2 })])), 128, 24);
  const graph = b.graph(vector);
  const end = new End();
  end.node('ReduceMax', [vector], 'largest', [int('keepdims', 0)]);
  end.node('Greater', ['largest', end.constant('limit', floats([0.5], []))], 'is_large');
  const factor = end.constant('factor', floats([0.25], []));
  const branch = (name: string, opType: string) =>
    graphOf(name, {
      node: [{ name: opType, opType, input: [vector, factor], output: [`${opType}_of`], attribute: [], domain: '' }],
      output: [value(`${opType}_of`)],
    });
  end.node('If', ['is_large'], 'scaled', [branch('then_branch', 'Mul'), branch('else_branch', 'Add')]);
  return fileWithEnd(graph, end, { outputs: [value('scaled', 'FLOAT', ['N', 24]), value(vector, 'FLOAT', ['N', 24])] });
}
