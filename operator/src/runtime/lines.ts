/** Lines of a stream, as bytes: of a watch, of a container's log. */

const NEWLINE = 10;

/** Yields lines with their ends. Only the last may have none: the stream was cut off, or its writer is not done. */
export async function* linesOf(data: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let rest: Buffer[] = [];
  for await (const part of data) {
    let begin = 0;
    for (let end = part.indexOf(NEWLINE); end !== -1; end = part.indexOf(NEWLINE, begin)) {
      const line = part.subarray(begin, end + 1);
      yield rest.length === 0 ? line : Buffer.concat([...rest, line]);
      rest = [];
      begin = end + 1;
    }
    if (begin < part.length) rest.push(part.subarray(begin));
  }
  if (rest.length > 0) yield Buffer.concat(rest);
}

export const hasEnd = (line: Buffer): boolean => line.at(-1) === NEWLINE;
