/**
 * Pods as processes: starts the trainer program as a Pod's spec says, and tells what a kubelet would tell of it.
 * Knows nothing of jobs; the executor decides what is started and stopped.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import { type ConfigMap, type Container, Label, type ObservedPod, type Pod, readTermination } from '@facetrain/planner';

/** The program that an image's entry point runs. */
const PROGRAM = join(import.meta.dirname, '..', '..', '..', 'trainer-image', 'src', 'main.ts');

const ALLOCATORS = [
  '/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4',
  '/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4',
];

/**
 * What the image sets for every process. glibc's malloc gives each large tensor back to the kernel, and page faults then
 * take half of a training step on CPUs; OpenMP threads that spin while they wait would take another rank's core.
 */
export function processEnvironment(ranksHere: number): Record<string, string> {
  const allocator = ALLOCATORS.find((path) => existsSync(path));
  return {
    ...(allocator && process.env.LD_PRELOAD === undefined ? { LD_PRELOAD: allocator } : {}),
    THP_MEM_ALLOC_ENABLE: '1',
    OMP_WAIT_POLICY: 'passive',
    LOCAL_WORLD_SIZE: String(ranksHere),
  };
}

const SIGNALS: Record<string, number> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGILL: 4,
  SIGABRT: 6,
  SIGBUS: 7,
  SIGFPE: 8,
  SIGKILL: 9,
  SIGSEGV: 11,
  SIGTERM: 15,
};

export class PodProcess {
  readonly pod: Pod;
  readonly uid: string;
  readonly createdAt = new Date();
  readonly logFile: string;
  #child: ChildProcess | undefined;
  #phase: 'Pending' | 'Running' | 'Succeeded' | 'Failed' = 'Pending';
  #finishedAt: Date | undefined;
  #exitCode: number | undefined;
  #deleting = false;
  #killTimer: NodeJS.Timeout | undefined;
  readonly #messageFile: string;
  readonly #onChange: () => void;

  /**
   * @param configMaps those that the pod's volumes name
   * @param folder for logs and termination messages
   */
  constructor(pod: Pod, uid: string, configMaps: Map<string, ConfigMap>, folder: string, onChange: () => void) {
    this.pod = pod;
    this.uid = uid;
    this.#onChange = onChange;
    this.logFile = join(folder, 'logs', `${pod.metadata.name}.log`);
    this.#messageFile = join(folder, 'termination', pod.metadata.name);
    mkdirSync(dirname(this.logFile), { recursive: true });
    mkdirSync(dirname(this.#messageFile), { recursive: true });
    rmSync(this.#messageFile, { force: true });
    this.#mountConfigMaps(configMaps);
    void this.#run();
  }

  get ended(): boolean {
    return this.#phase === 'Succeeded' || this.#phase === 'Failed';
  }

  /** SIGTERM now, SIGKILL when the grace period is over. */
  delete(): void {
    if (this.#deleting) return;
    this.#deleting = true;
    this.#child?.kill('SIGTERM');
    this.#killTimer = setTimeout(() => this.kill(), this.pod.spec.terminationGracePeriodSeconds * 1000);
  }

  kill(): void {
    this.#child?.kill('SIGKILL');
  }

  observe(): ObservedPod {
    const { labels, name } = this.pod.metadata;
    return {
      name,
      uid: this.uid,
      attempt: Number(labels[Label.attempt]),
      rank: Number(labels[Label.rank] ?? 0),
      phase: this.#phase,
      ready: this.#phase === 'Running',
      deleting: this.#deleting,
      node: hostname(),
      createdAt: this.createdAt.toISOString(),
      ...(this.#finishedAt ? { finishedAt: this.#finishedAt.toISOString() } : {}),
      ...(this.#exitCode === undefined ? {} : { exitCode: this.#exitCode }),
      ...(this.#phase === 'Failed' ? { reason: 'Error' } : {}),
      ...(this.ended && existsSync(this.#messageFile) ? readTermination(readFileSync(this.#messageFile, 'utf8')) : {}),
      disrupted: false,
    };
  }

  #mountConfigMaps(configMaps: Map<string, ConfigMap>): void {
    for (const volume of this.pod.spec.volumes) {
      if (!('configMap' in volume)) continue;
      const config = configMaps.get(volume.configMap.name);
      if (!config)
        throw new Error(
          `pod ${this.pod.metadata.name} names the ConfigMap ${volume.configMap.name}, which is not there`,
        );
      for (const container of [...(this.pod.spec.initContainers ?? []), ...this.pod.spec.containers]) {
        for (const mount of container.volumeMounts.filter(({ name }) => name === volume.name)) {
          mkdirSync(mount.mountPath, { recursive: true });
          for (const [file, content] of Object.entries(config.data))
            writeFileSync(join(mount.mountPath, file), content);
        }
      }
    }
  }

  async #run(): Promise<void> {
    const containers = [...(this.pod.spec.initContainers ?? []), ...this.pod.spec.containers];
    for (const [index, container] of containers.entries()) {
      if (this.#deleting) return this.#end(143);
      const main = index === containers.length - 1;
      const code = await this.#start(container, main);
      if (code !== 0 || main) return this.#end(code);
    }
  }

  #start(container: Container, main: boolean): Promise<number> {
    return new Promise((resolve) => {
      const log = openSync(this.logFile, 'a');
      const env: Record<string, string | undefined> = {
        ...process.env,
        ...processEnvironment(Number(this.#value(container, 'WORLD_SIZE') ?? 1)),
      };
      for (const variable of container.env) {
        // A Secret's keys are looked up in this process's own environment.
        env[variable.name] = 'value' in variable ? variable.value : process.env[variable.valueFrom.secretKeyRef.key];
      }
      // All ranks are here: with several GPUs each takes its own.
      if (env.RANK !== undefined) env.LOCAL_RANK = env.RANK;
      env.FACETRAIN_TERMINATION_MESSAGE = this.#messageFile;
      // The channel tells the child when this process is gone, however that came about: no rank stays behind.
      this.#child = spawn(process.execPath, [PROGRAM, ...container.args], { env, stdio: ['ignore', log, log, 'ipc'] });
      closeSync(log);
      if (main) this.#phase = 'Running';
      this.#onChange();
      this.#child.once('error', () => resolve(1));
      this.#child.once('exit', (code, signal) => resolve(code ?? 128 + (SIGNALS[signal ?? ''] ?? 0)));
    });
  }

  #value(container: Container, name: string): string | undefined {
    const variable = container.env.find((candidate) => candidate.name === name);
    return variable && 'value' in variable ? variable.value : undefined;
  }

  #end(code: number): void {
    clearTimeout(this.#killTimer);
    this.#exitCode = code;
    this.#phase = code === 0 ? 'Succeeded' : 'Failed';
    this.#finishedAt = new Date();
    this.#child = undefined;
    this.#onChange();
  }
}
