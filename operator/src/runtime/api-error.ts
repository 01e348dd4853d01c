/**
 * The error that every answer of the API server other than 2xx becomes. Callers branch on `reason`, which is part of
 * the API.
 */

/** Reasons of metav1.StatusReason that the operator knows; the server has more. */
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
  413: 'RequestEntityTooLarge',
  422: 'Invalid',
  429: 'TooManyRequests',
};

export class ApiError extends Error {
  override readonly name = 'ApiError';
  readonly status: number;
  readonly reason: StatusReason;
  /** The server's message, without the request. */
  readonly serverMessage: string;

  constructor(request: string, status: number, reason: string | undefined, message: string) {
    super(`${request}: ${message}`);
    this.status = status;
    this.reason = reason || (REASONS[status] ?? 'Unknown');
    this.serverMessage = message;
  }

  /** @param body of the answer: a Status, or any text of a proxy in between */
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

/** Whether the error is an ApiError with one of these reasons. */
export const isApiError = (error: unknown, ...reasons: [StatusReason, ...StatusReason[]]): error is ApiError =>
  error instanceof ApiError && reasons.includes(error.reason);

/**
 * The resourceVersion that a list or a watch started from is too old for the server, or too new (after the server was
 * restored from a backup).
 */
export const isExpired = (error: unknown): boolean =>
  error instanceof ApiError &&
  (error.status === 410 ||
    error.reason === 'Expired' ||
    error.reason === 'Gone' ||
    /too large resource version/i.test(error.serverMessage));

/** The server refuses this object for now, or as it is. It is reported to the user, and not tried again at once. */
export const isRefusal = (error: unknown): error is ApiError =>
  isApiError(error, 'Invalid', 'Forbidden', 'BadRequest', 'RequestEntityTooLarge');
