#!/usr/bin/env node
/** `facetrain`: the command line. Declares commands and options; what a command does is in commands/. */
import {
  calibrationImages,
  computeThreads,
  DEFAULT_CALIBRATION,
  DEFAULT_CHANNEL_ORDER,
  DEFAULT_MAX_BAD_PICTURES,
  DEFAULT_SEARCH,
  ExitCode,
  FacetrainError,
  INPUT_RANGES,
  inputMean,
  inputSide,
  inputStd,
  MemoryQuantity,
  parseQuantity,
  searchRounds,
  seed,
  verificationPairs,
} from '@facetrain/api';
import { deviceKindNames } from '@facetrain/trainer/estimate/device-kinds';
import { Command, CommanderError, Help, InvalidArgumentError, Option } from 'commander';
import packageJson from '../package.json' with { type: 'json' };
import { makeAction, printError, refuseRepeatedOptions } from './command-action.ts';
import type { ConvertOptions } from './commands/convert.ts';
import type { CheckOptions, IndexOptions } from './commands/dataset.ts';
import type { PairsOptions } from './commands/dataset-pairs.ts';
import type { SplitOptions } from './commands/dataset-split.ts';
import type { EmbedOptions } from './commands/embed.ts';
import type { EvalInput, ModelToEvaluate } from './commands/eval.ts';
import type { MergeOptions, RemoveOptions } from './commands/head.ts';
import type { AddOptions } from './commands/head-add.ts';
import type { PlanOptions } from './commands/plan.ts';
import type { QuantizeOptions } from './commands/quantize.ts';
import type { RunOptions } from './commands/run.ts';
import { listenForStop } from './stop-signals.ts';
import { StatusLine } from './terminal-output.ts';

const EXIT_CODES = `
Exit codes:
  ${ExitCode.success}    success
  ${ExitCode.failure}    an unforeseen failure
  ${ExitCode.refused}    the input was refused; the message names the file or field, what was there, and what is allowed
  ${ExitCode.gateFailed}    the quantized model missed a bound of its gate; its report was written
  ${ExitCode.peerLost}    a trainer lost a peer, more often than the manifest allows restarts
  ${ExitCode.fencedOff}    another program took over the folder that this one writes to
  ${ExitCode.interrupted}  stopped by Ctrl-C
  ${ExitCode.preempted}  stopped by SIGTERM
However a "run" ended, it continues when it is started again: from the newest checkpoint, or with the quantization.`;

const stop = listenForStop();
// A reader that ends early (`| head`), or a terminal that is closed, ends no run of days.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE' && error.code !== 'EIO') throw error;
  });
const { signal } = stop;
const action = makeAction(stop);

/** An argument parser for commander: a number in the range of the manifest's field. */
function wholeNumber(range: typeof computeThreads | typeof calibrationImages) {
  return (text: string) => {
    const value = range.safeParse(text.trim() === '' ? NaN : Number(text));
    if (value.success) return value.data;
    throw new InvalidArgumentError(`Must be a whole number from ${range.minValue} to ${range.maxValue}.`);
  };
}

/** Height and width of pictures, such as 240x320. */
function heightAndWidth(text: string): { height: number; width: number } {
  const [height, width] = (/^(\d+)x(\d+)$/i.exec(text)?.slice(1) ?? []).map(Number);
  const sides = [height, width].map((side) => inputSide.safeParse(side));
  if (sides.every(({ success }) => success)) return { height: height!, width: width! };
  throw new InvalidArgumentError(`Must be a height and a width up to ${inputSide.maxValue}, such as 240x320.`);
}

/** A number above 0. */
function amount(text: string): number {
  const value = text.trim() === '' ? NaN : Number(text);
  if (value > 0 && Number.isFinite(value)) return value;
  throw new InvalidArgumentError('Must be a number above 0.');
}

/** A whole number from 1, also written as 1e6. */
function wholeAmount(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new InvalidArgumentError('Must be a whole number from 1.');
}

