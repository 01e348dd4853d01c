/** train-report.html: one file for a browser, which loads no other file. Pure. */
import {
  counted,
  dataShare,
  type EvaluationReport as Evaluation,
  type Histogram,
  isHardlyToldApart,
  NOTABLE_DATA_SHARE,
  STEP_STAGES,
  stepStages,
  type TrainReport,
} from '@facetrain/api';
import { count, escapeHtml, groupTable, page, percent, short, table } from './html.ts';

const WIDTH = 760;
const HEIGHT = 220;
const LEFT = 56;
const BOTTOM = 28;
const TOP = 12;
const RIGHT = 12;
/** Classes c0 to c5 of the style below. */
const COLORS = 6;
/** A line of more points has no dots. */
const MOST_DOTS = 60;

export function trainReportHtml(report: TrainReport): string {
  const { name, attempt } = report.job;
  const sets = [...new Set(report.evaluations.map(({ set }) => set))];
  const starts = (report.attempts ?? []).slice(1);
  const span = { first: report.history[0]?.step ?? 0, last: report.steps, starts };
  const curve = (title: string, read: (interval: TrainReport['history'][number]) => number) =>
    chart([{ name: title, points: report.history.map((interval) => [interval.step, read(interval)]) }], span, short);
  const accuracies = sets.map((set): Series => {
    const results = report.evaluations.filter((result) => result.set === set);
    return { name: set, points: results.map(({ step, accuracy }) => [step, accuracy]) };
  });
  const accuracyBody = () =>
    chart(accuracies, span, (value) => `${short(value * 100)} %`) + evaluationTable(report, sets);
  const accuracyNote = '10-fold, embeddings of picture and mirror image added';
  const hasCurves = report.history.length > 1;
  const hasBadPictures = Boolean(report.dataset.badPictures?.count);
  const learningRateBody = () => curve('learning rate', ({ learningRate }) => learningRate);
  const hasSampleRates = new Set(report.history.map(({ sampleRate }) => sampleRate)).size > 1;
  const sampleRateNote = 'fraction of the negatives, mean over the same intervals';
  const sampleRateBody = () => curve('sample rate', ({ sampleRate }) => sampleRate ?? report.config.loss.sampleRate);
  const throughputBody = () => curve('pictures/s', ({ imagesPerSecond }) => imagesPerSecond);
  const histograms = sets.flatMap((set) => {
    const found = report.evaluations.findLast((result) => result.set === set)?.histograms;
    return found ? [embeddingHistograms(set, found)] : [];
  });
  return page(
    `${name}: training report`,
    STYLE,
    `<h1>${escapeHtml(name)}</h1>
<p class="sub">Training report · attempt ${attempt} · finished ${escapeHtml(report.finishedAt)}</p>
<dl>
${facts(report)
  .map(([term, value]) => `<div><dt>${term}</dt><dd>${escapeHtml(value)}</dd></div>`)
  .join('\n')}
</dl>
${section('Attempts', starts.length > 0, 'as broken lines in the curves', () => attempts(report))}
${section('Loss', hasCurves, `mean over intervals${unrecorded(report)}`, () => curve('loss', ({ loss }) => loss))}
${section('Verification accuracy', sets.length > 0, accuracyNote, accuracyBody)}
${section('Learning rate', hasCurves, 'mean over the same intervals', learningRateBody)}
${section('Sample rate', hasSampleRates, sampleRateNote, sampleRateBody)}
${section('Throughput', hasCurves, 'pictures per second, mean over the same intervals', throughputBody)}
${section('Embeddings', histograms.length > 0, 'of the newest evaluation of each set', () => histograms.join('\n'))}
${section('Time of a step', Boolean(report.stageSeconds), 'mean over all steps, on rank 0', () => stages(report))}
${section('Bad pictures', hasBadPictures, `left out${ofLastAttempt(report)}`, () => badPictures(report))}
<h2>Configuration</h2>
<details><summary>config.json</summary><pre>${escapeHtml(JSON.stringify(report.config, null, 2))}</pre></details>`,
  );
}

