#!/bin/sh
# Fills NODE_COMPILE_CACHE with the modules of all modes of the program. For the Dockerfile, as the user of the pods.
set -eu
cd /opt/facetrain/trainer-image
node src/main.ts --help >/dev/null
# A process that has loaded the addon ends by _exit(2), before Node would write the cache.
node --input-type=module --eval '
  import { flushCompileCache } from "node:module";
  await import("./src/train/train.ts");
  await import("./src/quantize/run-quantize.ts");
  await import("./src/storage/fetch.ts");
  await import("./src/storage/retries.ts");
  flushCompileCache();'
