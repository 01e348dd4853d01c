/**
 * The connection to an S3 server, and its errors in plain words.
 *
 * Every request is bounded: three attempts, 5 s to connect, 30 s without a byte. Credentials come from the files of a
 * mounted Secret, or from the AWS SDK's own chain: environment, shared files, the pod's identity.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  GetObjectCommand,
  HeadObjectCommand,
  type HeadObjectCommandInput,
  type HeadObjectCommandOutput,
  S3Client,
} from '@aws-sdk/client-s3';
import {
  type Destination,
  ExitCode,
  FacetrainError,
  S3_CREDENTIALS_ENV,
  type StorageAddress,
  s3Uri,
} from '@facetrain/api';

/** The key of the user metadata that has an object's SHA-256, in hexadecimal, in every object that we write. */
export const DIGEST_METADATA = 'sha256';

export const ATTEMPTS = 3;
const CONNECT_MILLISECONDS = 5_000;
const SILENCE_MILLISECONDS = 30_000;

/**
 * @param options.silence milliseconds without a byte after which a request fails
 * @param options.attempts of the SDK, for each request
 */
export function s3Client(
  { endpoint, region, forcePathStyle, credentials }: Destination,
  { silence = SILENCE_MILLISECONDS, attempts = ATTEMPTS }: { silence?: number; attempts?: number } = {},
): S3Client {
  // Other servers ignore the region, but the SDK requires one. For AWS the SDK finds it by its own rules.
  const found = region ?? (endpoint ? (process.env.AWS_REGION ?? 'us-east-1') : undefined);
  return new S3Client({
    ...(endpoint ? { endpoint } : {}),
    ...(found ? { region: found } : {}),
    ...(credentials && { credentials: () => readCredentials(credentials) }),
    forcePathStyle,
    maxAttempts: attempts,
    requestHandler: { connectionTimeout: CONNECT_MILLISECONDS, socketTimeout: silence },
  });
}

/**
 * Credentials from a folder with a file for each of S3_CREDENTIALS_ENV, as a Secret is mounted. They say of themselves
 * that they have expired, so that the SDK reads them again for each request: a Secret may change at any time.
 */
async function readCredentials(folder: string) {
  const [accessKeyId, secretAccessKey, sessionToken] = await Promise.all(
    S3_CREDENTIALS_ENV.map((name) => readFile(join(folder, name), 'utf8').catch(() => '')),
  );
  if (!accessKeyId?.trim() || !secretAccessKey?.trim())
    throw Object.assign(new Error(`no ${S3_CREDENTIALS_ENV.slice(0, 2).join(' and ')} in ${folder}`), {
      name: NO_CREDENTIALS_IN_FOLDER,
    });
  return {
    accessKeyId: accessKeyId.trim(),
    secretAccessKey: secretAccessKey.trim(),
    ...(sessionToken?.trim() && { sessionToken: sessionToken.trim() }),
    expiration: new Date(),
  };
}

/** What the SDK throws: errors of the service have a name and $metadata, errors of sockets a code. */
interface SdkError extends Error {
  /** What the body of S3's answer calls the error. */
  Code?: string;
  code?: string;
  /** Of the other end of a socket; its name, if it could not be resolved. */
  address?: string;
  port?: number;
  hostname?: string;
  /** One for each address that was tried. */
  errors?: SdkError[];
  $metadata?: { httpStatusCode?: number };
  $response?: unknown;
}

export function httpStatus(error: unknown): number | undefined {
  return error instanceof Error ? (error as SdkError).$metadata?.httpStatusCode : undefined;
}

/** What the SDK names an error by when the answer has no code. */
const UNNAMED: readonly string[] = ['Error', 'NotFound', 'Unknown'];

/**
 * Whether what answered is no S3 server: a refusal without a code, or an object without an ETag. A load balancer, an
 * ingress or a proxy answers so in place of a store that is away, often 404, which says nothing about the object. The
 * answer to a HEAD has no body in any case: headObject() asks for the code.
 */
export function isForeign(error: unknown): boolean {
  const status = httpStatus(error);
  if (status === undefined || status >= 500 || status === 429) return false;
  const { Code, name } = error as SdkError;
  return Code === undefined && UNNAMED.includes(name);
}