function facts(report: TrainReport): [string, string][] {
  const { dataset, model } = report;
  const backbone = report.config.model.onnxPath ?? report.config.model.backbone;
  return [
    ['Loss', `${short(report.lossFirst)} → ${short(report.lossLast)}`],
    ['Steps', `${count(report.steps)}, ${counted(report.config.globalBatchSize, 'picture', count)} each`],
    ['Throughput', `${short(report.imagesPerSecond)} pictures/s`],
    ['Training time', duration(report.trainSeconds)],
    ...(report.checkpoints
      ? [[`Checkpoints${ofLastAttempt(report)}`, checkpoints(report.checkpoints)] as [string, string]]
      : []),
    ['Dataset', `${counted(dataset.images, 'picture', count)} of ${counted(dataset.identities, 'identity', count)}`],
    ...(dataset.badPictures?.count
      ? [['Bad pictures', `${count(dataset.badPictures.count)}, left out`] as [string, string]]
      : []),
    ['Backbone', `${backbone}, ${short(model.parameters / 1e6)} M parameters`],
    ['Embedding', counted(model.embeddingDim, 'value')],
    ['Trainers', `${report.trainers} on ${report.device}`],
    ...(report.precision === undefined
      ? []
      : [['Precision', `${report.precision.toUpperCase()}${skipped(report)}`] as [string, string]]),
    ['Model', `${model.path}, ${short(model.bytes / 2 ** 20)} MiB`],
    ['SHA-256', model.sha256],
    ...(report.resumedFromStep === null
      ? []
      : [['Resumed', `from step ${count(report.resumedFromStep)}`] as [string, string]]),
  ];
}

/** Of what is not known of earlier attempts. */
const ofLastAttempt = ({ attempts: all = [] }: TrainReport) => (all.length > 1 ? ' in the last attempt' : '');

/** Where each attempt began, of those whose steps are in the model. */
function attempts(report: TrainReport): string {
  const all = report.attempts!;
  const rows = all.map(({ job, attempt, startedAt, fromStep, trainers, device }, index) => [
    // The last one may have found all steps done.
    fromStep === report.steps ? 'none' : `${count(fromStep + 1)} to ${count(all[index + 1]?.fromStep ?? report.steps)}`,
    job === report.job.name ? count(attempt) : `${count(attempt)} of ${escapeHtml(job)}`,
    escapeHtml(startedAt),
    `${count(trainers)} on ${escapeHtml(device)}`,
  ]);
  return table(['Steps', 'Attempt', 'Started', 'Trainers'], rows);
}

/** What the curves lack, since a version of before has trained it. */
function unrecorded({ history }: TrainReport): string {
  const { step = 0, steps = step } = history[0] ?? {};
  return step === steps ? '' : `; those of steps 1 to ${count(step - steps)} were not recorded`;
}

function skipped({ skippedSteps }: TrainReport): string {
  return skippedSteps ? `; ${counted(skippedSteps, 'step', count)} skipped, in which a gradient overflowed` : '';
}

function checkpoints(written: NonNullable<TrainReport['checkpoints']>): string {
  const waited = written.whileTrainingWaited;
  const why = waited > 0 ? `; ${count(waited)} without memory for a copy of the state` : '';
  return `${count(written.count)}, for which training stood still for ${short(written.stallSeconds)} s${why}`;
}

function section(title: string, present: boolean, note: string, body: () => string): string {
  return present ? `<h2>${title} <small>${note}</small></h2>\n${body()}` : '';
}

/** Milliseconds and share of each stage, with a bar; and whether the loader holds the training up. */
function stages({ stageSeconds: seconds, device }: TrainReport): string {
  const all = stepStages.reduce((sum, stage) => sum + seconds![stage], 0);
  const share = (stage: (typeof stepStages)[number]) => (all === 0 ? 0 : (100 * seconds![stage]) / all);
  const waits = dataShare(seconds!);
  const verdict =
    waits < NOTABLE_DATA_SHARE
      ? 'The loader keeps up.'
      : `The loader holds the training up: ${short(100 * waits)} % of a step waits for pictures. ` +
        'More threads (trainers.loaderThreads), more CPUs or faster storage help.';
  const where = device === 'cuda' ? ' Times are those of the GPU.' : '';
  const rows = stepStages.map((stage) => [
    stage,
    wrapped(STEP_STAGES[stage]),
    short(1000 * seconds![stage]),
    `<span class="bar" style="width: ${share(stage).toFixed(1)}px"></span> ${share(stage).toFixed(1)} %`,
  ]);
  rows.push(['all', '', short(1000 * all), '']);
  return `<p>${verdict}${where}</p>${table(['Stage', 'What it is', 'ms', 'Share'], rows)}`;
}

function badPictures({ dataset }: TrainReport): string {
  const { count: all, listed } = dataset.badPictures!;
  const rest = all > listed.length ? `<p>and ${count(all - listed.length)} more</p>` : '';
  return `${table(
    ['Picture', 'Why'],
    listed.map(({ name, reason }) => [escapeHtml(name), escapeHtml(reason)]),
  )}${rest}`;
}

