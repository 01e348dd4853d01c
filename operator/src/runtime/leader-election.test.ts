import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import { eventually } from '../testing/eventually.ts';
import { ApiError } from './api-error.ts';
import { type ElectionOptions, LeaderElection, type Lease } from './leader-election.ts';
import { Leadership, LeadershipLost } from './leadership.ts';

/** A server with one Lease, and optimistic locking. */
class Leases {
  lease: Lease | undefined;
  down = false;

  client(): ElectionOptions['client'] {
    const requests = {
      get: async () => this.#answer(),
      create: async (_resource, _namespace, object) => this.#write(object, undefined),
      replace: async (_resource, _namespace, _name, object) =>
        this.#write(object, (object as Lease).metadata.resourceVersion),
    } as ReturnType<ElectionOptions['client']['guardedBy']>;
    return { guardedBy: () => requests };
  }
  #answer(): Lease {
    if (this.down) throw new Error('no route');
    if (!this.lease) throw new ApiError('get', 404, 'NotFound', 'none');
    return structuredClone(this.lease);
  }
  #write(object: object, version: string | undefined): Lease {
    if (this.down) throw new Error('no route');
    if (this.lease?.metadata.resourceVersion !== version)
      throw new ApiError('write', 409, version ? 'Conflict' : 'AlreadyExists', 'changed');
    const { spec, metadata } = structuredClone(object) as Lease;
    this.lease = { spec: spec!, metadata: { ...metadata, resourceVersion: String(Number(version ?? 0) + 1) } };
    return structuredClone(this.lease);
  }
}

const TIMES = { durationSeconds: 0.3, renewDeadlineSeconds: 0.2, retrySeconds: 0.03 };
/** For leaders that must not lose their lease when the machine has much other work. */
const PATIENT = { ...TIMES, durationSeconds: 60, renewDeadlineSeconds: 45 };
const election = (leases: Leases, identity: string, times = TIMES) =>
  new LeaderElection({
    client: leases.client(),
    namespace: 'n',
    name: 'l',
    identity,
    log: pino({ level: 'silent' }),
    leadership: Leadership.byElection(times.renewDeadlineSeconds),
    ...times,
  });

const untilAborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) =>
    signal.aborted ? resolve() : signal.addEventListener('abort', () => resolve(), { once: true }),
  );

test('there is never more than one leader, and a released lease is taken at once', async () => {
  const leases = new Leases();
  const stops = [new AbortController(), new AbortController(), new AbortController()];
  let leading = 0;
  const order: number[] = [];
  const all = stops.map((stop, index) =>
    election(leases, `replica-${index}`, PATIENT).lead(stop.signal, async (signal) => {
      order.push(index);
      assert.equal(++leading, 1);
      await untilAborted(signal);
      leading--;
    }),
  );
  for (let led = 1; led <= stops.length; led++) {
    await eventually(() => assert.equal(order.length, led));
    stops[order[led - 1]!]!.abort();
  }
  await Promise.all(all);
  assert.equal(new Set(order).size, stops.length);
  assert.equal(leases.lease!.spec!.holderIdentity, '');
  assert.equal(leases.lease!.spec!.leaseTransitions, 2);
});

test('a lease that was taken while its replica stopped is given back', async () => {
  const leases = new Leases();
  const slow: ElectionOptions['client'] = {
    guardedBy: ({ signal }) => {
      const requests = leases.client().guardedBy({ signal, check: () => {} });
      return {
        ...requests,
        create: async (...parameters) => {
          const lease = await requests.create(...parameters);
          await delay(50, undefined, { signal });
          return lease as never;
        },
      };
    },
  };
  const stop = new AbortController();
  const options = { namespace: 'n', name: 'l', identity: 'a', log: pino({ level: 'silent' }), ...TIMES };
  const leadership = Leadership.byElection(TIMES.renewDeadlineSeconds);
  const ended = new LeaderElection({ ...options, client: slow, leadership }).lead(stop.signal, async () =>
    assert.fail('it must not work'),
  );
  await eventually(() => assert.equal(leases.lease?.spec?.holderIdentity, 'a'));
  stop.abort();
  await ended;
  assert.equal(leases.lease!.spec!.holderIdentity, '');
});

