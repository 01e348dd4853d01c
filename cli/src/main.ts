#!/usr/bin/env node
/** `facetrain`: the command line. Parses arguments and prints; what a command does is in commands/. */
import { DEFAULT_CALIBRATION, DEFAULT_CHANNEL_ORDER, DEFAULT_SEARCH, ExitCode, FacetrainError } from '@facetrain/api';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import packageJson from '../package.json' with { type: 'json' };
import type { ChannelOrder } from './commands/eval.ts';
import { StatusLine } from './terminal-output.ts';

const EXIT_CODES = `
Exit codes:
  ${ExitCode.success}    success
  ${ExitCode.failure}    a failure that nobody foresaw
  ${ExitCode.refused}    the input was refused; the message names the file or field, what was there, and what is allowed
  ${ExitCode.gateFailed}    the quantized model missed a bound of its gate; its report was written
  ${ExitCode.peerLost}    a trainer lost a peer, more often than the manifest allows restarts
  ${ExitCode.interrupted}  stopped by Ctrl-C; ${ExitCode.preempted}: by SIGTERM. "run" goes on from the newest checkpoint when it is started again`;

const stop = new AbortController();
let stopCode: number | undefined;
for (const [signal, code] of [
  ['SIGINT', ExitCode.interrupted],
  ['SIGTERM', ExitCode.preempted],
] as const) {
  process.on(signal, () => {
    if (stopCode !== undefined) process.exit(code); // asked twice: at once
    stopCode = code;
    stop.abort(new Error(signal));
    process.stderr.write(`\n${signal}: stopping; once more to stop at once\n`);
  });
}
const { signal } = stop;

interface Outcome {
  /** For `--json`. */
  json: unknown;
  /** For people. */
  text: string;
  exitCode?: number;
}

/** What every command shares: --json, and what happens to errors. */
function action(body: (...args: never[]) => Promise<Outcome>) {
  return async function (this: Command, ...args: unknown[]) {
    const { json } = this.opts<{ json?: boolean }>();
    try {
      const outcome = await body(...(args as never[]));
      await write(json ? `${JSON.stringify(outcome.json)}\n` : outcome.text);
      process.exitCode = outcome.exitCode ?? ExitCode.success;
    } catch (error) {
      if (stopCode !== undefined) {
        if (json)
          await writeError({
            code: 'Stopped',
            message: `stopped by ${stopCode === ExitCode.interrupted ? 'SIGINT' : 'SIGTERM'}`,
          });
        process.exitCode = stopCode;
        return;
      }
      if (!(error instanceof FacetrainError)) {
        if (json) await writeError({ code: 'Internal', message: String(error) });
        throw error;
      }
      process.stderr.write(`${error.message}\n`);
      const { code, subject, found, allowed, message } = error;
      if (json) await writeError({ code, subject, found, allowed, message });
      process.exitCode = error.exitCode;
    }
  };
}

const write = (text: string) => new Promise<void>((resolve) => process.stdout.write(text, () => resolve()));

/** What `--json` prints in place of a result. */
const writeError = (error: { code: string; message: string; subject?: string; found?: string; allowed?: string }) =>
  write(`${JSON.stringify({ error })}\n`);

function wholeNumber(minimum: number) {
  return (text: string) => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < minimum)
      throw new InvalidArgumentError(`Must be a whole number of at least ${minimum}.`);
    return value;
  };
}

const program = new Command('facetrain')
  .version(packageJson.version)
  .description(
    'Trains face models by Partial FC and quantizes them to INT7, on this machine or, by the operator, on a Kubernetes cluster.',
  )
  .addHelpText('after', EXIT_CODES)
  .showHelpAfterError('(facetrain --help shows what there is)')
  .exitOverride();

/** A command with the options that every command has. */
function command(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option('--json', 'print one JSON object on standard output, and nothing else there')
    .exitOverride();
}

const channelOrder = () =>
  new Option('--channel-order <order>', 'order of the colours at the model’s input')
    .choices(['rgb', 'bgr'])
    .default(DEFAULT_CHANNEL_ORDER.toLowerCase());
const threads = () =>
  new Option('--threads <n>', 'threads for arithmetic').argParser(wholeNumber(1)).default(undefined, 'all CPUs');

