/** JSON lines on standard error, written at once: what was logged is there even when the process ends the next moment. */
import { type Logger, pino } from 'pino';

export function createLog(fields: Record<string, unknown>): Logger {
  return pino(
    {
      base: fields,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (level) => ({ level }) },
      level: process.env.FACETRAIN_LOG_LEVEL ?? 'info',
    },
    pino.destination({ dest: 2, sync: true }),
  );
}
