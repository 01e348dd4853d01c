/** The HTTP server of rank 0 and of the quantizer: GET /v1/progress, /metrics, /healthz. It only reads the board. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { FacetrainError, HEALTH_PATH, PROGRESS_HOST, PROGRESS_PATH } from '@facetrain/api';
import type { Board } from './progress-board.ts';
import { createMetrics } from './progress-metrics.ts';

export interface ServerOptions {
  /** An address of this machine, or PROGRESS_HOST. */
  host: string;
  /** 0 means any free port. */
  port: number;
  /** Without activity for this long, /healthz fails. */
  staleAfterSeconds: number;
}

export interface ProgressServer {
  port: number;
  close(): Promise<void>;
}

/** @throws FacetrainError InvalidConfig when the address cannot be bound */
export async function startServer(board: Board, options: ServerOptions): Promise<ProgressServer> {
  const metrics = createMetrics(board);
  const routes: Record<string, () => Promise<[status: number, type: string, body: string]>> = {
    [PROGRESS_PATH]: async () => [200, 'application/json', JSON.stringify(board.current)],
    '/metrics': async () => [200, metrics.contentType, await metrics.metrics()],
    [HEALTH_PATH]: async () => {
      const idle = Math.floor(board.idleMs() / 1000);
      const healthy = idle < options.staleAfterSeconds;
      return [
        healthy ? 200 : 503,
        'text/plain',
        `${healthy ? 'ok' : 'stale'}: ${board.current.stage}, last activity ${idle} s ago\n`,
      ];
    },
  };
  const server = createServer((request, response) => {
    const path = request.url?.split('?', 1)[0] ?? '';
    const route = Object.hasOwn(routes, path) ? routes[path] : undefined;
    if (!route) return response.writeHead(404).end();
    if (request.method !== 'GET' && request.method !== 'HEAD')
      return response.writeHead(405, { allow: 'GET, HEAD' }).end();
    return route().then(
      ([status, type, body]) =>
        response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(body),
      (error: Error) => response.writeHead(500).end(error.message),
    );
  });
  await listen(server, options);
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function listen(server: Server, { host, port }: ServerOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause) => {
      reject(
        new FacetrainError({
          code: 'InvalidConfig',
          subject: 'progress',
          found: `cannot listen on ${host}:${port} (${cause.message})`,
          allowed: 'an address of this machine with a free port',
          cause,
        }),
      );
    });
    // Without a host, Node listens on "::" for both families, and on "0.0.0.0" where the kernel has no IPv6.
    server.listen(port, host === PROGRESS_HOST ? undefined : host, resolve);
  });
}
