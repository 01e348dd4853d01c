// Loaded into the operator's process before its program (node --import): a wall clock that a fault may shift.
// performance.now() stays as it is: a monotonic clock never jumps.
import { readFileSync, watchFile } from 'node:fs';

const file = process.env.FACETRAIN_SOAK_CLOCK;
const Real = Date;
let offset = 0;

/** The file has the offset in milliseconds; it may be empty while it is written. */
function read() {
  offset = Number(readFileSync(file, 'utf8'));
}

globalThis.Date = class extends Real {
  constructor(...args) {
    super(...(args.length === 0 ? [Real.now() + offset] : args));
  }
  static now() {
    return Real.now() + offset;
  }
};
read();
watchFile(file, { interval: 100, persistent: false }, read);
