/**
 * For addon.test.ts: exits with code 3 while a file operation never ends: `exit-during-hang.ts FIFO`. Nobody writes to
 * the FIFO, so opening it blocks a thread of libuv's pool, as storage does that does not answer.
 */
import { open } from 'node:fs';
import { exitNow } from '../addon.ts';

process.on('exit', exitNow);
open(process.argv[2]!, 'r', () => {});
setTimeout(() => process.exit(3), 100);
