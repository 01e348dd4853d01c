/** A log of JSON lines on standard error. Each is written synchronously: none is lost when the process ends. */
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
