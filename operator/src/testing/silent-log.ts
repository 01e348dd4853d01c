/** A log for tests: it writes nothing, unless FACETRAIN_TEST_LOG names a level. */
import { pino } from 'pino';

export const silentLog = pino({ level: process.env.FACETRAIN_TEST_LOG ?? 'silent' });
