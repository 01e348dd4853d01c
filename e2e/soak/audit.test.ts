import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type AuditEntry, forbiddenViolations, leaderViolations, writesAfter } from './audit.ts';

/** A write at a second of one minute that took a tenth of a second. */
const write = (user: string, second: number, resource: string, holder?: string): AuditEntry => ({
  verb: 'patch',
  user: { username: user },
  objectRef: { resource, name: 'x', ...(resource === 'leases' && { namespace: 'operators' }) },
  responseStatus: { code: 200 },
  requestReceivedTimestamp: `2026-01-01T00:00:${second}.000000Z`,
  stageTimestamp: `2026-01-01T00:00:${second}.100000Z`,
  ...(holder !== undefined && { requestObject: { spec: { holderIdentity: holder } } }),
});
const users = ['a', 'b'];

test('only the holder of the Lease may write', () => {
  const entries = [
    write('a', 10, 'leases', 'host_1'),
    write('a', 11, 'pods'),
    write('b', 20, 'leases', 'host_2'),
    write('b', 21, 'pods'),
    write('stranger', 21, 'pods'),
  ];
  assert.deepEqual(leaderViolations(entries, users, 'operators'), []);
  const late = [...entries, write('a', 22, 'pods')];
  assert.deepEqual(leaderViolations(late, users, 'operators'), [
    '2026-01-01T00:00:22.000000Z: a wrote (patch pods x), and b led',
  ]);
  const refused = { ...write('a', 22, 'pods'), responseStatus: { code: 409 } };
  assert.deepEqual(leaderViolations([...entries, refused], users, 'operators'), []);
});

test('a replica that writes before anyone leads is found', () => {
  assert.match(leaderViolations([write('a', 11, 'pods')], users, 'operators')[0]!, /nobody led/);
});

test('writes after a time are those to other things than Leases', () => {
  const entries = [write('a', 10, 'pods'), write('a', 30, 'leases', 'host_1'), write('b', 31, 'events')];
  assert.deepEqual(
    writesAfter(entries, users, '2026-01-01T00:00:20Z').map(({ objectRef }) => objectRef?.resource),
    ['events'],
  );
});

test('a request that was refused for want of a right is found, unless the server only had no roles yet', async () => {
  const refusal = (verb: string): AuditEntry => ({
    ...write('a', 10, 'pods'),
    verb,
    responseStatus: { code: 403 },
    annotations: { 'authorization.k8s.io/decision': 'forbid' },
  });
  const asked: unknown[] = [];
  const post = async <T>(_: string, body: object): Promise<T> => {
    const { spec } = body as { spec: { resourceAttributes: { verb: string } } };
    asked.push(spec);
    return { status: { allowed: spec.resourceAttributes.verb === 'list' } } as T;
  };
  // A quota refuses with the same code, and no such decision.
  const entries = [refusal('patch'), refusal('patch'), refusal('list'), { ...refusal('create'), annotations: {} }];
  assert.deepEqual(await forbiddenViolations({ post }, entries, users), ['a may not patch pods']);
  assert.equal(asked.length, 2);
});
