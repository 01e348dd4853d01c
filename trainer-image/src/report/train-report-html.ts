/** train-report.html: one file that needs no other, for a browser or an attachment. Pure. */
import type { TrainReport } from '@facetrain/api';
import { count, escape, page, short, table } from './html.ts';

const WIDTH = 760;
const HEIGHT = 220;
const LEFT = 56;
const BOTTOM = 28;
const TOP = 12;
const RIGHT = 12;

export function trainReportHtml(report: TrainReport): string {
  const { name, attempt } = report.job;
  const sets = [...new Set(report.evaluations.map(({ set }) => set))];
  const steps = [report.history[0]?.step ?? 0, report.steps] as const;
  return page(
    `${name}: training report`,
    STYLE,
    `<h1>${escape(name)}</h1>
<p class="sub">Training report · attempt ${attempt} · finished ${escape(report.finishedAt)}</p>
<dl>
${facts(report)
  .map(([term, value]) => `<div><dt>${term}</dt><dd>${escape(value)}</dd></div>`)
  .join('\n')}
</dl>
${section('Loss', report.history.length > 1, 'mean over intervals of this attempt', () => chart([{ name: 'loss', points: report.history.map(({ step, loss }) => [step, loss] as const) }], steps, (value) => short(value), report.steps))}
${section('Verification accuracy', sets.length > 0, '10-fold, embeddings of picture and mirror image added', () =>
  chart(
    sets.map((set) => ({ name: set, points: report.evaluations.filter((result) => result.set === set).map(({ step, accuracy }) => [step, accuracy] as const) })),
    steps,
    (value) => `${short(value * 100)} %`,
    report.steps,
  ) + evaluationTable(report, sets))}
${section('Learning rate', report.history.length > 1, 'mean over the same intervals', () => chart([{ name: 'learning rate', points: report.history.map(({ step, learningRate }) => [step, learningRate] as const) }], steps, (value) => short(value), report.steps))}
<h2>Configuration</h2>
<details><summary>config.json</summary><pre>${escape(JSON.stringify(report.config, null, 2))}</pre></details>`,
  );
}

function facts(report: TrainReport): [string, string][] {
  const { dataset, model } = report;
  const backbone = report.config.model.onnxPath ?? report.config.model.backbone;
  return [
    ['Loss', `${short(report.lossFirst)} → ${short(report.lossLast)}`],
    ['Steps', `${count(report.steps)}, ${count(report.config.globalBatchSize)} pictures each`],
    ['Throughput', report.imagesPerSecond === 0 ? 'no step in this attempt' : `${short(report.imagesPerSecond)} pictures/s`],
    ['Training time', duration(report.trainSeconds)],
    ['Dataset', `${count(dataset.images)} pictures of ${count(dataset.identities)} identities`],
    ['Backbone', `${backbone}, ${short(model.parameters / 1e6)} M parameters`],
    ['Embedding', `${model.embeddingDim} values`],
    ['Trainers', `${report.trainers} on ${report.device}`],
    ['Model', `${model.path}, ${short(model.bytes / 2 ** 20)} MiB`],
    ['SHA-256', model.sha256],
    ...(report.resumedFromStep === null ? [] : [['Resumed', `from step ${count(report.resumedFromStep)}`] as [string, string]]),
  ];
}

function section(title: string, present: boolean, note: string, body: () => string): string {
  return present ? `<h2>${title} <small>${note}</small></h2>\n${body()}` : '';
}

function evaluationTable(report: TrainReport, sets: string[]): string {
  const rows = sets.map((set) => {
    const { accuracy, std, threshold, pairs, tarAtFar, step } = report.evaluations.findLast((result) => result.set === set)!;
    const rates = Object.entries(tarAtFar).map(([far, tar]) => `${short(tar * 100)} % @ ${far}`).join(', ');
    const spread = std === undefined ? '' : ` ± ${short(std * 100)}`;
    return [set, count(pairs), count(step), `${short(accuracy * 100)}${spread} %`, short(threshold), rates].map(escape);
  });
  return table(['Set', 'Pairs', 'Step', 'Accuracy', 'Threshold', 'TAR @ FAR'], rows);
}

interface Series {
  name: string;
  points: (readonly [step: number, value: number])[];
}

/** A line chart over steps; the last point carries its value. */
function chart(series: Series[], [firstStep]: readonly [number, number], label: (value: number) => string, lastStep: number): string {
  const values = series.flatMap(({ points }) => points.map(([, value]) => value));
  const ticks = niceTicks(Math.min(...values), Math.max(...values));
  const [low, high] = [ticks[0]!, ticks.at(-1)!];
  const start = Math.min(firstStep, ...series.flatMap(({ points }) => points.map(([step]) => step)));
  const x = (step: number) => LEFT + ((step - start) / Math.max(lastStep - start, 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value: number) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - BOTTOM - TOP);
  const at = (step: number, value: number) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;
  const grid = ticks.map((tick) => `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(tick).toFixed(1)}" y2="${y(tick).toFixed(1)}"/><text x="${LEFT - 6}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${label(tick)}</text>`);
  const lines = series.map(({ name, points }, index) => {
    const colour = `c${index % 6}`;
    const dots = points.length <= 60 ? points.map(([step, value]) => `<circle class="${colour}" cx="${x(step).toFixed(1)}" cy="${y(value).toFixed(1)}" r="2.5"><title>${escape(name)}, step ${step}: ${label(value)}</title></circle>`) : [];
    return `<polyline class="${colour}" points="${points.map(([step, value]) => at(step, value)).join(' ')}"/>${dots.join('')}`;
  });
  const legend = series.length > 1 ? `<p class="legend">${series.map(({ name }, index) => `<span class="c${index % 6}">${escape(name)}</span>`).join(' ')}</p>` : '';
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escape(series.map(({ name }) => name).join(', '))} by step">
${grid.join('\n')}
<text x="${LEFT}" y="${HEIGHT - 8}">${count(start)}</text><text x="${WIDTH - RIGHT}" y="${HEIGHT - 8}" text-anchor="end">step ${count(lastStep)}</text>
${lines.join('\n')}
</svg>${legend}`;
}

/** Four to seven round numbers around [low, high]. */
export function niceTicks(low: number, high: number): number[] {
  const span = high - low || Math.abs(high) * 0.1 || 1;
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const unit = power * [1, 2, 5, 10].find((factor) => span / (power * factor) <= 5)!;
  const first = Math.floor(low / unit);
  const last = Math.max(Math.ceil(high / unit), first + 1);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * unit);
}

function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${short(seconds)} s`;
}

const STYLE = `
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.grid { stroke: var(--line); }
${[0, 1, 2, 3, 4, 5].map((n) => `polyline.c${n} { stroke: var(--c${n}); } circle.c${n} { fill: var(--c${n}); } span.c${n} { color: var(--c${n}); margin-right: 12px; }`).join('\n')}
.legend { margin: 4px 0 12px; }
pre { background: var(--card); border-radius: 8px; padding: 12px; overflow-x: auto; font-size: 13px; }
`;
