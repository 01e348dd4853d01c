/** Counts requests in the API server's audit log: by account, verb and kind. */
import { open, stat } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';

/** Logs what service accounts request, and nothing else: not the benchmark itself, nor the nodes. */
export const POLICY = {
  apiVersion: 'audit.k8s.io/v1',
  kind: 'Policy',
  omitStages: ['RequestReceived'],
  rules: [{ level: 'Metadata', userGroups: ['system:serviceaccounts'] }, { level: 'None' }],
};
/** Longer than the server keeps entries before it writes them (--audit-log-batch-max-wait). */
const WRITTEN_MILLISECONDS = 2_500;
const READS = new Set(['get', 'list', 'watch']);

interface Entry {
  auditID: string;
  verb: string;
  stageTimestamp: string;
  user: { username: string };
  objectRef?: { resource?: string; subresource?: string };
}

/** Requests that change something. */
export interface Writes {
  /** By verb and kind, such as `create pods` or `patch facetrainjobs/status`. */
  operator: Record<string, number>;
  /** All writes of the controllers of Endpoints and EndpointSlices. */
  endpoints: number;
}

export class AuditLog {
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  /** A position for `writesSince`: the end of the log. */
  async end(): Promise<number> {
    await pause(WRITTEN_MILLISECONDS);
    return (await stat(this.#file)).size;
  }

  /** @param accounts namespace and name of the ServiceAccounts of the operator */
  async writesSince(position: number, accounts: readonly string[]): Promise<Writes> {
    const users = new Set(accounts.map((account) => `system:serviceaccount:${account}`));
    const writes: Writes = { operator: {}, endpoints: 0 };
    for (const { verb, user, objectRef } of await this.#entriesSince(position)) {
      if (READS.has(verb)) continue;
      if (/:(endpoint|endpointslice)-controller$/.test(user.username)) writes.endpoints++;
      if (!users.has(user.username)) continue;
      const { resource = '', subresource } = objectRef ?? {};
      const what = `${verb} ${resource}${subresource === undefined ? '' : `/${subresource}`}`;
      writes.operator[what] = (writes.operator[what] ?? 0) + 1;
    }
    return writes;
  }

  /**
   * Requests that ended between these times (Date.now()), watches included.
   *
   * @param account namespace and name of a ServiceAccount
   */
  async requestsBetween(
    position: number,
    [from, to]: [number, number],
    account: string,
  ): Promise<{ writes: number; leases: number; reads: number }> {
    const requests = { writes: 0, leases: 0, reads: 0 };
    for (const { verb, user, objectRef, stageTimestamp } of await this.#entriesSince(position)) {
      if (user.username !== `system:serviceaccount:${account}`) continue;
      const ended = Date.parse(stageTimestamp);
      if (ended < from || ended >= to) continue;
      if (READS.has(verb)) requests.reads++;
      else if (objectRef?.resource === 'leases') requests.leases++;
      else requests.writes++;
    }
    return requests;
  }

  /** One entry of each request. */
  async #entriesSince(position: number): Promise<Entry[]> {
    const end = await this.end();
    const file = await open(this.#file);
    const text = Buffer.alloc(end - position);
    await file.read(text, 0, text.length, position);
    await file.close();
    const lines = text.toString().split('\n');
    const entries = lines.filter((line) => line !== '').map((line) => JSON.parse(line) as Entry);
    return [...new Map(entries.map((entry) => [entry.auditID, entry])).values()];
  }
}
