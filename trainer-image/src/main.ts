#!/usr/bin/env node
/**
 * The program in the pods: `facetrain-trainer train | quantize | fetch | hold-place | serve`. Exit codes:
 * api/src/exit-codes.ts.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ARTIFACT, ExitCode, FacetrainError, QuantizeConfig, TrainerConfig } from '@facetrain/api';
import { createLog } from './program/log.ts';
import type { Program } from './program/program.ts';
import { type Board, createBoard } from './program/progress-board.ts';
import { startServer } from './program/progress-server.ts';
import { runRanks } from './program/rank-processes.ts';
import { readRanks } from './program/ranks.ts';
import { readConfig } from './program/read-config.ts';
import { reportFailure, reportResult } from './program/report-termination.ts';
import { isStop, stopExitCode, stopSignal } from './program/stop-signal.ts';
import { writeAtomically } from './storage/atomic-files.ts';

const USAGE = `Usage: facetrain-trainer train [--ranks COUNT]
       facetrain-trainer quantize
       facetrain-trainer fetch --uri URI --to PATH [--shared] [--endpoint URL] [--region NAME] [--force-path-style]
                               [--and --uri URI --to PATH ...]
       facetrain-trainer hold-place
       facetrain-trainer serve --folder PATH --port NUMBER

train     trains the job in FACETRAIN_CONFIG (config.json) as RANK of WORLD_SIZE, meeting the other ranks at
          MASTER_ADDR:MASTER_PORT; with --ranks, as so many ranks from RANK on, in a process each, which uses the GPU
          of its number here
quantize  quantizes the model of FACETRAIN_CONFIG and publishes it
fetch     copies files or folders from file:// or s3:// to a path each; with --shared, other processes may do the
          same, and one of them does it for all
hold-place  does nothing until SIGTERM: its pod holds the place of a rank that an elastic gang lacks
serve     serves the files of a folder by HTTP until SIGTERM, below a path that begins with FACETRAIN_SERVE_TOKEN:
          \`kubectl facetrain fetch\` reads a volume so

FACETRAIN_PORT_FILE            receives the port of the progress server
FACETRAIN_TERMINATION_MESSAGE  receives {"code", "message"} after a failure, otherwise {"progress"} of rank 0 or the
                               {"artifact"} (default /dev/termination-log)
FACETRAIN_LOG_LEVEL            trace, debug, info (default), warn, error
`;

/** No step of the quantizer takes this long without activity. */
const QUANTIZER_STALE_SECONDS = 600;

const signal = stopSignal();
let log = createLog({});
for (const event of ['uncaughtException', 'unhandledRejection'] as const)
  process.on(event, (error) => process.exit(reportFailure(error, log)));
// The addon ends its threads in a hook on 'exit', and endAtOnce() the process in a later one. Open servers and timers
// end with it.
process.exit(await main(process.argv.slice(2)));

async function main(args: string[]): Promise<number> {
  try {
    const [mode, ...rest] = args;
    if (mode === '--help' || mode === '-h') {
      process.stdout.write(USAGE);
      return ExitCode.success;
    }
    if (mode === 'fetch') return await fetchMode(rest);
    if (mode === 'train' && rest.length > 0) return await trainRanksMode(rest);
    if (mode === 'serve') return await serveMode(rest);
    if (rest.length > 0) throw usage(rest[0]!, `no arguments after ${mode}`);
    if (mode === 'train') return await trainMode();
    if (mode === 'quantize') return await quantizeMode();
    if (mode === 'hold-place') return await holdPlaceMode();
    throw usage(mode ?? 'no mode', 'train, quantize, fetch, hold-place or serve (see --help)');
  } catch (error) {
    if (!isStop(error, signal)) return reportFailure(error, log);
    log.info({ reason: signal.reason }, 'stopped');
    return stopExitCode(signal);
  }
}

async function trainMode(): Promise<ExitCode> {
  const config = await readConfig(process.env.FACETRAIN_CONFIG, TrainerConfig);
  const ranks = readRanks(process.env);
  log = createLog({ job: config.job.name, rank: ranks.rank, attempt: config.job.attempt });
  const board = createBoard(config.job, 'Preflight');
  // Only rank 0 serves progress. The longest times without activity are a rendezvous, and a collective that waits for a
  // lost peer.
  const served = ranks.rank === 0 ? config.progress : null;
  await using _server = await serve(board, served, config.rendezvousTimeoutSeconds + config.collectiveTimeoutSeconds);
  const { train } = await import('./train/train.ts');
  await endAtOnce();
  const outcome = await train(config, ranks, { log, progress: board, signal });
  // A client that polls the progress server every few seconds has not seen the final values.
  if (ranks.rank === 0) reportResult({ progress: board.current }, log);
  return outcome === 'completed' ? ExitCode.success : stopExitCode(signal);
}

/** The ranks of a pod with several. */
async function trainRanksMode(args: string[]): Promise<number> {
  const [option, text = '', ...rest] = args;
  if (option !== '--ranks' || !/^[1-9]\d{0,2}$/.test(text) || rest.length > 0)
    throw usage('train', '--ranks and how many', args.join(' '));
  const count = Number(text);
  const { job } = await readConfig(process.env.FACETRAIN_CONFIG, TrainerConfig);
  const ranks = readRanks({ ...process.env, LOCAL_WORLD_SIZE: text });
  log = createLog({ job: job.name, attempt: job.attempt });
  return runRanks({ count, firstRank: ranks.rank, args: [process.argv[1]!, 'train'], log, signal });
}

