"""A Partial FC step in plain PyTorch, as a user would write it: the reference of pfc_bench, which starts this program
and measures it by turns with our own step.

It follows the text of arXiv 2203.15565 and the behaviour of insightface's arcface_torch: a sample of fixed size that
includes the classes of the batch, normalised embeddings and class centres, a margin, softmax with cross entropy, and
SGD with momentum on the rows of the sample. One process; centres and momentum are float32.

With --insightface DIR it is insightface's own code instead: PartialFC_V2 of recognition/arcface_torch, the folder, and
torch.optim.SGD on all of its class centres, as its train_v2.py does. It is imported, not copied. On a CPU it computes in
float32, whatever precision is asked for; on CUDA fp16 is its fp16=True.

For each line `step` on standard input it does one step and prints a line of JSON; at the end of the input, one more
with the memory that it took. The arguments are those of pfc_bench.
"""

import argparse
import json
import math
import os
import sys
import time

import numpy
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "common"))
from insightface import import_head


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--sample-rate", type=float, required=True)
    parser.add_argument("--margin", required=True)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--momentum", type=float, required=True)
    parser.add_argument("--weight-decay", type=float, required=True)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--embeddings", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--centres")
    parser.add_argument("--insightface")
    return parser.parse_args()


def with_margin(cosine, margin):
    """The target's logit for its cosine: cos(m1 angle + m2) - m3, and below the angle where it would rise again."""
    m1, m2, m3 = margin
    if m1 == 1 and m2 == 0:
        return cosine - m3
    angle = torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7))
    missing = math.pi - (math.pi - m2) / m1
    easy = cosine - max(missing * math.sin(missing), 1 - math.cos(missing))
    return torch.where(angle < math.pi - missing, torch.cos(m1 * angle + m2), easy) - m3


class PartialFC:
    name = f"PyTorch {torch.__version__}"

    def __init__(self, options, dim):
        self.options = options
        self.margin = [float(value) for value in options.margin.split(",")]
        self.device = options.device
        if options.centres:
            self.weight = torch.from_numpy(numpy.load(options.centres)).to(self.device)
        else:
            self.weight = torch.empty(options.classes, dim, device=self.device).normal_(0, 0.01)
        self.velocity = torch.zeros_like(self.weight)
        self.sample_size = int(options.classes * options.sample_rate)
        self.type = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision)

    def sample(self, labels):
        """The rows of this step in ascending order, and the labels as positions among them."""
        positive = torch.unique(labels)
        if len(positive) >= self.sample_size:
            rows = positive
        else:
            score = torch.rand(self.options.classes, device=self.device)
            score[positive] = 2.0
            rows = torch.topk(score, k=self.sample_size).indices.sort().values
        return rows, torch.searchsorted(rows, labels)

    def loss(self, embeddings, rows, labels):
        with torch.autocast(self.device, dtype=self.type or torch.bfloat16, enabled=self.type is not None):
            cosines = F.linear(F.normalize(embeddings), F.normalize(rows))
        cosines = cosines.float().clamp(-1, 1)
        index = torch.arange(len(labels), device=labels.device)
        cosines[index, labels] = with_margin(cosines[index, labels], self.margin)
        return F.cross_entropy(cosines * self.options.scale, labels)

    def step(self, embeddings, labels):
        """Trains on one batch. Returns the loss, and the seconds of forward, backward and SGD."""
        synchronize = torch.cuda.synchronize if self.device == "cuda" else (lambda: None)
        embeddings = embeddings.detach().requires_grad_()
        synchronize()
        times = [time.perf_counter()]
        partial = self.options.sample_rate < 1
        sampled, labels = self.sample(labels) if partial else (slice(None), labels)
        rows = (self.weight[sampled] if partial else self.weight.detach()).requires_grad_()
        loss = self.loss(embeddings, rows, labels)
        synchronize()
        times.append(time.perf_counter())
        loss.backward()
        synchronize()
        times.append(time.perf_counter())
        with torch.no_grad():
            gradient = rows.grad
            rows = rows.detach()
            velocity = self.velocity[sampled]
            velocity.mul_(self.options.momentum).add_(gradient).add_(rows, alpha=self.options.weight_decay)
            rows.add_(velocity, alpha=-self.options.learning_rate)
            if partial:
                self.weight[sampled] = rows
                self.velocity[sampled] = velocity
        synchronize()
        times.append(time.perf_counter())
        return loss.item(), [after - before for before, after in zip(times, times[1:])]


class InsightFace:
    name = "insightface"

    def __init__(self, options, dim):
        CombinedMarginLoss, PartialFC_V2 = import_head(options.insightface, options.device)
        margin = CombinedMarginLoss(options.scale, *(float(value) for value in options.margin.split(",")))
        half = options.device == "cuda" and options.precision == "fp16"
        self.head = PartialFC_V2(margin, dim, options.classes, options.sample_rate, half).train().to(options.device)
        if options.centres:
            self.head.weight.data.copy_(torch.from_numpy(numpy.load(options.centres)))
        self.optimizer = torch.optim.SGD(
            self.head.parameters(), lr=options.learning_rate, momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(options.device, growth_interval=100, enabled=half)
        self.synchronize = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)

    def step(self, embeddings, labels):
        """As PartialFC.step."""
        times = []

        def mark():
            self.synchronize()
            times.append(time.perf_counter())

        embeddings, labels = embeddings.detach().requires_grad_(), labels.clone()  # its sampling changes the labels
        mark()
        loss = self.head(embeddings, labels)
        mark()
        self.scaler.scale(loss).backward()
        mark()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        mark()
        return loss.item(), [after - before for before, after in zip(times, times[1:])]


def resident_mib():
    with open("/proc/self/status") as status:
        values = dict(line.split(":", 1) for line in status)
    return int(values["VmRSS"].split()[0]) / 1024, int(values["VmHWM"].split()[0]) / 1024


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
    torch.manual_seed(-1)  # not a seed of pfc_bench: with that of the embeddings, centres would be equal to embeddings
    embeddings = torch.from_numpy(numpy.load(options.embeddings)).to(options.device)
    labels = torch.from_numpy(numpy.load(options.labels)).long().to(options.device)
    before = torch.cuda.memory_allocated() / 2**20 if options.device == "cuda" else resident_mib()[0]
    head = (InsightFace if options.insightface else PartialFC)(options, embeddings.shape[1])
    print(json.dumps({"name": head.name}), flush=True)
    batches = len(embeddings) // options.batch
    for number, _ in enumerate(iter(sys.stdin.readline, "")):
        part = slice(number % batches * options.batch, (number % batches + 1) * options.batch)
        loss, seconds = head.step(embeddings[part], labels[part])
        forward, backward, optimizer = (1000 * value for value in seconds)
        figures = {"forwardMs": forward, "backwardMs": backward, "optimizerMs": optimizer, "loss": loss}
        print(json.dumps(figures), flush=True)
    resident = resident_mib()[1]
    peak = torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else resident
    print(json.dumps({"rssMiB": resident, "bytesPerClass": (peak - before) * 2**20 / options.classes}), flush=True)
    os._exit(0)  # does not wait for Gloo's threads


if __name__ == "__main__":
    main()
