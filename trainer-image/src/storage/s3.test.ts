/** Credentials for a pod's identity, from servers that fail for a while. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { ExitCode, type FacetrainError } from '@facetrain/api';
import { freePorts } from '../../../hack/lib/free-ports.mjs';
import { AWS_ENVIRONMENT, CREDENTIALS, type S3Server, startS3Server } from '../testing/s3-server.ts';
import { ObjectStore } from './object-store.ts';

/** The answer to a request for credentials; an error without `status` breaks the connection. */
type Answer = { key: typeof CREDENTIALS; seconds: number } | { status?: number; code: string; message: string };

const started = { ...process.env };
let store: S3Server;
let folder: string;
let token: string;
let identity: Server;
let endpoint: string;
/** Answers a request with this token. */
let answer: (token: string) => Answer = () => ({ code: '', message: '' });
let requests = 0;

before(async () => {
  store = await startS3Server('faces');
  folder = await mkdtemp(join(tmpdir(), 'identity-'));
  token = join(folder, 'token');
  identity = createServer((request, response) => {
    let body = '';
    request.on('data', (text: Buffer) => (body += text.toString()));
    request.on('end', () => {
      requests += 1;
      const isSts = request.method === 'POST';
      const found = isSts ? new URLSearchParams(body).get('WebIdentityToken') : request.headers.authorization;
      const answered = answer(found ?? '');
      if ('code' in answered && answered.status === undefined) return request.socket.destroy();
      if ('code' in answered) return response.writeHead(answered.status!).end(isSts ? stsError(answered) : '{}');
      return response.writeHead(200).end(isSts ? stsCredentials(answered) : agentCredentials(answered));
    });
  }).listen(0, '127.0.0.1');
  await once(identity, 'listening');
  endpoint = `http://127.0.0.1:${(identity.address() as AddressInfo).port}`;
});
after(async () => {
  identity.closeAllConnections();
  identity.close();
  await rm(folder, { recursive: true });
  await store.stop();
});
afterEach(() => {
  process.env = { ...started };
  requests = 0;
});

type Credentials = Extract<Answer, { key: unknown }>;
const expiry = ({ seconds }: Credentials) => new Date(Date.now() + seconds * 1000).toISOString();
const stsCredentials = (found: Credentials) =>
  `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
  <AccessKeyId>${found.key.AWS_ACCESS_KEY_ID}</AccessKeyId>
  <SecretAccessKey>${found.key.AWS_SECRET_ACCESS_KEY}</SecretAccessKey><SessionToken></SessionToken>
  <Expiration>${expiry(found)}</Expiration>
  </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`;
const stsError = ({ code, message }: { code: string; message: string }) =>
  `<ErrorResponse><Error><Type>Sender</Type><Code>${code}</Code><Message>${message}</Message></Error></ErrorResponse>`;
const agentCredentials = (found: Credentials) =>
  JSON.stringify({
    AccessKeyId: found.key.AWS_ACCESS_KEY_ID,
    SecretAccessKey: found.key.AWS_SECRET_ACCESS_KEY,
    Token: '',
    Expiration: expiry(found),
  });

/** The environment of a pod whose service account has a role: STS, or the agent of the node (EKS Pod Identity). */
async function useIdentity(kind: 'sts' | 'agent'): Promise<void> {
  await writeFile(token, 'token-1');
  const { AWS_ACCESS_KEY_ID: _, AWS_SECRET_ACCESS_KEY: __, ...environment } = { ...started, ...AWS_ENVIRONMENT };
  process.env = {
    ...environment,
    AWS_REGION: 'us-east-1',
    ...(kind === 'sts'
      ? {
          AWS_WEB_IDENTITY_TOKEN_FILE: token,
          AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/faces',
          AWS_ENDPOINT_URL_STS: endpoint,
        }
      : { AWS_CONTAINER_CREDENTIALS_FULL_URI: endpoint, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: token }),
  };
}

