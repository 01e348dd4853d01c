/**
 * Conditional writes of Google Cloud Storage. Its XML API ignores `If-Match` and `If-None-Match` of a PUT. It has a
 * number for each content of an object, its generation: `x-goog-generation` of an answer says it, and a PUT with
 * `x-goog-if-generation-match: NUMBER` fails (412) when it is another; 0 stands for no object.
 *
 * So where an answer has a generation, that takes the ETag's place (`generation:NUMBER`), and a condition of such an
 * ETag becomes the other header. For "no object" both headers are sent, since the first write to a store does not know
 * which one it keeps to; each store ignores the other's. Not tried against Google's servers.
 */
import type { S3Client } from '@aws-sdk/client-s3';

const PREFIX = 'generation:';
const CONDITION = 'x-goog-if-generation-match';
/** ETags that no object has, of either form. */
const NO_ETAG = '"00000000000000000000000000000000"';
const NO_GENERATION = `${PREFIX}1`;

/** An ETag of the same form that no object has. */
export const otherTag = (etag: string): string => (etag.startsWith(PREFIX) ? NO_GENERATION : NO_ETAG);

interface HttpMessage {
  headers: Record<string, string>;
}

/** Lets a client take generations for ETags, where a store has them. */
export function useGenerations(client: S3Client): void {
  client.middlewareStack.add(
    (next) => async (args) => {
      const { headers } = args.request as HttpMessage;
      const etag = headers['if-match'];
      if (etag?.startsWith(PREFIX)) {
        delete headers['if-match'];
        headers[CONDITION] = etag.slice(PREFIX.length);
      } else if (headers['if-none-match'] === '*') headers[CONDITION] = '0';
      return next(args);
    },
    // Before the request is signed.
    { step: 'build', name: 'generationCondition' },
  );
  client.middlewareStack.add(
    (next) => async (args) => {
      const result = await next(args);
      const generation = (result.response as HttpMessage | undefined)?.headers['x-goog-generation'];
      if (generation !== undefined) Object.assign(result.output, { ETag: PREFIX + generation });
      return result;
    },
    { step: 'initialize', name: 'generationOfAnswer' },
  );
}
