/** Why a file operation failed, for a message that names the path itself. Pure. */

/**
 * "no such file or directory (ENOENT)" of Node's "ENOENT: no such file or directory, open '/path'"; the message of any
 * other error.
 */
export function fileCause(error: unknown): string {
  const { message, code } = error as Error & { code?: string };
  const [, what] = /^[A-Z0-9]+: (.+?), \w+(?: '.*')?$/s.exec(message) ?? [];
  return what !== undefined && message.startsWith(`${code}: `) ? `${what} (${code})` : message;
}