async function quantizeMode(): Promise<ExitCode> {
  const config = await readConfig(process.env.FACETRAIN_CONFIG, QuantizeConfig);
  log = createLog({ job: config.job.name, attempt: config.job.attempt });
  const board = createBoard(config.job, 'Loading');
  await using _server = await serve(board, config.progress, QUANTIZER_STALE_SECONDS);
  const [{ runQuantize }, { artifactStatus }] = await Promise.all([
    import('./quantize/run-quantize.ts'),
    import('./quantize/artifact-files.ts'),
  ]);
  await endAtOnce();
  await runQuantize(config, { log, progress: board, signal } satisfies Program);
  reportResult(
    { artifact: artifactStatus(await readFile(join(config.outputDirectory, ARTIFACT.manifest), 'utf8')) },
    log,
  );
  return ExitCode.success;
}

async function holdPlaceMode(): Promise<ExitCode> {
  log.info('holding the place of a trainer');
  await untilStopped();
  return ExitCode.success;
}

async function serveMode(args: string[]): Promise<ExitCode> {
  const options = { folder: { type: 'string' }, port: { type: 'string' } } as const;
  const { folder, port } = parsed('serve', () => parseArgs({ args, options }).values);
  const token = process.env.FACETRAIN_SERVE_TOKEN ?? '';
  if (folder === undefined || !/^\d{1,5}$/.test(port ?? '') || token === '')
    throw usage('serve', '--folder PATH, --port NUMBER and FACETRAIN_SERVE_TOKEN', 'without one of them');
  const { serveFiles } = await import('./program/file-server.ts');
  await using server = await serveFiles(folder, { port: Number(port), token });
  log.info({ folder, port: server.port }, 'serving files');
  await untilStopped();
  return ExitCode.success;
}

async function untilStopped(): Promise<void> {
  // An immediate end of the event loop would end the process: a signal handler alone does not keep it.
  const alive = setInterval(() => {}, 2 ** 30);
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
  clearInterval(alive);
}

/**
 * From now on the process does not wait for file operations when it exits: storage that hangs is a reason why it ends,
 * and its pod must end, too, before the gang can start again. Loads the addon.
 */
async function endAtOnce(): Promise<void> {
  const { exitNow } = await import('@facetrain/native');
  process.on('exit', exitNow);
}

async function fetchMode(args: string[]): Promise<ExitCode> {
  const requests = splitAt(args, '--and').map(fetchOptions);
  const { fetchTo } = await import('./storage/fetch.ts');
  const { FirstContact, withRetries } = await import('./storage/retries.ts');
  for (const request of requests) {
    const contact = new FirstContact();
    const fetch = () =>
      fetchTo(request, signal, {
        onAnswer: contact.answered,
        onWait: (holder) => log.info({ holder, to: request.to }, 'waiting for another process that fetches the same'),
      });
    const fetched = await withRetries(fetch, {
      signal,
      giveUpAfter: contact.giveUpAfter,
      mayPass: contact.mayPass,
      onRetry: ({ message }, milliseconds) => log.warn({ retryInMs: milliseconds }, message),
    });
    const written = fetched.filter((file) => file.written);
    log.info(
      {
        uri: request.uri,
        files: fetched.length,
        downloaded: written.length,
        bytes: written.reduce((sum, { bytes }) => sum + bytes, 0),
      },
      'fetched',
    );
  }
  return ExitCode.success;
}

/** The parts of a list between the elements that are `separator`. */
function splitAt(list: string[], separator: string): string[][] {
  const parts: string[][] = [[]];
  for (const each of list) {
    if (each === separator) parts.push([]);
    else parts.at(-1)!.push(each);
  }
  return parts;
}

function fetchOptions(args: string[]) {
  const options = {
    uri: { type: 'string' },
    to: { type: 'string' },
    shared: { type: 'boolean', default: false },
    endpoint: { type: 'string' },
    region: { type: 'string' },
    'force-path-style': { type: 'boolean', default: false },
  } as const;
  const values = parsed('fetch', () => parseArgs({ args, options }).values);
  const { uri, to, shared, endpoint, region } = values;
  if (uri === undefined || to === undefined)
    throw usage('fetch', '--uri URI and --to PATH', `without ${uri === undefined ? '--uri' : '--to'}`);
  return {
    uri,
    to,
    shared,
    endpoint: endpoint ?? null,
    region: region ?? null,
    forcePathStyle: values['force-path-style'],
  };
}

/** What `parse` returns. @throws FacetrainError InvalidArgument for options that are not those in --help */
function parsed<T>(mode: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw usage(mode, 'the options in --help', (error as Error).message);
  }
}

/** Starts the progress server; it closes at the end of the scope. Its port is in the log and in FACETRAIN_PORT_FILE. */
async function serve(
  board: Board,
  address: { host: string; port: number } | null,
  staleAfterSeconds: number,
): Promise<AsyncDisposable> {
  if (!address) return { async [Symbol.asyncDispose]() {} };
  const server = await startServer(board, { ...address, staleAfterSeconds });
  const file = process.env.FACETRAIN_PORT_FILE;
  if (file) await writeAtomically(file, `${server.port}\n`);
  log.info({ host: address.host, port: server.port }, 'serving progress');
  return { [Symbol.asyncDispose]: () => server.close() };
}

function usage(subject: string, allowed: string, found = 'not understood'): FacetrainError {
  return new FacetrainError({ code: 'InvalidArgument', subject, found, allowed });
}
