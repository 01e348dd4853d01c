// A reporter for node:test that counts: one JSON object when all is done. A skipped or todo test counts as failed, for
// nothing is skipped here.
export default async function* countReporter(events) {
  let passed = 0;
  let failed = 0;
  for await (const { type, data } of events) {
    if (type !== 'test:pass' && type !== 'test:fail') continue;
    if (data.details?.type === 'suite') continue;
    if (type === 'test:pass' && data.skip === undefined && data.todo === undefined) passed += 1;
    else failed += 1;
  }
  yield JSON.stringify({ passed, failed });
}
