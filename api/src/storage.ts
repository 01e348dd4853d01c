/**
 * Where a job reads and writes: storage URIs, and how to reach an S3 server.
 *
 * Four things are decided here alone: which schemes there are, which `s3` fields may stand beside which URI, how a URI
 * is split, and which URIs name the same place. Other packages call `parseStorageUri`, `normalStorageUri`, `placeOf`,
 * `storageAddress`, `fileUri` and `s3Uri`.
 */
import { z } from 'zod';
import { maxBadPictures } from './ranges.ts';
import { rules } from './schema-rules.ts';
import { DEFAULT_MAX_BAD_PICTURES } from './shared-defaults.ts';

/** Each scheme: its form as a regular expression, and the help that errors and `kubectl explain` show. */
const SCHEMES = {
  file: {
    form: 'file://.+',
    help:
      'file://PATH is a path on this machine (relative to the manifest with `facetrain run`) ' +
      'or inside the container',
  },
  hostpath: { form: 'hostpath:///.*', help: 'hostpath:///PATH is a path of the node' },
  pvc: {
    form: 'pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?',
    help: 'pvc://CLAIM/PATH is a path in a PersistentVolumeClaim',
  },
  s3: { form: 's3://[a-z0-9][-a-z0-9.]+(/.*)?', help: 's3://BUCKET/KEY is an object store' },
} as const;
export type StorageScheme = keyof typeof SCHEMES;

const ALL_SCHEMES: StorageScheme[] = ['file', 'hostpath', 'pvc', 's3'];
/** Schemes of folders that outlive a pod and that other pods can mount. */
const CACHE_SCHEMES: StorageScheme[] = ['hostpath', 'pvc'];

function storageUri(schemes: StorageScheme[], description: string) {
  const pattern = new RegExp(`^(${schemes.map((scheme) => SCHEMES[scheme].form).join('|')})$`);
  const help = schemes.map((scheme) => SCHEMES[scheme].help).join('; ');
  return rules(z.string().min(1).max(1024).regex(pattern, help), [NO_PARENT_RULE]).describe(`${description} ${help}.`);
}

/**
 * "..", as a part of a path, names a place that depends on what is mounted and on symbolic links, or a key that many
 * object stores refuse. `facetrain run` resolves a file:// path that is relative to the manifest, so there it is
 * allowed.
 */
const NO_PARENT_RULE = {
  cel: "(self.startsWith('file://') && !self.startsWith('file:///')) || !self.matches('/[.][.](/|$)')",
  message: 'the path must not contain ".."; write the path without it',
  check: (uri: string) => /^file:\/\/(?!\/)/.test(uri) || !/\/\.\.(\/|$)/.test(uri),
};

const secretRef = z
  .strictObject({ name: z.string().min(1).max(253).describe('Name of a Secret in the job’s namespace.') })
  .describe(
    'Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), given to the pods as ' +
      'environment variables, or as files where they may change while the pods run. Absent: the pod’s own identity.',
  );

/** How to reach an S3 server, in a manifest. */
export const S3Access = z
  .strictObject({
    endpoint: z
      .string()
      .min(1)
      .max(512)
      .regex(/^https?:\/\/.+$/, 'http://… or https://…')
      .optional()
      .describe('URL of an S3 server other than AWS.'),
    region: z
      .string()
      .min(1)
      .max(64)
      .optional()
      .describe('Region. Absent: the AWS SDK takes it from its environment, as usual.'),
    forcePathStyle: z
      .boolean()
      .default(false)
      .describe('Put the bucket in the path, not in the host name; most S3 servers other than AWS want it.'),
    secretRef: secretRef.optional(),
  })
  .describe('How to reach an s3:// address.');
export type S3Access = z.infer<typeof S3Access>;

/** As S3Access, for data that is read. */
const S3Source = z
  .strictObject({
    ...S3Access.shape,
    cache: storageUri(
      CACHE_SCHEMES,
      'A folder that pods may write. Each object is fetched into it once (per node, or per claim), and other pods ' +
        'and later ones read it there. Objects must not change in the store; nothing is ever removed from the ' +
        'folder. Absent: every pod fetches for itself.',
    ).optional(),
  })
  .describe('How to reach an s3:// address, and where to keep what is fetched.');