for (const [name, description, trainOnly] of [
  ['run', 'run a FaceTrainJob on this machine: train, evaluate, quantize, publish', false],
  ['train', 'the same without the quantization', true],
] as const) {
  command(name, description)
    .requiredOption('-f, --file <manifest>', 'the FaceTrainJob, in YAML or JSON')
    .option('--out <folder>', 'where the results go, in place of spec.output')
    .option('--fresh', 'start anew, and remove what an unfinished run has left', false)
    .action(
      action(async (options: { file: string; out?: string; fresh: boolean }) => {
        const { run, summary } = await import('./commands/run.ts');
        const result = await run({ ...options, trainOnly, signal });
        return { json: result, text: summary(result), exitCode: result.exitCode };
      }),
    );
}

command('validate', 'check a manifest, as the API server would')
  .requiredOption('-f, --file <manifest>', 'FaceTrainJobs and QuantizeJobs, in YAML or JSON')
  .action(
    action(async ({ file }: { file: string }) => {
      const { readManifests } = await import('./manifest.ts');
      const manifests = (await readManifests(file)).map(({ kind, metadata }) => ({ kind, name: metadata.name }));
      return {
        json: { valid: true, manifests },
        text: manifests.map(({ kind, name }) => `${file}: ${kind} ${name} is valid\n`).join(''),
      };
    }),
  );

const dataset = program.command('dataset').description('look at training data').exitOverride();
dataset
  .command('check')
  .description('read and decode every picture of a dataset (train.rec, train.idx, property)')
  .argument('<folder>')
  .option('--json', 'print one JSON object on standard output, and nothing else there')
  .action(
    action(async (folder: string) => {
      const { checkDataset } = await import('./commands/dataset.ts');
      return checkDataset(folder, new StatusLine(), signal);
    }),
  );

command('eval', 'verify pairs of faces by the 10-fold protocol, with flip')
  .requiredOption('--model <file>', 'an ONNX model, FP32 or our INT7')
  .requiredOption('--pairs <set>', 'a verification set in insightface’s .bin layout')
  .addOption(
    new Option('--runtime <runtime>', 'what runs the model')
      .choices(['fp32', 'int7'])
      .default(undefined, 'what the model is made for'),
  )
  .addOption(channelOrder())
  .addOption(threads())
  .action(
    action(
      async (options: {
        model: string;
        pairs: string;
        runtime?: 'fp32' | 'int7';
        channelOrder: ChannelOrder;
        threads?: number;
      }) => {
        const { evaluate } = await import('./commands/eval.ts');
        return evaluate(options, new StatusLine(), signal);
      },
    ),
  );

command('quantize', 'quantize an ONNX face model to INT7 by EasyQuant')
  .requiredOption('--model <file>', 'the FP32 model')
  .requiredOption('--calibration <dataset>', 'folder with train.rec, train.idx and property')
  .requiredOption('--out <folder>', 'receives model.int7.onnx, scales.json, report.json, report.html, manifest.json')
  .addOption(
    new Option('--images <n>', 'pictures drawn for the search')
      .argParser(wholeNumber(1))
      .default(DEFAULT_CALIBRATION.images),
  )
  .addOption(
    new Option('--seed <n>', 'decides which pictures').argParser(wholeNumber(0)).default(DEFAULT_CALIBRATION.seed),
  )
  .addOption(
    new Option('--rounds <n>', 'rounds over all weights, then all activations; 0: scales from the maximum')
      .argParser(wholeNumber(0))
      .default(DEFAULT_SEARCH.rounds),
  )
  .option('--pairs <set...>', 'verification sets to compare FP32 and INT7 on')
  .addOption(channelOrder())
  .addOption(threads())
  .action(
    action(
      async (options: {
        model: string;
        calibration: string;
        out: string;
        images: number;
        seed: number;
        rounds: number;
        pairs?: string[];
        channelOrder: ChannelOrder;
        threads?: number;
      }) => {
        const { quantize } = await import('./commands/quantize.ts');
        return quantize(options, new StatusLine(), signal);
      },
    ),
  );

command('inspect', 'describe an ONNX file, a checkpoint, or an artifact folder')
  .argument('<path>')
  .action(
    action(async (path: string) => {
      const { inspect } = await import('./commands/inspect.ts');
      return inspect(path);
    }),
  );

try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? ExitCode.success : ExitCode.refused; // commander has printed why
  if (error.exitCode !== 0 && process.argv.includes('--json'))
    await writeError({ code: 'InvalidArgument', message: error.message });
}
