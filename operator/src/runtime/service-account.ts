/** The service account of the pod that this program runs in: the kubelet mounts its token and keeps the token fresh. */
import { existsSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { isIPv6 } from 'node:net';
import { join } from 'node:path';
import type { ClientOptions } from './client.ts';

export const SERVICE_ACCOUNT_FOLDER = '/var/run/secrets/kubernetes.io/serviceaccount';

/** The token file is read again after this time. A kubelet replaces a token (1 hour) when 20% of its life is left. */
const TOKEN_MILLISECONDS = 60_000;

/**
 * @param folder where the kubelet mounts token, ca.crt and namespace
 * @returns undefined outside of a pod, and in a pod without a mounted token
 */
export function serviceAccount(
  folder: string,
  environment: NodeJS.ProcessEnv = process.env,
): { connection: Pick<ClientOptions, 'server' | 'tls' | 'credentials'>; namespace: string } | undefined {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = environment;
  if (!host || !port || !existsSync(join(folder, 'token'))) return undefined;
  let authorization = '';
  let readAt = -Infinity;
  const credentials = async () => {
    if (performance.now() - readAt >= TOKEN_MILLISECONDS) {
      authorization = `Bearer ${(await readFile(join(folder, 'token'), 'utf8')).trim()}`;
      readAt = performance.now();
    }
    return { authorization };
  };
  const server = `https://${isIPv6(host) ? `[${host}]` : host}:${port}`;
  return {
    connection: { server, tls: { ca: readFileSync(join(folder, 'ca.crt')) }, credentials },
    namespace: readFileSync(join(folder, 'namespace'), 'utf8').trim(),
  };
}