/** The `s3` field of an object stands beside an s3:// uri only. For every object with both fields. */
export const S3_RULE = {
  cel: "!has(self.s3) || self.uri.startsWith('s3://')",
  message: 's3 is only for an s3:// uri',
  check: ({ uri, s3 }: { uri?: string | undefined; s3?: unknown }) =>
    s3 === undefined || (uri ?? '').startsWith('s3://'),
  path: ['s3'],
};

/** The fields of something that is read. The object that has them needs S3_RULE. */
export const sourceFields = (description: string) => ({
  uri: storageUri(ALL_SCHEMES, description),
  s3: S3Source.optional(),
});

/** Something that is read: a file or a folder in any storage. */
export function source(description: string) {
  return rules(z.strictObject(sourceFields(description)), [S3_RULE]).describe(description);
}

/** Pictures that are read, and how many of them may be bad. */
export function dataset(description: string) {
  return rules(
    z.strictObject({
      ...sourceFields(description),
      maxBadPictures: maxBadPictures
        .optional()
        .describe(
          'Share of the pictures that may be damaged, of another size or of another kind, rounded up to whole ' +
            'pictures. They are counted, reported and left out. More fail the job with InvalidDataset. ' +
            `Absent: ${DEFAULT_MAX_BAD_PICTURES}. 0: none.`,
        ),
    }),
    [S3_RULE],
  ).describe(description);
}

/** Where pods write: a folder on a file system, or an object store. */
export const writtenUri = (description: string) => storageUri(ALL_SCHEMES, description);

/** Where finished files are published: a folder or an object store. */
export function destination(description: string) {
  return rules(z.strictObject({ uri: storageUri(ALL_SCHEMES, description), s3: S3Access.optional() }), [
    S3_RULE,
  ]).describe(description);
}

/** What the objects above have in common. */
export interface StorageRef {
  uri: string;
  s3?: (S3Access & { cache?: string | undefined }) | undefined;
}

/** A parsed storage URI. */
export type StorageLocation =
  | { scheme: 'file'; path: string }
  | { scheme: 'hostpath'; path: string }
  | { scheme: 'pvc'; claim: string; path: string }
  | { scheme: 's3'; bucket: string; key: string };

/**
 * The path of a file:// URI. Percent-escapes are decoded, as RFC 8089 says: people copy such URIs from browsers and
 * from pathlib's `as_uri`. What decodes to a separator, a dot or NUL stays, since the rules above have looked at the
 * text.
 */
const decodedPath = (text: string): string =>
  text.replace(/(%[0-9a-f]{2})+/gi, (escapes) => {
    try {
      const decoded = decodeURIComponent(escapes);
      return /[/.\0]/.test(decoded) ? escapes : decoded;
    } catch {
      return escapes;
    }
  });

/** The inverse: the URI of a path. A relative one stays relative. */
export const fileUri = (path: string): string => `file://${path.replace(/%(?=[0-9a-f]{2})/gi, '%25')}`;

/**
 * Splits a URI that the schemas above have accepted. The path in a claim and the key in a bucket have no leading slash.
 * @throws TypeError for a URI of another scheme
 */
export function parseStorageUri(uri: string): StorageLocation {
  const match = /^(file|hostpath|pvc|s3):\/\/(.*)$/s.exec(uri);
  if (!match) throw new TypeError(`not a storage uri: ${uri}`);
  const [, scheme, rest] = match as unknown as [string, StorageScheme, string];
  if (scheme === 'file') return { scheme, path: decodedPath(rest) };
  if (scheme === 'hostpath') return { scheme, path: rest };
  const slash = rest.indexOf('/');
  const head = slash < 0 ? rest : rest.slice(0, slash);
  const tail = slash < 0 ? '' : rest.slice(slash + 1);
  return scheme === 'pvc' ? { scheme, claim: head, path: tail } : { scheme, bucket: head, key: tail };
}

/** The URI of an object; the inverse of `parseStorageUri`. */
export const s3Uri = (bucket: string, key: string): string => `s3://${bucket}/${key}`;

