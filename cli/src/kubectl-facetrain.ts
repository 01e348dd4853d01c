#!/usr/bin/env node
/**
 * `kubectl facetrain`: kubectl finds this program by its name in PATH. It shows and steers the jobs in the cluster of
 * the user's kubeconfig. Declares commands and options; what a command does is in kubectl/.
 */
import { API_VERSION, ExitCode, FaceTrainJob, parseDocument } from '@facetrain/api';
import { Command, CommanderError, InvalidArgumentError } from 'commander';
import packageJson from '../package.json' with { type: 'json' };
import { makeAction, type Outcome, printError, readable, refuseRepeatedOptions } from './command-action.ts';
import { Cluster, type ClusterOptions } from './kubectl/cluster.ts';
import type { FetchOptions } from './kubectl/fetch.ts';
import type { LogsOptions } from './kubectl/logs.ts';
import { PARTS } from './results/parts.ts';
import { listenForStop } from './stop-signals.ts';
import { StatusLine } from './terminal-output.ts';

const stop = listenForStop();
const { signal } = stop;
const action = makeAction(stop);
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE' && error.code !== 'EIO') throw error;
  });

const program = new Command('kubectl facetrain')
  .version(packageJson.version)
  .description('Shows and steers the FaceTrainJobs of a cluster.')
  .showHelpAfterError('(kubectl facetrain --help lists the commands; options stand behind the command)')
  .exitOverride();

/** A whole number from `min`. */
const wholeNumber = (min: number) => (text: string) => {
  if (/^\d{1,9}$/.test(text.trim()) && Number(text) >= min) return Number(text);
  throw new InvalidArgumentError(`Must be a whole number from ${min}.`);
};

function url(text: string): string {
  if (/^https?:$/.test(URL.parse(text)?.protocol ?? '')) return text;
  throw new InvalidArgumentError('Must be a URL such as http://localhost:9000.');
}

function command(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option('-n, --namespace <name>', 'of the job (default: that of the context)')
    .option('--context <name>', 'of the kubeconfig (default: the current one)')
    .option('--kubeconfig <file>', '(default: KUBECONFIG, else ~/.kube/config)')
    .option('--json', 'print one JSON object on standard output, and nothing else there')
    .showHelpAfterError(`(kubectl facetrain ${name} --help explains it)`)
    .exitOverride();
}

/** Opens the cluster of the options, and closes its connections after the work. */
async function inCluster(options: ClusterOptions, work: (cluster: Cluster) => Promise<Outcome>): Promise<Outcome> {
  const cluster = await Cluster.open(options);
  try {
    return await work(cluster);
  } catch (error) {
    throw cluster.words('the API server', error);
  } finally {
    await cluster.close();
  }
}

command('status', 'a job as a tree: why it waits, its progress, attempts, pods and warnings; without a name, all jobs')
  .argument('[job]')
  .action(
    action(async (job: string | undefined, options: ClusterOptions) => {
      const { jobStatus, topJobs } = await import('./kubectl/status.ts');
      return inCluster(options, (cluster) => (job === undefined ? topJobs(cluster) : jobStatus(cluster, job)));
    }),
  );

command('top', 'all jobs of a namespace: trainers, steps, speed, loss, time left').action(
  action(async (options: ClusterOptions) => {
    const { topJobs } = await import('./kubectl/status.ts');
    return inCluster(options, topJobs);
  }),
);

command('logs', 'the log of a rank; with -f it goes on with the next attempt, until the job ends')
  .argument('<job>')
  .option('-r, --rank <n>', 'the trainer', wholeNumber(0), 0)
  .option('--attempt <n>', 'of the pod (default: the newest)', wholeNumber(0))
  .option('--quantizer', 'the log of the quantization')
  .option('-f, --follow', 'print what is added, until the job ends')
  .option('--tail <n>', 'lines from the end (default: all)', wholeNumber(1))
  .action(
    action(async (job: string, { json, ...options }: LogsOptions & ClusterOptions & { json?: boolean }) => {
      const { writeLogs } = await import('./kubectl/logs.ts');
      const parts: Buffer[] = [];
      const write = async (data: Buffer) => {
        if (json) parts.push(data);
        else if (!process.stdout.write(data)) await new Promise((resolve) => process.stdout.once('drain', resolve));
      };
      const announce = (line: string) => void process.stderr.write(`${line}\n`);
      return inCluster(options, async (cluster) => {
        await writeLogs(cluster, job, options, write, announce, signal);
        return { json: { job, log: Buffer.concat(parts).toString() }, text: '' };
      });
    }),
  );

