/**
 * The connection that a kubeconfig describes: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig.
 * @kubernetes/client-node parses it and authenticates: by token, client certificate, name and password, or a program
 * (client.authentication.k8s.io). It takes as much memory as the rest of the operator, so a pod never loads this file.
 */
import { existsSync } from 'node:fs';
import type { RequestOptions } from 'node:https';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { KubeConfig } from '@kubernetes/client-node';
import type { ClientOptions, Tls } from './client.ts';

/** A kubeconfig that cannot be used. The message names the file, and says what is wrong. */
export class KubeConfigError extends Error {
  override readonly name = 'KubeConfigError';
}

/** How to reach a cluster, as a context of a kubeconfig says it. */
export interface KubeContext {
  /** Name of the context. */
  name: string;
  /** Of the context; undefined: it names none. */
  namespace: string | undefined;
  connection: Pick<ClientOptions, 'server' | 'tls' | 'proxy' | 'credentials'>;
}

export interface KubeConfigOptions {
  /** The one file to read. Default: those of KUBECONFIG, else ~/.kube/config. */
  file?: string | undefined;
  /** Default: the current context. */
  context?: string | undefined;
  environment?: NodeJS.ProcessEnv;
}

const PROXY = /^(https?|socks5):\/\/[^/]/;

/** @throws KubeConfigError */
export async function readKubeConfig(options: KubeConfigOptions = {}): Promise<KubeContext> {
  const { file, environment = process.env } = options;
  const named = file === undefined ? (environment.KUBECONFIG ?? '').split(delimiter).filter(Boolean) : [file];
  const files = named.length > 0 ? named : [join(environment.HOME ?? homedir(), '.kube', 'config')];
  const found = files.filter((path) => existsSync(path));
  if (found.length === 0)
    throw new KubeConfigError(`${files.join(', ')}: no such file; name a kubeconfig by KUBECONFIG or --kubeconfig`);
  const config = merged(found);
  const where = found.join(', ');
  const name = options.context ?? config.currentContext;
  if (!name) throw new KubeConfigError(`${where}: no current-context; choose one by \`kubectl config use-context\``);
  const context = config.getContextObject(name);
  if (!context) throw new KubeConfigError(`${where}: no context ${name}; there are: ${namesOf(config.contexts)}`);
  const cluster = config.getCluster(context.cluster);
  if (!cluster)
    throw new KubeConfigError(`${where}: no cluster ${context.cluster}; there are: ${namesOf(config.clusters)}`);
  if (context.user && !config.getUser(context.user))
    throw new KubeConfigError(`${where}: no user ${context.user}; there are: ${namesOf(config.users)}`);
  if (!URL.canParse(cluster.server))
    throw new KubeConfigError(`${where}: cluster ${cluster.name}: server: ${cluster.server}; must be a URL`);
  const { proxyUrl } = cluster;
  if (proxyUrl && !PROXY.test(proxyUrl))
    throw new KubeConfigError(
      `${where}: cluster ${cluster.name}: proxy-url: ${proxyUrl}; must be an http, https or socks5 URL`,
    );
  config.setCurrentContext(name);
  askProgram(config);
  const request = async (): Promise<RequestOptions> => {
    const requestOptions: RequestOptions = {};
    await config.applyToHTTPSOptions(requestOptions);
    return requestOptions;
  };
  // A program that authenticates runs here for the first time; its certificate cannot change afterwards.
  const first = await request().catch((error: Error) => {
    const hint = config.getCurrentUser()?.exec?.installHint;
    throw new KubeConfigError(`${where}: user ${context.user}: ${error.message.trim()}${hint ? `; ${hint}` : ''}`);
  });
  const { ca, cert, key, rejectUnauthorized, servername } = first;
  const tls = Object.fromEntries(
    Object.entries({ ca, cert, key, rejectUnauthorized, servername }).filter(([, value]) => value !== undefined),
  ) as Tls;
  const credentials = async (): Promise<Record<string, string>> => {
    const { auth, headers } = await request();
    const basic = auth ? { Authorization: `Basic ${Buffer.from(auth).toString('base64')}` } : {};
    return { ...basic, ...(headers as Record<string, string> | undefined) };
  };
  const connection = { server: cluster.server, tls, credentials, ...(proxyUrl && { proxy: proxyUrl }) };
  return { name, namespace: context.namespace || undefined, connection };
}

/** The library does not tell a program which version of the API is asked for, and some refuse to answer then. */
function askProgram(config: KubeConfig): void {
  const exec = config.getCurrentUser()?.exec;
  if (!exec) return;
  const { apiVersion = 'client.authentication.k8s.io/v1' } = exec;
  const value = JSON.stringify({ apiVersion, kind: 'ExecCredential', spec: { interactive: false } });
  exec.env = [{ name: 'KUBERNETES_EXEC_INFO', value }, ...(exec.env ?? [])];
}

const namesOf = (entries: readonly { name: string }[]): string => entries.map(({ name }) => name).join(', ') || 'none';

/** Of several files the first that has a cluster, a user, a context or the current context decides it. */
function merged(files: string[]): KubeConfig {
  const all = new KubeConfig();
  all.loadFromOptions({ clusters: [], users: [], contexts: [], currentContext: '' });
  for (const file of files) {
    const one = new KubeConfig();
    try {
      one.loadFromFile(file);
    } catch (error) {
      throw new KubeConfigError(`${file}: ${(error as Error).message.split('\n')[0]}`);
    }
    all.currentContext ||= one.currentContext;
    for (const cluster of one.clusters) if (!all.getCluster(cluster.name)) all.addCluster(cluster);
    for (const user of one.users) if (!all.getUser(user.name)) all.addUser(user);
    for (const context of one.contexts) if (!all.getContextObject(context.name)) all.addContext(context);
  }
  return all;
}
