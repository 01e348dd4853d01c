/** report.html of a quantized model: one file for a browser, which loads no other file. Pure. */
import {
  type Comparison,
  counted,
  type Histogram,
  type Metrics,
  type QuantizedLayer,
  type QuantizeReport,
  rangeText,
  type SetScores,
} from '@facetrain/api';
import { count, escapeHtml, groupTable, page, percent, short, table } from './html.ts';

const BAR_WIDTH = 170;
const BAR_HEIGHT = 7;

/** @param pictures addresses of data (data:image/…) with report.worstPictures, in their order */
export function renderQuantizeReport(report: QuantizeReport, pictures: readonly string[] = []): string {
  const { name, attempt } = report.job;
  return page(
    `${name}: quantization report`,
    STYLE,
    `<h1>${escapeHtml(name)}</h1>
<p class="sub">EasyQuant to 7 bits${report.search.budget ? ', some activations to 8' : ''} · attempt ${attempt}</p>
${verdict(report)}
<dl>
${facts(report)
  .map(([term, value]) => `<div><dt>${term}</dt><dd>${escapeHtml(value)}</dd></div>`)
  .join('\n')}
</dl>
${verification(report.metrics.comparisons)}
${(report.scores ?? []).map(scoreCharts).join('\n')}
${outputs(report.metrics.outputs ?? [])}
${paperSearch(report)}
${pictureCloseness(report, pictures)}
${errorSplit(report)}
${sizes(report)}
${latency(report)}
${realNodes(report.realNodes ?? [])}
${tail(report)}
${folded(report.folded)}
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
    ...(gate.maxGroupAccuracyDrop === undefined
      ? []
      : [`accuracy drop of any group at most ${points(gate.maxGroupAccuracyDrop)}`]),
    ...(gate.maxGroupTarDrop === undefined
      ? []
      : [`drop of any group’s true accept rate at most ${points(gate.maxGroupTarDrop)}`]),
    ...(gate.minWorstCosine === undefined ? [] : [`worst cosine at least ${gate.minWorstCosine}`]),
    ...(gate.minTop1Agreement === undefined
      ? []
      : [`same largest number on at least ${percent(gate.minTop1Agreement)} of the pictures`]),
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
      : `${search.rounds} × ${counted(search.candidates, 'scale', count)} in [${search.lower}, ${search.upper}]`;
  const corrections = [
    ...(search.zeroPoints ? ['zero points'] : []),
    ...(search.equalize ? ['channels equalized'] : []),
    ...(search.biasCorrection ? ['bias corrected'] : []),
  ];
  const macs = (of: readonly QuantizedLayer[]) => of.reduce((sum, layer) => sum + layer.macs, 0);
  const wide = layers.filter(({ bits, kind }) => bits === 8 && (kind === 'conv' || kind === 'fc'));
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
    ['Multiplications', `${short(macs(layers) / 1e6)} M a picture`],
    ...(search.budget
      ? [
          [
            'Activations of 8 bits',
            `${wide.length} ${wide.length === 1 ? 'layer' : 'layers'}, ${percent(macs(wide) / macs(layers))} of the ` +
              `multiplications, of ${percent(search.budget)} allowed`,
          ] as [string, string],
        ]
      : []),
    ['Calibration', `${counted(calibration.images, 'picture', count)}, seed ${calibration.seed}`],
    ['Search', [scales, ...corrections].join(', ')],
    ...(source.removed ?? []).map((sentence): [string, string] => ['Left out', sentence]),
  ];
}

/** Each output of a model that is no embedding. */
function outputs(all: NonNullable<Metrics['outputs']>): string {
  if (all.length === 0) return '';
  const rows = all.map(({ name, meanCosine, percentile1Cosine, worstCosine, top1Agreement }) => [
    escapeHtml(name),
    cosine(meanCosine),
    cosine(percentile1Cosine),
    worstCosine === undefined ? '–' : cosine(worstCosine),
    top1Agreement === null ? '–' : percent(top1Agreement),
  ]);
  return `<h2>Outputs <small>INT7 against FP32</small></h2>\n${table(
    ['Output', 'Mean cosine', 'Worst in a hundred', 'Worst of all', 'Same largest number'],
    rows,
  )}`;
}

/** The model beside one by the search of the paper alone. */
function paperSearch({ metrics, paperSearch: paper }: QuantizeReport): string {
  if (!paper) return '';
  const row = (what: string, of: (metrics: Metrics) => string) => [escapeHtml(what), of(metrics), of(paper)];
  const several = metrics.outputs ?? [];
  const rows = [
    row('Mean cosine', ({ meanCosine }) => cosine(meanCosine)),
    row('Worst in a hundred', ({ percentile1Cosine }) => cosine(percentile1Cosine)),
    row('Worst of all', ({ worstCosine }) => cosine(worstCosine!)),
    ...several.map(({ name }, i) => row(`Mean cosine of ${name}`, ({ outputs: all }) => cosine(all![i]!.meanCosine))),
    ...metrics.comparisons.map(({ set }, i) =>
      row(`Accuracy on ${set}`, ({ comparisons }) => percent(comparisons[i]!.int7.accuracy)),
    ),
  ];
  const note = 'EasyQuant without zero points, balanced ranges, corrected biases and operands of 8 bits';
  return `<h2>The paper’s search <small>${note}</small></h2>\n${table(['', 'This model', 'By the paper alone'], rows)}`;
}

/** Which part of the network the error comes from. */
function errorSplit({ errorSplit: split, search, metrics }: QuantizeReport): string {
  if (!split) return '';
  const parts = [
    ['Weights and biases', split.weights],
    ['Tensors that convolutions multiply, 7 bits or 8', split.operands],
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
  const isOfOperands = split.operands < Math.min(split.weights, split.others);
  const hint = !search.budget && isOfOperands && metrics.meanCosine < LOW_COSINE ? `\n<p>${BUDGET_HINT}</p>` : '';
  return `<h2>Where the error comes from <small>${note}</small></h2>\n${all}${hint}`;
}

/** Below it operands of 8 bits are worth a try (decision 0062). */
const LOW_COSINE = 0.99;

const BUDGET_HINT =
  'Most of it is of operands in 7 bits. search.budget (--budget), such as 0.5, lets some have 8. That brought three ' +
  'networks of four closer to FP32 and one further away: compare.';

/** What stays FP32, and why. */
function realNodes(nodes: NonNullable<QuantizeReport['realNodes']>): string {
  if (nodes.length === 0) return '';
  const rows = nodes.map(({ node, reason }) => [escapeHtml(node), escapeHtml(reason)]);
  return `<h2>In FP32 <small>nodes without a quantized form</small></h2>\n${table(['Node', 'What'], rows)}`;
}

/** What our runtime does not compute, and why. */
function tail({ tail: found }: QuantizeReport): string {
  if (!found) return '';
  const rows = found.causes.map(({ node, reason }) => [escapeHtml(node), escapeHtml(reason)]);
  const inputs = found.inputs.map(escapeHtml).join(', ');
  return `<h2>Tail <small>nodes at the end, in FP32</small></h2>
<p>ONNX Runtime computes them (${escapeHtml(found.operators)}). Our runtime gives what is in front of them, which the
cosines are of: ${inputs}.</p>
${table(['Begins with', 'Why'], rows)}`;
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
  return `<h2>Verification <small>${note}</small></h2>\n${setTable(comparisons)}${groups(comparisons)}`;
}

/** The largest drop of each set first. */
function groups(comparisons: Comparison[]): string {
  const rows = comparisons.flatMap(({ set, groups: found = [], unresolvedFar = [] }) =>
    found
      .toSorted((a, b) => b.drop - a.drop)
      .map(({ group, pairs, fp32, int7, drop, tarAtFar = {} }) => ({
        ...{ set, group, pairs },
        figures: [
          percent(fp32.accuracy),
          percent(int7.accuracy),
          points(drop),
          `${percent(fp32.falseAcceptRate)} → ${percent(int7.falseAcceptRate)}`,
          `${percent(fp32.falseRejectRate)} → ${percent(int7.falseRejectRate)}`,
          largestFall(Object.entries(tarAtFar).filter(([rate]) => !unresolvedFar.includes(rate))),
        ],
      })),
  );
  const headings = ['FP32', 'INT7', 'Drop', 'False accepts', 'False rejects', 'Largest fall of the true accept rate'];
  return groupTable(headings, rows, 'at the threshold of the whole set, of each model its own');
}

/** Of true accept rates by false accept rate. */
function largestFall(rates: [rate: string, [fp32: number, int7: number]][]): string {
  const [first] = rates.toSorted(([, a], [, b]) => b[0] - b[1] - (a[0] - a[1]));
  if (!first) return '–';
  const [rate, [fp32, int7]] = first;
  return `${percent(fp32)} → ${percent(int7)} at ${rate}`;
}

/** ROC and histograms of scores of both models on one set. */
function scoreCharts({ set, fp32, int7 }: SetScores): string {
  const name = escapeHtml(set);
  const key = '<i class="line c0"></i> FP32 <i class="line c1"></i> INT7';
  const roc = curves([fp32.roc, int7.roc], {
    low: Math.log10(Math.min(...fp32.roc.map(([far]) => far))),
    label: `ROC of ${name}`,
  });
  const chart = (kind: 'same' | 'different', title: string) =>
    `<figure><figcaption>${title}</figcaption>` +
    `${outlines([fp32[kind], int7[kind]], `${title}, ${name}`, short)}</figure>`;
  return `<h3>${name} <small>${key}</small></h3>
<div class="charts">
<figure><figcaption>ROC: true accept rate by false accept rate</figcaption>${roc}</figure>
${chart('same', 'Cosine of pairs of one person')}
${chart('different', 'Cosine of pairs of different people')}
</div>`;
}

const CHART = { width: 360, height: 190, left: 54, right: 8, top: 8, bottom: 24 };
const plotWidth = CHART.width - CHART.left - CHART.right;
const plotHeight = CHART.height - CHART.top - CHART.bottom;
const svg = (label: string, body: string) =>
  `<svg viewBox="0 0 ${CHART.width} ${CHART.height}" role="img" aria-label="${label}">${body}</svg>`;
const text = (x: number, y: number, anchor: string, content: string) =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${content}</text>`;
const polyline = (index: number, points: (readonly [number, number])[]) =>
  `<polyline class="c${index}" points="${points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ')}"/>`;

/** True accept rates over the logarithm of false accept rates, from 10^low to 1. */
function curves(all: [far: number, tar: number][][], { low, label }: { low: number; label: string }): string {
  const span = -low || 1;
  const floor = Math.floor(Math.min(...all.flat().map(([, tar]) => tar)) * 20) / 20;
  const bottom = Math.min(floor, 0.95);
  const x = (far: number) => CHART.left + ((Math.log10(far) - low) / span) * plotWidth;
  const y = (tar: number) => CHART.top + ((1 - tar) / (1 - bottom)) * plotHeight;
  const decades = Array.from({ length: Math.floor(span) + 1 }, (_, i) => 10 ** -i);
  const rows = [0, 1, 2, 3, 4].map((i) => bottom + ((1 - bottom) * i) / 4);
  const grid = [
    ...rows.map((tar) => gridLine(CHART.left, y(tar), CHART.width - CHART.right, y(tar))),
    ...rows.map((tar) => text(CHART.left - 5, y(tar) + 4, 'end', `${short(tar * 100)} %`)),
    ...decades.map((far) => gridLine(x(far), CHART.top, x(far), CHART.top + plotHeight)),
    ...decades.map((far) =>
      text(x(far), CHART.height - 8, far === 1 ? 'end' : 'middle', far === 1 ? '1' : far.toExponential(0)),
    ),
  ];
  const lines = all.map((points, index) =>
    polyline(
      index,
      points.map(([far, tar]) => [x(far), y(tar)]),
    ),
  );
  return svg(label, grid.join('') + lines.join(''));
}

function gridLine(x1: number, y1: number, x2: number, y2: number): string {
  const [a, b, c, d] = [x1, y1, x2, y2].map((value) => value.toFixed(1));
  return `<line class="grid" x1="${a}" y1="${b}" x2="${c}" y2="${d}"/>`;
}

/** Histograms over one axis as outlines; all have the same bars. */
function outlines(all: Histogram[], label: string, shown: (value: number) => string): string {
  const { min, max } = all[0]!;
  const tallest = Math.max(...all.flatMap(({ counts }) => counts), 1);
  const y = (number: number) => CHART.top + (1 - number / tallest) * plotHeight;
  const lines = all.map(({ counts }, index) => {
    const x = (bar: number) => CHART.left + (bar / counts.length) * plotWidth;
    const corners = counts.flatMap((number, bar): [number, number][] => [
      [x(bar), y(number)],
      [x(bar + 1), y(number)],
    ]);
    return polyline(index, [[x(0), y(0)], ...corners, [x(counts.length), y(0)]]);
  });
  const marks =
    gridLine(CHART.left, y(0), CHART.width - CHART.right, y(0)) +
    text(CHART.left, CHART.height - 8, 'start', shown(min)) +
    text(CHART.width - CHART.right, CHART.height - 8, 'end', shown(max)) +
    text(CHART.left - 5, y(tallest) + 8, 'end', count(tallest));
  return svg(label, marks + lines.join(''));
}

/** How far single pictures are from FP32: all, and the worst. */
function pictureCloseness(
  { angles, worstPictures = [], metrics }: QuantizeReport,
  pictures: readonly string[],
): string {
  if (!angles) return '';
  const on = metrics.measuredOn ? SOURCES[metrics.measuredOn.source] : 'pictures';
  const label = 'Degrees between the FP32 and the INT7 output of a picture';
  const worst = worstPictures.map(({ set, picture, mirrored, cosine: value }, index) => {
    const where = set === null ? `picture ${count(picture)}` : `${set}, pair ${count(Math.floor(picture / 2))}`;
    const side = set === null ? '' : picture % 2 === 0 ? ', left' : ', right';
    const title = escapeHtml(`${where}${side}${mirrored ? ', mirrored' : ''}`);
    const image = pictures[index]
      ? `<img src="${escapeHtml(pictures[index])}" alt="${title}"${mirrored ? ' class="mirrored"' : ''}>`
      : '';
    return `<figure>${image}<figcaption>${cosine(value)}<br><small>${title}</small></figcaption></figure>`;
  });
  return `<h2>Pictures <small>${label}, and the worst of them with their cosine; ${on}</small></h2>
<div class="charts"><figure>${outlines([angles], label, (value) => `${short(value)}°`)}</figure>
<div class="worst">${worst.join('\n')}</div></div>`;
}

function sizes({ sizes: found, source }: QuantizeReport): string {
  if (!found) return '';
  const before = Object.values(source.externalData ?? {}).reduce((sum, { bytes }) => sum + bytes, source.bytes);
  const row = (what: string, bytes: number) => [
    what,
    `${mebibytes(bytes)} MiB`,
    `${((100 * bytes) / before).toFixed(1)} %`,
  ];
  const rows = [
    row('FP32', before),
    ...Object.entries(found.files).map(([name, bytes]) => row(escapeHtml(name), bytes)),
    row('Aim', found.aimBytes),
  ];
  const aim = `the aim is a quarter of FP32 and 16 bytes for each of ${count(found.channels)} output channels`;
  return `<h2>Sizes <small>${aim}</small></h2>\n${table(['File', 'Size', 'Of FP32'], rows)}`;
}

/** What a picture probably takes. */
function latency({ latency: all = [], search }: QuantizeReport): string {
  if (all.length === 0) return '';
  const rows = all.map(({ target, milliseconds, basis }) => [
    escapeHtml(target),
    `${basis === 'simulated' ? 'more than ' : 'about '}${milliseconds} ms`,
    basis === 'simulated'
      ? 'simulated inner loops, without memory'
      : `the rates of two networks, measured on an AMD EPYC${target.includes('AVX-VNNI') ? ', which has AVX512' : ''}`,
  ]);
  const note =
    'an estimate from counted operations, nothing was run: one picture, one thread' +
    (search.budget ? ', as if all activations had 7 bits' : '');
  return `<h2>Time of a picture <small>${note}</small></h2>\n${table(['On', 'Estimate', 'From'], rows)}`;
}

/** What weights have taken in, and what could not be folded. */
function folded(all: QuantizeReport['folded']): string {
  if (!all || all.length === 0) return '';
  const rows = all.map(({ node, into }) => [escapeHtml(node), escapeHtml(into.join(', '))]);
  return `<h2>Folded <small>nodes that scale and shift channels, mostly batch norms</small></h2>
<details><summary>${count(all.length)} became part of the weights and biases of other layers</summary>
${table(['Node', 'Into'], rows)}</details>`;
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
        `${rateOf(fp32, rate)} → ${rateOf(int7, rate)}` +
        (unresolvedFar.includes(rate) ? ` <small>${TOO_FEW}</small>` : ''),
    ),
  ]);
  return table(
    ['Set', 'Pairs', 'FP32', 'INT7', 'Drop', 'Mean cosine', ...rates.map((rate) => `TAR @ ${escapeHtml(rate)}`)],
    rows,
  );
}

