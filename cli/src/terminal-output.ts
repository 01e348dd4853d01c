/** Text for people: a status line on standard error, and how tables, sizes, durations and progress are written. */
import { dataShare, NOTABLE_DATA_SHARE, type Progress } from '@facetrain/api';
import { type Logger, pino } from 'pino';

const terminal = process.stderr.isTTY === true && process.env.TERM !== 'dumb';
/** Between lines of one stage, where standard error is no terminal: with news, and without. */
const LINE_MILLISECONDS = 10_000;
const SAME_LINE_MILLISECONDS = 60_000;

/**
 * On a terminal one line that is overwritten; elsewhere a new line when the stage changes, and then every 10 s. A line
 * without news comes once a minute, as a sign of life.
 */
export class StatusLine {
  #stage = '';
  #text = '';
  #last = 0;
  #painted = false;

  /** @param stage such as "Training"; a new one is shown at once */
  show(stage: string, detail: string): void {
    const text = oneLine(detail ? `${stage}: ${detail}` : stage);
    if (terminal) {
      const width = (process.stderr.columns ?? 80) - 1;
      process.stderr.write(`\r\x1b[K${text.length > width ? `${text.slice(0, width - 1)}…` : text}`);
      this.#painted = true;
      return;
    }
    const now = Date.now();
    const wait = text === this.#text ? SAME_LINE_MILLISECONDS : LINE_MILLISECONDS;
    if (stage === this.#stage && now - this.#last < wait) return;
    this.#stage = stage;
    this.#text = text;
    this.#last = now;
    process.stderr.write(`${text}\n`);
  }

  /** A line that stays. */
  print(text: string): void {
    this.clear();
    process.stderr.write(`${text}\n`);
  }

  clear(): void {
    if (this.#painted) process.stderr.write('\r\x1b[K');
    this.#painted = false;
  }
}

/**
 * Words of others in one line of a terminal: of a pod, a node, an Event. They may hold line breaks and escape
 * sequences.
 */
export const oneLine = (text: string): string =>
  text
    .replace(/\s+/g, (space) => (/^ +$/.test(space) ? space : ' '))
    .replace(/\p{Cc}/gu, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`);

/** A logger whose warnings and errors are lines for people. */
export function warningsOn(line: StatusLine): Logger {
  const write = (entry: string) => line.print(`Warning: ${(JSON.parse(entry) as { msg?: string }).msg ?? entry}`);
  return pino({ level: 'warn', base: null, timestamp: false }, { write });
}

/** 45 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** @param share 1 is 100 % */
export const percent = (share: number) => `${(100 * share).toFixed(2)} %`;

/** In powers of 1000: 512 B, 17 kB, 4.90 MB. */
export function bytes(count: number): string {
  if (count < 1000) return `${count} B`;
  const units = ['kB', 'MB', 'GB', 'TB'];
  const power = Math.min(Math.floor(Math.log10(count) / 3), units.length);
  return `${(count / 1000 ** power).toFixed(power === 1 ? 0 : 2)} ${units[power - 1]}`;
}

/**
 * A progress report without its stage: step 120 of 200, epoch 4.8, loss 12.31, 35 images/s, 1 min 20 s left. Where
 * the loader holds the training up, it says how much of a step waits for pictures.
 */
export function progressDetail(progress: Progress): string {
  const { step, totalSteps, epoch, loss, imagesPerSecond, stageSeconds, etaSeconds } = progress;
  const waits = stageSeconds ? dataShare(stageSeconds) : 0;
  return [
    totalSteps > 0 ? `step ${step} of ${totalSteps}` : '',
    epoch > 0 ? `epoch ${epoch.toFixed(1)}` : '',
    loss === null ? '' : `loss ${loss.toFixed(2)}`,
    imagesPerSecond === null ? '' : `${imagesPerSecond.toFixed(1)} images/s`,
    waits < NOTABLE_DATA_SHARE ? '' : `${(100 * waits).toFixed(0)} % of the time waiting for pictures`,
    etaSeconds === null ? '' : `${duration(etaSeconds)} left`,
  ]
    .filter((part) => part !== '')
    .join(', ');
}

/** Two columns, aligned. */
export function table(rows: [string, string][]): string {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}\n`).join('');
}
