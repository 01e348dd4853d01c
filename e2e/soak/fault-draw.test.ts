import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FaultDraw, type Faults } from './fault-draw.ts';
import { Random } from './random.ts';

type Around = { random: Random; hasNodes: boolean };

test('each kind comes once before any comes again, as soon as there is something to do it to', async () => {
  const always = async () => ({ words: '' });
  const faults: Faults<Around, { words: string }> = {
    frequent: [1000, always],
    rare: [1, always],
    'of a node': [1, async ({ hasNodes }) => (hasNodes ? { words: '' } : undefined)],
  };
  for (let seed = 0; seed < 20; seed++) {
    const draw = new FaultDraw(faults);
    const around = { random: new Random(seed), hasNodes: false };
    const names = [await draw.next(around), await draw.next(around)].map((done) => done?.name);
    assert.deepEqual(names.sort(), ['frequent', 'rare']);
    assert.equal((await draw.next(around))?.name, 'frequent');
    assert.deepEqual(draw.missing, ['of a node']);
    assert.equal((await draw.next({ ...around, hasNodes: true }))?.name, 'of a node');
    assert.deepEqual(draw.missing, []);
  }
});
