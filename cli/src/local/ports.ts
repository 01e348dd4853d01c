/** Ports of this machine that are free now. */
import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

const FIRST = 20_000;
/**
 * From here on, Linux gives ports to outgoing connections. The trainers of a job bind the same ports in each attempt,
 * which a connection would have taken by then.
 */
const END = 32_768;

/** The ports differ: each is held open until all are found. */
export async function freePorts(count: number): Promise<number[]> {
  const servers: ReturnType<typeof createServer>[] = [];
  const ports: number[] = [];
  const start = randomInt(FIRST, END);
  try {
    for (let tried = 0; ports.length < count && tried < END - FIRST; tried++) {
      const port = FIRST + ((start - FIRST + tried) % (END - FIRST));
      const server = createServer();
      if (!(await listens(server, port))) continue;
      servers.push(server);
      ports.push(port);
    }
    if (ports.length < count) throw new Error(`fewer than ${count} ports from ${FIRST} to ${END - 1} are free`);
    return ports;
  } finally {
    await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }
}

function listens(server: ReturnType<typeof createServer>, port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' ? resolve(false) : reject(error),
    );
    server.listen(port, '127.0.0.1', () => resolve(true));
  });
}
