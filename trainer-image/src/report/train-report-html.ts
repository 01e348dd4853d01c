/** train-report.html: one file that needs no other, for a browser or an attachment. Pure. */
import type { TrainReport } from '@facetrain/api';

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
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(name)}: training report</title>
<style>${STYLE}</style>
</head>
<body>
<main>
<h1>${escape(name)}</h1>
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
<details><summary>config.json</summary><pre>${escape(JSON.stringify(report.config, null, 2))}</pre></details>
</main>
</body>
</html>
`;
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
    return [set, count(pairs), count(step), `${short(accuracy * 100)}${spread} %`, short(threshold), rates].map((cell) => `<td>${escape(cell)}</td>`).join('');
  });
  return `<div class="wide"><table><thead><tr><th>Set</th><th>Pairs</th><th>Step</th><th>Accuracy</th><th>Threshold</th><th>TAR @ FAR</th></tr></thead>
<tbody>${rows.map((row) => `<tr>${row}</tr>`).join('\n')}</tbody></table></div>`;
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

function short(value: number): string {
  return Number(value.toPrecision(4)).toString();
}

function count(value: number): string {
  return value.toLocaleString('en-US');
}

function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${short(seconds)} s`;
}

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

const STYLE = `
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #606a76; --line: #d9dee4; --paper: #fff; --card: #f5f7f9; --c0: #0b63ce; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #b45309; --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa5b1; --line: #333b44; --paper: #14181c; --card: #1d2329; --c0: #6cb0ff; --c1: #ff9a63; --c2: #63d08a; --c3: #cf9bff; --c4: #f4c04e; --c5: #5cc9de; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 800px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere; }
h2 { margin: 36px 0 8px; font-size: 18px; }
small, .sub, dt, summary { color: var(--soft); font-weight: normal; }
small { font-size: 13px; }
.sub { margin: 2px 0 20px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 8px; margin: 0; }
dl div { background: var(--card); border-radius: 8px; padding: 8px 12px; }
dt { font-size: 12px; } dd { margin: 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.grid { stroke: var(--line); }
${[0, 1, 2, 3, 4, 5].map((n) => `polyline.c${n} { stroke: var(--c${n}); } circle.c${n} { fill: var(--c${n}); } span.c${n} { color: var(--c${n}); margin-right: 12px; }`).join('\n')}
.legend { margin: 4px 0 12px; } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 8px; } th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); white-space: nowrap; } th { color: var(--soft); font-weight: normal; }
pre { background: var(--card); border-radius: 8px; padding: 12px; overflow-x: auto; font-size: 13px; }
`;
