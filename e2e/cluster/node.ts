/** A container that is a node of a cluster: the program of node/start.sh, with the rights that a kubelet needs and not more than it can be given. */
import { GenericContainer, PullPolicy, Wait } from 'testcontainers';
import { tools } from '../../hack/lib/paths.mjs';
import { archives, NODE_IMAGE } from './images.ts';

export interface NodeOptions {
  name: string;
  /** Of the container; a cluster that outlives the process is found again by it. */
  container?: string;
  role: 'control-plane' | 'worker';
  podCidr: string;
  environment: Record<string, string>;
  files: { content: string; target: string }[];
  /** Of the container, opened on the host at ports of the host's choice. */
  ports: number[];
  /** A folder of the host that all nodes have at `SHARED`, as network storage would be. */
  shared: string;
}

export const SHARED = '/srv/facetrain';
/** The last words of start.sh before it only waits. */
const STARTED = 'the node has started';
const START_MILLISECONDS = 120_000;

export class NodeContainer extends GenericContainer {
  constructor(options: NodeOptions) {
    super(NODE_IMAGE);
    this.createOpts.Volumes = { '/var/lib/containerd': {}, '/var/lib/kubelet': {}, '/var/lib/etcd': {} };
    Object.assign(this.hostConfig, {
      // Not "privileged": that asks for every capability, and fails where the machine itself lacks one (CAP_SYS_RESOURCE, often).
      CapAdd: ['ALL'],
      CapDrop: ['SYS_RESOURCE'],
      SecurityOpt: ['seccomp=unconfined', 'apparmor=unconfined'],
      MaskedPaths: [],
      ReadonlyPaths: [],
      DeviceCgroupRules: ['a *:* rwm'],
      CgroupnsMode: 'host',
      // Files that containers of this container run from, so it must be possible to execute them.
      Tmpfs: { '/run': 'exec', '/tmp': 'exec' },
    });
    this.withHostname(options.name)
      .withAutoCleanup(false)
      .withPullPolicy(PullPolicy.neverPull())
      // Fails at once when the container ends instead.
      .withWaitStrategy(Wait.forLogMessage(STARTED))
      .withStartupTimeout(START_MILLISECONDS)
      .withEnvironment({ ...options.environment, ROLE: options.role, NODE: options.name, POD_CIDR: options.podCidr })
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
