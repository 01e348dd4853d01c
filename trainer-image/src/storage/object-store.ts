/**
 * A prefix of a bucket, for a program that must outlast the store's absence: every request is repeated, with growing
 * waits, while its failures may pass (503 SlowDown, a broken connection, silence, a name server that is away).
 *
 * Nothing is staged on a disk. A file that is written is held in memory by its parts in flight alone.
 */
import { setTimeout as delay } from 'node:timers/promises';
import {
  AbortMultipartUploadCommand,
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CopyObjectCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  ListMultipartUploadsCommand,
  PutObjectCommand,
  paginateListObjectsV2,
  type S3Client,
  UploadPartCommand,
  UploadPartCopyCommand,
} from '@aws-sdk/client-s3';
import {
  ExitCode,
  FacetrainError,
  normalStorageUri,
  type ObjectStorePlace,
  parseStorageUri,
  s3Uri,
} from '@facetrain/api';
import { useGenerations } from './generations.ts';
import { mapAtOnce } from './map-at-once.ts';
import { isMisdirected, MISDIRECTED_MS, PATIENCE_MS } from './retries.ts';
import { headObject, httpStatus, isForeign, isOfCredentials, s3Client, s3Error, withEtag } from './s3.ts';

/**
 * Bytes of a part of an upload. A store takes 10,000 parts: the first half of them is of this size, the others are
 * eight times as large, which makes files of 720 GiB. S3 wants 5 MiB and more.
 */
export const PART_BYTES = 16 * 2 ** 20;
const SMALL_PARTS = 5_000;
/** Parts of a file that are on their way at once. */
const PARTS_IN_FLIGHT = 4;
/** Bytes of one ranged GET. */
const READ_BYTES = 16 * 2 ** 20;
const READS_IN_FLIGHT = 4;
/** Bytes that a store copies by one request: it answers when they are copied, and must not seem silent meanwhile. */
const COPY_BYTES = 256 * 2 ** 20;
/** Small requests that are sent at once. */
const REQUESTS_IN_FLIGHT = 16;

/** Work starts without what is not needed for it, if the store refuses that for so long. */
const BRIEF_PATIENCE_MS = 5_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 20_000;
/** A store counts as away when a request has failed for this long, in milliseconds. */
const AWAY_AFTER_MS = 2_000;
/** Or when it has not been answered at all for this long. */
const SILENT_AFTER_MS = 20_000;
/** This class repeats what fails, not the SDK. */
const SDK_ATTEMPTS = 1;

export interface ObjectStoreOptions {
  /** For how long a request is repeated, in milliseconds: PATIENCE_MS by default. */
  patienceMs?: number;
  /** The same of a misdirected request while the store has not answered yet: MISDIRECTED_MS by default. */
  misdirectedMs?: number;
  /** Bytes of one request of a copy. */
  copyBytes?: number;
  /** Called before each wait. */
  onRetry?: (error: FacetrainError, milliseconds: number) => void;
}

/** Says something in the log of a program, which goes on. */
export type Warn = (message: string) => void;

/** A condition of a write: the object has this ETag (or generation: generations.ts), or (null) there is none. */
export type Condition = { etag: string | null };

export class ObjectStore {
  readonly place: ObjectStorePlace;
  readonly #client: S3Client;
  readonly #bucket: string;
  /** Ends with "/", or is empty. */
  readonly #prefix: string;
  readonly #options: ObjectStoreOptions;
  /** When each request that is being repeated failed first, and why it failed last. */
  readonly #failing = new Map<symbol, { since: number; message: string }>();
  /** When each request on its way was sent. */
  readonly #sent = new Map<symbol, number>();
  readonly #closing = new AbortController();
  #hasAnswered = false;

