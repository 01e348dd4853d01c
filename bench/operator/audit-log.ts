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

  /** @param account namespace and name of the operator's ServiceAccount */
  async writesSince(position: number, account: string): Promise<Writes> {
    const end = await this.end();
    const file = await open(this.#file);
    const text = Buffer.alloc(end - position);
    await file.read(text, 0, text.length, position);
    await file.close();
    const seen = new Set<string>();
    const writes: Writes = { operator: {}, endpoints: 0 };
    for (const line of text.toString().split('\n')) {
      if (line === '') continue;
      const { auditID, verb, user, objectRef } = JSON.parse(line) as Entry;
      if (READS.has(verb) || seen.has(auditID)) continue;
      seen.add(auditID);
      if (/:(endpoint|endpointslice)-controller$/.test(user.username)) writes.endpoints++;
      if (user.username !== `system:serviceaccount:${account}`) continue;
      const { resource = '', subresource } = objectRef ?? {};
      const what = `${verb} ${resource}${subresource === undefined ? '' : `/${subresource}`}`;
      writes.operator[what] = (writes.operator[what] ?? 0) + 1;
    }
    return writes;
  }
}
