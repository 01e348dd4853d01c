/** Runs files for ncnn by ncnn's own Python package. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { python, pythonNcnn } from '../../../hack/lib/paths.mjs';

const SCRIPT = `
import ncnn, numpy, sys
param, weights, pixels, count, height, width, channels, name, result, *outputs = sys.argv[1:]
net = ncnn.Net()
assert net.load_param(param) == 0 and net.load_model(weights) == 0
assert net.input_names() == [name] and set(outputs) <= set(net.output_names()), (net.input_names(), net.output_names())
found = []
for picture in numpy.fromfile(pixels, numpy.uint8).reshape(int(count), int(height), int(width), int(channels)):
    extractor = net.create_extractor()
    real = picture.astype(numpy.float32).transpose(2, 0, 1) / numpy.float32(127.5) - 1
    # A Mat is a view of its array.
    real = numpy.ascontiguousarray(real)
    extractor.input(name, ncnn.Mat(real))
    for output in outputs:
        code, values = extractor.extract(output)
        assert code == 0
        found.append(numpy.array(values).astype(numpy.float32).flatten())
numpy.concatenate(found).tofile(result)
`;

/**
 * What ncnn computes of pictures in -1..1.
 * @param model as writeNcnn of quantize/ncnn.ts gives it
 * @param bytes [count, height, width, channels]
 * @returns the outputs of each picture, one after the other
 */
export function runNcnn(
  { param, bin, input, outputs }: { param: string; bin: Uint8Array; input: string; outputs: string[] },
  { data, ...size }: { data: Uint8Array; count: number; height: number; width: number; channels: number },
): Float32Array {
  const folder = mkdtempSync(join(tmpdir(), 'facetrain-ncnn-'));
  try {
    const path = (name: string) => join(folder, name);
    writeFileSync(path('param'), param);
    writeFileSync(path('bin'), bin);
    writeFileSync(path('pixels'), data);
    const numbers = [size.count, size.height, size.width, size.channels].map(String);
    const { status, stderr } = spawnSync(
      python,
      ['-c', SCRIPT, ...['param', 'bin', 'pixels'].map(path), ...numbers, input, path('result'), ...outputs],
      { env: { ...process.env, PYTHONPATH: pythonNcnn }, encoding: 'utf8' },
    );
    assert.equal(status, 0, stderr);
    return new Float32Array(Uint8Array.from(readFileSync(path('result'))).buffer);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