  constructor(place: ObjectStorePlace, options: ObjectStoreOptions = {}) {
    const location = parseStorageUri(normalStorageUri(place.uri));
    if (location.scheme !== 's3') throw new TypeError(`${place.uri} is not in an object store`);
    this.place = place;
    this.#bucket = location.bucket;
    this.#prefix = location.key === '' ? '' : `${location.key}/`;
    this.#options = options;
    this.#client = s3Client(place, { attempts: SDK_ATTEMPTS });
    useGenerations(this.#client);
  }

  /** Why requests have been failing for a while; null when they have not. */
  get away(): string | null {
    const now = performance.now();
    const failing = [...this.#failing.values()].find(({ since }) => now - since > AWAY_AFTER_MS);
    if (failing) return failing.message;
    const isSilent = [...this.#sent.values()].some((sent) => now - sent > SILENT_AFTER_MS);
    return isSilent ? `${this.uri('')}: no answer for ${SILENT_AFTER_MS / 1000} seconds` : null;
  }

  /** The URI of an object. */
  uri(name: string): string {
    return s3Uri(this.#bucket, this.#prefix + name);
  }

  /** Ends the connections. Requests that are being repeated fail with an AbortError. */
  close(): void {
    this.#closing.abort();
    this.#client.destroy();
  }

  /** Bytes and ETag of an object; undefined when there is none. @throws FacetrainError StorageFailed */
  async get(name: string): Promise<{ bytes: Uint8Array; etag: string } | undefined> {
    return this.#orMissing(name, async () => {
      const { Body, ETag } = withEtag(await this.#client.send(new GetObjectCommand(this.#object(name))));
      return { bytes: await Body!.transformToByteArray(), etag: ETag };
    });
  }

  /** Size and ETag of an object; undefined when there is none. @throws FacetrainError StorageFailed */
  async head(name: string): Promise<{ bytes: number; etag: string } | undefined> {
    return this.#orMissing(name, async () => {
      const head = withEtag(await headObject(this.#client, this.#object(name)));
      return { bytes: head.ContentLength ?? 0, etag: head.ETag };
    });
  }

  /**
   * Fills `into` with the bytes of an object from `position` on, by several requests at once.
   * @returns the number of bytes; fewer when the object ends before, or does not exist
   * @throws FacetrainError StorageFailed
   */
  async read(name: string, into: Uint8Array, position: number): Promise<number> {
    const starts = Array.from({ length: Math.ceil(into.byteLength / READ_BYTES) }, (_, index) => index * READ_BYTES);
    const counts = await mapAtOnce(starts, READS_IN_FLIGHT, (start) =>
      this.#readRange(name, into.subarray(start, start + READ_BYTES), position + start),
    );
    const short = counts.findIndex((count, index) => count < Math.min(READ_BYTES, into.byteLength - starts[index]!));
    return short < 0 ? into.byteLength : starts[short]! + counts[short]!;
  }

  async #readRange(name: string, into: Uint8Array, position: number): Promise<number> {
    if (into.byteLength === 0) return 0;
    const range = `bytes=${position}-${position + into.byteLength - 1}`;
    return this.#request(name, async () => {
      try {
        const got = await this.#client.send(new GetObjectCommand({ ...this.#object(name), Range: range }));
        const bytes = await got.Body!.transformToByteArray();
        into.set(bytes.subarray(0, into.byteLength));
        return Math.min(bytes.byteLength, into.byteLength);
      } catch (error) {
        if (httpStatus(error) === 416 || isMissing(error)) return 0;
        throw error;
      }
    });
  }

