/**
 * A real kube-apiserver and etcd for tests (as envtest in Go): on free ports, in a temporary folder, until `stop`.
 * There are no controllers, no scheduler and no kubelet; tests do their part. The programs are those that `npm run
 * setup -- --test` builds, or those in KUBEBUILDER_ASSETS.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, existsSync, openSync } from 'node:fs';
import { copyFile, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parse } from 'yaml';
import { freePorts } from '../../../hack/lib/free-ports.mjs';
import { root, tools } from '../../../hack/lib/paths.mjs';
import { Client } from '../runtime/client.ts';
import { eventually } from './eventually.ts';

const CRDS = join(root, 'crds');
const START_MILLISECONDS = 300_000;
const STOP_MILLISECONDS = 10_000;

export class ControlPlane {
  readonly server: string;
  readonly token: string;
  readonly ca: string;
  /** Base URL of etcd's API, which has no authentication here. */
  readonly etcd: string;
  /** Authenticated as the cluster's administrator (system:masters). */
  readonly client: Client;
  readonly #folder: string;
  readonly #programs: Program[];

  private constructor(
    { server, etcd }: { server: string; etcd: string },
    token: string,
    ca: string,
    folder: string,
    programs: Program[],
  ) {
    this.server = server;
    this.etcd = etcd;
    this.token = token;
    this.ca = ca;
    this.#folder = folder;
    this.#programs = programs;
    this.client = new Client({ server, tls: { ca }, credentials: async () => ({ authorization: `Bearer ${token}` }) });
  }

  /**
   * @param flags additional flags of kube-apiserver
   * @param durable whether etcd has what it acknowledged also after a kill (`restart`); it is slower then
   */
  static async start(flags: string[] = [], durable = false): Promise<ControlPlane> {
    // The test runner ends a test that takes too long by SIGTERM, on which Node runs no exit handlers (see `run`).
    process.once('SIGTERM', () => process.exit(143));
    const folder = await mkdtemp(join(tmpdir(), 'facetrain-control-plane-'));
    const programs: Program[] = [];
    try {
      const [clientPort, peerPort, securePort] = await freePorts(3);
      const etcd = `http://127.0.0.1:${clientPort}`;
      const peer = `http://127.0.0.1:${peerPort}`;
      programs.push(
        run('etcd', folder, [
          '--data-dir',
          join(folder, 'etcd'),
          // With this, the newest records of its log stay in the memory of the process for a while.
          ...(durable ? [] : ['--unsafe-no-fsync']),
          '--listen-client-urls',
          etcd,
          '--advertise-client-urls',
          etcd,
          '--listen-peer-urls',
          peer,
          '--initial-advertise-peer-urls',
          peer,
          '--initial-cluster',
          `default=${peer}`,
        ]),
      );
      const token = randomUUID();
      const { privateKey } = generateKeyPairSync('ec', {
        namedCurve: 'P-256',
        privateKeyEncoding: { type: 'sec1', format: 'pem' },
        publicKeyEncoding: { type: 'spki', format: 'pem' },
      });
      const key = join(folder, 'service-accounts.key');
      const tokens = join(folder, 'tokens.csv');
      await writeFile(key, privateKey);
      await writeFile(tokens, `${token},admin,admin,system:masters\n`);
      programs.push(
        run('kube-apiserver', folder, [
          '--etcd-servers',
          etcd,
          '--bind-address',
          '127.0.0.1',
          '--secure-port',
          String(securePort),
          '--cert-dir',
          join(folder, 'certificates'),
          '--service-cluster-ip-range',
          '10.0.0.0/24',
          '--authorization-mode',
          'RBAC',
          '--token-auth-file',
          tokens,
          '--allow-privileged',
          '--disable-admission-plugins',
          'ServiceAccount',
          '--service-account-issuer',
          'https://kubernetes.default.svc',
          '--service-account-key-file',
          key,
          '--service-account-signing-key-file',
          key,
          ...flags,
        ]),
      );
      const certificate = join(folder, 'certificates', 'apiserver.crt');
      const ended = () => programs.find(({ child }) => child.exitCode !== null);
      // Written behind the certificate, which is whole by then.
      const certificateKey = join(folder, 'certificates', 'apiserver.key');
      await eventually(() => assert(existsSync(certificateKey) || ended()), START_MILLISECONDS);
      const ca = await readFile(certificate, 'utf8');
      const plane = new ControlPlane({ server: `https://127.0.0.1:${securePort}`, etcd }, token, ca, folder, programs);
      await eventually(async () => {
        const dead = ended();
        if (dead) throw new Error(`${dead.name} has ended`);
        await plane.client.raw('/api/v1/namespaces/default');
      }, START_MILLISECONDS);
      return plane;
    } catch (error) {
      for (const { child } of programs) child.kill('SIGKILL');
      throw new Error(`no control plane: ${await logOf(folder)}`, { cause: error });
    }
  }

  /** Creates the CustomResourceDefinitions in crds/ and waits until they are served. */
  async installCrds(): Promise<void> {
    for (const file of await readdir(CRDS)) {
      const definition = parse(await readFile(join(CRDS, file), 'utf8')) as {
        spec: { group: string; names: { plural: string } };
      };
      await this.client.post('/apis/apiextensions.k8s.io/v1/customresourcedefinitions', definition);
      await eventually(
        () => this.client.raw(`/apis/${definition.spec.group}/v1alpha1/${definition.spec.names.plural}`),
        START_MILLISECONDS,
      );
    }
  }

  async createNamespace(name: string): Promise<void> {
    await this.client.post('/api/v1/namespaces', { apiVersion: 'v1', kind: 'Namespace', metadata: { name } });
  }

  /**
   * @param server a proxy of this server; by default the server itself
   * @returns the path of a kubeconfig for this server, as its administrator
   */
  async kubeconfig(server = this.server): Promise<string> {
    const config = {
      'current-context': 'c',
      contexts: [{ name: 'c', context: { cluster: 'c', user: 'u' } }],
      clusters: [
        {
          name: 'c',
          // A proxy speaks plain HTTP, which the library accepts only without verification.
          cluster: server.startsWith('http:')
            ? { server, 'insecure-skip-tls-verify': true }
            : { server, 'certificate-authority-data': Buffer.from(this.ca).toString('base64') },
        },
      ],
      users: [{ name: 'u', user: { token: this.token } }],
    };
    const file = join(this.#folder, `kubeconfig-${randomUUID()}`);
    await writeFile(file, JSON.stringify(config));
    return file;
  }

  /**
   * @param account a ServiceAccount of the namespace; by default the token is the administrator's
   * @returns what a kubelet would give a pod: a folder with the token, and variables with the server's address
   */
  async serviceAccount(namespace: string, account?: string): Promise<{ folder: string; env: Record<string, string> }> {
    const folder = await mkdtemp(join(this.#folder, 'service-account-'));
    const token = account === undefined ? this.token : await this.#tokenOf(namespace, account);
    for (const [name, text] of Object.entries({ token, 'ca.crt': this.ca, namespace }))
      await writeFile(join(folder, name), text);
    const { hostname, port } = new URL(this.server);
    return { folder, env: { KUBERNETES_SERVICE_HOST: hostname, KUBERNETES_SERVICE_PORT: port } };
  }

  /** The API server's certificate, signed by itself, for servers that a test puts beside it. */
  async certificate(): Promise<{ cert: string; key: string }> {
    const read = (name: string) => readFile(join(this.#folder, 'certificates', name), 'utf8');
    return { cert: await read('apiserver.crt'), key: await read('apiserver.key') };
  }

  async #tokenOf(namespace: string, account: string): Promise<string> {
    const path = `/api/v1/namespaces/${namespace}/serviceaccounts/${account}/token`;
    const request = {
      apiVersion: 'authentication.k8s.io/v1',
      kind: 'TokenRequest',
      spec: { expirationSeconds: 86_400 },
    };
    const { status } = await this.client.post<{ status: { token: string } }>(path, request);
    return status.token;
  }

  /** Process ids of the programs that run, by their names. */
  get pids(): Record<string, number> {
    return Object.fromEntries(this.#programs.map(({ name, child }) => [name, child.pid!]));
  }

  /** Starts one more program, until `stop`. Its output goes to a log in the temporary folder. */
  run(name: string, args: string[]): ChildProcess {
    const program = run(name, this.#folder, args);
    this.#programs.push(program);
    return program.child;
  }

  /** Whether a program that was started has not ended. */
  isRunning(name: string): boolean {
    const { child } = this.#programs.find((each) => each.name === name)!;
    return child.exitCode === null && child.signalCode === null;
  }

  /**
   * Kills a program, if it has not ended, and starts it again after a time with the same arguments, on the same ports
   * and data. It does not wait until the program answers.
   */
  async restart(name: 'etcd' | 'kube-apiserver' | 'kueue', milliseconds = 0): Promise<void> {
    const program = this.#programs.find((each) => each.name === name)!;
    if (this.isRunning(name)) {
      const ended = once(program.child, 'exit');
      program.child.kill('SIGKILL');
      await ended;
    }
    await delay(milliseconds);
    program.child = run(name, this.#folder, program.args).child;
  }

  /** Stops a program for a time: connections to it stay open, and are silent. */
  async freeze(name: 'etcd' | 'kube-apiserver', milliseconds: number): Promise<void> {
    const { child } = this.#programs.find((each) => each.name === name)!;
    child.kill('SIGSTOP');
    await delay(milliseconds);
    child.kill('SIGCONT');
  }

  /** Copies what the programs have logged into a folder, which `stop` does not remove. */
  async copyLogs(folder: string): Promise<void> {
    for (const name of await logsIn(this.#folder)) await copyFile(join(this.#folder, name), join(folder, name));
  }

  async stop(): Promise<void> {
    await this.client.close();
    for (const { child } of [...this.#programs].reverse()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), STOP_MILLISECONDS);
      await ended;
      clearTimeout(timer);
    }
    await rm(this.#folder, { recursive: true, force: true });
  }
}

/** A program that runs, and how it was started. */
interface Program {
  name: string;
  args: string[];
  child: ChildProcess;
}

function run(name: string, folder: string, args: string[]): Program {
  // A KUBEBUILDER_ASSETS of another project may lack programs that are in our cache.
  const program = [process.env.KUBEBUILDER_ASSETS, tools]
    .flatMap((assets) => assets ?? [])
    .map((assets) => join(assets, name))
    .find((file) => existsSync(file));
  assert(program, `${join(tools, name)} is missing: run \`npm run setup -- --test\`, or set KUBEBUILDER_ASSETS`);
  const log = openSync(join(folder, `${name}.log`), 'a');
  const child = spawn(program, args, { stdio: ['ignore', log, log], cwd: folder });
  closeSync(log);
  // A test process that exits early must not leave servers running.
  const kill = () => child.kill('SIGKILL');
  process.once('exit', kill);
  child.once('exit', () => process.off('exit', kill));
  return { name, args, child };
}

const logsIn = async (folder: string): Promise<string[]> =>
  (await readdir(folder)).filter((name) => name.endsWith('.log'));

async function logOf(folder: string): Promise<string> {
  const texts = await Promise.all(
    (await logsIn(folder)).map(
      async (name) => `${name}:\n${(await readFile(join(folder, name), 'utf8')).slice(-3000)}`,
    ),
  );
  return texts.join('\n');
}