test('a holder with a wrong clock leads as long as it renews: times of other machines are not compared', async (t) => {
  const leases = new Leases();
  const old = '2001-01-01T00:00:00.000000Z';
  leases.lease = {
    metadata: { name: 'l', namespace: 'n', uid: 'u', resourceVersion: '1', creationTimestamp: '' },
    spec: { holderIdentity: 'other', leaseDurationSeconds: 0.3, renewTime: old },
  };
  const renewing = setInterval(() => {
    leases.lease!.metadata.resourceVersion = String(Number(leases.lease!.metadata.resourceVersion) + 1);
  }, 50);
  t.after(() => clearInterval(renewing));
  const stop = new AbortController();
  let led = false;
  const waiting = election(leases, 'me').lead(stop.signal, async () => {
    led = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 900)); // three times the lease's duration
  assert.equal(led, false);
  clearInterval(renewing);
  await waiting;
  assert.equal(led, true);
});

test('a lease that is over is taken when it is, and not at the next try', async () => {
  const leases = new Leases();
  leases.lease = {
    metadata: { name: 'l', namespace: 'n', uid: 'u', resourceVersion: '1', creationTimestamp: '' },
    spec: { holderIdentity: 'killed', leaseDurationSeconds: 0.05 },
  };
  const times = { durationSeconds: 3600, renewDeadlineSeconds: 2700, retrySeconds: 720 };
  const leadership = Leadership.byElection(times.renewDeadlineSeconds);
  const options = { namespace: 'n', name: 'l', identity: 'a', log: pino({ level: 'silent' }), ...times };
  await new LeaderElection({ ...options, client: leases.client(), leadership }).lead(
    new AbortController().signal,
    async () => {},
  );
  assert.equal(leases.lease.spec!.leaseTransitions, 1);
});

test('a leader that cannot renew stops before another may start', async () => {
  const leases = new Leases();
  let stoppedAt = 0;
  const first = election(leases, 'first').lead(new AbortController().signal, async (signal) => {
    leases.down = true;
    await untilAborted(signal);
    stoppedAt = performance.now();
    leases.down = false;
  });
  await assert.rejects(first, LeadershipLost);
  assert.equal(leases.lease!.spec!.holderIdentity, 'first', 'a lost lease is not released');
  const stop = new AbortController();
  await election(leases, 'second').lead(stop.signal, async () => assert(performance.now() > stoppedAt));
});

test('a leader whose request gets no answer tries again in time', async () => {
  const leases = new Leases();
  let replaced = 0;
  const client: ElectionOptions['client'] = {
    guardedBy: ({ signal }) => {
      const requests = leases.client().guardedBy({ signal, check: () => {} });
      return {
        ...requests,
        replace: async (...parameters) => {
          if (++replaced === 1) await delay(60_000, undefined, { signal });
          return requests.replace(...parameters);
        },
      };
    },
  };
  const times = { durationSeconds: 8, renewDeadlineSeconds: 6, retrySeconds: 0.2 };
  const leadership = Leadership.byElection(times.renewDeadlineSeconds);
  const log = pino({ level: 'silent' });
  const stop = new AbortController();
  await new LeaderElection({ client, namespace: 'n', name: 'l', identity: 'a', log, leadership, ...times }).lead(
    stop.signal,
    async () => {
      await eventually(() => assert(replaced >= 2));
      await eventually(() => assert(leadership.millisecondsLeft > 5_000));
      stop.abort();
    },
  );
});

test('an error of the work is thrown, and the lease is released', async () => {
  const leases = new Leases();
  const failing = election(leases, 'a', PATIENT).lead(new AbortController().signal, async () => {
    throw new Error('mine');
  });
  await assert.rejects(failing, /mine/);
  assert.equal(leases.lease!.spec!.holderIdentity, '');
});