function evaluationTable(report: TrainReport, sets: string[]): string {
  const rows = sets.map((set) => {
    const { accuracy, std, threshold, pairs, tarAtFar, step, unresolvedFar, negatives } = report.evaluations.findLast(
      (result) => result.set === set,
    )!;
    const rates = Object.entries(tarAtFar)
      .map(([far, tar]) => `${percent(tar)} @ ${far}`)
      .join(', ')
      .concat(missingRates(Object.keys(unresolvedFar ?? {}), negatives));
    const spread = std === undefined ? '' : ` ± ${(std * 100).toFixed(2)}`;
    const figures = [count(pairs), count(step), `${percent(accuracy)}${spread}`, short(threshold)].map(escapeHtml);
    return [wrapped(set), ...figures, wrapped(rates)];
  });
  const all = table(['Set', 'Pairs', 'Step', 'Accuracy', 'Threshold', 'TAR @ FAR'], rows);
  return all + warnings(report, sets) + groups(report, sets);
}

/** HTML of a text that may break into lines in a cell. */
const wrapped = (text: string) => `<span class="wrapped">${escapeHtml(text)}</span>`;

function warnings(report: TrainReport, sets: string[]): string {
  const alike = sets.filter((set) => isHardlyToldApart(report.evaluations.findLast((result) => result.set === set)!));
  if (alike.length === 0) return '';
  return (
    `<p><b>The model hardly tells pictures apart:</b> those of ${escapeHtml(alike.join(', '))} have nearly the same ` +
    'embedding. The training has hardly begun, or has collapsed: see the loss, and try a lower learning rate.</p>'
  );
}

function groups(report: TrainReport, sets: string[]): string {
  const rows = sets.flatMap((set) =>
    (report.evaluations.findLast((result) => result.set === set)!.groups ?? []).map(
      ({ group, pairs, accuracy, interval: [low, high], falseAcceptRate, falseRejectRate }) => ({
        ...{ set, group, pairs },
        figures: [
          `${percent(accuracy)} (${percent(low)} to ${percent(high)})`,
          percent(falseAcceptRate),
          percent(falseRejectRate),
        ],
      }),
    ),
  );
  const headings = ['Accuracy, 95 % interval', 'False accepts', 'False rejects'];
  return groupTable(headings, rows, 'at the threshold of the whole set');
}

/** Which false accept rates the set says nothing about. */
const missingRates = (rates: string[], negatives: number | undefined) =>
  rates.length > 0
    ? `; not resolved by ${counted(negatives ?? 0, 'pair', count)} of different people: ${rates.join(', ')}`
    : '';

interface Series {
  name: string;
  points: (readonly [step: number, value: number])[];
}