/** @param onRetry gets why the store has been asked again, and how often */
async function using(use: (store: ObjectStore) => Promise<void>, onRetry: (why: string, count: number) => void) {
  let count = 0;
  const opened = new ObjectStore(
    { ...store.address(`s3://faces/${randomUUID()}`), credentials: null },
    { onRetry: ({ message }) => onRetry(message, ++count), patienceMs: 60_000 },
  );
  try {
    await use(opened);
  } finally {
    opened.close();
  }
}

const good = (seconds = 3600): Answer => ({ key: CREDENTIALS, seconds });
const REFUSED = {
  unreachable: { status: 400, code: 'IDPCommunicationError', message: 'the IDP could not be reached' },
  keys: {
    status: 400,
    code: 'InvalidIdentityToken',
    message: "Couldn't retrieve verification key from your identity provider",
  },
  broken: { code: '', message: '' },
  expired: { status: 400, code: 'ExpiredTokenException', message: 'Token expired' },
  denied: {
    status: 403,
    code: 'AccessDenied',
    message: 'Not authorized to perform sts:AssumeRoleWithWebIdentity',
  },
} satisfies Record<string, Answer>;
const text = new TextEncoder().encode('a');

for (const name of ['unreachable', 'keys', 'broken'] as const)
  test(`STS is asked again, also by a program that starts: ${name}`, async () => {
    await useIdentity('sts');
    answer = () => REFUSED[name];
    await using(
      async (opened) => assert(await opened.put('a', text)),
      (_, count) => {
        if (count === 2) answer = () => good();
      },
    );
  });

test('STS that cannot be reached is named by its address', async () => {
  await useIdentity('sts');
  const [port] = await freePorts(1);
  process.env.AWS_ENDPOINT_URL_STS = `http://127.0.0.1:${port}`;
  answer = () => good();
  const retries: string[] = [];
  await using(
    async (opened) => assert(await opened.put('a', text)),
    (why) => {
      retries.push(why);
      process.env.AWS_ENDPOINT_URL_STS = endpoint;
    },
  );
  assert.match(retries[0]!, new RegExp(`: 127\\.0\\.0\\.1:${port} refuses connections \\(ECONNREFUSED\\); .* STS`));
});

test('credentials that run out are renewed when the token is replaced, and the store waits', async () => {
  await useIdentity('sts');
  const seen = new Set<string>();
  answer = (found) => {
    seen.add(found);
    return found === 'token-1' && seen.size === 1 && requests > 1 ? REFUSED.expired : good(1);
  };
  const retries: string[] = [];
  await using(
    async (opened) => {
      assert(await opened.put('a', text));
      await new Promise((resolve) => setTimeout(resolve, 1100)); // until they have run out
      assert(await opened.put('b', text));
    },
    (why) => {
      retries.push(why);
      void writeFile(token, 'token-2');
    },
  );
  assert.match(retries[0]!, /no credentials for the pod’s identity \(Token expired\)/);
  assert.deepEqual([...seen], ['token-1', 'token-2']);
});

test('the agent of a node is asked again, also by a program that starts', async () => {
  await useIdentity('agent');
  answer = () => REFUSED.broken;
  await using(
    async (opened) => assert(await opened.put('a', text)),
    (_, count) => {
      if (count === 1) answer = () => good();
    },
  );
});

test('an identity that is wrong from the start is refused at once', async () => {
  await useIdentity('sts');
  const refuse = (pattern: RegExp) =>
    using(
      (opened) =>
        assert.rejects(opened.put('a', text), (error: FacetrainError) => {
          assert.match(error.message, pattern);
          return error.exitCode === ExitCode.refused;
        }),
      (why) => assert.fail(why),
    );
  answer = () => REFUSED.denied;
  await refuse(/the pod’s identity may not take its role/);
  answer = () => REFUSED.expired;
  await refuse(/no credentials for the pod’s identity \(Token expired\)/);
  delete process.env.AWS_WEB_IDENTITY_TOKEN_FILE;
  await refuse(/there are no credentials/);
});