/** The answer to a request that reads or writes an object; throws an error that isForeign() without an ETag. */
export function withEtag<T extends { ETag?: string | undefined; $metadata: object }>(answer: T): T & { ETag: string } {
  const { ETag, $metadata } = answer;
  if (ETag === undefined) throw Object.assign(new Error('an answer without an ETag'), { $metadata });
  return { ...answer, ETag };
}

const NO_CREDENTIALS_IN_FOLDER = 'NoCredentialsInFolder';
const WRONG_CREDENTIALS: readonly string[] = [
  'InvalidAccessKeyId',
  'SignatureDoesNotMatch',
  'XAdminUserNotFound', // versitygw’s InvalidAccessKeyId
  'InvalidToken',
  'ExpiredToken',
];
/** What STS answers to AssumeRoleWithWebIdentity about the token of a pod. The kubelet replaces the token's file. */
const WRONG_IDENTITY: readonly string[] = ['InvalidIdentityTokenException', 'ExpiredTokenException'];
/** Of the SDK, when no source of its chain has credentials. */
const NO_CREDENTIALS: readonly string[] = ['CredentialsProviderError', 'ProviderError'];
const CREDENTIALS_FAILURES = [...WRONG_CREDENTIALS, ...WRONG_IDENTITY, ...NO_CREDENTIALS, NO_CREDENTIALS_IN_FOLDER];

/** With one of these variables the SDK exchanges the pod's identity for credentials, at STS or at the node's agent. */
const IDENTITY_ENV: readonly string[] = [
  'AWS_WEB_IDENTITY_TOKEN_FILE',
  'AWS_CONTAINER_CREDENTIALS_FULL_URI',
  'AWS_CONTAINER_CREDENTIALS_RELATIVE_URI',
];
const hasIdentity = (): boolean => IDENTITY_ENV.some((name) => process.env[name]);

/** Whether a request failed for its credentials, which may be replaced while a program runs. */
export const isOfCredentials = (error: unknown): boolean =>
  error instanceof Error && (CREDENTIALS_FAILURES.includes(error.name) || isTokenMissing(error));

/** The answer to a HEAD, whose refusal has a code: where it has none, a GET of a byte is refused with one. */
export async function headObject(
  client: S3Client,
  input: HeadObjectCommandInput,
  options: { abortSignal?: AbortSignal } = {},
): Promise<HeadObjectCommandOutput> {
  try {
    return await client.send(new HeadObjectCommand(input), options);
  } catch (error) {
    if (!isForeign(error)) throw error;
    const { Bucket, Key } = input;
    const got = await client.send(new GetObjectCommand({ Bucket, Key, Range: 'bytes=0-0' }), options);
    await got.Body?.transformToByteArray();
    throw error; // The object is there by now, and the store permits it.
  }
}

/** The file of the token is the only one that the SDK needs for a request. */
const isTokenMissing = (error: SdkError): boolean => error.code === 'ENOENT' && hasIdentity();

/** Whether the credentials of a running program may be replaced: those of its environment stay as they are. */
export const mayRotate = ({ credentials }: Pick<Destination, 'credentials'>): boolean =>
  credentials != null || !process.env.AWS_ACCESS_KEY_ID;

/** Answers below 500 that say that a later try may succeed. The SDK corrects its clock before it tries again. */
const PASSING: readonly string[] = [
  'BadDigest',
  'IncompleteBody',
  'OperationAborted',
  'RequestTimeout',
  'RequestTimeTooSkewed',
  'SlowDown',
  'Throttling',
  'ThrottlingException',
  // STS could not ask the issuer of the tokens, the cluster, for its keys.
  'IDPCommunicationErrorException',
];

/** Whether an answer says that a later try may succeed. 501 NotImplemented does not. */
function isPassing(error: SdkError): boolean {
  const status = httpStatus(error);
  if (status === 501) return false;
  return (
    (status ?? 0) >= 500 ||
    PASSING.includes(error.name) ||
    // The SDK compares the checksum that an object is sent with.
    error.message.startsWith('Checksum mismatch') ||
    // InvalidIdentityToken, for the same reason as IDPCommunicationError.
    error.message.includes('retrieve verification key')
  );
}

interface Explanation {
  found: string;
  allowed: string;
  /** A later retry may succeed. */
  transient?: boolean;
}

/** The other end of a connection: the endpoint or, for credentials, STS or the agent of the node. */
function peerOf(error: SdkError): string {
  const { address, port, hostname } = error.errors?.[0] ?? error;
  if (address !== undefined) return `${address.includes(':') ? `[${address}]` : address}:${port}`;
  return hostname ?? 'the endpoint';
}

