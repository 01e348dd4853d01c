/**
 * TCP ports for the servers that tests and benchmarks start.
 *
 * A server binds its port some time after it was chosen. So none is of the range from which Linux takes the ports of
 * outgoing connections (from 32768 on): one of those could have taken it by then. And processes that run at the same
 * time choose from different blocks, which their process IDs decide.
 */
import { createServer } from 'node:net';

const FIRST = 12_000;
const BLOCKS = 360;
const PORTS_OF_A_BLOCK = 50;
let chosen = 0;

/** Ports of the loopback that are free and differ, also from those of earlier calls as long as the block has others. */
export async function freePorts(count) {
  const ports = [];
  for (let tried = 0; ports.length < count; tried++) {
    if (tried === PORTS_OF_A_BLOCK) throw new Error(`fewer than ${count} of ${PORTS_OF_A_BLOCK} ports are free`);
    const port = FIRST + (process.pid % BLOCKS) * PORTS_OF_A_BLOCK + (chosen++ % PORTS_OF_A_BLOCK);
    if (await isFree(port)) ports.push(port);
  }
  return ports;
}

function isFree(port) {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', (error) => (error.code === 'EADDRINUSE' ? resolve(false) : reject(error)));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
