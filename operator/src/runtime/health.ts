/** Liveness and readiness probes, and the metrics, over HTTP. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';

/** @returns the problem, or undefined when there is none */
export type Check = () => string | undefined;

export interface HealthOptions {
  /** Absent: all addresses of both families, or of IPv4 where the kernel has no IPv6. */
  host?: string;
  /** 0: any free port. */
  port: number;
  registry: Registry;
  /** Checks of /healthz: the kubelet restarts the container when one keeps failing. */
  alive: Record<string, Check>;
  /** Checks of /readyz: this replica can work, or take over when it is elected. */
  ready: Record<string, Check>;
}

export class HealthServer {
  readonly #server: Server;
  readonly #options: HealthOptions;
  /** May be replaced while it is served. */
  checks: Pick<HealthOptions, 'alive' | 'ready'>;

  constructor(options: HealthOptions) {
    this.#options = options;
    this.checks = { alive: options.alive, ready: options.ready };
    this.#server = createServer((request, response) => {
      const path = new URL(request.url ?? '/', 'http://localhost').pathname;
      if (request.method !== 'GET') response.writeHead(405).end();
      else if (path === '/healthz' || path === '/readyz') {
        const { code, text } = verdict(path === '/healthz' ? this.checks.alive : this.checks.ready);
        response.writeHead(code, { 'content-type': 'text/plain' }).end(text);
      } else if (path === '/metrics') {
        options.registry.metrics().then(
          (text) => response.writeHead(200, { 'content-type': options.registry.contentType }).end(text),
          () => response.writeHead(500).end(),
        );
      } else response.writeHead(404).end();
    });
  }

  /** @returns the port @throws Error when the port is taken */
  async listen(): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(this.#options.port, this.#options.host, resolve);
    });
    return (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }
}

function verdict(checks: Record<string, Check>): { code: number; text: string } {
  const lines = Object.entries(checks).map(([name, check]) => ({ name, problem: check() }));
  const failed = lines.some(({ problem }) => problem !== undefined);
  return {
    code: failed ? 503 : 200,
    text: lines
      .map(({ name, problem }) => `${problem === undefined ? '[+]' : '[-]'}${name} ${problem ?? 'ok'}\n`)
      .join(''),
  };
}
