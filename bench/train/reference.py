"""The forward and backward pass of a backbone in eager PyTorch: the reference of train_bench, which starts this program
and measures it by turns with our own.

The network is that of the graph's file, one module of torch.nn for each node, in training, channels-last, as a user
would write it. BF16 and FP16 are torch.autocast over FP32 weights.

For each line `step` on standard input it does one step and prints a line of JSON; at the end of the input, one more
with the memory that it took.
"""

import argparse
import contextlib
import json
import os
import sys
import time

import torch

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", required=True, help="a file of dump-graph.ts")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


class Words:
    """The words of a line, in their order. A list is its length and so many words."""

    def __init__(self, line):
        self.words = iter(line.split())

    def next(self):
        return next(self.words)

    def list(self):
        return [self.next() for _ in range(int(self.next()))]

    def attribute(self):
        name, kind = self.next(), self.next()
        if kind == "list":
            return name, [int(word) for word in self.list()]
        return name, float(self.next()) if kind == "number" else self.next()


class Backbone(torch.nn.Module):
    def __init__(self, path):
        super().__init__()
        self.layers = torch.nn.ModuleList()
        self.steps = []  # the layer, or the function; the names of what it reads; that of what it gives
        self.shapes = {}  # of constants
        self.flat = set()  # what has no height and width
        with open(path) as file:
            for line in file:
                words = Words(line)
                kind = words.next()
                if kind == "input":
                    self.input, *self.extents = words.next(), *(int(words.next()) for _ in range(3))
                elif kind == "output":
                    self.output = words.next()
                elif kind == "floats":
                    name = words.next()
                    self.shapes[name] = [int(extent) for extent in words.list()]
                elif kind == "node":
                    words.next()
                    op, inputs, (output,) = words.next(), words.list(), words.list()
                    self.add(op, inputs, output, dict(words.attribute() for _ in range(int(words.next()))))

    def add(self, op, inputs, output, attributes):
        values = [name for name in inputs if name not in self.shapes]
        shapes = [self.shapes[name] for name in inputs if name in self.shapes]
        if op in ("Flatten", "Gemm") or values[0] in self.flat:
            self.flat.add(output)
        if op == "Add":
            layer = torch.add
        elif op == "Flatten":
            layer = torch.flatten
            values = [*values, 1]
        else:
            layer = self.layer(op, shapes, values[0] in self.flat, attributes)
            self.layers.append(layer)
        self.steps.append((layer, values, output))

    @staticmethod
    def layer(op, shapes, flat, attributes):
        bias = len(shapes) == 2
        if op == "Conv":
            outputs, inputs, *kernel = shapes[0]
            groups, pads = int(attributes["group"]), attributes["pads"]
            return torch.nn.Conv2d(
                inputs * groups, outputs, kernel, attributes["strides"], pads[:2], attributes["dilations"], groups, bias
            )
        if op == "Gemm":
            return torch.nn.Linear(*reversed(shapes[0]), bias)
        if op == "BatchNormalization":
            norm = torch.nn.BatchNorm1d if flat else torch.nn.BatchNorm2d
            return norm(shapes[0][0], attributes["epsilon"])
        if op == "PRelu":
            return torch.nn.PReLU(shapes[0][0])
        raise ValueError(f"{op}: the reference has no such layer")

    def forward(self, images):
        values = {self.input: images}
        for layer, names, output in self.steps:
            values[output] = layer(*(values[name] if isinstance(name, str) else name for name in names))
        return values[self.output]


def memory(device):
    with open("/proc/self/status") as status:
        resident = int(dict(line.split(":", 1) for line in status)["VmHWM"].split()[0]) / 1024
    return {"rssMiB": resident, "deviceMiB": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0}


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision != "fp32"
    channels_last = torch.channels_last
    network = Backbone(options.graph).train().to(options.device).to(memory_format=channels_last)
    images = torch.rand(options.batch, *network.extents, device=options.device).mul_(2).sub_(1)
    images = images.contiguous(memory_format=channels_last)
    half = TYPES.get(options.precision)
    autocast = torch.autocast(options.device, half) if half else contextlib.nullcontext()
    synchronize = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)
    gradient = None
    print(json.dumps({"name": f"PyTorch {torch.__version__}"}), flush=True)
    for _ in iter(sys.stdin.readline, ""):
        network.zero_grad(set_to_none=True)
        synchronize()
        start = time.perf_counter()
        with autocast:
            embeddings = network(images)
        synchronize()
        middle = time.perf_counter()
        if gradient is None:
            gradient = torch.randn_like(embeddings) * 1e-3
        embeddings.backward(gradient)
        synchronize()
        end = time.perf_counter()
        print(json.dumps({"forwardMs": 1000 * (middle - start), "stepMs": 1000 * (end - start)}), flush=True)
    print(json.dumps(memory(options.device)), flush=True)
    os._exit(0)  # does not wait for threads


if __name__ == "__main__":
    main()