command('progress', 'a bar that follows the training until the job ends; exit code 1 if it failed')
  .argument('<job>')
  .action(
    action(async (job: string, options: ClusterOptions) => {
      const { followProgress } = await import('./kubectl/progress.ts');
      const line = new StatusLine();
      return inCluster(options, (cluster) => followProgress(cluster, job, line, signal).finally(() => line.clear()));
    }),
  );

command('fetch', 'copy the model, the INT7 model or a checkpoint of a job to a folder, and compare its digests')
  .argument('<job>')
  .argument('[part]', `${PARTS.join(', ')} (default: int7 with spec.quantize, else model)`)
  .option('--to <folder>', '(default: the name of the job)')
  .option('--step <n>', 'of the checkpoint (default: the newest)', wholeNumber(0))
  .option('--endpoint <url>', 'of the object store, as this machine reaches it (default: that of the job)', url)
  .option('--image <name>', 'of the pod that reads a volume (default: that of the job’s pods)')
  .addHelpText(
    'after',
    '\nFrom s3:// it reads with your own credentials, as the AWS SDK finds them. A store that only the\n' +
      'cluster knows is reached by kubectl port-forward and --endpoint http://localhost:PORT. From pvc:// it reads\n' +
      'through a pod that it creates and deletes; you need to be allowed to create and delete pods and to get\n' +
      'pods/proxy.\n' +
      'The same command again continues what was interrupted.',
  )
  .action(
    action(async (job: string, part: string | undefined, options: FetchOptions & ClusterOptions) => {
      const { fetchResults } = await import('./kubectl/fetch.ts');
      const line = new StatusLine();
      return inCluster(options, (cluster) => fetchResults(cluster, job, part, options, line, signal));
    }),
  );

command('plan', 'what a job of the cluster needs: memory by part, time of a step, advice; exit code 2: no room')
  .argument('<job>')
  .option('--classes <n>', 'number of identities (default: model.numClasses)', wholeNumber(1))
  .option('--images <n>', 'pictures of the dataset', wholeNumber(1))
  .action(
    action(async (name: string, options: ClusterOptions & { classes?: number; images?: number }) => {
      const { plan } = await import('./commands/plan.ts');
      return inCluster(options, async (cluster) => {
        const { spec } = await cluster.job(name);
        // What it needs when it runs, also if it is suspended now.
        const running = { ...spec, suspend: false, managedBy: undefined };
        const document = { apiVersion: API_VERSION, kind: 'FaceTrainJob', metadata: { name }, spec: running };
        return plan(parseDocument(FaceTrainJob, document, name, 'InvalidManifest'), options, signal);
      });
    }),
  );

for (const [name, description, suspend] of [
  ['suspend', 'end the pods of a job after a checkpoint', true],
  ['resume', 'let a suspended job go on', false],
] as const)
  command(name, description)
    .argument('<job>')
    .action(
      action(async (job: string, options: ClusterOptions) => {
        const { setSuspended } = await import('./kubectl/change.ts');
        return inCluster(options, (cluster) => setSuspended(cluster, job, suspend));
      }),
    );

command('restart', 'suspend a job, wait until its pods have ended, and resume it; does not count as a restart')
  .argument('<job>')
  .action(
    action(async (job: string, options: ClusterOptions) => {
      const { restart } = await import('./kubectl/change.ts');
      const line = new StatusLine();
      return inCluster(options, async (cluster) => {
        try {
          return await restart(cluster, job, (detail) => line.show('Suspending', detail), signal);
        } catch (error) {
          // A command that a signal stops prints no error: that the job stays suspended has to be said nevertheless.
          if (signal.aborted) line.print(readable((error as Error).message));
          throw error;
        } finally {
          line.clear();
        }
      });
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
