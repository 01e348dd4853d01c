"""Runs networks with ncnn for int7-bench.ts.

Arguments: threads, channels, height, width, then for each network NAME PARAM BIN OUTPUT BF16 (0 or 1). Prints the names
that load, as JSON. Then for each line of standard input, a NAME, runs that network once on one picture and prints the
milliseconds.
"""

import json
import sys
import time

import ncnn
import numpy

threads, channels, height, width = map(int, sys.argv[1:5])
picture = numpy.random.default_rng(1).uniform(-1, 1, (channels, height, width)).astype(numpy.float32)
networks = {}
for start in range(5, len(sys.argv), 5):
    name, param, weights, output, bf16 = sys.argv[start : start + 5]
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_bf16_storage = bf16 == "1"
    net.opt.use_int8_inference = True
    if net.load_param(param) == 0 and net.load_model(weights) == 0:
        networks[name] = (net, output)


def run(name):
    net, output = networks[name]
    start = time.perf_counter()
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(picture))
    code, result = extractor.extract(output)
    if code != 0 or not numpy.isfinite(numpy.array(result)).all():
        raise RuntimeError(f"{name}: ncnn does not run it")
    return (time.perf_counter() - start) * 1000


for name in list(networks):
    try:
        run(name)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        del networks[name]
print(json.dumps({"networks": list(networks), "version": ncnn.__version__}), flush=True)
for line in sys.stdin:
    print(run(line.strip()), flush=True)
