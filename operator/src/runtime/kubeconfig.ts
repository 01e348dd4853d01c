/**
 * Reads a kubeconfig, as kubectl does: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig.
 *
 * Of several files the first that has a cluster, a user, a context or the current context decides it. Relative paths
 * are relative to the file they are in. Users authenticate by a token, a token file, a client certificate, name and
 * password, or a program (client.authentication.k8s.io). `auth-provider`, which Kubernetes 1.26 removed, and proxies
 * are refused.
 */
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { parse } from 'yaml';
import type { ClientOptions, Tls } from './client.ts';

/** A kubeconfig that cannot be used. The message names the file or the entry, and says what is wrong. */
export class KubeConfigError extends Error {
  override readonly name = 'KubeConfigError';
}

/** How to reach a cluster, as a context of a kubeconfig says it. */
export interface KubeContext {
  /** Name of the context. */
  name: string;
  /** Of the context; undefined: it names none. */
  namespace: string | undefined;
  connection: Pick<ClientOptions, 'server' | 'tls' | 'credentials'>;
}

export interface KubeConfigOptions {
  /** The one file to read. Default: those of KUBECONFIG, else ~/.kube/config. */
  file?: string | undefined;
  /** Default: the current context. */
  context?: string | undefined;
  environment?: NodeJS.ProcessEnv;
}

type Fields = Record<string, unknown>;
/** An entry of a list of the kubeconfig, and the folder of its file. */
interface Entry {
  fields: Fields;
  folder: string;
}
interface Merged {
  currentContext: string | undefined;
  entries: Record<'clusters' | 'users' | 'contexts', Map<string, Entry>>;
}

/** The answer of a program that authenticates (ExecCredential). */
interface ExecStatus {
  token?: string;
  clientCertificateData?: string;
  clientKeyData?: string;
  expirationTimestamp?: string;
}

const SECTIONS = { clusters: 'cluster', users: 'user', contexts: 'context' } as const;
/** A token file is read again after this time, as in client-go. */
const TOKEN_MILLISECONDS = 60_000;
/** A token of a program is renewed this long before it ends. */
const EARLY_MILLISECONDS = 30_000;

/** @throws KubeConfigError */
export async function readKubeConfig(options: KubeConfigOptions = {}): Promise<KubeContext> {
  const { file, environment = process.env } = options;
  const named = file === undefined ? (environment.KUBECONFIG ?? '').split(delimiter).filter(Boolean) : [file];
  const files = named.length > 0 ? named : [join(environment.HOME ?? homedir(), '.kube', 'config')];
  const found = files.filter((path) => existsSync(path));
  if (found.length === 0)
    throw new KubeConfigError(`${files.join(', ')}: no such file; name a kubeconfig by KUBECONFIG or --kubeconfig`);
  const merged = merge(found);
  const where = found.join(', ');
  const name = options.context ?? merged.currentContext;
  if (name === undefined)
    throw new KubeConfigError(`${where}: no current-context; choose one by \`kubectl config use-context\``);
  const entryOf = (section: keyof typeof SECTIONS, wanted: unknown): Entry => {
    const entry = merged.entries[section].get(String(wanted));
    if (entry) return entry;
    const others = [...merged.entries[section].keys()].join(', ') || 'none';
    throw new KubeConfigError(`${where}: no ${SECTIONS[section]} ${String(wanted)}; there are: ${others}`);
  };
  const context = entryOf('contexts', name).fields;
  const cluster = entryOf('clusters', context.cluster);
  const user = context.user === undefined ? { fields: {}, folder: '' } : entryOf('users', context.user);
  const { server } = cluster.fields;
  if (typeof server !== 'string' || !URL.canParse(server))
    throw new KubeConfigError(`${where}: cluster ${String(context.cluster)}: server: ${String(server)}; must be a URL`);
  if (cluster.fields['proxy-url'])
    throw new KubeConfigError(`${where}: cluster ${String(context.cluster)}: proxy-url is not supported`);
  const { tls, credentials } = await authentication(user, `${where}: user ${String(context.user)}`, environment);
  const allTls: Tls = {
    ...optional('ca', dataOf(cluster, 'certificate-authority')),
    ...(cluster.fields['insecure-skip-tls-verify'] === true && { rejectUnauthorized: false }),
    ...optional('servername', cluster.fields['tls-server-name'] as string | undefined),
    ...tls,
  };
  const { namespace } = context;
  return {
    name,
    namespace: typeof namespace === 'string' && namespace !== '' ? namespace : undefined,
    connection: { server, tls: allTls, credentials },
  };
}

const optional = <K extends string, V>(key: K, value: V | undefined): Partial<Record<K, V>> =>
  value === undefined ? {} : ({ [key]: value } as Record<K, V>);

function merge(files: string[]): Merged {
  const merged: Merged = {
    currentContext: undefined,
    entries: { clusters: new Map(), users: new Map(), contexts: new Map() },
  };
  for (const file of files) {
    const document = parseFile(file);
    const current = document['current-context'];
    if (typeof current === 'string' && current !== '') merged.currentContext ??= current;
    for (const [section, field] of Object.entries(SECTIONS) as [keyof typeof SECTIONS, string][])
      for (const item of (document[section] ?? []) as Fields[]) {
        const entry = { fields: (item[field] ?? {}) as Fields, folder: dirname(resolve(file)) };
        const known = merged.entries[section];
        if (!known.has(String(item.name))) known.set(String(item.name), entry);
      }
  }
  return merged;
}

