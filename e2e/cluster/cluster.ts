/**
 * A real Kubernetes in containers of this machine: etcd, API server, controllers, scheduler, DNS, and a kubelet for
 * each node. The nodes share a folder of the machine in place of network storage.
 */
import assert from 'node:assert/strict';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client } from '@facetrain/operator/runtime/client';
import { readKubeConfig } from '@facetrain/operator/runtime/kubeconfig';
import { eventually } from '@facetrain/operator/testing/eventually';
import type { StartedTestContainer } from 'testcontainers';
import { stringify } from 'yaml';
import { tools } from '../../hack/lib/paths.mjs';
import { type CommandOptions, command } from './command.ts';
import { archive, PAUSE_IMAGE } from './images.ts';
import { NodeContainer } from './node.ts';

const API_PORT = 6443;
const ETCD_PORT = 2379;
/** The port of the object store on every node: nodePort in object-store.yaml. */
export const S3_NODE_PORT = 30_900;
export const CONTROL_PLANE = 'control-plane';
const WORKERS = ['worker-1', 'worker-2'];
const START_MILLISECONDS = 120_000;
const NODE_GRACE_SECONDS = 10;

interface Tokens {
  admin: string;
  proxy: string;
  /** By the node's name. */
  kubelets: Record<string, string>;
}

export interface ClusterOptions {
  /** Prefix of the containers' names, by which another process finds them; absent: Docker chooses the names. */
  name?: string;
  /** For the kubeconfig and the shared storage; absent: a temporary folder. `stop` removes either. */
  folder?: string;
  /** Seconds without a sign of a node until Kubernetes calls its state unknown; absent: 10, for quick tests. */
  nodeGraceSeconds?: number;
  /** The node, pods and Services have addresses of both families, IPv6 first; absent: of IPv4 alone. */
  ipv6First?: boolean;
  /** This machine reaches etcd, which stores JSON: each change of each object can be read there. */
  readableEtcd?: boolean;
}

interface Node {
  container: StartedTestContainer;
  podCidr: string;
}

export class Cluster {
  readonly client: Client;
  readonly #folder: string;
  readonly #options: ClusterOptions;
  readonly #tokens: Tokens;
  readonly #nodes: Map<string, Node>;

  private constructor(
    options: ClusterOptions,
    folder: string,
    tokens: Tokens,
    nodes: Map<string, Node>,
    client: Client,
  ) {
    this.#options = options;
    this.#folder = folder;
    this.#tokens = tokens;
    this.#nodes = nodes;
    this.client = client;
  }

