/**
 * Serves the files of a folder by HTTP, for `kubectl facetrain fetch`, which reads them through the API server's proxy
 * to a pod. That proxy authenticates its users; whoever reaches the pod by the network needs the token.
 *
 * GET /TOKEN/files/PATH?from=POSITION  the bytes from there on
 * GET /TOKEN/list                      names of the folder's entries, as a JSON list
 */
import { createReadStream } from 'node:fs';
import { readdir, realpath, stat } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, sep } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { storageError } from '../storage/atomic-files.ts';

export interface FileServer extends AsyncDisposable {
  port: number;
}

/** @param options.port 0: any free one @throws FacetrainError StorageFailed when there is no such folder */
export async function serveFiles(
  folder: string,
  { port, token }: { port: number; token: string },
): Promise<FileServer> {
  const root = await realpath(folder).catch((error: unknown) => {
    throw storageError(folder, error);
  });
  const server = createServer(
    (request, response) =>
      void answer(root, token, request, response).catch(() => {
        if (response.headersSent) response.destroy();
        else response.writeHead(404).end();
      }),
  );
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** @throws an error of the file system for what is not there */
async function answer(root: string, token: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname, searchParams } = new URL(request.url!, 'http://localhost');
  const [, given, kind, ...parts] = pathname.split('/');
  if (given !== token || request.method !== 'GET') return void response.writeHead(404).end();
  if (kind === 'list') {
    const body = JSON.stringify(await readdir(root));
    return void response.writeHead(200, { 'content-type': 'application/json' }).end(body);
  }
  // Also a link may not lead out of the folder.
  const path = await realpath(join(root, ...parts.map(decodeURIComponent)));
  const found = await stat(path);
  if (kind !== 'files' || !found.isFile() || !path.startsWith(`${root}${sep}`))
    return void response.writeHead(404).end();
  const from = Math.min(found.size, Number(searchParams.get('from') ?? 0));
  response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': found.size - from });
  if (from === found.size) return void response.end();
  // A file that grows meanwhile has more bytes than were announced.
  await pipeline(createReadStream(path, { start: from, end: found.size - 1 }), response);
}