function classId(text: string): number {
  if (/^\d{1,10}$/.test(text.trim())) return Number(text);
  throw new InvalidArgumentError('Must be a class id: a whole number from 0.');
}

/** Class ids with commas between them, without repetition. */
const classIds = (text: string) => [...new Set(text.split(',').map(classId))];

function share(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && value >= 0 && value <= 1) return value;
  throw new InvalidArgumentError('Must be a share from 0 to 1.');
}

function cosineOf(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && value >= -1 && value <= 1) return value;
  throw new InvalidArgumentError('Must be a cosine from -1 to 1.');
}

const maxBadPicturesOption = () =>
  new Option('--max-bad-pictures <share>', 'share of the pictures that may be unusable, rounded up')
    .argParser(share)
    .default(DEFAULT_MAX_BAD_PICTURES);

function memory(text: string): number {
  const value = MemoryQuantity.safeParse(text);
  if (value.success) return parseQuantity(value.data);
  throw new InvalidArgumentError(`Must be ${value.error.issues[0]!.message}.`);
}

/** Numbers with commas between them. */
function numbers(range: typeof inputMean | typeof inputStd) {
  return (text: string) => {
    const value = range.safeParse(text.split(',').map((part) => (part.trim() === '' ? NaN : Number(part))));
    if (value.success) return value.data;
    throw new InvalidArgumentError('Must be one number, or one for each color with commas between them.');
  };
}

const program = new Command('facetrain')
  .version(packageJson.version)
  .description(
    'Trains face models by Partial FC and quantizes them to INT7, on this machine or, by the operator, ' +
      'on a Kubernetes cluster.',
  )
  .addHelpText('after', EXIT_CODES)
  .configureHelp({
    // Commander does not show how a default is found, only what it is.
    optionDescription: (option) => {
      const text = new Help().optionDescription(option);
      const found = option.defaultValue === undefined && option.defaultValueDescription;
      return found ? `${text} (default: ${found})` : text;
    },
  })
  .showHelpAfterError('(facetrain --help lists commands and exit codes)')
  .exitOverride()
  // Most often a variable of a shell that is not set. As a path it would be the current folder.
  .hook('preAction', (_program, command) => {
    const isEmpty = (value: unknown) => [value].flat().includes('');
    const option = command.options.find((one) => isEmpty(command.getOptionValue(one.attributeName())));
    const argument = command.registeredArguments.find((_argument, index) => isEmpty(command.processedArgs[index]));
    if (option) command.error(`error: option '${option.flags}' is empty`);
    if (argument) command.error(`error: argument '${argument.name()}' is empty`);
  });

/** A command with the options that every command has. */
function command(name: string, description: string, parent = program): Command {
  return parent
    .command(name)
    .description(description)
    .option('--json', 'print one JSON object on standard output, and nothing else there')
    .showHelpAfterError(
      `(facetrain ${parent === program ? '' : `${parent.name()} `}${name.split(' ')[0]} --help explains it)`,
    )
    .exitOverride();
}

const channelOrder = () =>
  new Option('--channel-order <order>', 'order of the colors at the model’s input')
    .choices(['rgb', 'bgr'])
    .default(undefined, `as its metadata says it, else ${DEFAULT_CHANNEL_ORDER.toLowerCase()}`);
/** The options of a model's input range, which commands/input-range.ts reads. */
function inputRange(command: Command): Command {
  return command
    .addOption(
      new Option('--input-range <range>', 'what the model reads')
        .choices(Object.keys(INPUT_RANGES))
        .default(undefined, 'as its metadata or first nodes say it, else -1..1'),
    )
    .addOption(
      new Option(
        '--input-mean <numbers>',
        'it reads (pixel - mean) / std; one number, or one for each color with commas',
      ).argParser(numbers(inputMean)),
    )
    .addOption(new Option('--input-std <numbers>', 'the divisor, with --input-mean').argParser(numbers(inputStd)));
}

const output = () =>
  new Option('--output <name>', 'the output that is the embedding, in a model of several').default(
    undefined,
    'the only one',
  );