  /** Starts the control plane's node. @throws Error with the ends of its logs when it does not become ready */
  static async start(options: ClusterOptions = {}): Promise<Cluster> {
    const folder = options.folder ?? (await mkdtemp(join(tmpdir(), 'facetrain-cluster-')));
    await mkdir(join(folder, 'shared'), { recursive: true });
    // Containers of any user write here.
    await chmod(join(folder, 'shared'), 0o777);
    const tokens: Tokens = {
      admin: randomUUID(),
      proxy: randomUUID(),
      kubelets: Object.fromEntries([CONTROL_PLANE, ...WORKERS].map((name) => [name, randomUUID()])),
    };
    const { privateKey } = generateKeyPairSync('ec', {
      namedCurve: 'P-256',
      privateKeyEncoding: { type: 'sec1', format: 'pem' },
      publicKeyEncoding: { type: 'spki', format: 'pem' },
    });
    const podCidr = '10.244.0.0/24';
    const container = await new NodeContainer({
      name: CONTROL_PLANE,
      ...(options.name && { container: `${options.name}-${CONTROL_PLANE}` }),
      role: 'control-plane',
      podCidr,
      environment: {
        PAUSE: await archive(PAUSE_IMAGE),
        SERVER: `https://127.0.0.1:${API_PORT}`,
        NODE_GRACE_SECONDS: String(options.nodeGraceSeconds ?? NODE_GRACE_SECONDS),
        ...(options.ipv6First && { POD_CIDR6: 'fd00:244::/64' }),
        ...(options.readableEtcd && { READABLE_ETCD: 'true' }),
        TOKEN_ADMIN: tokens.admin,
        TOKEN_CONTROLLER_MANAGER: randomUUID(),
        TOKEN_SCHEDULER: randomUUID(),
        TOKEN_PROXY: tokens.proxy,
        TOKEN_KUBELET: tokens.kubelets[CONTROL_PLANE]!,
        KUBELET_TOKENS: Object.entries(tokens.kubelets)
          .map(([name, token]) => `${token},system:node:${name},${name},system:nodes`)
          .join('\n'),
      },
      files: [{ content: privateKey, target: '/opt/facetrain/service-accounts.key' }],
      ports: [API_PORT, S3_NODE_PORT, ...(options.readableEtcd ? [ETCD_PORT] : [])],
      shared: join(folder, 'shared'),
    }).start();
    const nodes = new Map([[CONTROL_PLANE, { container, podCidr }]]);
    try {
      const ca = await readFrom(container, '/etc/kubernetes/ca.crt');
      const config = kubeconfig(
        `https://${container.getHost()}:${container.getMappedPort(API_PORT)}`,
        ca,
        tokens.admin,
      );
      const file = join(folder, 'kubeconfig');
      await writeFile(file, config, { mode: 0o600 });
      const client = new Client((await readKubeConfig({ file })).connection);
      const cluster = new Cluster(options, folder, tokens, nodes, client);
      await cluster.waitUntilReady(CONTROL_PLANE);
      return cluster;
    } catch (error) {
      const logs = await logsOf(container);
      await container.stop({ remove: true, removeVolumes: true });
      throw new Error(`the cluster did not come up:\n${logs}`, { cause: error });
    }
  }

