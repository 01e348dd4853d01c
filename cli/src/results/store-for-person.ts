/** An object store for a command that a person waits for. */
import type { StorageAddress } from '@facetrain/api';
import { ObjectStore } from '@facetrain/trainer/storage/object-store';

/** How long a request is repeated. */
const PATIENCE_MS = 30_000;

/** With the credentials that the AWS SDK finds. A wrong address is refused at once: it is misspelt. */
export function storeForPerson(address: StorageAddress): ObjectStore {
  return new ObjectStore({ ...address, credentials: null }, { patienceMs: PATIENCE_MS, misdirectedMs: 0 });
}
