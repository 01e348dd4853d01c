// In place of node:test for the files of tests, when a pattern selects tests by their names: `node --import` this file.
//
// In a file in which it selects none, Node runs the hooks of the file nevertheless, and all at once: `after` fails, as
// what it stops is not there yet; and what `before` starts, nobody stops, so the file never ends. Here none of them
// runs then: `before` lets a turn of the event loop pass, in which `after` comes if no test does.
import { registerHooks } from 'node:module';
import * as tests from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';

let waiting = 0;
let selectsNone = false;

export function before(run, options) {
  tests.before(async (context) => {
    waiting++;
    await nextTurn();
    waiting--;
    if (!selectsNone) await run(context);
  }, options);
}

export function after(run, options) {
  tests.after(async (context) => {
    selectsNone ||= waiting > 0;
    if (!selectsNone) await run(context);
  }, options);
}

export * from 'node:test';
export { default } from 'node:test';

registerHooks({
  resolve: (specifier, context, next) =>
    specifier === 'node:test' && context.parentURL !== import.meta.url
      ? { url: import.meta.url, shortCircuit: true }
      : next(specifier, context),
});