/**
 * The same URI in the form in which equal places have equal text. On a file system, empty parts and parts "." are left
 * out: `pvc://claim//a/./b/` is `pvc://claim/a/b`. In an object store these parts are parts of another key, so only
 * slashes at the end are left out: our programs put exactly one between a key and the name of a file.
 */
export function normalStorageUri(uri: string): string {
  const location = parseStorageUri(uri);
  if (location.scheme === 's3') return s3Uri(location.bucket, location.key).replace(/\/+$/, '');
  const parts = location.path.split('/').filter((part) => part !== '' && part !== '.');
  if (location.scheme === 'pvc') return ['pvc:/', location.claim, ...parts].join('/');
  const path = location.path.startsWith('/') ? `/${parts.join('/')}` : parts.join('/') || '.';
  return location.scheme === 'file' ? fileUri(path) : `hostpath://${path}`;
}

/** A URI below another, in its normal form: `parts` are joined to it by slashes. */
export function joinStorageUri(uri: string, ...parts: string[]): string {
  return [normalStorageUri(uri).replace(/\/$/, ''), ...parts].join('/');
}

/**
 * The place that is written, as text that is equal for equal places of one namespace: the normal form of the URI, and
 * for a store other than AWS its URL in place of the scheme.
 *
 * @returns null for file://, where only the pod template knows what is mounted
 */
export function placeOf({ uri, s3 }: StorageRef): string | null {
  const normal = normalStorageUri(uri).replace(/\/$/, '');
  if (normal.startsWith('file://')) return null;
  const endpoint = s3?.endpoint === undefined ? null : URL.parse(s3.endpoint);
  // Names of buckets are unique in all of AWS.
  if (endpoint === null || /(^|\.)amazonaws\.com(\.cn)?$/.test(endpoint.hostname)) return normal;
  return normal.replace(/^s3:\/\//, () => `s3+${endpoint.origin}${endpoint.pathname.replace(/\/*$/, '/')}`);
}

/** The places that contain this one, from the nearest to its claim, its bucket or the root of the node. */
export function placesAbove(place: string): string[] {
  const root = place.indexOf('://') + 2;
  const above: string[] = [];
  for (let slash = place.lastIndexOf('/'); slash > root; slash = place.lastIndexOf('/', slash - 1))
    above.push(place.slice(0, slash));
  return above;
}

/** Storage that a program reaches by itself, with all that it needs to know but the credentials. */
export const StorageAddress = z.strictObject({
  uri: z
    .string()
    .regex(/^(file|s3):\/\//)
    .describe('file:///folder or s3://bucket/prefix.'),
  endpoint: z.url().nullable().describe('URL of an S3 server other than AWS; null: AWS.'),
  region: z.string().min(1).nullable(),
  forcePathStyle: z
    .boolean()
    .describe('Bucket in the path, not in the host name: most S3 servers other than AWS want it.'),
});
export type StorageAddress = z.infer<typeof StorageAddress>;

/** The address of what a manifest refers to. Credentials are left out: pods get them from a Secret. */
export const storageAddress = ({ uri, s3 }: StorageRef): StorageAddress => ({
  uri,
  endpoint: s3?.endpoint ?? null,
  region: s3?.region ?? null,
  forcePathStyle: s3?.forcePathStyle ?? false,
});

const credentials = z
  .string()
  .min(1)
  .nullable()
  .describe(
    'Folder with a file for each of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where it is temporary, ' +
      'AWS_SESSION_TOKEN, which are read for each request; null: as the AWS SDK finds them.',
  );

/** A prefix of an object store that a program writes to in place of a folder. */
export const ObjectStorePlace = z.strictObject({
  ...StorageAddress.shape,
  uri: z
    .string()
    .regex(/^s3:\/\//)
    .describe('s3://bucket/prefix.'),
  credentials,
});
export type ObjectStorePlace = z.infer<typeof ObjectStorePlace>;

/** Where a quantizer publishes: a folder, or an object store. */
export const Destination = StorageAddress.extend({ credentials: credentials.optional() });
export type Destination = z.infer<typeof Destination>;
