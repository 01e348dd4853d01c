/**
 * Runs a part of a test as if it were a process that is killed or frozen before one of its file operations. Node's own
 * functions of `node:fs/promises` do the work, on a real folder. Operations of the rest of the test are not affected.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import files from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

export interface Operation {
  /** Counted from 1. */
  number: number;
  /** Name of the function. */
  name: string;
  args: unknown[];
}

/** Which operation the process never begins, or begins only after `wake`. */
type Moment = (operation: Operation) => boolean;

const running = new AsyncLocalStorage<SimulatedProcess>();
const killed = new Error('killed');

export class SimulatedProcess {
  readonly #moment: Moment;
  readonly #then: 'killed' | 'frozen';
  readonly #reached = Promise.withResolvers<'reached'>();
  readonly #woken = Promise.withResolvers<void>();
  #operations = 0;
  #stopped = false;

  constructor(then: 'killed' | 'frozen', moment: Moment) {
    this.#then = then;
    this.#moment = moment;
  }

  /**
   * Runs `work` until it ends or comes to the moment.
   * @returns `reached` at the moment; its `ended` settles as `work` does
   */
  async run(work: () => Promise<unknown>): Promise<{ reached: boolean; ended: Promise<unknown> }> {
    const ended = running.run(this, work);
    ended.catch(() => {});
    const first = await Promise.race([this.#reached.promise, ended.then(() => 'ended')]).catch(() => 'failed');
    return { reached: first === 'reached' || this.#stopped, ended };
  }

  /** Lets a frozen process go on. */
  wake(): void {
    this.#woken.resolve();
  }

  async before(name: string, args: unknown[]): Promise<void> {
    if (this.#stopped && this.#then === 'killed') throw killed;
    if (this.#stopped || !this.#moment({ number: ++this.#operations, name, args })) return;
    this.#stopped = true;
    this.#reached.resolve('reached');
    if (this.#then === 'killed') throw killed;
    await this.#woken.promise;
  }
}

/** Every function that reads or changes a file system by path. */
const BY_PATH = ['chmod', 'copyFile', 'mkdir', 'open', 'readdir', 'readFile', 'rename', 'rm', 'stat'] as const;
const BY_HANDLE = ['sync', 'write', 'writeFile'] as const;

function intercept(target: object, name: string): void {
  const functions = target as Record<string, (...args: unknown[]) => Promise<unknown>>;
  const original = functions[name]!;
  functions[name] = async function intercepted(this: unknown, ...args: unknown[]) {
    await running.getStore()?.before(name, args);
    return original.apply(this, args);
  };
}

const handle = await files.open('/dev/null');
for (const name of BY_HANDLE) intercept(Object.getPrototypeOf(handle) as object, name);
await handle.close();
for (const name of BY_PATH) intercept(files, name);
syncBuiltinESMExports();
