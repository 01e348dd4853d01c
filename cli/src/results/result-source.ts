/** Where the results of a job lie, for who copies them: a prefix of an object store here, a volume in kubectl/. */
import { joinStorageUri, type StorageAddress } from '@facetrain/api';
import { fetchTo } from '@facetrain/trainer/storage/fetch';
import { readHead } from '@facetrain/trainer/storage/object-fence';
import type { ObjectStore } from '@facetrain/trainer/storage/object-store';
import { storeForPerson } from './store-for-person.ts';

/** A checkpoint that is complete. */
export interface ListedCheckpoint {
  step: number;
  /** Of its files, below the place. */
  folder: string;
}

/** Names of files are those below the place. */
export interface ResultSource {
  /** Of the place. */
  readonly uri: string;
  /** The bytes of a small file; undefined when there is none. @throws FacetrainError StorageFailed */
  read(file: string): Promise<Uint8Array | undefined>;
  /** Copies a file into a folder of this machine. A copy that was interrupted goes on. @throws FacetrainError */
  copy(file: string, to: string): Promise<void>;
  /** Newest first. @throws FacetrainError StorageFailed */
  checkpoints(): Promise<ListedCheckpoint[]>;
  close(): Promise<void>;
}

/** Results in an object store, by the credentials that the AWS SDK finds. */
export class StoredResults implements ResultSource {
  readonly #address: StorageAddress;
  readonly #store: ObjectStore;
  readonly #signal: AbortSignal;

  constructor(address: StorageAddress, signal: AbortSignal) {
    this.#address = address;
    this.#signal = signal;
    this.#store = storeForPerson(address);
    signal.addEventListener('abort', () => this.#store.close(), { once: true });
  }

  get uri(): string {
    return this.#address.uri;
  }

  async read(file: string): Promise<Uint8Array | undefined> {
    return (await this.#store.get(file))?.bytes;
  }

  async copy(file: string, to: string): Promise<void> {
    await fetchTo({ ...this.#address, uri: joinStorageUri(this.#address.uri, file), to }, this.#signal);
  }

  async checkpoints(): Promise<ListedCheckpoint[]> {
    const found = await readHead(this.#store);
    return [...(found?.head.checkpoints ?? [])].sort((a, b) => b.step - a.step);
  }

  async close(): Promise<void> {
    this.#store.close();
  }
}
