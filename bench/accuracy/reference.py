"""insightface's own head and its own way to update it, on the inputs of accuracy_bench.cc: PartialFC_V2 of
recognition/arcface_torch, whose folder is the first argument, is imported, not copied. The other arguments are those of
accuracy_bench. Class centres are float32; AdamW and SGD update all of them in each step, as torch.optim does.
"""

import argparse
import json
import os
import sys

import numpy
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "common"))
from insightface import import_head


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    for name in ["features", "labels", "test", "output"]:
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    parser.add_argument("--sample-rate", type=float, default=1)
    parser.add_argument("--rows-learning-rate", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    CombinedMarginLoss, PartialFC_V2 = import_head(options.folder, "cpu")
    features, labels, test = (
        torch.from_numpy(numpy.load(name)) for name in [options.features, options.labels, options.test]
    )
    torch.manual_seed(options.seed)
    head = PartialFC_V2(
        CombinedMarginLoss(64, 1.0, 0.0, 0.4), options.dim, int(labels.max()) + 1, options.sample_rate
    ).train()
    scale = features.shape[1] ** -0.5
    matrix = torch.nn.Parameter(torch.randn(options.dim, features.shape[1]) * scale)
    sgd = torch.optim.SGD([matrix], lr=options.learning_rate, momentum=0.9, weight_decay=5e-4)
    if options.optimizer == "sgd":
        rows = torch.optim.SGD(head.parameters(), lr=options.rows_learning_rate, momentum=0.9, weight_decay=5e-4)
    else:
        rows = torch.optim.AdamW(head.parameters(), lr=options.rows_learning_rate, weight_decay=5e-4)
    optimizers = [sgd, rows]
    first_rates = [options.learning_rate, options.rows_learning_rate]
    steps_an_epoch = len(features) // options.batch
    steps = options.epochs * steps_an_epoch
    loss = None
    for step in range(steps):
        place = step % steps_an_epoch
        if place == 0:
            order = torch.randperm(len(features))
        pictures = order[place * options.batch : (place + 1) * options.batch]
        for optimizer, rate in zip(optimizers, first_rates):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps) ** 2
        loss = head(features[pictures] @ matrix.T, labels[pictures].clone())  # its sampling changes the labels
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    numpy.save(options.output, (test @ matrix.T).detach().numpy())
    print(json.dumps({"loss": loss.item(), "steps": steps}), flush=True)
    os._exit(0)  # does not wait for Gloo's threads


if __name__ == "__main__":
    main()
