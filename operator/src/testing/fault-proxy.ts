/**
 * A proxy in front of the API server that records requests and injects faults: error answers, broken watches, requests
 * that are held back.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { Agent, request } from 'node:https';
import type { AddressInfo } from 'node:net';

export interface RecordedRequest {
  method: string;
  /** Path and query. */
  url: string;
  code: number;
}

interface Fault {
  method: string;
  path: RegExp;
  times: number;
  code: number;
  headers: Record<string, string>;
}

/** Requests that the proxy does not forward yet. One whose client closes its connection is never forwarded. */
export interface Hold {
  /** How many are held. */
  readonly count: number;
  /** Forwards the requests that are held, and later ones at once. */
  release(): void;
}

export class FaultProxy {
  /** Those that were forwarded, or answered with a fault. */
  readonly requests: RecordedRequest[] = [];
  readonly #holds: { method: string; path: RegExp; waiting: Set<() => void> }[] = [];
  readonly #faults: Fault[] = [];
  readonly #watches = new Set<ServerResponse>();
  readonly #server: Server;
  readonly #agent: Agent;

  private constructor(target: URL, ca: string) {
    this.#agent = new Agent({ ca, keepAlive: true });
    this.#server = createServer((incoming, outgoing) => this.#forward(target, incoming, outgoing));
  }

  static async start(server: string, ca: string): Promise<FaultProxy> {
    const proxy = new FaultProxy(new URL(server), ca);
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  get server(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }
  get writes(): RecordedRequest[] {
    return this.requests.filter(({ method }) => method !== 'GET');
  }
  /** How many watches are open. */
  get watches(): number {
    return this.#watches.size;
  }

  /**
   * The next `times` requests with this method and path are answered with an error, and not forwarded.
   * @returns ends the fault before that
   */
  fail(
    method: string,
    path: RegExp,
    code: number,
    { times = 1, headers = {} }: { times?: number; headers?: Record<string, string> } = {},
  ): () => void {
    const fault = { method, path, times, code, headers };
    this.#faults.push(fault);
    return () => {
      fault.times = 0;
    };
  }

  /** Holds requests with this method and path back, until `release`. */
  hold(method: string, path: RegExp): Hold {
    const hold = { method, path, waiting: new Set<() => void>() };
    this.#holds.push(hold);
    return {
      get count() {
        return hold.waiting.size;
      },
      release: () => {
        this.#holds.splice(this.#holds.indexOf(hold), 1);
        for (const forward of hold.waiting) forward();
      },
    };
  }

  /** Breaks the connection of every watch. @returns how many there were */
  dropWatches(): number {
    const count = this.#watches.size;
    for (const watch of this.#watches) watch.destroy();
    return count;
  }

  async close(): Promise<void> {
    this.#agent.destroy();
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  #forward(target: URL, incoming: IncomingMessage, outgoing: ServerResponse): void {
    const { method = '', url = '', headers } = incoming;
    const fault = this.#faults.find(
      (candidate) => candidate.times > 0 && candidate.method === method && candidate.path.test(url),
    );
    if (fault) {
      fault.times--;
      this.requests.push({ method, url, code: fault.code });
      incoming.resume().on('end', () => {
        const status = {
          kind: 'Status',
          apiVersion: 'v1',
          status: 'Failure',
          code: fault.code,
          message: 'made up by the test',
        };
        outgoing
          .writeHead(fault.code, { 'content-type': 'application/json', ...fault.headers })
          .end(JSON.stringify(status));
      });
      return;
    }
    const hold = this.#holds.find((candidate) => candidate.method === method && candidate.path.test(url));
    if (hold) {
      const forward = () => this.#forward(target, incoming, outgoing);
      hold.waiting.add(forward);
      outgoing.on('close', () => hold.waiting.delete(forward));
      return;
    }
    const isWatch = /[?&]watch=true/.test(url);
    const upstream = request(
      {
        host: target.hostname,
        port: target.port,
        method,
        path: url,
        headers: { ...headers, host: target.host },
        agent: this.#agent,
      },
      (answer) => {
        this.requests.push({ method, url, code: answer.statusCode! });
        outgoing.writeHead(answer.statusCode!, answer.headers);
        outgoing.flushHeaders();
        answer.pipe(outgoing);
        answer.on('error', () => outgoing.destroy());
      },
    );
    upstream.on('error', () => outgoing.destroy());
    if (isWatch) this.#watches.add(outgoing);
    outgoing.on('close', () => {
      this.#watches.delete(outgoing);
      upstream.destroy();
    });
    incoming.pipe(upstream);
  }
}
