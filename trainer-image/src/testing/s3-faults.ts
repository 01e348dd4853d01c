/**
 * For tests: a proxy in front of an S3 server that lets requests fail. It passes them on as they are, host name
 * included, so their signatures hold.
 */
import { once } from 'node:events';
import { createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * What becomes of a request. slow: 503 SlowDown. cut: the connection is broken, and the server never sees the request.
 * lost: the server answers, and the answer does not arrive. hang: no answer at all. tired: 400 RequestTimeout, as S3
 * says when a request's bytes come too slowly. forbidden: 403 without a reason, as the answer to a HEAD. denied: 403
 * AccessDenied. gone: 404 NoSuchUpload. unknown: 404 NoSuchKey. astray and page: a load balancer answers 404, or 200
 * with a page of its own.
 */
export type Fate =
  | 'pass'
  | 'slow'
  | 'cut'
  | 'lost'
  | 'hang'
  | 'tired'
  | 'forbidden'
  | 'denied'
  | 'gone'
  | 'unknown'
  | 'astray'
  | 'page';

export interface FaultyS3 {
  endpoint: string;
  /** Decides for each request; may be replaced at any time. */
  decide: (request: { method: string; url: string }) => Fate | Promise<Fate>;
  /** Called when the server has answered a request that was passed on, or its connection has broken. */
  settled: () => void;
  /** Requests that were not passed on, or whose answer was lost. */
  faults: number;
  close(): void;
}

const refusal = (code: string, message: string) =>
  `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>${message}</Message></Error>`;
const REFUSALS: { [fate in Fate]?: [status: number, body: string] } = {
  slow: [503, refusal('SlowDown', 'Reduce your request rate.')],
  tired: [400, refusal('RequestTimeout', 'The socket was not read from or written to within the timeout.')],
  forbidden: [403, ''],
  denied: [403, refusal('AccessDenied', 'Access Denied.')],
  gone: [404, refusal('NoSuchUpload', 'The upload may have been aborted or completed.')],
  unknown: [404, refusal('NoSuchKey', 'The specified key does not exist.')],
  astray: [404, '404 page not found'],
  page: [200, '<html><body>It works!</body></html>'],
};

/** @param endpoint of the real server. The caller closes the proxy. */
export async function startFaultyS3(endpoint: string): Promise<FaultyS3> {
  const target = new URL(endpoint);
  const faulty: FaultyS3 = { endpoint: '', decide: () => 'pass', settled: () => {}, faults: 0, close: () => {} };
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const fate = await faulty.decide({ method: request.method!, url: request.url! });
    if (fate !== 'pass') faulty.faults += 1;
    if (fate === 'cut') return void request.socket.destroy();
    if (fate === 'hang') return void request.resume();
    const refused = REFUSALS[fate];
    if (refused) {
      const [status, body] = refused;
      request.resume();
      return void response.writeHead(status, { 'content-type': 'application/xml' }).end(body);
    }
    const passed = httpRequest({
      host: target.hostname,
      port: target.port,
      method: request.method,
      path: request.url,
      headers: request.headers,
    });
    passed.on('error', () => {
      faulty.settled();
      request.socket.destroy();
    });
    passed.on('response', (got) => {
      faulty.settled();
      if (fate === 'lost') {
        got.resume();
        return void got.on('end', () => request.socket.destroy());
      }
      response.writeHead(got.statusCode!, got.rawHeaders);
      got.pipe(response);
    });
    request.pipe(passed);
  };
  const server = createServer((request, response) => void answer(request, response)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  faulty.endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  faulty.close = () => {
    server.closeAllConnections();
    server.close();
  };
  return faulty;
}
