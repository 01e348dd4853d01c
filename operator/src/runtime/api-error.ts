/** The one error of an API server's answer. Callers look at `reason`, which the server promises, not at the text. */

/** The server's own words for what is wrong (metav1.StatusReason), as far as anyone here asks. */
export type StatusReason =
  | 'NotFound'
  | 'AlreadyExists'
  | 'Conflict'
  | 'Invalid'
  | 'Forbidden'
  | 'BadRequest'
  | 'Expired'
  | 'Gone'
  | 'TooManyRequests'
  | (string & {});

interface Status {
  code?: number;
  reason?: string;
  message?: string;
}

const REASONS: Record<number, StatusReason> = {
  400: 'BadRequest',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'NotFound',
  409: 'Conflict',
  410: 'Expired',
  422: 'Invalid',
  429: 'TooManyRequests',
};

export class ApiError extends Error {
  override readonly name = 'ApiError';
  readonly status: number;
  readonly reason: StatusReason;
  /** What the server said, without the request. */
  readonly serverMessage: string;

  constructor(request: string, status: number, reason: string | undefined, message: string) {
    super(`${request}: ${message}`);
    this.status = status;
    this.reason = reason || (REASONS[status] ?? 'Unknown');
    this.serverMessage = message;
  }

  /** @param body of the answer: a Status, or whatever a proxy in between had to say */
  static fromBody(request: string, code: number, body: string): ApiError {
    let status: Status = {};
    try {
      const parsed: unknown = JSON.parse(body);
      if (parsed !== null && typeof parsed === 'object') status = parsed;
    } catch {
      // Not from the API server.
    }
    return new ApiError(request, code, status.reason, status.message ?? (body.trim().slice(0, 500) || `HTTP ${code}`));
  }
}

export const hasReason = (error: unknown, ...reasons: StatusReason[]): error is ApiError =>
  error instanceof ApiError && reasons.includes(error.reason);

/** The version that a list or a watch asked to start from is no longer kept, or (a server restored from a backup) not yet there. */
export const isExpired = (error: unknown): boolean =>
  error instanceof ApiError &&
  (error.status === 410 ||
    error.reason === 'Expired' ||
    error.reason === 'Gone' ||
    /too large resource version/i.test(error.serverMessage));

/** The server will not have this object, now or unchanged: said to people, not tried in a hurry. */
export const isRefusal = (error: unknown): error is ApiError => hasReason(error, 'Invalid', 'Forbidden', 'BadRequest');
