/**
 * Replicas of the operator in processes of their own, each behind a proxy, and started again when it ends. They have
 * the rights that the manifests give the operator, and no others.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import type { Client } from '@facetrain/operator/runtime/client';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { FaultProxy } from '@facetrain/operator/testing/fault-proxy';
import { parseAllDocuments } from 'yaml';
import { freePorts } from '../../hack/lib/free-ports.mjs';
import { root } from '../../hack/lib/paths.mjs';

const PROGRAM = join(root, 'operator', 'src', 'main.ts');
const CLOCK = join(import.meta.dirname, 'shifted-clock.mjs');
const MANIFESTS = join(root, 'deploy', 'facetrain.yaml');
/** Of the operator, in MANIFESTS. */
const NAMESPACE = 'facetrain-system';
/** Of the Lease. A leader that is frozen for longer finds another one. */
export const LEASE_SECONDS = 6;
/** Before a replica that has ended starts again. */
const RESTART_MILLISECONDS = 1_000;
/** What a replica may write as its last words when its Lease was lost; anything else is a defect. */
const LOST = /^(lease \S+ (was taken by|could not be renewed)|the lease was not renewed)/m;
/** Another program of this machine has got its port while it was down. It tries again. */
const PORT_TAKEN = /EADDRINUSE/;

export class OperatorReplica {
  readonly name: string;
  readonly proxy: FaultProxy;
  readonly #folder: string;
  readonly #kubeconfig: string;
  readonly #port: number;
  #child!: ChildProcess;
  #isEnding = false;
  #isKilled = false;
  isFrozen = false;
  readonly #onCrash: (words: string) => void;

  private constructor(
    name: string,
    folder: string,
    kubeconfig: string,
    port: number,
    proxy: FaultProxy,
    onCrash: (words: string) => void,
  ) {
    this.name = name;
    this.#folder = folder;
    this.#kubeconfig = kubeconfig;
    this.#port = port;
    this.proxy = proxy;
    this.#onCrash = onCrash;
  }