/** What has to answer. */
const servers = (): string =>
  hasIdentity() ? 'an S3 server, and STS or the agent of the node for the pod’s identity,' : 'an S3 server';

/** What was found and what is allowed, by the error's code or name. */
function explain(error: SdkError, bucket: string): Explanation {
  const status = httpStatus(error);
  if (isOfCredentials(error)) return explainCredentials(error);
  if (isForeign(error))
    return {
      found: `what answers is no S3 server (HTTP ${status} without ${status! < 300 ? 'an ETag' : 'a code of S3'})`,
      allowed:
        'an S3 server at this address; a load balancer or proxy in front of it that answers 503 while it is away',
    };
  switch (error.code ?? error.name) {
    case 'ECONNREFUSED':
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return {
        found:
          error.code === 'ECONNREFUSED'
            ? `${peerOf(error)} refuses connections (ECONNREFUSED)`
            : `${peerOf(error)} cannot be reached (${error.code})`,
        allowed: `${servers()} that runs at this address`,
        transient: true,
      };
    case 'EAI_AGAIN':
      return {
        found: `the name server does not answer for ${peerOf(error)} (EAI_AGAIN)`,
        allowed: 'name resolution that works',
        transient: true,
      };
    case 'ENOTFOUND':
      return {
        found: `the host name ${peerOf(error)} does not resolve (${error.code})`,
        allowed: `${servers()} by a name that is known here; many want forcePathStyle`,
      };
    case 'NoSuchBucket':
      return { found: `bucket "${bucket}" does not exist`, allowed: 'a bucket that exists: it is never created here' };
    case 'AccessDenied':
      if (error.message.includes('sts:'))
        return {
          found: `the pod’s identity may not take its role (${error.message})`,
          allowed: 'a role whose trust policy names the pod’s service account',
        };
      return {
        found: 'the credentials do not allow it (AccessDenied)',
        allowed:
          `permission for s3:GetObject and s3:ListBucket on bucket "${bucket}", and to publish also s3:PutObject ` +
          'and s3:DeleteObject',
      };
    case 'TimeoutError':
    case 'ETIMEDOUT':
      return {
        found: `no answer in time (${error.message})`,
        allowed: `${servers()} to be reached from here`,
        transient: true,
      };
    case 'ECONNRESET':
    case 'EPIPE':
      return {
        found: `the server broke the connection (${error.code})`,
        allowed: 'a server that completes its answers',
        transient: true,
      };
    default:
      return {
        found: status === undefined ? error.message : `${error.name}: ${error.message} (HTTP ${status})`,
        allowed: 'a request that the S3 server accepts',
        transient: isPassing(error),
      };
  }
}

function explainCredentials(error: SdkError): Explanation {
  if (WRONG_CREDENTIALS.includes(error.name))
    return {
      found: `the credentials are wrong (${error.name})`,
      allowed: 'a valid AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where it is temporary, AWS_SESSION_TOKEN',
    };
  const isNone = NO_CREDENTIALS.includes(error.name);
  if (error.name === NO_CREDENTIALS_IN_FOLDER || (isNone && !hasIdentity()))
    return {
      found: 'there are no credentials',
      allowed:
        'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, ' +
        'a shared credentials file, or a pod identity',
    };
  return {
    found: `no credentials for the pod’s identity (${error.message})`,
    allowed: 'a service account whose identity STS, or the agent of the node, exchanges for credentials',
    // The agent is a pod of its node: it starts, and starts again, beside ours.
    transient: isNone || isPassing(error),
  };
}

/** The FacetrainError of a failed request. Other errors (an abort, a defect) are returned as they are. */
export function s3Error(error: unknown, { endpoint }: StorageAddress, bucket: string, key: string): unknown {
  if (error instanceof FacetrainError || !(error instanceof Error) || error.name === 'AbortError') return error;
  const { found, allowed, transient = false } = explain(error as SdkError, bucket);
  return new FacetrainError({
    code: 'StorageFailed',
    subject: `${s3Uri(bucket, key)} at ${endpoint ?? 'AWS'}`,
    found,
    allowed,
    exitCode: transient ? ExitCode.failure : ExitCode.refused,
    cause: error,
  });
}