/** A line chart over steps. Points have dots with their values, unless there are many. */
function chart(
  series: Series[],
  span: { first: number; last: number; starts: NonNullable<TrainReport['attempts']> },
  label: (value: number) => string,
): string {
  const points = series.flatMap((one) => one.points);
  const values = points.map(([, value]) => value);
  const ticks = niceTicks(Math.min(...values), Math.max(...values));
  const [low, high] = [ticks[0]!, ticks.at(-1)!];
  const first = Math.min(span.first, ...points.map(([step]) => step));
  const x = (step: number) =>
    (LEFT + ((step - first) / Math.max(span.last - first, 1)) * (WIDTH - LEFT - RIGHT)).toFixed(1);
  const y = (value: number) => (HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - BOTTOM - TOP)).toFixed(1);
  const grid = ticks.map((tick) => {
    const line = `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(tick)}" y2="${y(tick)}"/>`;
    return `${line}<text x="${LEFT - 6}" y="${y(tick)}" dy="4" text-anchor="end">${label(tick)}</text>`;
  });
  const starts = span.starts.map(({ attempt, fromStep }) => {
    const place = `x1="${x(fromStep)}" x2="${x(fromStep)}" y1="${TOP}" y2="${HEIGHT - BOTTOM}"`;
    return `<line class="start" ${place}><title>attempt ${attempt} after step ${count(fromStep)}</title></line>`;
  });
  const color = (index: number) => `c${index % COLORS}`;
  const lines = series.map(({ name, points: own }, index) => {
    const dot = ([step, value]: readonly [number, number]) => {
      const title = `<title>${escapeHtml(name)}, step ${step}: ${label(value)}</title>`;
      return `<circle class="${color(index)}" cx="${x(step)}" cy="${y(value)}" r="2.5">${title}</circle>`;
    };
    const corners = own.map(([step, value]) => `${x(step)},${y(value)}`).join(' ');
    const line = `<polyline class="${color(index)}" points="${corners}"/>`;
    return line + (own.length <= MOST_DOTS ? own.map(dot).join('') : '');
  });
  const legend = series.map(({ name }, index) => `<span class="${color(index)}">${escapeHtml(name)}</span>`).join(' ');
  const description = escapeHtml(series.map(({ name }) => name).join(', '));
  const firstStep = `<text x="${LEFT}" y="${HEIGHT - 8}">${count(first)}</text>`;
  const lastStep = `<text x="${WIDTH - RIGHT}" y="${HEIGHT - 8}" text-anchor="end">step ${count(span.last)}</text>`;
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${description} by step">
${grid.join('\n')}
${starts.join('\n')}
${firstStep}${lastStep}
${lines.join('\n')}
</svg>${series.length > 1 ? `<p class="legend">${legend}</p>` : ''}`;
}

/** Angles of both kinds of pairs in one chart, and norms in another. */
function embeddingHistograms(set: string, found: NonNullable<Evaluation['histograms']>): string {
  const { norm, sameAngle, differentAngle } = found;
  const angles = bars([sameAngle, differentAngle], `angles of pairs of ${set}, in degrees`);
  const kinds = `<span class="c0">one person</span> <span class="c1">different people</span>`;
  return (
    `<h3>${escapeHtml(set)} <small>degrees between the two embeddings of a pair: ${kinds}</small></h3>\n${angles}\n` +
    `<p><small>lengths of the embeddings</small></p>\n${bars([norm], `lengths of embeddings of ${set}`)}`
  );
}

/** Histograms over one axis, each as tall as its own highest bar. */
function bars(all: readonly Histogram[], description: string): string {
  const [low, high] = [Math.min(...all.map(({ min }) => min)), Math.max(...all.map(({ max }) => max))];
  const height = HEIGHT / 2;
  const x = (value: number) => LEFT + ((value - low) / (high - low || 1)) * (WIDTH - LEFT - RIGHT);
  const shapes = all.map(({ min, max, counts }, index) => {
    const width = (max - min) / counts.length;
    const tallest = Math.max(...counts);
    const rectangles = counts.map((number, bar) => {
      const [from, to] = [x(min + bar * width), x(min + (bar + 1) * width)];
      const tall = ((height - BOTTOM - TOP) * number) / tallest;
      const place = `x="${from.toFixed(1)}" y="${(height - BOTTOM - tall).toFixed(1)}"`;
      const title = `<title>${short(min + bar * width)} to ${short(min + (bar + 1) * width)}: ${count(number)}</title>`;
      return `<rect ${place} width="${Math.max(1, to - from).toFixed(1)}" height="${tall.toFixed(1)}">${title}</rect>`;
    });
    return `<g class="bars c${index}">${rectangles.join('')}</g>`;
  });
  const ends =
    `<text x="${LEFT}" y="${height - 8}">${short(low)}</text>` +
    `<text x="${WIDTH - RIGHT}" y="${height - 8}" text-anchor="end">${short(high)}</text>`;
  return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escapeHtml(description)}">
${shapes.join('\n')}
${ends}
</svg>`;
}

/** Four to seven round numbers around [low, high]; three around one number. */
export function niceTicks(low: number, high: number): number[] {
  const span = high - low || Math.abs(high) * 0.1 || 1;
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const unit = power * [1, 2, 5, 10].find((factor) => span / (power * factor) <= 5)!;
  // What never changes is a line in the middle.
  if (low === high) return [low - unit, low, low + unit];
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
@media (max-width: 600px) { svg { overflow: visible; } svg text { font-size: 20px; } }
.wrapped { display: inline-block; min-width: 12em; white-space: normal; overflow-wrap: anywhere; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.grid { stroke: var(--line); }
.start { stroke: var(--soft); stroke-dasharray: 3 4; }
${Array.from({ length: COLORS }, (_, n) => {
  const color = `var(--c${n})`;
  const line = `polyline.c${n} { stroke: ${color}; } circle.c${n} { fill: ${color}; }`;
  return `${line} g.c${n} rect { fill: ${color}; } span.c${n} { color: ${color}; margin-right: 12px; }`;
}).join('\n')}
g.bars rect { opacity: 0.6; }
.bar { display: inline-block; height: 10px; background: var(--c0); }
.legend { margin: 4px 0 12px; }
pre { background: var(--card); border-radius: 8px; padding: 12px; overflow-x: auto; font-size: 13px; }
`;