const threads = () =>
  new Option('--threads <n>', 'threads for arithmetic')
    .argParser(wholeNumber(computeThreads))
    .default(undefined, 'all CPUs');

/** The options by which a model is run as it is. */
function runsModel(command: Command): Command {
  return inputRange(command.requiredOption('--model <file>', 'an ONNX model, FP32 or our INT7'))
    .addOption(
      new Option('--runtime <runtime>', 'what runs the model')
        .choices(['fp32', 'int7'])
        .default(undefined, 'what the model is made for'),
    )
    .addOption(
      new Option('--device <device>', 'where an FP32 model runs; auto: on a GPU if there is one')
        .choices(['auto', 'cpu', 'cuda'])
        .default('auto'),
    )
    .addOption(channelOrder())
    .addOption(output())
    .addOption(threads());
}

for (const [name, description, trainOnly] of [
  ['run', 'run a FaceTrainJob on this machine: train, evaluate, quantize, publish', false],
  ['train', 'as run, without the quantization', true],
] as const) {
  command(name, description)
    .requiredOption('-f, --file <manifest>', 'the FaceTrainJob, in YAML or JSON')
    .option('--out <folder>', 'where the results go, in place of spec.output')
    .option('--fresh', 'start anew, and remove what an earlier run has made; its files are listed first', false)
    .action(
      action(async (options: Pick<RunOptions, 'file' | 'out' | 'fresh'>) => {
        const { run } = await import('./commands/run.ts');
        const { summary } = await import('./commands/run-result.ts');
        const result = await run({ ...options, trainOnly, signal });
        return { json: result, text: summary(result), exitCode: result.exitCode };
      }),
    );
}

command('validate', 'check a manifest, as the API server would')
  .requiredOption('-f, --file <manifest...>', 'FaceTrainJobs and QuantizeJobs, in YAML or JSON; - is standard input')
  .action(
    action(async ({ file: files }: { file: string[] }) => {
      const { checkPodTemplates, readManifests, warningsOf } = await import('./manifest.ts');
      const manifests: { file: string; kind: string; name: string; warnings: string[] }[] = [];
      for (const file of files) {
        const read = await readManifests(file);
        checkPodTemplates(read);
        for (const manifest of read) {
          const { kind, metadata } = manifest;
          manifests.push({ file, kind, name: metadata.name, warnings: warningsOf(manifest) });
        }
      }
      const lines = manifests.flatMap(({ file, kind, name, warnings }) => [
        `${file}: ${kind} ${name} is valid\n`,
        ...warnings.map((warning) => `${file}: ${kind} ${name}: warning: ${warning}\n`),
      ]);
      return { json: { valid: true, manifests }, text: lines.join('') };
    }),
  );

command('plan', 'what a job needs before it is applied: memory by part, time of a step, advice; exit code 2: no room')
  .requiredOption('-f, --file <manifest>', 'the FaceTrainJob, in YAML or JSON')
  .addOption(
    new Option('--gpu <kind>', 'what each trainer runs on')
      .choices(deviceKindNames)
      .default(undefined, 'h100 if the trainers’ resources name a GPU, else cpu'),
  )
  .addOption(
    new Option('--classes <n>', 'number of identities')
      .argParser(wholeAmount)
      .default(undefined, 'model.numClasses, or that of a dataset on this machine'),
  )
  .addOption(new Option('--images <n>', 'pictures of the dataset').argParser(wholeAmount))
  .addOption(new Option('--memory <GiB>', 'that each trainer may use, in place of the device’s').argParser(amount))
  .addOption(
    new Option('--ranks-per-machine <n>', 'trainers with NVLink or PCIe between them')
      .argParser(wholeAmount)
      .default(undefined, '8 with GPUs, else 1'),
  )
  .addOption(
    new Option('--network <Gbit/s>', 'between machines').argParser(amount).default(undefined, '100 with GPUs, else 10'),
  )
  .action(
    action(async ({ file, ...options }: PlanOptions & { file: string }) => {
      const [{ readFaceTrainJob }, { plan }] = await Promise.all([
        import('./manifest.ts'),
        import('./commands/plan.ts'),
      ]);
      return plan(await readFaceTrainJob(file), options, signal);
    }),
  );

