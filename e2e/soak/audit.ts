/**
 * What the API server's audit log tells of the operator's replicas, and etcd does not: who wrote, and what was refused.
 * A server that is killed may lose its last lines.
 */
import { readFile } from 'node:fs/promises';
import type { Client } from '@facetrain/operator/runtime/client';

/** A line of the API server's audit log (audit.k8s.io/v1, stage ResponseComplete). */
export interface AuditEntry {
  verb: string;
  user: { username: string; groups?: string[] };
  requestURI?: string;
  objectRef?: { resource: string; subresource?: string; apiGroup?: string; namespace?: string; name?: string };
  responseStatus?: { code?: number };
  requestReceivedTimestamp: string;
  stageTimestamp: string;
  requestObject?: { spec?: { holderIdentity?: string } };
  annotations?: Record<string, string>;
}

export async function readAudit(file: string): Promise<AuditEntry[]> {
  const entries: AuditEntry[] = [];
  for (const line of (await readFile(file, 'utf8')).split('\n')) {
    // A server that was killed may have cut its last line.
    if (line.endsWith('}')) {
      try {
        entries.push(JSON.parse(line) as AuditEntry);
      } catch {}
    }
  }
  return entries;
}

const WRITES = new Set(['create', 'update', 'patch', 'delete']);

/**
 * Whether only the replica that holds the Lease has written.
 *
 * @param users those of the replicas
 * @param lease its namespace
 */
export function leaderViolations(entries: AuditEntry[], users: string[], lease: string): string[] {
  const violations: string[] = [];
  const isLease = ({ objectRef, user }: AuditEntry) =>
    objectRef?.resource === 'leases' && objectRef.namespace === lease && users.includes(user.username);
  const succeeded = ({ responseStatus }: AuditEntry) => (responseStatus?.code ?? 500) < 300;
  const ofReplicas = entries.filter(({ verb, user }) => WRITES.has(verb) && users.includes(user.username));
  /** When each replica got the Lease from another. */
  const takeovers: { user: string; at: string }[] = [];
  const leaseWrites = ofReplicas
    .filter((entry) => isLease(entry) && succeeded(entry) && (entry.requestObject?.spec?.holderIdentity ?? '') !== '')
    .sort((a, b) => (a.stageTimestamp < b.stageTimestamp ? -1 : 1));
  for (const { user, stageTimestamp } of leaseWrites)
    if (takeovers.at(-1)?.user !== user.username) takeovers.push({ user: user.username, at: stageTimestamp });
  for (const entry of ofReplicas) {
    if (isLease(entry) || !succeeded(entry)) continue;
    const holder = takeovers.findLast(({ at }) => at < entry.requestReceivedTimestamp);
    const { resource, subresource, name } = entry.objectRef ?? {};
    const what = [entry.verb, resource, subresource, name].filter((part) => part !== undefined).join(' ');
    const led = holder?.user ?? 'nobody';
    if (led !== entry.user.username)
      violations.push(`${entry.requestReceivedTimestamp}: ${entry.user.username} wrote (${what}), and ${led} led`);
  }
  return violations;
}

/** Successful writes of these users other than to Leases, after a time (RFC 3339). */
export const writesAfter = (entries: AuditEntry[], users: string[], time: string): AuditEntry[] =>
  entries.filter(
    ({ verb, user, objectRef, requestReceivedTimestamp }) =>
      WRITES.has(verb) &&
      users.includes(user.username) &&
      objectRef?.resource !== 'leases' &&
      requestReceivedTimestamp > time,
  );

/** What a SubjectAccessReview asks for in place of the request. */
function accessOf({ verb, user, objectRef, requestURI = '' }: AuditEntry): object {
  const who = { user: user.username, groups: user.groups ?? [] };
  if (!objectRef) return { ...who, nonResourceAttributes: { verb, path: requestURI.replace(/\?.*/, '') } };
  const { resource, subresource, apiGroup, namespace, name } = objectRef;
  return { ...who, resourceAttributes: { verb, group: apiGroup, resource, subresource, namespace, name } };
}

/**
 * Requests that were refused because the manifests lack a right. A server that has just started refuses requests, too,
 * until it has read the roles, so it is asked again, now.
 */
export async function forbiddenViolations(
  client: Pick<Client, 'post'>,
  entries: AuditEntry[],
  users: string[],
): Promise<string[]> {
  const refused = new Map<string, object>();
  for (const entry of entries) {
    if (entry.annotations?.['authorization.k8s.io/decision'] !== 'forbid' || !users.includes(entry.user.username))
      continue;
    const { resource, subresource, namespace } = entry.objectRef ?? { resource: entry.requestURI };
    const what = [entry.verb, resource, subresource].filter((part) => part !== undefined).join(' ');
    refused.set(`${entry.user.username} may not ${what}${namespace ? ` in ${namespace}` : ''}`, accessOf(entry));
  }
  const violations: string[] = [];
  for (const [words, spec] of refused) {
    const review = { apiVersion: 'authorization.k8s.io/v1', kind: 'SubjectAccessReview', spec };
    const { status } = await client.post<{ status: { allowed: boolean } }>(
      '/apis/authorization.k8s.io/v1/subjectaccessreviews',
      review,
    );
    if (!status.allowed) violations.push(words);
  }
  return violations;
}
