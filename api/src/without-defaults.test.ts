import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';
import { rules, section } from './schema-rules.ts';
import { withoutDefaults } from './without-defaults.ts';

/** A schema; `more` are fields that a later version has everywhere in it. */
const schemaWith = (more: z.ZodRawShape) =>
  rules(
    z.strictObject({
      loss: section(
        { scale: z.number().default(64), margin: section({ m: z.number().optional(), ...more }, ''), ...more },
        '',
      ),
      store: z.strictObject({ url: z.string(), pathStyle: z.boolean().default(false), ...more }).optional(),
      sets: z.array(z.strictObject({ uri: z.string(), ...more })).default([]),
      template: z.looseObject({ name: z.string() }).optional(),
      ...more,
    }),
    [{ cel: 'true', message: '', check: () => true }],
  );
const schema = schemaWith({});
const cases: Record<string, { document: object; want: unknown }> = {
  'nothing is set': { document: {}, want: {} },
  'defaults are set': {
    document: { loss: { scale: 64, margin: {} }, store: { url: 'a', pathStyle: false }, sets: [] },
    want: { store: { url: 'a' } },
  },
  'other values are set': {
    document: { loss: { scale: 1, margin: { m: 0 } }, store: { url: 'a', pathStyle: true }, sets: [{ uri: 'a' }] },
    want: { loss: { scale: 1, margin: { m: 0 } }, store: { url: 'a', pathStyle: true }, sets: [{ uri: 'a' }] },
  },
  'a field that no schema names': {
    document: { template: { name: 'a', x: [{}] } },
    want: { template: { name: 'a', x: [{}] } },
  },
};
for (const [name, { document, want }] of Object.entries(cases)) {
  test(`${name}: what is no default stays`, () =>
    assert.deepEqual(withoutDefaults(schema, schema.parse(document)), want));

  test(`${name}: fields that a later version adds with defaults make no difference`, () => {
    const later = schemaWith({ count: z.int().default(1), warmUp: section({ steps: z.int().default(0) }, '') });
    assert.deepEqual(withoutDefaults(later, later.parse(document)), want);
  });
}

test('an optional object stays, even if it has defaults only', () => {
  const optional = z.strictObject({ gate: z.strictObject({ drop: z.number().default(1) }).optional() });
  assert.deepEqual(withoutDefaults(optional, optional.parse({ gate: {} })), { gate: {} });
  assert.deepEqual(withoutDefaults(optional, optional.parse({})), {});
});