function parseFile(file: string): Fields {
  let document: unknown;
  try {
    document = parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new KubeConfigError(`${file}: ${(error as Error).message.split('\n')[0]}`);
  }
  if (document === null) return {};
  if (typeof document !== 'object' || Array.isArray(document)) throw new KubeConfigError(`${file}: no kubeconfig`);
  for (const section of Object.keys(SECTIONS)) {
    const list = (document as Fields)[section];
    if (list !== undefined && list !== null && !Array.isArray(list))
      throw new KubeConfigError(`${file}: ${section}: must be a list`);
  }
  return document as Fields;
}

/** The content of `NAME-data` (base64), else of the file `NAME`. */
function dataOf({ fields, folder }: Entry, name: string): Buffer | undefined {
  const data = fields[`${name}-data`];
  if (typeof data === 'string' && data !== '') return Buffer.from(data, 'base64');
  const path = fields[name];
  if (typeof path !== 'string' || path === '') return undefined;
  try {
    return readFileSync(resolve(folder, path));
  } catch (error) {
    throw new KubeConfigError(`${name}: ${(error as Error).message}`);
  }
}

async function authentication(
  user: Entry,
  where: string,
  environment: NodeJS.ProcessEnv,
): Promise<{ tls: Tls; credentials: () => Promise<Record<string, string>> }> {
  const { fields, folder } = user;
  const tls = {
    ...optional('cert', dataOf(user, 'client-certificate')),
    ...optional('key', dataOf(user, 'client-key')),
  };
  const { token, tokenFile, username, password, exec } = fields as Record<string, string | undefined> & Fields;
  if (fields['auth-provider'] !== undefined)
    throw new KubeConfigError(`${where}: auth-provider was removed in Kubernetes 1.26; use exec`);
  const bearer = (text: string) => ({ authorization: `Bearer ${text}` });
  if (tokenFile) return { tls, credentials: tokenOfFile(resolve(folder, tokenFile)) };
  if (token) return { tls, credentials: async () => bearer(token) };
  if (username !== undefined) {
    const basic = Buffer.from(`${username}:${password ?? ''}`).toString('base64');
    return { tls, credentials: async () => ({ authorization: `Basic ${basic}` }) };
  }
  if (exec === undefined) return { tls, credentials: async () => ({}) };
  const run = () => runProgram(exec as unknown as ExecFields, folder, where, environment);
  let status = await run();
  const certificate = {
    ...optional('cert', status.clientCertificateData && Buffer.from(status.clientCertificateData)),
    ...optional('key', status.clientKeyData && Buffer.from(status.clientKeyData)),
  } as Tls;
  const credentials = async () => {
    const ends = status.expirationTimestamp === undefined ? Infinity : Date.parse(status.expirationTimestamp);
    if (Date.now() > ends - EARLY_MILLISECONDS) status = await run();
    return status.token ? bearer(status.token) : ({} as Record<string, string>);
  };
  return { tls: { ...tls, ...certificate }, credentials };
}

function tokenOfFile(path: string): () => Promise<Record<string, string>> {
  let authorization = '';
  let readAt = -Infinity;
  return async () => {
    if (performance.now() - readAt >= TOKEN_MILLISECONDS) {
      authorization = `Bearer ${(await readFile(path, 'utf8')).trim()}`;
      readAt = performance.now();
    }
    return { authorization };
  };
}

interface ExecFields {
  apiVersion?: string;
  command?: string;
  args?: string[] | null;
  env?: { name: string; value: string }[] | null;
  installHint?: string;
}

/** Runs the program that authenticates. A command with a slash is relative to the kubeconfig, another is in PATH. */
async function runProgram(
  { apiVersion = 'client.authentication.k8s.io/v1', command, args, env, installHint }: ExecFields,
  folder: string,
  where: string,
  environment: NodeJS.ProcessEnv,
): Promise<ExecStatus> {
  if (!command) throw new KubeConfigError(`${where}: exec.command: missing`);
  const info = JSON.stringify({ apiVersion, kind: 'ExecCredential', spec: { interactive: false } });
  const variables = Object.fromEntries((env ?? []).map(({ name, value }) => [name, value]));
  const path = command.includes('/') ? resolve(folder, command) : command;
  try {
    const { stdout } = await promisify(execFile)(path, args ?? [], {
      env: { ...environment, ...variables, KUBERNETES_EXEC_INFO: info },
    });
    const { status } = JSON.parse(stdout) as { status?: ExecStatus };
    if (!status?.token && !status?.clientCertificateData) throw new Error('its answer has no token and no certificate');
    return status;
  } catch (error) {
    const words = (error as Error).message.trim().split('\n').slice(0, 3).join(' | ');
    throw new KubeConfigError(`${where}: ${command}: ${words}${installHint ? `; ${installHint}` : ''}`);
  }
}
