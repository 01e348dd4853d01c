/** A container that is a node of a cluster: runs node/start.sh, with the rights that a kubelet needs. */
import { GenericContainer, PullPolicy, Wait } from 'testcontainers';
import { tools } from '../../hack/lib/paths.mjs';
import { archives, NODE_IMAGE } from './images.ts';

export interface NodeOptions {
  name: string;
  /** The container's name; absent: Docker chooses one. */
  container?: string;
  role: 'control-plane' | 'worker';
  podCidr: string;
  environment: Record<string, string>;
  files: { content: string; target: string }[];
  /** Ports of the container; Docker maps each to a free port of this machine. */
  ports: number[];
  /** A folder of this machine, mounted at `SHARED` in place of network storage. */
  shared: string;
}

export const SHARED = '/srv/facetrain';
/** IPv4 addresses of services. */
const SERVICE_CIDR = '10.96.0.0/16';
/** start.sh prints this when the node's programs run. */
const STARTED = 'the node has started';
const START_MILLISECONDS = 120_000;

export class NodeContainer extends GenericContainer {
  constructor(options: NodeOptions) {
    super(NODE_IMAGE);
    this.createOpts.Volumes = { '/var/lib/containerd': {}, '/var/lib/kubelet': {}, '/var/lib/etcd': {} };
    Object.assign(this.hostConfig, {
      // Not "privileged": that needs every capability, and fails on a machine that lacks one (often CAP_SYS_RESOURCE).
      CapAdd: ['ALL'],
      CapDrop: ['SYS_RESOURCE'],
      SecurityOpt: ['seccomp=unconfined', 'apparmor=unconfined'],
      MaskedPaths: [],
      ReadonlyPaths: [],
      DeviceCgroupRules: ['a *:* rwm'],
      CgroupnsMode: 'host',
      // Programs of pods are started from here; Docker's default for a tmpfs is noexec.
      Tmpfs: { '/run': 'exec', '/tmp': 'exec' },
    });
    this.withHostname(options.name)
      .withAutoCleanup(false)
      .withPullPolicy(PullPolicy.neverPull())
      // Also fails at once when the container ends.
      .withWaitStrategy(Wait.forLogMessage(STARTED))
      .withStartupTimeout(START_MILLISECONDS)
      .withEnvironment({
        ...options.environment,
        ROLE: options.role,
        NODE: options.name,
        POD_CIDR: options.podCidr,
        SERVICE_CIDR,
      })
      .withExposedPorts(...options.ports)
      .withBindMounts([
        { source: '/sys/fs/cgroup', target: '/sys/fs/cgroup', mode: 'rw' },
        { source: '/dev/kmsg', target: '/dev/kmsg', mode: 'rw' },
        { source: tools, target: '/opt/kubernetes', mode: 'ro' },
        { source: archives, target: '/opt/images', mode: 'ro' },
        { source: options.shared, target: SHARED, mode: 'rw' },
      ])
      .withCopyContentToContainer(options.files);
    if (options.container) this.withName(options.container);
  }
}
