/**
 * A pod as processes: runs the trainer program as the Pod's spec says, one container after the other, and reports what
 * a kubelet would report. Knows nothing of jobs; the executor decides what is started and stopped.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { constants, hostname } from 'node:os';
import { dirname, join } from 'node:path';
import { ExitCode, FacetrainError } from '@facetrain/api';
import { type ConfigMap, type Container, Label, type ObservedPod, type Pod, readTermination } from '@facetrain/planner';
import { storageError } from '@facetrain/trainer/storage/atomic-files';

/** The entry point of the trainers' image. */
const TRAINER = join(import.meta.dirname, '..', '..', '..', 'trainer-image', 'src', 'main.ts');

const ALLOCATORS = [
  '/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4',
  '/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4',
];

/**
 * The variables that trainer-image/Dockerfile sets, and those for ranks that share a machine. glibc's malloc gives each
 * large tensor back to the kernel, and page faults then take half of a training step on CPUs. OpenMP threads that spin
 * while they wait would take another rank's core.
 */
function processEnvironment(worldSize: number): Record<string, string> {
  const allocator = ALLOCATORS.find((path) => existsSync(path));
  return {
    ...(allocator && process.env.LD_PRELOAD === undefined ? { LD_PRELOAD: allocator } : {}),
    THP_MEM_ALLOC_ENABLE: '1',
    OMP_WAIT_POLICY: 'passive',
    LOCAL_WORLD_SIZE: String(worldSize),
  };
}

export class PodProcess {
  readonly pod: Pod;
  readonly uid: string;
  readonly createdAt = new Date();
  readonly logFile: string;
  #child: ChildProcess | undefined;
  #phase: 'Pending' | 'Running' | 'Succeeded' | 'Failed' = 'Pending';
  #finishedAt: Date | undefined;
  #exitCode: number | undefined;
  #signal: NodeJS.Signals | undefined;
  /** Why a process could not be started. */
  #unstarted: { code: string; message: string } | undefined;
  #deleting = false;
  #killTimer: NodeJS.Timeout | undefined;
  readonly #messageFile: string;
  readonly #lock: number;
  readonly #onChange: () => void;

  /**
   * Starts the first container.
   * @param configMaps by name; must hold those that the pod's volumes name
   * @param options.folder for logs and termination messages
   * @param options.lock a descriptor that the processes inherit
   * @param onChange is called when a process starts or ends
   * @throws FacetrainError DiskFull, StorageFailed; Error when a ConfigMap is missing
   */
  constructor(
    pod: Pod,
    uid: string,
    configMaps: Map<string, ConfigMap>,
    { folder, lock }: { folder: string; lock: number },
    onChange: () => void,
  ) {
    this.pod = pod;
    this.uid = uid;
    this.#onChange = onChange;
    this.#lock = lock;
    this.logFile = join(folder, 'logs', `${pod.metadata.name}.log`);
    this.#messageFile = join(folder, 'termination', pod.metadata.name);
    try {
      mkdirSync(dirname(this.logFile), { recursive: true });
      mkdirSync(dirname(this.#messageFile), { recursive: true });
      rmSync(this.#messageFile, { force: true });
      this.#mountConfigMaps(configMaps);
    } catch (error) {
      throw storageError(folder, error);
    }
    this.#run().catch((error: unknown) => this.#endUnstarted(error));
  }

  /** The signal that ended the process; undefined when it left by itself. */
  get signal(): NodeJS.Signals | undefined {
    return this.#signal;
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
      ...(this.#unstarted && { termination: this.#unstarted }),
      disrupted: false,
    };
  }

  #mountConfigMaps(configMaps: Map<string, ConfigMap>): void {
    for (const volume of this.pod.spec.volumes) {
      if (!('configMap' in volume)) continue;
      const config = configMaps.get(volume.configMap.name);
      if (!config)
        throw new Error(
          `pod ${this.pod.metadata.name} names the ConfigMap ${volume.configMap.name}, which does not exist`,
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
      if (this.#deleting) return this.#end(ExitCode.preempted);
      const isMain = index === containers.length - 1;
      const code = await this.#start(container, isMain);
      if (code !== ExitCode.success || isMain) return this.#end(code);
    }
  }

  /** @returns the exit code; 128 + the signal's number when a signal ended the process, as a shell has it */
  #start(container: Container, isMain: boolean): Promise<number> {
    return new Promise((resolve, reject) => {
      const log = openSync(this.logFile, 'a');
      const env = this.#environmentOf(container);
      // A trainer stops when its IPC channel closes, so none outlives this process, not even after SIGKILL.
      const stdio = ['ignore' as const, log, log, 'ipc' as const, this.#lock];
      this.#child = spawn(process.execPath, [TRAINER, ...container.args], { env, stdio });
      closeSync(log);
      if (isMain) this.#phase = 'Running';
      this.#onChange();
      this.#child.once('error', reject);
      this.#child.once('exit', (code, signal) => {
        this.#signal = signal ?? undefined;
        resolve(code ?? 128 + (signal ? constants.signals[signal] : 0));
      });
    });
  }

  #environmentOf(container: Container): NodeJS.ProcessEnv {
    const variables = Object.fromEntries(
      container.env.map((variable) => [
        variable.name,
        // A key of a Secret is read from this process's own environment.
        'value' in variable ? variable.value : process.env[variable.valueFrom.secretKeyRef.key],
      ]),
    );
    return {
      ...process.env,
      ...processEnvironment(Number(variables.WORLD_SIZE ?? 1)),
      ...variables,
      // All ranks are on this machine: with several GPUs each takes its own.
      ...(variables.RANK !== undefined && { LOCAL_RANK: variables.RANK }),
      FACETRAIN_TERMINATION_MESSAGE: this.#messageFile,
    };
  }

  #endUnstarted(error: unknown): void {
    const cause = storageError(this.logFile, error);
    const isKnown = cause instanceof FacetrainError;
    this.#unstarted = { code: isKnown ? cause.code : 'Internal', message: (cause as Error).message };
    this.#end(isKnown ? cause.exitCode : ExitCode.failure);
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
