import assert from 'node:assert/strict';
import { test } from 'node:test';
import { differ, fieldsDigest } from './attempt.ts';

const defaults = { loss: { type: 'CosFace', margin: {} }, epochs: 20, image: 'a' };
const fields = ['loss', 'epochs'];
const digest = (spec: object, from: object = defaults) => fieldsDigest(spec, from, fields);

test('a digest tells specs apart by the given fields alone', () => {
  const same = digest(defaults);
  assert.equal(digest({ ...defaults, image: 'b' }), same);
  const others = [
    { ...defaults, epochs: 5 },
    { ...defaults, loss: { type: 'CosFace', margin: { m3: 0.2 } } },
    { ...defaults, loss: { type: 'ArcFace', margin: {} } },
  ];
  for (const other of others) assert.notEqual(digest(other), same, JSON.stringify(other));
  assert(differ(digest(others[0]!), same));
  assert(!differ(same, same));
});

test('a field that a later version adds with a default changes no digest', () => {
  const spec = { ...defaults, epochs: 5 };
  const added = { subCentres: 1, warmUp: { steps: 0 } };
  const later = digest(
    { ...spec, loss: { ...spec.loss, ...added } },
    { ...defaults, loss: { ...defaults.loss, ...added } },
  );
  assert.equal(later, digest(spec));
});

test('a digest of a former version tells nothing', () => {
  assert(!differ('0123456789abcdef', digest(defaults)));
});
