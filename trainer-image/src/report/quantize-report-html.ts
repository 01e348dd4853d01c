/** report.html of a quantized model: one file for a browser, which loads no other file. Pure. */
import { type Comparison, type Metrics, type QuantizedLayer, type QuantizeReport, rangeText } from '@facetrain/api';
import { count, escapeHtml, page, short, table } from './html.ts';

const BAR_WIDTH = 170;
const BAR_HEIGHT = 7;

export function renderQuantizeReport(report: QuantizeReport): string {
  const { name, attempt } = report.job;
  return page(
    `${name}: quantization report`,
    STYLE,
    `<h1>${escapeHtml(name)}</h1>
<p class="sub">EasyQuant to 7 bits · attempt ${attempt}</p>
${verdict(report)}
<dl>
${facts(report)
  .map(([term, value]) => `<div><dt>${term}</dt><dd>${escapeHtml(value)}</dd></div>`)
  .join('\n')}
</dl>
${verification(report.metrics.comparisons)}
${outputs(report.metrics.outputs ?? [])}
${errorSplit(report.errorSplit)}
${realNodes(report.realNodes ?? [])}
<h2>Layers <small>outputs against FP32, mean over the calibration pictures</small></h2>
${layerTable(report.layers)}
<h2>Origin</h2>
<dl class="wide">
<div><dt>FP32 model, SHA-256</dt><dd>${escapeHtml(report.source.sha256)}</dd></div>
<div><dt>model.int7.onnx, SHA-256</dt><dd>${escapeHtml(report.model.sha256)}</dd></div>
<div><dt>Calibration pictures, SHA-256</dt><dd>${escapeHtml(report.calibration.sha256)}</dd></div>
</dl>`,
  );
}

function verdict({ gate }: QuantizeReport): string {
  const bounds = [
    ...(gate.maxAccuracyDrop === null ? [] : [`accuracy drop at most ${points(gate.maxAccuracyDrop)}`]),
    ...(gate.minMeanCosine === null ? [] : [`mean cosine at least ${gate.minMeanCosine}`]),
    ...(gate.maxTarDrop === undefined ? [] : [`drop of the true accept rate at most ${points(gate.maxTarDrop)}`]),
    ...(gate.minWorstCosine === undefined ? [] : [`worst cosine at least ${gate.minWorstCosine}`]),
  ];
  const remarks = [...(gate.notJudged ?? []).map((sentence) => `${sentence}.`), ...(gate.easySets ? [EASY_SETS] : [])];
  const notes = remarks.map((remark) => `<p class="easy">${escapeHtml(remark)}</p>`).join('');
  if (bounds.length === 0) return `<p class="gate open"><b>No gate</b> The job sets no bounds.</p>${notes}`;
  if (gate.passed) return `<p class="gate passed"><b>Gate passed</b> ${escapeHtml(bounds.join(', '))}.</p>${notes}`;
  const failures = gate.failures.map((failure) => `<li>${escapeHtml(failure)}</li>`).join('');
  return `<div class="gate missed"><b>Gate missed</b> The model is not published.<ul>${failures}</ul></div>${notes}`;
}

const EASY_SETS =
  'The evaluation sets are easy: a well trained FP32 model makes few errors on them, so their accuracy shows little ' +
  'of what INT7 loses. Add harder pairs, such as CFP-FP, CPLFW or your own, and judge by true accept rates.';

function facts({ metrics, source, model, calibration, search, layers }: QuantizeReport): [string, string][] {
  const scales =
    search.rounds === 0
      ? 'scales of the maximum'
      : `${search.rounds} × ${count(search.candidates)} scales in [${search.lower}, ${search.upper}]`;
  const corrections = [
    ...(search.equalize ? ['channels equalized'] : []),
    ...(search.biasCorrection ? ['bias corrected'] : []),
  ];
  const before = Object.values(source.externalData ?? {}).reduce((sum, { bytes }) => sum + bytes, source.bytes);
  return [
    ['Mean cosine of embeddings', cosine(metrics.meanCosine)],
    ['Worst picture in a hundred', cosine(metrics.percentile1Cosine)],
    ...(metrics.worstCosine === undefined
      ? []
      : [['Worst picture of all', cosine(metrics.worstCosine)] as [string, string]]),
    ...measuredOn(metrics),
    ...(metrics.accuracyDrop === null
      ? []
      : [['Largest accuracy drop', points(metrics.accuracyDrop)] as [string, string]]),
    ['Size', `${mebibytes(before)} → ${mebibytes(model.bytes)} MiB, ${Math.round((model.bytes / before) * 100)} %`],
    ['Model', `${short(source.parameters / 1e6)} M parameters, ${source.channelOrder.toUpperCase()}`],
    ...(source.input ? [['Input', inputText(source.input)] as [string, string]] : []),
    ['Multiplications', `${short(layers.reduce((sum, { macs }) => sum + macs, 0) / 1e6)} M a picture`],
    ['Calibration', `${count(calibration.images)} pictures, seed ${calibration.seed}`],
    ['Search', [scales, ...corrections].join(', ')],
    ...(source.removed ?? []).map((sentence): [string, string] => ['Left out', sentence]),
  ];
}