  /**
   * @param folder for its logs and its clock
   * @param onCrash called when it ends by itself, other than for its Lease
   */
  static async start(
    plane: ControlPlane,
    name: string,
    folder: string,
    onCrash: (words: string) => void,
  ): Promise<OperatorReplica> {
    const proxy = await FaultProxy.start(plane.server, plane.ca);
    const kubeconfig = join(folder, `${name}.kubeconfig`);
    writeFileSync(kubeconfig, JSON.stringify(await kubeconfigOf(plane.client, name, proxy.server)));
    const [port] = await freePorts(1);
    const replica = new OperatorReplica(name, folder, kubeconfig, port!, proxy, onCrash);
    writeFileSync(replica.#clock, '0');
    replica.#run();
    return replica;
  }

  get #clock(): string {
    return join(this.#folder, `${this.name}.clock`);
  }
  get log(): string {
    return join(this.#folder, `${this.name}.log`);
  }

  async isLeading(): Promise<boolean> {
    if (this.isFrozen) return false;
    try {
      const answer = await fetch(`http://127.0.0.1:${this.#port}/metrics`, { signal: AbortSignal.timeout(1_000) });
      return /^leader_election_master_status\S* 1$/m.test(await answer.text());
    } catch {
      return false;
    }
  }

  kill(): void {
    this.#isKilled = true;
    this.#child.kill('SIGKILL');
  }

  async freeze(milliseconds: number): Promise<void> {
    this.isFrozen = true;
    this.#child.kill('SIGSTOP');
    await delay(milliseconds);
    this.#child.kill('SIGCONT');
    this.isFrozen = false;
  }

  /** Sets its wall clock to the machine's, plus so much. It keeps this when it starts again. */
  shiftClock(milliseconds: number): void {
    writeFileSync(this.#clock, String(milliseconds));
  }

  async stop(): Promise<void> {
    this.#isEnding = true;
    const ended = once(this.#child, 'exit');
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGCONT');
      this.#child.kill('SIGTERM');
      const timer = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
      await ended;
      clearTimeout(timer);
    }
    await this.proxy.close();
  }

  #run(): void {
    const errors = `${this.log}.stderr`;
    const [out, err] = [openSync(this.log, 'a'), openSync(errors, 'w')];
    const args = ['--image', 'registry.example/trainer:1', '--kubeconfig', this.#kubeconfig];
    const election = ['--lease-namespace', NAMESPACE, '--lease-seconds', String(LEASE_SECONDS)];
    const others = ['--health-port', String(this.#port), '--progress-seconds', '1'];
    const child = spawn(process.execPath, ['--import', CLOCK, PROGRAM, ...args, ...election, ...others], {
      stdio: ['ignore', out, err],
      env: { ...process.env, FACETRAIN_SOAK_CLOCK: this.#clock },
    });
    closeSync(out);
    closeSync(err);
    const kill = () => child.kill('SIGKILL');
    process.once('exit', kill);
    this.#child = child;
    this.#isKilled = false;
    child.once('exit', (code, signal) => {
      process.off('exit', kill);
      const words = readFileSync(errors, 'utf8').trim();
      if (!this.#isEnding && !this.#isKilled && !LOST.test(words) && !PORT_TAKEN.test(words))
        this.#onCrash(`${this.name} ended with ${signal ?? code}: ${words.slice(-2_000)}`);
      if (this.#isEnding) return;
      void delay(RESTART_MILLISECONDS).then(() => {
        if (!this.#isEnding) this.#run();
      });
    });
  }
}

interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string };
}

/**
 * Makes the operator's namespace, and a service account for each replica with the roles of MANIFESTS. There all
 * replicas have one account; here the audit log has to tell them apart.
 */
export async function installRights(client: Client, replicas: string[]): Promise<void> {
  const documents = parseAllDocuments(readFileSync(MANIFESTS, 'utf8')).map((each) => each.toJS() as Manifest);
  const make = async (object: object, path: string) => {
    await client.post(path, object).catch((error: unknown) => {
      // The API server makes some of its own.
      if (!isApiError(error, 'AlreadyExists')) throw error;
    });
  };
  const metadata = { name: NAMESPACE };
  await make({ apiVersion: 'v1', kind: 'Namespace', metadata }, '/api/v1/namespaces');
  for (const name of replicas)
    await make({ apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name, namespace: NAMESPACE } }, accountsPath);
  const subjects = replicas.map((name) => ({ kind: 'ServiceAccount', name, namespace: NAMESPACE }));
  const ofRights = documents.filter(({ apiVersion }) => apiVersion.startsWith('rbac.authorization.k8s.io/'));
  assert(ofRights.length > 0, `${MANIFESTS} has no roles`);
  for (const object of ofRights) {
    const { apiVersion, kind, metadata } = object;
    const where = metadata.namespace === undefined ? '' : `namespaces/${metadata.namespace}/`;
    const bound = kind.endsWith('Binding') ? { ...object, subjects } : object;
    await make(bound, `/apis/${apiVersion}/${where}${kind.toLowerCase()}s`);
  }
}

const accountsPath = `/api/v1/namespaces/${NAMESPACE}/serviceaccounts`;

/** @returns a kubeconfig with a token of the replica's service account */
async function kubeconfigOf(client: Client, name: string, server: string): Promise<object> {
  const request = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 86_400 } };
  const { status } = await client.post<{ status: { token: string } }>(`${accountsPath}/${name}/token`, request);
  return {
    'current-context': 'c',
    contexts: [{ name: 'c', context: { cluster: 'c', user: 'u' } }],
    // The proxy speaks plain HTTP, which the library accepts only without verification.
    clusters: [{ name: 'c', cluster: { server, 'insecure-skip-tls-verify': true } }],
    users: [{ name: 'u', user: { token: status.token } }],
  };
}

/** The user that the API server's audit log names for a replica. */
export const userOf = (name: string): string => `system:serviceaccount:${NAMESPACE}:${name}`;
export { NAMESPACE as OPERATOR_NAMESPACE };
