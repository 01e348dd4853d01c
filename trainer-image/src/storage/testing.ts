/** For tests: a real S3 server (versitygw, which `npm run setup -- --test` builds) on a free port of the loopback, over a temporary folder. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import type { StorageAddress } from './s3.ts';

export const CREDENTIALS = { AWS_ACCESS_KEY_ID: 'facetrain-test', AWS_SECRET_ACCESS_KEY: 'facetrain-test-secret' };

export interface S3Server {
  endpoint: string;
  /** Buckets are its folders, objects their files. */
  folder: string;
  address(uri: string): StorageAddress;
  stop(): Promise<void>;
}

/** A port of the loopback that nobody listens on, a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Resolves when the server answers at all. */
async function answers(endpoint: string, server: ChildProcess, log: () => string): Promise<void> {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const answer = await fetch(endpoint).catch(() => null);
    if (answer) return void (await answer.arrayBuffer());
    if (server.exitCode !== null || Date.now() > deadline) throw new Error(`versitygw does not answer at ${endpoint}: ${log()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Starts the server with the given buckets. Callers stop it. */
export async function startS3Server(...buckets: string[]): Promise<S3Server> {
  const program = join(process.env['FACETRAIN_CACHE'] ?? join(homedir(), '.cache', 'facetrain'), 'bin', 'versitygw');
  if (!existsSync(program)) throw new Error(`${program} is missing; npm run setup -- --test builds it`);
  const root = await mkdtemp(join(tmpdir(), 'facetrain-s3-'));
  const folder = join(root, 'objects');
  for (const path of [folder, join(root, 'metadata'), ...buckets.map((bucket) => join(folder, bucket))]) await mkdir(path, { recursive: true });
  const port = await freePort();
  // --sidecar keeps metadata in files, for file systems without extended attributes.
  const server = spawn(program, ['--port', `127.0.0.1:${port}`, '--quiet', 'posix', '--sidecar', join(root, 'metadata'), folder], {
    env: { ...process.env, ROOT_ACCESS_KEY_ID: CREDENTIALS.AWS_ACCESS_KEY_ID, ROOT_SECRET_ACCESS_KEY: CREDENTIALS.AWS_SECRET_ACCESS_KEY },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const exited = once(server, 'exit');
  let log = '';
  for (const stream of [server.stdout, server.stderr]) stream.on('data', (text: Buffer) => (log = (log + text.toString()).slice(-4000)));
  const stop = async () => {
    server.kill('SIGKILL');
    await exited;
    await rm(root, { recursive: true, force: true });
  };
  const endpoint = `http://127.0.0.1:${port}`;
  await answers(endpoint, server, () => log).catch(async (error: unknown) => {
    await stop();
    throw error;
  });
  return { endpoint, folder, address: (uri) => ({ uri, endpoint, region: 'us-east-1', forcePathStyle: true }), stop };
}
