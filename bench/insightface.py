"""Measures insightface's own code on a CUDA device, for the tables of hack/gpu-check.sh: its modules are imported, not
copied. One line of JSON for each size, with the keys of pfc_bench and train_bench.

    insightface.py DIR pfc CLASSES,BATCH,RATE,PRECISION...       PRECISION: fp32, tf32 or fp16
    insightface.py DIR train NET,BATCH,PRECISION...              NET: r50 or mbf; forward and backward pass

DIR is insightface's recognition/arcface_torch. fp16 is what its fp16=True does; in `train` channels-last, which is
faster than the layout that it trains in.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import warnings

import torch

NAMES = {"r50": "iresnet50", "mbf": "mobilefacenet"}
STEPS, WARMUP, DIM = 20, 4, 512


def timed(parts):
    """Runs the functions of a step one after the other, STEPS times; medians in ms of each and of their sum."""
    times = []
    for step in range(WARMUP + STEPS):
        torch.cuda.synchronize()
        marks = [time.perf_counter()]
        for part in parts:
            part()
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
        if step >= WARMUP:
            times.append([1000 * (after - before) for before, after in zip(marks, marks[1:])])
    return [statistics.median(column) for column in zip(*times)], statistics.median(map(sum, times))


def partial_fc(classes, batch, rate, precision):
    from losses import CombinedMarginLoss
    from partial_fc_v2 import PartialFC_V2

    half = precision == "fp16"
    before = torch.cuda.memory_allocated()
    normal = torch.normal  # theirs draws the centres on the CPU, a minute for ten million; the step is the same
    torch.normal = lambda mean, std, size: torch.empty(size, device="cuda").normal_(mean, std)
    head = PartialFC_V2(CombinedMarginLoss(64, 1.0, 0.0, 0.4), DIM, classes, rate, half).train().cuda()
    torch.normal = normal
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cuda", growth_interval=100, enabled=half)
    embeddings, labels = torch.randn(batch, DIM, device="cuda"), torch.randint(classes, (batch,), device="cuda")
    losses, state = [], {}

    def forward():
        state["loss"] = head(embeddings.clone().requires_grad_(), labels.clone())  # its sampling changes the labels

    def backward():
        scaler.scale(state["loss"]).backward()

    def update():
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(state["loss"].item())

    torch.cuda.reset_peak_memory_stats()
    (forward_ms, backward_ms, optimizer_ms), step_ms = timed([forward, backward, update])
    used = torch.cuda.max_memory_allocated() - before
    return {"stepMs": step_ms, "forwardMs": forward_ms, "backwardMs": backward_ms, "optimizerMs": optimizer_ms,
            "bytesPerClass": used / classes, "losses": losses}


def backbone(net, batch, precision):
    from backbones import get_model

    half = precision == "fp16"
    torch.backends.cudnn.benchmark = True
    model = get_model(net, dropout=0.0, fp16=half, num_features=DIM).cuda().train()
    images = torch.rand(batch, 3, 112, 112, device="cuda") * 2 - 1
    if half:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(batch, DIM, device="cuda") * 1e-3
    state = {}

    def forward():
        state["out"] = model(images)

    def backward():
        state["out"].backward(gradient.to(state["out"].dtype))
        model.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()
    (forward_ms, _), step_ms = timed([forward, backward])
    return {"forwardMs": forward_ms, "stepMs": step_ms, "imagesPerSecond": 1000 * batch / step_ms,
            "deviceMiB": torch.cuda.max_memory_allocated() / 2**20}


def main():
    folder, what, *sizes = sys.argv[1:]
    warnings.filterwarnings("ignore")
    sys.path.insert(0, folder)
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
    for size in sizes:
        *given, precision = size.split(",")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.cuda.empty_cache()
        row = {"benchmark": what, "name": "insightface", "precision": precision, "rowsPrecision": "fp32"}
        try:
            if what == "pfc":
                classes, batch, rate = int(given[0]), int(given[1]), float(given[2])
                row |= {"classes": classes, "batch": batch, "sampleRate": rate}
                row |= partial_fc(classes, batch, rate, precision)
            else:
                row |= {"graph": NAMES[given[0]], "mode": "backbone", "batch": int(given[1])}
                row |= backbone(given[0], int(given[1]), precision)
        except RuntimeError as error:  # such as memory that does not suffice
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(json.dumps(row), flush=True)
    os._exit(0)  # does not wait for NCCL's threads


if __name__ == "__main__":
    main()
