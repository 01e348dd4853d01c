/**
 * For `node --import`: a file operation that never ends, as on storage that does not answer. Nobody writes to the FIFO
 * in FACETRAIN_TEST_FIFO, so opening it blocks a thread of libuv's pool.
 */
import { open } from 'node:fs';

open(process.env.FACETRAIN_TEST_FIFO!, 'r', () => {});
