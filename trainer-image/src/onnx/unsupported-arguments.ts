/**
 * Arguments of operators that our runtime has, which ONNX allows and the runtime does not compute (native/nodes): a
 * node with one may be in the tail of a network (tail.ts). What is wrong in a model is none of these, and is refused
 * later, when layers are planned.
 */
import type { GraphNode } from '@facetrain/native';
import { intAttribute, intsAttribute } from './attributes.ts';
import { DATA_TYPES } from './proto.ts';

/** What is known of the values that a node reads. */
export interface KnownValues {
  shape: (name: string) => number[] | undefined;
  isConstant: (name: string) => boolean;
  isFloat: (name: string) => boolean;
}

type Rule = (node: GraphNode, known: KnownValues) => string | undefined;

/** Of maps. Those along one axis have another form (composites.ts). */
const alongTwoAxes: Rule = ({ inputs: [x = ''] }, { shape }) => {
  const axes = (shape(x)?.length ?? 4) - 2;
  if (axes === 2 || axes < 1) return undefined;
  return `works along ${axes === 1 ? 'one axis' : `${axes} axes`}, not two`;
};

const averagePool: Rule = (node, known) => {
  const counts = intAttribute(node, 'ceil_mode', 0) === 1 && intAttribute(node, 'count_include_pad', 0) === 1;
  if (counts && intsAttribute(node, 'pads', []).some((pad) => pad !== 0))
    return 'counts its pads, and rounds its size up (ceil_mode = 1)';
  return alongTwoAxes(node, known);
};

const PLACES = ['half_pixel', 'pytorch_half_pixel', 'asymmetric', 'align_corners'];

const resize: Rule = ({ attributes }) => {
  const { mode = 'nearest', coordinate_transformation_mode: places = 'half_pixel' } = attributes;
  if (mode !== 'nearest' && mode !== 'linear') return `resizes by mode ${mode}`;
  return PLACES.includes(String(places)) ? undefined : `reads at the places of ${places}`;
};

const pad: Rule = ({ attributes: { mode = 'constant' }, inputs: [, , value = ''] }, { isConstant }) => {
  if (!['constant', 'edge', 'reflect'].includes(String(mode))) return `pads by mode ${mode}`;
  return value === '' || isConstant(value) ? undefined : 'pads with a number that is computed';
};

const gather: Rule = ({ inputs: [, indices = ''] }, { isConstant }) =>
  isConstant(indices) ? undefined : 'takes entries whose places are computed';

/** Types of constants and of comparisons; others of floats are float32 (translate-node.ts). */
const TYPES = ['FLOAT', 'INT32', 'INT64', 'BOOL'];

const cast: Rule = (node) => {
  const type = DATA_TYPES[intAttribute(node, 'to', 0)];
  return type === undefined || TYPES.includes(type) ? undefined : `casts to ${type}`;
};

/** Our runtime divides floats. */
const div: Rule = ({ inputs }, { isFloat }) =>
  inputs.every(isFloat) ? undefined : 'divides integers that are computed';

const RULES: Record<string, Rule> = {
  AveragePool: averagePool,
  Cast: cast,
  Conv: alongTwoAxes,
  ConvTranspose: alongTwoAxes,
  Div: div,
  Gather: gather,
  LpPool: alongTwoAxes,
  MaxPool: alongTwoAxes,
  Pad: pad,
  Resize: resize,
};

/** @param node in the form of operator set 17. @returns what it does that our runtime does not compute */
export function unsupportedArgument(node: GraphNode, known: KnownValues): string | undefined {
  return Object.hasOwn(RULES, node.op) ? RULES[node.op]!(node, known) : undefined;
}