const dataset = program.command('dataset').description('look at training data, and divide it').exitOverride();
command('check', 'read and decode every picture of a dataset, and count identities and duplicates', dataset)
  .argument('<folder>')
  .addOption(maxBadPicturesOption())
  .action(
    action(async (folder: string, options: CheckOptions) => {
      const { checkDataset } = await import('./commands/dataset.ts');
      return checkDataset(folder, options, new StatusLine(), signal);
    }),
  );

command(
  'index',
  'list an image folder or tar shards once, in facetrain.index, so that trainings start at once',
  dataset,
)
  .argument('<folder>')
  .option(
    '--labels <list>',
    'RecordIO of more than 16777216 identities: write train.labels, from lines of a key, a tab and a label (im2rec’s)',
  )
  .action(
    action(async (folder: string, options: IndexOptions) => {
      const { writeIndex } = await import('./commands/dataset.ts');
      return writeIndex(folder, options, new StatusLine(), signal);
    }),
  );

command('split', 'copy a dataset to tar shards: OUT/train, and OUT/heldout with identities kept apart', dataset)
  .argument('<folder>')
  .requiredOption(
    '--holdout <n>',
    'identities kept apart: a number, or a share below 1; 0 for none',
    (text: string) => {
      const value = Number(text);
      if (text.trim() === '' || !(value >= 0) || (value >= 1 && !Number.isSafeInteger(value)))
        throw new InvalidArgumentError('Must be a whole number, or a share from 0 to 1.');
      return value;
    },
  )
  .requiredOption('--out <folder>', 'receives train and heldout')
  .addOption(new Option('--seed <n>', 'decides which identities').argParser(wholeNumber(seed)).default(0))
  .action(
    action(async (folder: string, options: SplitOptions) => {
      const { splitDataset } = await import('./commands/dataset-split.ts');
      return splitDataset(folder, options, new StatusLine(), signal);
    }),
  );

command(
  'pairs',
  'draw a verification set, in insightface’s .bin layout, from a dataset that is not trained on',
  dataset,
)
  .argument('<folder>')
  .requiredOption('--output <file>', 'the .bin file')
  .addOption(
    new Option('--pairs <n>', 'pairs, half of them of one person; a multiple of 20')
      .argParser(wholeNumber(verificationPairs))
      .default(6000),
  )
  .addOption(new Option('--seed <n>', 'decides which pairs').argParser(wholeNumber(seed)).default(0))
  .action(
    action(async (folder: string, options: PairsOptions) => {
      const { makePairs } = await import('./commands/dataset-pairs.ts');
      return makePairs(folder, options, new StatusLine(), signal);
    }),
  );

runsModel(command('eval', 'verify pairs of faces by the 10-fold protocol, or templates by that of IJB-C; with flip'))
  .option('--pairs <set>', 'a verification set in insightface’s .bin layout')
  .option('--templates <folder>', 'in place of --pairs: templates and pairs as of IJB-C, meta/ and loose_crop/')
  .option('--groups <file>', 'a line for each pair with the name of its group, for figures by group')
  .action(
    action(async ({ pairs, templates, ...options }: ModelToEvaluate & EvalInput) => {
      if (pairs !== undefined && templates === undefined) {
        const { evaluate } = await import('./commands/eval.ts');
        return evaluate({ ...options, pairs }, new StatusLine(), signal);
      }
      if (templates !== undefined && pairs === undefined) {
        const { evaluateTemplates } = await import('./commands/eval-templates.ts');
        return evaluateTemplates({ ...options, templates }, new StatusLine(), signal);
      }
      throw new FacetrainError({
        code: 'InvalidArgument',
        subject: '--pairs, --templates',
        found: pairs === undefined ? 'none of them' : 'both',
        allowed: 'one of them',
      });
    }),
  );