const TOO_FEW = 'too few pairs';

function rateOf({ tarAtFar }: Comparison['fp32'], rate: string): string {
  return percent(tarAtFar[rate] ?? null);
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
    explained('Bits', 'of the integers it reads: 7 where weights multiply them, or 8 within the budget; 8 elsewhere'),
    'Multiplications',
    explained('Angle', 'between the output and that of FP32, in the space of its values; short is good') +
      ' <i class="key before"></i> from the maximum <i class="key after"></i> found',
    'Cosine',
    explained('Clipped', 'share of the input’s values that the scale clips'),
    explained('Input scale', 'real value of one step of the input'),
    explained(
      'Σ |w|',
      'largest sum of |weight| over one output channel: 63 times it bounds the accumulator, 127 times with 8 bits',
    ),
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
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 12px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; }
.charts svg { width: 100%; height: auto; display: block; }
.charts text { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
polyline.c0 { stroke: var(--c0); }
polyline.c1 { stroke: var(--c1); }
.line { display: inline-block; width: 16px; border-top: 3px solid; vertical-align: middle; margin-left: 8px; }
.line.c0 { color: var(--c0); }
.line.c1 { color: var(--c1); }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 10px; align-content: start; }
.worst img { width: 84px; height: auto; border-radius: 6px; display: block; }
.worst .mirrored { transform: scaleX(-1); }
abbr { text-decoration: underline dotted; cursor: help; }
.high { color: var(--c1); }
`;

/** Range, and layout and element type where they are not NCHW and float32. */
function inputText({ layout, elementType, ...range }: NonNullable<QuantizeReport['source']['input']>): string {
  return [rangeText(range), layout, elementType].filter(Boolean).join(', ');
}