  /** A file for kubectl and helm. */
  get kubeconfig(): string {
    return join(this.#folder, 'kubeconfig');
  }

  /** The folder of this machine that is mounted at SHARED (node.ts) in every node. */
  get shared(): string {
    return join(this.#folder, 'shared');
  }

  /** host:port by which this machine reaches a NodePort, or a program of the control plane. */
  address(port: number): string {
    const { container } = this.#nodes.get(CONTROL_PLANE)!;
    return `${container.getHost()}:${container.getMappedPort(port)}`;
  }

  /** Base URL of etcd, with `readableEtcd`. */
  get etcd(): string {
    return `http://${this.address(ETCD_PORT)}`;
  }

  /** Names of the nodes, the control plane's first. */
  get nodeNames(): string[] {
    return [...this.#nodes.keys()];
  }

  /** Adds a worker, and routes between its pods and those of the other nodes. @returns the node's name */
  async addNode(): Promise<string> {
    assert(!this.#options.ipv6First, 'with IPv6 a cluster has one node');
    const index = WORKERS.findIndex((name) => !this.#nodes.has(name));
    const name = WORKERS[index];
    assert(name, `a cluster has at most ${WORKERS.length} workers`);
    const first = this.#nodes.get(CONTROL_PLANE)!.container;
    const podCidr = `10.244.${index + 1}.0/24`;
    const container = await new NodeContainer({
      name,
      ...(this.#options.name && { container: `${this.#options.name}-${name}` }),
      role: 'worker',
      podCidr,
      environment: {
        PAUSE: await archive(PAUSE_IMAGE),
        SERVER: `https://${addressOf(first)}:${API_PORT}`,
        TOKEN_PROXY: this.#tokens.proxy,
        TOKEN_KUBELET: this.#tokens.kubelets[name]!,
      },
      files: [{ content: await readFrom(first, '/etc/kubernetes/ca.crt'), target: '/opt/facetrain/ca.crt' }],
      ports: [],
      shared: this.shared,
    }).start();
    for (const other of this.#nodes.values()) {
      await executeIn(other.container, ['ip', 'route', 'replace', podCidr, 'via', addressOf(container)]);
      await executeIn(container, ['ip', 'route', 'replace', other.podCidr, 'via', addressOf(other.container)]);
    }
    this.#nodes.set(name, { container, podCidr });
    await this.waitUntilReady(name);
    return name;
  }

  /** Ends a node as a power failure does: no process on it can clean up, and the API server is not informed. */
  async killNode(name: string): Promise<void> {
    const { container } = this.#nodes.get(name)!;
    await command(['docker', 'kill', container.getId()]);
    await container.stop({ remove: true, removeVolumes: true });
    this.#nodes.delete(name);
  }

  /** Imports images of this machine's Docker engine into the containerd of nodes (absent: of all). */
  async load(images: string[], nodes: string[] = [...this.#nodes.keys()]): Promise<void> {
    for (const image of images) {
      const file = await archive(image);
      for (const name of nodes)
        await executeIn(this.#nodes.get(name)!.container, [
          'ctr',
          '--namespace',
          'k8s.io',
          'images',
          'import',
          `/opt/images/${file}`,
        ]);
    }
  }

  /** Runs a program on a node. @returns its output @throws Error when it fails */
  async execute(node: string, argv: string[]): Promise<string> {
    return executeIn(this.#nodes.get(node)!.container, argv);
  }

  kubectl(...args: string[]): Promise<string> {
    return this.run('kubectl', args);
  }

  /** Runs kubectl or helm with the cluster's kubeconfig. @returns standard output @throws CommandError */
  run(program: 'kubectl' | 'helm', args: string[], options: CommandOptions = {}): Promise<string> {
    return command([join(tools, program), ...args], {
      ...options,
      env: { ...options.env, KUBECONFIG: this.kubeconfig },
    });
  }

  /** The ends of the logs of all programs on all nodes. */
  async logs(): Promise<string> {
    const parts = await Promise.all(
      [...this.#nodes].map(async ([name, { container }]) => `=== ${name}\n${await logsOf(container)}`),
    );
    return parts.join('\n');
  }

  async stop(): Promise<void> {
    await this.client.close();
    await Promise.all(
      [...this.#nodes.values()].map(({ container }) =>
        container.stop({ remove: true, removeVolumes: true, timeout: 1000 }),
      ),
    );
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** The node's kubelet says that it is ready. */
  async waitUntilReady(name: string): Promise<void> {
    await eventually(async () => {
      const node = (await this.client.raw(`/api/v1/nodes/${name}`)) as {
        status?: { conditions?: { type: string; status: string; message?: string }[] };
      };
      const ready = node.status?.conditions?.find(({ type }) => type === 'Ready');
      assert.equal(ready?.status, 'True', ready?.message);
    }, START_MILLISECONDS);
  }
}

function kubeconfig(server: string, ca: string, token: string): string {
  const name = 'facetrain';
  return stringify({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': name,
    clusters: [
      {
        name,
        cluster: {
          server,
          'certificate-authority-data': Buffer.from(ca).toString('base64'),
          'tls-server-name': 'kubernetes.default.svc',
        },
      },
    ],
    users: [{ name, user: { token } }],
    contexts: [{ name, context: { cluster: name, user: name } }],
  });
}

const addressOf = (container: StartedTestContainer): string => container.getIpAddress('bridge');

/** @returns the command's output @throws Error when it fails */
async function executeIn(container: StartedTestContainer, argv: string[]): Promise<string> {
  const { exitCode, output } = await container.exec(argv);
  if (exitCode !== 0) throw new Error(`${container.getName()}: "${argv.join(' ')}" ended with ${exitCode}:\n${output}`);
  return output;
}

const readFrom = (container: StartedTestContainer, file: string): Promise<string> =>
  executeIn(container, ['cat', file]);

async function logsOf(container: StartedTestContainer): Promise<string> {
  const { output } = await container
    .exec(['sh', '-c', 'tail -n 15 /var/log/facetrain/*.log'])
    .catch(async () => ({ output: await command(['docker', 'logs', container.getId()]) }));
  return output;
}