runsModel(command('embed [images...]', 'print what a model gives for pictures, and how alike two are'))
  .option('--pairs <images...>', 'two pictures, or several two by two: their cosine')
  .option('--npy <file>', 'receives the embeddings of the pictures [N, d] in NumPy’s format, and nothing prints them')
  .action(
    action(async (images: string[], options: EmbedOptions) => {
      const { embed } = await import('./commands/embed.ts');
      return embed(images, options, new StatusLine(), signal);
    }),
  );

command('convert', 'write an INT7 model in the files of another runtime')
  .requiredOption('--model <file>', 'a model.int7.onnx, or the folder of an artifact')
  .addOption(
    new Option('--to <runtime>', 'ncnn: a .param and a .bin with the integers and scales')
      .choices(['ncnn'])
      .makeOptionMandatory(),
  )
  .requiredOption('--out <folder>', 'receives model.int7.ncnn.param and model.int7.ncnn.bin')
  .action(
    action(async (options: ConvertOptions) => {
      const { convert } = await import('./commands/convert.ts');
      return convert(options);
    }),
  );

inputRange(command('quantize', 'quantize an ONNX face model to INT7 by EasyQuant'))
  .requiredOption('--model <file>', 'the FP32 model')
  .requiredOption('--calibration <dataset>', 'folder of a dataset')
  .requiredOption(
    '--out <folder>',
    'receives model.int7.onnx, model.int7.trt.onnx, scales.json, report.json, report.html, manifest.json',
  )
  .addOption(
    new Option('--images <n>', 'pictures drawn for the search')
      .argParser(wholeNumber(calibrationImages))
      .default(DEFAULT_CALIBRATION.images),
  )
  .addOption(
    new Option('--seed <n>', 'decides which pictures').argParser(wholeNumber(seed)).default(DEFAULT_CALIBRATION.seed),
  )
  .addOption(new Option('--resize', 'stretch the pictures to the size of the model’s input').conflicts('pairs'))
  .addOption(
    new Option('--rounds <n>', 'rounds over all weights, then all activations; 0: scales from the maximum')
      .argParser(wholeNumber(searchRounds))
      .default(DEFAULT_SEARCH.rounds),
  )
  .addOption(
    new Option('--budget <share>', 'share of the multiplications of which activations may have 8 bits instead of 7')
      .argParser(share)
      .default(DEFAULT_SEARCH.budget),
  )
  .addOption(
    new Option(
      '--paper-search',
      'search as the paper alone: no zero points, no balanced ranges, no corrected biases',
    ).conflicts(['budget', 'comparePaper']),
  )
  .option('--compare-paper', 'search a second time as the paper alone, and show both in the report')
  .addOption(maxBadPicturesOption())
  .option('--pairs <set...>', 'verification sets to compare FP32 and INT7 on')
  .option('--groups <file...>', 'for each set, a file with a line for each pair: the name of its group')
  .addOption(
    new Option('--max-accuracy-drop <share>', 'gate: largest drop of accuracy on a set of --pairs').argParser(share),
  )
  .addOption(
    new Option('--max-tar-drop <share>', 'gate: largest drop of the true accept rate on a set of --pairs').argParser(
      share,
    ),
  )
  .addOption(
    new Option('--max-group-accuracy-drop <share>', 'gate: largest drop of accuracy on a group of pairs').argParser(
      share,
    ),
  )
  .addOption(
    new Option(
      '--max-group-tar-drop <share>',
      'gate: largest drop of the true accept rate on a group of pairs',
    ).argParser(share),
  )
  .addOption(
    new Option('--min-mean-cosine <cosine>', 'gate: smallest mean cosine of FP32 and INT7').argParser(cosineOf),
  )
  .addOption(new Option('--min-worst-cosine <cosine>', 'gate: smallest cosine of any picture').argParser(cosineOf))
  .addOption(
    new Option(
      '--min-top1-agreement <share>',
      'gate, of classifiers: smallest share of pictures on which the largest number is the same',
    ).argParser(share),
  )
  .option('--fresh', 'replace the artifact that the folder holds; its files are listed first', false)
  .option('--strict', 'refuse a model of which a node would stay FP32', false)
  .addOption(
    new Option('--input-size <HxW>', 'size of the pictures, for a model whose file leaves it free').argParser(
      heightAndWidth,
    ),
  )
  .addOption(
    new Option(
      '--memory <bytes>',
      'for the activations of all pictures, such as 512Mi; more lies in a file of $TMPDIR, on a disk',
    )
      .argParser(memory)
      .default(undefined, '2Gi, or half of what is available where that is less'),
  )
  .addOption(channelOrder())
  .addOption(new Option('--output <name>', 'the output to keep; absent: all'))
  .addOption(threads())
  .action(
    action(async (options: QuantizeOptions) => {
      const { quantize } = await import('./commands/quantize.ts');
      return quantize(options, new StatusLine(), signal);
    }),
  );