  /**
   * Writes an object.
   * @returns its ETag; undefined when the condition does not hold, or may have ceased to hold by an earlier try of this
   * very write, of which the answer was lost: the caller reads the object
   * @throws FacetrainError StorageFailed
   */
  async put(name: string, bytes: Uint8Array, condition?: Condition, contentType?: string): Promise<string | undefined> {
    return this.#request(name, async () => {
      try {
        const put = new PutObjectCommand({
          ...this.#object(name),
          Body: bytes,
          ...(contentType && { ContentType: contentType }),
          ...(condition && (condition.etag === null ? { IfNoneMatch: '*' } : { IfMatch: condition.etag })),
        });
        return withEtag(await this.#client.send(put)).ETag;
      } catch (error) {
        // 409: another conditional write of the object was on its way (AWS). 404: there is none to match.
        const status = httpStatus(error);
        if (condition && (status === 412 || status === 409 || isMissing(error))) return undefined;
        throw error;
      }
    });
  }

  /** Deletes objects; those that do not exist are no error. @throws FacetrainError StorageFailed */
  async delete(names: string[]): Promise<void> {
    // Not DeleteObjects: it needs a checksum that not every store takes.
    await mapAtOnce(names, REQUESTS_IN_FLIGHT, (name) =>
      this.#orMissing(name, () => this.#client.send(new DeleteObjectCommand(this.#object(name)))),
    );
  }

  /**
   * Names of the objects that begin with `start`.
   * @param before only those that were last written before that, by the store's clock
   * @throws FacetrainError StorageFailed
   */
  async list(start: string, before?: Date): Promise<string[]> {
    return this.#request(start, async () => {
      const names: string[] = [];
      const input = { Bucket: this.#bucket, Prefix: this.#prefix + start };
      for await (const page of paginateListObjectsV2({ client: this.#client }, input))
        for (const { Key, LastModified } of page.Contents ?? [])
          if (Key && (!before || (LastModified && LastModified < before))) names.push(Key.slice(this.#prefix.length));
      return names;
    });
  }

  /**
   * Aborts uploads that were begun and neither completed nor aborted; each would be stored, and paid for, without end.
   * Not every store lists them by a prefix, or permits this; most abort old ones by a rule of the bucket. So work does
   * not wait long for it, nor fail without it.
   * @param isLeft whether the upload of an object of this name is left by a dead process
   * @param warn gets why they stay
   * @returns the number of those that are aborted
   */
  async abortUploads(start: string, isLeft: (name: string) => boolean, warn: Warn): Promise<number> {
    try {
      return await this.#abortUploads(start, isLeft);
    } catch (error) {
      if (!(error instanceof FacetrainError)) throw error;
      warn(
        'uploads that were cut off may stay, and cost, until a rule of the bucket aborts them; to abort them needs ' +
          `s3:ListBucketMultipartUploads and s3:AbortMultipartUpload (${error.message})`,
      );
      return 0;
    }
  }

  async #abortUploads(start: string, isLeft: (name: string) => boolean): Promise<number> {
    const patienceMs = Math.min(this.#patienceMs, BRIEF_PATIENCE_MS);
    const list = async () => {
      const found: { Key: string; UploadId: string }[] = [];
      for (let markers = {}; ; ) {
        const page = await this.#client.send(
          new ListMultipartUploadsCommand({ Bucket: this.#bucket, Prefix: this.#prefix + start, ...markers }),
        );
        for (const { Key, UploadId } of page.Uploads ?? [])
          if (Key?.startsWith(this.#prefix + start) && UploadId && isLeft(Key.slice(this.#prefix.length)))
            found.push({ Key, UploadId });
        if (!page.IsTruncated || !page.NextKeyMarker) return found;
        markers = { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker };
      }
    };
    const uploads = await this.#request(start, list, patienceMs);
    await mapAtOnce(uploads, REQUESTS_IN_FLIGHT, ({ Key, UploadId }) =>
      this.#orMissing(
        Key.slice(this.#prefix.length),
        () => this.#client.send(new AbortMultipartUploadCommand({ Bucket: this.#bucket, Key, UploadId })),
        patienceMs,
      ),
    );
    return uploads.length;
  }

  /**
   * Copies an object of the prefix within the store.
   * @param bytes its size @throws FacetrainError StorageFailed
   */
  async copy(from: string, to: string, bytes: number): Promise<void> {
    const { copyBytes = COPY_BYTES } = this.#options;
    const object = this.#object(to);
    const CopySource = [this.#bucket, ...this.#object(from).Key.split('/')].map(encodeURIComponent).join('/');
    const send = <T>(work: () => Promise<T>) => this.#request(to, work);
    if (bytes <= copyBytes) {
      await send(() => this.#client.send(new CopyObjectCommand({ ...object, CopySource })));
      return;
    }
    const UploadId = await send(() => beginUpload(this.#client, object));
    try {
      const numbers = Array.from({ length: Math.ceil(bytes / copyBytes) }, (_, index) => index + 1);
      const Parts = await mapAtOnce(numbers, PARTS_IN_FLIGHT, async (PartNumber) => {
        const [start, end] = [(PartNumber - 1) * copyBytes, Math.min(PartNumber * copyBytes, bytes)];
        const CopySourceRange = `bytes=${start}-${end - 1}`;
        const part = new UploadPartCopyCommand({ ...object, UploadId, PartNumber, CopySource, CopySourceRange });
        const { CopyPartResult } = await send(() => this.#client.send(part));
        return { PartNumber, ETag: CopyPartResult?.ETag, ChecksumCRC32: CopyPartResult?.ChecksumCRC32 };
      });
      await send(() => completeUpload(this.#client, object, UploadId, Parts, bytes));
    } catch (error) {
      await this.#client.send(new AbortMultipartUploadCommand({ ...object, UploadId })).catch(() => {});
      throw error;
    }
  }

  /** Begins an object that is written from beginning to end. Nobody sees it before finish() has returned. */
  writer(name: string): ObjectWriter {
    return new ObjectWriter(this.#object(name), this.#client, (work) => this.#request(name, work));
  }

  #object(name: string): ObjectKey {
    return { Bucket: this.#bucket, Key: this.#prefix + name };
  }

  get #patienceMs(): number {
    return this.#options.patienceMs ?? PATIENCE_MS;
  }

  async #orMissing<T>(name: string, work: () => Promise<T>, patienceMs?: number): Promise<T | undefined> {
    const orMissing = async () => {
      try {
        return await work();
      } catch (error) {
        if (isMissing(error)) return undefined;
        throw error;
      }
    };
    return this.#request(name, orMissing, patienceMs);
  }

  async #request<T>(name: string, work: () => Promise<T>, patienceMs = this.#patienceMs): Promise<T> {
    const { onRetry } = this.#options;
    const id = Symbol();
    try {
      for (let wait = FIRST_WAIT_MS; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
        try {
          this.#closing.signal.throwIfAborted();
          this.#sent.set(id, performance.now());
          const result = await work();
          this.#hasAnswered = true;
          return result;
        } catch (error) {
          this.#sent.delete(id);
          const found = s3Error(error, this.place, this.#bucket, this.#prefix + name);
          const { since } = this.#failing.get(id) ?? { since: performance.now() };
          // At random, so that the ranks of a gang do not come back all at once.
          const milliseconds = wait * (0.5 + Math.random() / 2);
          if (!(found instanceof FacetrainError)) throw found;
          const patience = Math.min(patienceMs, this.#patienceWith(found, error));
          if (performance.now() + milliseconds - since > patience) throw found;
          this.#failing.set(id, { since, message: found.message });
          onRetry?.(found, milliseconds);
          await delay(milliseconds, undefined, { signal: this.#closing.signal });
        }
      }
    } finally {
      this.#failing.delete(id);
      this.#sent.delete(id);
    }
  }

  /**
   * For how long a failure may pass, in milliseconds. A store that has answered before has a right address. Credentials
   * of a mounted Secret may be replaced in the store some time before the files are, and a pod's token is replaced by
   * the kubelet.
   */
  #patienceWith({ exitCode }: FacetrainError, cause: unknown): number {
    if (exitCode === ExitCode.failure || httpStatus(cause) === 429) return Infinity;
    if (this.#hasAnswered) return isMisdirected(cause) || isOfCredentials(cause) ? Infinity : 0;
    return isMisdirected(cause) ? (this.#options.misdirectedMs ?? MISDIRECTED_MS) : 0;
  }
}

/** Whether the store answers that there is no such object, or no such upload. */
function isMissing(error: unknown): boolean {
  return httpStatus(error) === 404 && !isForeign(error) && (error as Error).name !== 'NoSuchBucket';
}

interface ObjectKey {
  Bucket: string;
  Key: string;
}

/** @returns the id of an upload in parts, whose checksums the store compares */
async function beginUpload(client: S3Client, object: ObjectKey): Promise<string> {
  const { UploadId } = await client.send(new CreateMultipartUploadCommand({ ...object, ChecksumAlgorithm: 'CRC32' }));
  return UploadId!;
}

/** Makes the object of its parts, in their order. May be asked again. @param bytes of the whole object */
async function completeUpload(
  client: S3Client,
  object: ObjectKey,
  UploadId: string,
  Parts: CompletedPart[],
  bytes: number,
): Promise<void> {
  try {
    await client.send(new CompleteMultipartUploadCommand({ ...object, UploadId, MultipartUpload: { Parts } }));
  } catch (error) {
    // An earlier try may have succeeded, of which the answer was lost.
    if (!(error instanceof Error) || error.name !== 'NoSuchUpload') throw error;
    const head = await headObject(client, object).catch((failure: unknown) => {
      if (isMissing(failure)) return undefined;
      throw failure; // and is asked again
    });
    if (head?.ContentLength !== bytes) throw error;
  }
}

/** An object that is being written: a single request, or, above PART_BYTES, parts of which several are on their way. */
export class ObjectWriter {
  readonly #object: ObjectKey;
  readonly #client: S3Client;
  readonly #request: <T>(work: () => Promise<T>) => Promise<T>;
  readonly #parts: { PartNumber: number; ETag: string; ChecksumCRC32: string | undefined }[] = [];
  readonly #inFlight = new Set<Promise<void>>();
  #buffer = new Uint8Array(0);
  #filled = 0;
  #bytes = 0;
  #begun = 0;
  #uploadId: string | undefined;
  #failure: { error: unknown } | undefined;
  #isFinished = false;

  constructor(object: ObjectKey, client: S3Client, request: <T>(work: () => Promise<T>) => Promise<T>) {
    this.#object = object;
    this.#client = client;
    this.#request = request;
  }

  /** Appends bytes, which the caller may change after. @throws FacetrainError StorageFailed */
  async write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.byteLength; ) {
      const count = Math.min(bytes.byteLength - done, this.#partBytes - this.#filled);
      this.#reserve(this.#filled + count);
      this.#buffer.set(bytes.subarray(done, done + count), this.#filled);
      this.#filled += count;
      done += count;
      if (this.#filled === this.#partBytes) await this.#sendPart();
    }
    this.#bytes += bytes.byteLength;
  }

  /** When this returns, the object is there. @throws FacetrainError StorageFailed */
  async finish(): Promise<void> {
    const { Bucket, Key } = this.#object;
    if (this.#uploadId === undefined) {
      const body = this.#buffer.subarray(0, this.#filled);
      const put = new PutObjectCommand({ Bucket, Key, Body: body });
      await this.#request(async () => withEtag(await this.#client.send(put)));
    } else {
      if (this.#filled > 0) await this.#sendPart();
      await Promise.all(this.#inFlight);
      this.#throwIfFailed();
      const parts = this.#parts.sort((a, b) => a.PartNumber - b.PartNumber);
      await this.#request(() => completeUpload(this.#client, this.#object, this.#uploadId!, parts, this.#bytes));
    }
    this.#isFinished = true;
    this.#buffer = new Uint8Array(0);
  }

  /** Removes it again, finished or not. Does not throw. */
  async discard(): Promise<void> {
    this.#failure ??= { error: new Error('discarded') };
    try {
      await Promise.allSettled(this.#inFlight);
      const UploadId = this.#uploadId;
      if (this.#isFinished) await this.#client.send(new DeleteObjectCommand(this.#object));
      else if (UploadId) await this.#client.send(new AbortMultipartUploadCommand({ ...this.#object, UploadId }));
    } catch {
      // The next start of a gang removes it.
    }
  }

  get #partBytes(): number {
    return this.#begun < SMALL_PARTS ? PART_BYTES : 8 * PART_BYTES;
  }

  #reserve(bytes: number): void {
    if (bytes <= this.#buffer.byteLength) return;
    const larger = new Uint8Array(Math.min(this.#partBytes, Math.max(bytes, 2 * this.#buffer.byteLength)));
    larger.set(this.#buffer.subarray(0, this.#filled));
    this.#buffer = larger;
  }

  async #sendPart(): Promise<void> {
    this.#throwIfFailed();
    this.#uploadId ??= await this.#request(() => beginUpload(this.#client, this.#object));
    while (this.#inFlight.size >= PARTS_IN_FLIGHT) await Promise.race(this.#inFlight);
    this.#throwIfFailed();
    const body = this.#buffer.subarray(0, this.#filled);
    this.#buffer = new Uint8Array(0);
    this.#filled = 0;
    const sending: Promise<void> = this.#sendBytes(++this.#begun, body)
      .catch((error: unknown) => {
        this.#failure ??= { error };
      })
      .finally(() => this.#inFlight.delete(sending));
    this.#inFlight.add(sending);
  }

  async #sendBytes(PartNumber: number, Body: Uint8Array): Promise<void> {
    const UploadId = this.#uploadId!;
    const part = { ...this.#object, UploadId, PartNumber, Body, ChecksumAlgorithm: 'CRC32' } as const;
    const { ETag, ChecksumCRC32 } = await this.#request(async () => {
      if (this.#failure) throw this.#failure.error;
      return withEtag(await this.#client.send(new UploadPartCommand(part)));
    });
    this.#parts.push({ PartNumber, ETag, ChecksumCRC32 });
  }

  #throwIfFailed(): void {
    if (this.#failure) throw this.#failure.error;
  }
}