/** Each output of a model that is no embedding. */
function outputs(all: NonNullable<Metrics['outputs']>): string {
  if (all.length === 0) return '';
  const rows = all.map(({ name, meanCosine, percentile1Cosine, top1Agreement }) => [
    escapeHtml(name),
    cosine(meanCosine),
    cosine(percentile1Cosine),
    top1Agreement === null ? '–' : percent(top1Agreement),
  ]);
  return `<h2>Outputs <small>INT7 against FP32</small></h2>\n${table(
    ['Output', 'Mean cosine', 'Worst in a hundred', 'Same largest number'],
    rows,
  )}`;
}

/** Which part of the network the error comes from. */
function errorSplit(split: QuantizeReport['errorSplit']): string {
  if (!split) return '';
  const parts = [
    ['Weights and biases', split.weights],
    ['Tensors that convolutions multiply, 7 bits', split.operands],
    ['Other tensors, 8 bits: added or mapped', split.others],
    ['All of them: the INT7 model', split.all],
  ] as const;
  const widest = Math.max(...parts.map(([, value]) => degrees(value)), 1e-9);
  const rows = parts.map(([part, value]) => [
    part,
    cosine(value),
    `${bar([degrees(value) / widest], 'angle', BAR_WIDTH)} ${degrees(value).toFixed(2)}°`,
  ]);
  const pictures = split.source === 'heldOut' ? SOURCES.heldOut : 'calibration pictures';
  const note = `one part in integers, the rest FP32; ${count(split.pictures)} ${pictures}`;
  const all = table(['In integers', 'Mean cosine', 'Angle'], rows);
  return `<h2>Where the error comes from <small>${note}</small></h2>\n${all}`;
}

/** What stays FP32, and why. */
function realNodes(nodes: NonNullable<QuantizeReport['realNodes']>): string {
  if (nodes.length === 0) return '';
  const rows = nodes.map(({ node, reason }) => [escapeHtml(node), escapeHtml(reason)]);
  return `<h2>In FP32 <small>nodes without a quantized form</small></h2>\n${table(['Node', 'What'], rows)}`;
}

const SOURCES = {
  evaluation: 'pictures of the verification sets, mirror images included',
  heldOut: 'held-out pictures of the calibration dataset',
  calibration: 'calibration picture, the only one of its dataset',
};

function measuredOn({ measuredOn: on }: Metrics): [string, string][] {
  return on ? [['Cosines measured on', `${count(on.pictures)} ${SOURCES[on.source]}`]] : [];
}

function verification(comparisons: Comparison[]): string {
  if (comparisons.length === 0) return '';
  const note = '10-fold, embeddings of picture and mirror image added';
  return `<h2>Verification <small>${note}</small></h2>\n${setTable(comparisons)}`;
}

function setTable(comparisons: Comparison[]): string {
  const rates = [...new Set(comparisons.flatMap(({ fp32 }) => Object.keys(fp32.tarAtFar)))];
  const accuracy = ({ accuracy: mean, std }: Comparison['fp32']) =>
    `${percent(mean)} <small>± ${(std * 100).toFixed(2)}</small>`;
  const rows = comparisons.map(({ set, pairs, fp32, int7, drop, meanCosine, unresolvedFar = [] }) => [
    escapeHtml(set),
    count(pairs),
    accuracy(fp32),
    accuracy(int7),
    points(drop),
    cosine(meanCosine),
    ...rates.map(
      (rate) =>
        `${rateOf(fp32, rate)} → ${rateOf(int7, rate)}${unresolvedFar.includes(rate) ? ` <small>${TOO_FEW}</small>` : ''}`,
    ),
  ]);
  return table(
    ['Set', 'Pairs', 'FP32', 'INT7', 'Drop', 'Mean cosine', ...rates.map((rate) => `TAR @ ${escapeHtml(rate)}`)],
    rows,
  );
}

const TOO_FEW = 'too few pairs';

function rateOf({ tarAtFar }: Comparison['fp32'], rate: string): string {
  const found = tarAtFar[rate];
  return found === undefined ? '–' : percent(found);
}

