/**
 * For tests: a real S3 server (versitygw, which `npm run setup -- --test` builds) on a free port of the loopback, with
 * a temporary folder.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { GetObjectCommand, HeadObjectCommand, ListObjectsV2Command, NoSuchKey } from '@aws-sdk/client-s3';
import type { StorageAddress } from '@facetrain/api';
import { freePorts } from '../../../hack/lib/free-ports.mjs';
import { tools } from '../../../hack/lib/paths.mjs';
import { DIGEST_METADATA, s3Client } from '../storage/s3.ts';

export const CREDENTIALS = { AWS_ACCESS_KEY_ID: 'facetrain-test', AWS_SECRET_ACCESS_KEY: 'facetrain-test-secret' };
/**
 * The credentials, for an environment in which the SDK looks for no others.
 * Neither a metadata service nor files of this user are read.
 */
export const AWS_ENVIRONMENT = {
  ...CREDENTIALS,
  AWS_EC2_METADATA_DISABLED: 'true',
  AWS_SHARED_CREDENTIALS_FILE: '/nonexistent',
  AWS_CONFIG_FILE: '/nonexistent',
};

export interface S3Server {
  endpoint: string;
  /** Its folders are buckets, their files objects. */
  folder: string;
  address(uri: string): StorageAddress;
  /** Starts a proxy in front of this server, for the objects of one bucket. `send` answers each GET. */
  proxy(bucket: string, send: (get: ProxiedGet) => void | Promise<void>): Promise<S3Proxy>;
  /** Kills the server, and starts it again with the same objects, at the same port, after `away` milliseconds. */
  restart(away: number): Promise<void>;
  /** SIGSTOP for so many milliseconds. */
  freeze(milliseconds: number): Promise<void>;
  stop(): Promise<void>;
}

export interface ProxiedGet {
  key: string;
  /** The Range header; empty without one. */
  range: string;
  /** The server's answer. `send` writes it to the response, or a part of it, or something else. */
  body: Uint8Array;
  response: ServerResponse;
}

export interface S3Proxy {
  endpoint: string;
  close(): void;
}

/** Waits until the server answers anything. */
async function untilAnswering(endpoint: string, server: ChildProcess, log: () => string): Promise<void> {
  const deadline = Date.now() + 120_000;
  for (;;) {
    const answer = await fetch(endpoint).catch(() => null);
    if (answer) return void (await answer.arrayBuffer());
    if (server.exitCode !== null || Date.now() > deadline)
      throw new Error(`versitygw does not answer at ${endpoint}: ${log()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Starts the server with the given buckets. The caller stops it. */
export async function startS3Server(...buckets: string[]): Promise<S3Server> {
  const program = join(tools, 'versitygw');
  if (!existsSync(program)) throw new Error(`${program} is missing; npm run setup -- --test builds it`);
  const root = await mkdtemp(join(tmpdir(), 'facetrain-s3-'));
  const folder = join(root, 'objects');
  for (const path of [folder, join(root, 'metadata'), ...buckets.map((bucket) => join(folder, bucket))])
    await mkdir(path, { recursive: true });
  const [port] = await freePorts(1);
  const endpoint = `http://127.0.0.1:${port}`;
  let log = '';
  // --sidecar keeps metadata in files, for file systems without extended attributes.
  const start = () => {
    const child = spawn(
      program,
      ['--port', `127.0.0.1:${port}`, '--quiet', 'posix', '--sidecar', join(root, 'metadata'), folder],
      {
        env: {
          ...process.env,
          ROOT_ACCESS_KEY_ID: CREDENTIALS.AWS_ACCESS_KEY_ID,
          ROOT_SECRET_ACCESS_KEY: CREDENTIALS.AWS_SECRET_ACCESS_KEY,
        },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (text: Buffer) => (log = (log + text.toString()).slice(-4000)));
    return { child, exited: once(child, 'exit') };
  };
  let server = start();
  const kill = async () => {
    server.child.kill('SIGKILL');
    await server.exited;
  };
  const stop = async () => {
    await kill();
    await rm(root, { recursive: true, force: true });
  };
  const restart = async (away: number) => {
    await kill();
    await delay(away);
    server = start();
    await untilAnswering(endpoint, server.child, () => log);
  };
  const freeze = async (milliseconds: number) => {
    const { child } = server;
    child.kill('SIGSTOP');
    await delay(milliseconds);
    child.kill('SIGCONT');
  };
  await untilAnswering(endpoint, server.child, () => log).catch(async (error: unknown) => {
    await stop();
    throw error;
  });
  const address = (uri: string): StorageAddress => ({ uri, endpoint, region: 'us-east-1', forcePathStyle: true });
  const proxy: S3Server['proxy'] = (bucket, send) => startProxy(address(''), bucket, send);
  return { endpoint, folder, address, proxy, restart, freeze, stop };
}

/**
 * A proxy for HEAD, GET and the listing of a prefix. It sends new requests: a signature covers the host name, so
 * the client's requests cannot be passed on.
 */
async function startProxy(
  target: StorageAddress,
  bucket: string,
  send: (get: ProxiedGet) => void | Promise<void>,
): Promise<S3Proxy> {
  const client = s3Client(target);
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const { pathname, searchParams } = new URL(request.url!, target.endpoint!);
    const key = decodeURIComponent(pathname.slice(`/${bucket}/`.length));
    const missing = () => void response.writeHead(404).end('<Error><Code>NoSuchKey</Code></Error>');
    if (key === '') {
      const { Contents = [] } = await client.send(
        new ListObjectsV2Command({ Bucket: bucket, Prefix: searchParams.get('prefix') ?? '' }),
      );
      const contents = Contents.map(
        ({ Key, Size }) => `<Contents><Key>${Key}</Key><Size>${Size}</Size></Contents>`,
      ).join('');
      return void response
        .writeHead(200, { 'content-type': 'application/xml' })
        .end(`<ListBucketResult>${contents}</ListBucketResult>`);
    }
    if (request.method === 'HEAD') {
      const head = await client.send(new HeadObjectCommand({ Bucket: bucket, Key: key })).catch(() => null);
      if (!head) return missing();
      const digest = head.Metadata?.[DIGEST_METADATA];
      return void response
        .writeHead(200, {
          'content-length': head.ContentLength,
          etag: head.ETag,
          'last-modified': head.LastModified!.toUTCString(),
          ...(digest && { [`x-amz-meta-${DIGEST_METADATA}`]: digest }),
        })
        .end();
    }
    const { range } = request.headers;
    const got = await client
      .send(new GetObjectCommand({ Bucket: bucket, Key: key, ...(range ? { Range: range } : {}) }))
      .catch((error: unknown) => {
        if (!(error instanceof NoSuchKey)) throw error;
      });
    if (!got) return missing();
    const body = await got.Body!.transformToByteArray();
    response.writeHead(got.ContentRange ? 206 : 200, {
      'content-length': body.length,
      etag: got.ETag,
      ...(got.ContentRange ? { 'content-range': got.ContentRange } : {}),
    });
    await send({ key, range: range ?? '', body, response });
  };
  const proxy = createHttpServer(
    (request, response) => void answer(request, response).catch(() => response.destroy()),
  ).listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  const close = () => {
    proxy.closeAllConnections();
    proxy.close();
    client.destroy();
  };
  return { endpoint: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, close };
}
