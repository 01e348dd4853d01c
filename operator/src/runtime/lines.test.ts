import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hasEnd, linesOf } from './lines.ts';

async function linesIn(...parts: string[]): Promise<string[]> {
  async function* stream() {
    // Also bytes of one character may come in two parts.
    for (const part of parts) yield Buffer.from(part, 'latin1');
  }
  const lines: string[] = [];
  for await (const line of linesOf(stream())) lines.push(`${line.toString()}${hasEnd(line) ? '' : '|'}`);
  return lines;
}

test('lines have their ends, wherever the stream was divided; one that was cut off has none', async () => {
  const cases: [string[], string[]][] = [
    [[], []],
    [['a\nb\n'], ['a\n', 'b\n']],
    [
      ['a', 'b\nc', '\n\n'],
      ['ab\n', 'c\n', '\n'],
    ],
    [['a\nb'], ['a\n', 'b|']],
    [['\xc3', '\xa4\n'], ['ä\n']],
  ];
  for (const [parts, want] of cases) assert.deepEqual(await linesIn(...parts), want);
});