function layerTable(all: QuantizedLayer[]): string {
  const widest = Math.max(
    ...all.flatMap(({ cosineStart, cosine: found }) => [degrees(cosineStart), degrees(found)]),
    1e-9,
  );
  const mostMacs = Math.max(...all.map(({ macs }) => macs), 1);
  const named = ({ name, kind }: QuantizedLayer) =>
    `<span class="name" title="${escapeHtml(name)}">${escapeHtml(name)}</span> <small>${kind}</small>`;
  const rows = all.map((layer) => [
    named(layer),
    layer.bits === 32 ? 'real' : String(layer.bits),
    layer.macs === 0 ? '' : `${bar([layer.macs / mostMacs], 'macs', 60)} ${(layer.macs / 1e6).toFixed(1)} M`,
    `${bar([degrees(layer.cosineStart) / widest, degrees(layer.cosine) / widest], 'angle', BAR_WIDTH)}`,
    `<span class="before">${cosine(layer.cosineStart)}</span> → ${cosine(layer.cosine)}`,
    layer.saturation === 0
      ? ''
      : `<span class="${layer.saturation > 0.01 ? 'high' : ''}">${percent(layer.saturation)}</span>`,
    layer.inputScale === null ? '' : layer.inputScale.toPrecision(3),
    layer.weightSumMax === null ? '' : count(layer.weightSumMax),
  ]);
  const headings = [
    'Layer',
    explained('Bits', 'of the integers it reads: 7 where weights multiply them, 8 where they are only added or mapped'),
    'Multiplications',
    explained('Angle', 'between the output and that of FP32, in the space of its values; short is good') +
      ' <i class="key before"></i> from the maximum <i class="key after"></i> found',
    'Cosine',
    explained('Clipped', 'share of the input’s values that the scale clips'),
    explained('Input scale', 'real value of one step of the input'),
    explained('Σ |w|', 'largest sum of |weight| over one output channel: 63 times it bounds the accumulator'),
  ];
  return table(headings, rows);
}

/** A heading with a tooltip. */
function explained(heading: string, title: string): string {
  return `<abbr title="${title}">${heading}</abbr>`;
}

/** Horizontal bars, one below the other, of lengths in [0, 1]. The last one is emphasized. */
function bar(lengths: number[], kind: string, width: number): string {
  const bars = lengths.map((length, index) => {
    const role = index === lengths.length - 1 ? 'after' : 'before';
    const y = index * (BAR_HEIGHT + 1);
    const drawn = Math.max(length * width, 0.5).toFixed(1);
    return `<rect class="${role}" y="${y}" width="${drawn}" height="${BAR_HEIGHT}" rx="1.5"/>`;
  });
  const height = lengths.length * (BAR_HEIGHT + 1) - 1;
  const size = `viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"`;
  return `<svg class="bar ${kind}" ${size} aria-hidden="true">${bars.join('')}</svg>`;
}

function degrees(value: number): number {
  return (Math.acos(Math.min(Math.max(value, -1), 1)) * 180) / Math.PI;
}

function cosine(value: number): string {
  return value.toFixed(4);
}

function percent(value: number): string {
  return `${(value * 100).toFixed(2)} %`;
}

/** A difference of accuracies, in percentage points. */
function points(value: number): string {
  return `${(value * 100).toFixed(2)} pt`;
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(2);
}

const STYLE = `
main { max-width: 1180px; }
table { font-size: 14px; }
.gate {
  border-radius: 8px; padding: 10px 14px; margin: 0 0 16px; background: var(--card);
  border-left: 4px solid var(--soft);
}
.gate b { margin-right: 8px; }
.gate.passed { border-color: var(--c2); }
.gate.passed b { color: var(--c2); }
.easy { color: var(--soft); }
.gate.missed { border-color: var(--c1); }
.gate.missed b { color: var(--c1); }
.gate ul { margin: 6px 0 0; padding-left: 20px; }
dl.wide { grid-template-columns: 1fr; }
dl.wide dd { font: 13px/1.5 ui-monospace, monospace; }
td { font-variant-numeric: tabular-nums; }
.name {
  display: inline-block; max-width: 240px; overflow: hidden; text-overflow: ellipsis; vertical-align: bottom;
}
svg.bar { display: inline-block; width: auto; vertical-align: middle; }
rect.after { fill: var(--c0); }
rect.before { fill: var(--soft); opacity: .45; }
.macs rect.after { fill: var(--soft); opacity: .6; }
td .before, .key { color: var(--soft); }
.key { display: inline-block; width: 14px; height: 8px; border-radius: 2px; margin-left: 8px; }
.key.before { background: var(--soft); opacity: .45; }
.key.after { background: var(--c0); }
abbr { text-decoration: underline dotted; cursor: help; }
.high { color: var(--c1); }
`;

/** Range, and layout and element type where they are not NCHW and float32. */
function inputText({ layout, elementType, ...range }: NonNullable<QuantizeReport['source']['input']>): string {
  return [rangeText(range), layout, elementType].filter(Boolean).join(', ');
}
