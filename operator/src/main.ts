/**
 * The operator's program: reads options from flags or the environment, then runs the operator until SIGTERM or SIGINT.
 */

import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { parseArgs } from 'node:util';
import { pino } from 'pino';
import { clusterEnvironment } from './controllers/cluster-environment.ts';
import { runOperator } from './controllers/operator.ts';
import { Client } from './runtime/client.ts';
import type { KubeContext } from './runtime/kubeconfig.ts';
import { electionTimes } from './runtime/leader-election.ts';
import { LeadershipLost } from './runtime/leadership.ts';
import { Metrics } from './runtime/metrics.ts';
import { SERVICE_ACCOUNT_FOLDER, serviceAccount } from './runtime/service-account.ts';

const HELP = `Usage: node main.ts --image IMAGE [options]    (each option may be an environment variable instead)

--image IMAGE             FACETRAIN_IMAGE            of pods whose job names none
--namespace NAME          FACETRAIN_NAMESPACE        watch this namespace only (default: all)
--kubeconfig FILE         KUBECONFIG                 (default: the service account of the pod, else ~/.kube/config)
--service-account FOLDER  FACETRAIN_SERVICE_ACCOUNT  of the pod's token, ca.crt and namespace
                                                     (default ${SERVICE_ACCOUNT_FOLDER})
--lease-namespace NAME    FACETRAIN_LEASE_NAMESPACE  where replicas agree on a leader (default: the pod's own
                                                     namespace); "none": there is only one
--lease-seconds COUNT     FACETRAIN_LEASE_SECONDS    after which another replica takes the lease of a leader that is
                                                     silent (default 8). A leader that cannot renew it for three
                                                     quarters of this ends with exit code 1
--health-port PORT        FACETRAIN_HEALTH_PORT      /healthz, /readyz and /metrics (default 8081)
--workers COUNT           FACETRAIN_WORKERS          jobs of a kind that are reconciled in parallel (default 8)
--progress-seconds COUNT  FACETRAIN_PROGRESS_SECONDS between two requests to rank 0 (default 5)
--log-level LEVEL         FACETRAIN_LOG_LEVEL        debug, info, warn or error (default info)
`;

const NAMES = [
  'image',
  'namespace',
  'kubeconfig',
  'service-account',
  'lease-namespace',
  'lease-seconds',
  'health-port',
  'workers',
  'progress-seconds',
  'log-level',
] as const;
type Settings = Partial<Record<(typeof NAMES)[number], string>>;

class UsageError extends Error {}

/** A flag wins over its environment variable. @throws UsageError */
function readSettings(): Settings {
  const options = {
    ...Object.fromEntries(NAMES.map((name) => [name, { type: 'string' as const }])),
    help: { type: 'boolean' as const },
  };
  let values: Record<string, string | boolean | undefined>;
  try {
    ({ values } = parseArgs({ options, strict: true }) as { values: Record<string, string | boolean | undefined> });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  if (values.help) {
    process.stdout.write(HELP);
    process.exit(0);
  }
  const variable = (name: string) =>
    name === 'kubeconfig' ? 'KUBECONFIG' : `FACETRAIN_${name.toUpperCase().replaceAll('-', '_')}`;
  return Object.fromEntries(
    NAMES.flatMap((name) =>
      (values[name] ?? process.env[variable(name)]) ? [[name, values[name] ?? process.env[variable(name)]]] : [],
    ),
  );
}

/** @throws UsageError unless the setting is a whole number from `min` to `max` */
function wholeNumber(settings: Settings, name: keyof Settings, fallback: number, max: number, min = 1): number {
  const text = settings[name] ?? String(fallback);
  const value = Number(text);
  if (!Number.isInteger(value) || value < min || value > max)
    throw new UsageError(`--${name}: ${text}; must be a whole number from ${min} to ${max}`);
  return value;
}

/** The library that reads kubeconfigs takes as much memory as the rest of the program: a pod never loads it. */
async function kubeContext(file: string | undefined): Promise<KubeContext> {
  const { readKubeConfig } = await import('./runtime/kubeconfig.ts');
  return readKubeConfig({ file });
}

async function main(): Promise<void> {
  const settings = readSettings();
  if (!settings.image) throw new UsageError('--image: missing; name the trainer image of this release');
  const level = settings['log-level'] ?? 'info';
  if (!['debug', 'info', 'warn', 'error'].includes(level))
    throw new UsageError(`--log-level: ${level}; must be debug, info, warn or error`);
  const account = serviceAccount(settings['service-account'] ?? SERVICE_ACCOUNT_FOLDER);
  const leaseNamespace = settings['lease-namespace'] ?? account?.namespace;
  if (leaseNamespace === undefined)
    throw new UsageError(
      '--lease-namespace: missing, and this is no pod; name one, or "none" where no other replica runs',
    );
  const leaseSeconds = wholeNumber(settings, 'lease-seconds', 8, 3600, 3);
  const port = wholeNumber(settings, 'health-port', 8081, 65_535);
  const workers = wholeNumber(settings, 'workers', 8, 256);
  const progressSeconds = wholeNumber(settings, 'progress-seconds', 5, 3600);

  const log = pino({ level, base: {}, timestamp: pino.stdTimeFunctions.isoTime });
  const metrics = new Metrics();
  const podAccount = settings.kubeconfig === undefined ? account : undefined;
  const { connection } = podAccount ?? (await kubeContext(settings.kubeconfig));
  const client = new Client({ ...connection, onResponse: metrics.countRequest });
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) {
    process.once(name, () => {
      log.info({ signal: name }, 'stopping');
      stop.abort();
    });
  }
  await runOperator(
    {
      client,
      metrics,
      log,
      environment: clusterEnvironment(settings.image),
      namespace: settings.namespace ?? null,
      identity: `${hostname()}_${randomUUID()}`,
      election:
        leaseNamespace === 'none'
          ? null
          : { namespace: leaseNamespace, name: 'facetrain-operator', ...electionTimes(leaseSeconds) },
      health: { port },
      workers,
      progressSeconds,
    },
    stop.signal,
  );
}

try {
  await main();
} catch (error) {
  if (error instanceof UsageError) {
    process.stderr.write(`${error.message}\n\n${HELP}`);
    process.exitCode = 2;
  } else if (error instanceof Error && error.name === 'KubeConfigError') {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 2;
  } else {
    process.stderr.write(`${error instanceof LeadershipLost ? error.message : (error as Error).stack}\n`);
    // At once: another replica may lead, and nothing that still waits here may go on.
    process.exit(1);
  }
}