command('inspect', 'describe an ONNX file, a checkpoint, or an artifact folder; compare two checkpoints')
  .argument('<path>')
  .argument('[other]', 'a second checkpoint: what differs, and how far weights and class centres moved')
  .addOption(output())
  .action(
    action(async (path: string, other: string | undefined, options: { output?: string }) => {
      if (other !== undefined) {
        const { inspectTwo } = await import('./commands/inspect-two.ts');
        return inspectTwo(path, other, new StatusLine());
      }
      const { inspect } = await import('./commands/inspect.ts');
      return inspect(path, options);
    }),
  );

const head = program
  .command('head')
  .description('add, merge and remove identities of checkpoints; suspend the job before')
  .exitOverride();
/** A command that changes checkpoints of a folder or an object store. */
const headCommand = (name: string, description: string): Command =>
  command(name, description, head)
    .argument('<checkpoints>', 'folder with step-…, or s3://BUCKET/PREFIX')
    .option('--endpoint <url>', 'of the object store, as this machine reaches it (default: AWS)')
    .option('--region <name>', 'of the object store')
    .option('--force-path-style', 'the bucket is a part of the path, as most stores but AWS want it');

headCommand('add', 'class centres for the identities of a dataset that follow the last class, from mean embeddings')
  .requiredOption('--dataset <folder>', 'the dataset that training goes on with')
  .requiredOption('--model <file>', 'the backbone as ONNX, such as model/backbone.onnx; weights are the checkpoint’s')
  .addOption(
    new Option('--images <n>', 'pictures of each identity that are embedded, at most')
      .argParser(wholeNumber(calibrationImages))
      .default(50),
  )
  .addOption(channelOrder())
  .addOption(threads())
  .action(
    action(async (where: string, options: AddOptions) => {
      const { addIdentities } = await import('./commands/head-add.ts');
      return addIdentities(where, options, new StatusLine(), signal);
    }),
  );

headCommand('merge', 'make several classes one; writes a map of labels')
  .requiredOption('--classes <ids>', 'classes to be merged, with commas', classIds)
  .requiredOption('--into <id>', 'the class that stays', classId)
  .option('--map <file>', 'receives every retired class with its new one, in lines of two numbers')
  .action(
    action(async (where: string, options: MergeOptions) => {
      const { mergeIdentities } = await import('./commands/head.ts');
      return mergeIdentities(where, options, new StatusLine());
    }),
  );

headCommand('remove', 'remove classes from every checkpoint, and search the files for their rows')
  .requiredOption('--classes <ids>', 'classes to be removed, with commas', classIds)
  .action(
    action(async (where: string, options: RemoveOptions) => {
      const { removeIdentities } = await import('./commands/head.ts');
      return removeIdentities(where, options, new StatusLine());
    }),
  );

refuseRepeatedOptions(program);
try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? ExitCode.success : ExitCode.refused; // commander has printed why
  if (error.exitCode !== 0 && process.argv.includes('--json'))
    await printError({ code: 'InvalidArgument', message: error.message });
}
