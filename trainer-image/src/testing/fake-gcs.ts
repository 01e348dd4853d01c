/**
 * For tests: a store with the conditions of Google Cloud Storage's XML API, in memory. It ignores If-Match and
 * If-None-Match of a PUT, and keeps to x-goog-if-generation-match. It checks no signature.
 */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface FakeGcs {
  endpoint: string;
  close(): void;
}

/** @param isLax whether it keeps to no condition at all. The caller closes it. */
export async function startFakeGcs({ isLax = false } = {}): Promise<FakeGcs> {
  const objects = new Map<string, { body: Buffer; generation: number }>();
  let last = 1_700_000_000_000_000;
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const { pathname, searchParams } = new URL(request.url!, 'http://gcs');
      const found = objects.get(pathname);
      const answer = (status: number, body: Buffer | string = '', generation = found?.generation) =>
        void response
          .writeHead(status, { etag: '"same"', ...(generation && { 'x-goog-generation': generation }) })
          .end(body);
      switch (request.method) {
        case 'PUT': {
          const wanted = request.headers['x-goog-if-generation-match'];
          if (!isLax && wanted !== undefined && Number(wanted) !== (found?.generation ?? 0))
            return answer(412, '<Error><Code>PreconditionFailed</Code></Error>');
          objects.set(pathname, { body: Buffer.concat(chunks), generation: ++last });
          return answer(200, '', last);
        }
        case 'DELETE':
          objects.delete(pathname);
          return answer(204);
        case 'GET': {
          if (!searchParams.has('list-type')) break;
          const [, bucket] = pathname.split('/');
          const keys = [...objects.keys()].map((path) => path.slice(`/${bucket}/`.length));
          const listed = keys
            .filter((key) => key.startsWith(searchParams.get('prefix') ?? ''))
            .map((key) => `<Contents><Key>${key}</Key></Contents>`);
          return answer(200, `<ListBucketResult>${listed.join('')}</ListBucketResult>`);
        }
      }
      return found ? answer(200, found.body) : answer(404, '<Error><Code>NoSuchKey</Code></Error>');
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}
