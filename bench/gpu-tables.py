"""Prints the tables of hack/gpu-check.sh: gpu-tables.py RESULTS, lines of JSON by pfc_bench, train_bench and
insightface.py."""

import json
import sys

# The aims of docs/benchmarks.md: milliseconds of a step for (classes, sample rate), images per second.
STEP_AIMS = {(100000, 1): 0.8, (1000000, 0.1): 1.5, (1000000, 1): 12, (4000000, 0.1): 5, (10000000, 0.1): 15}
RATE_AIMS = {
    ("iresnet50", "backbone", 256): 6000,
    ("iresnet50", "step", 256): 5500,
    ("mobilefacenet", "backbone", 256): 10000,
}


def read(path):
    rows = []
    for line in open(path):
        try:
            rows.append(json.loads(line))
        except ValueError:
            print(f"no JSON: {line.strip()[:100]}", file=sys.stderr)
    return rows


def cell(value, width, digits=2):
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def print_steps(rows):
    print("\nPartial FC step: forward, backward, SGD; milliseconds, medians")
    print(
        f"{'classes':>9} {'batch':>6} {'rate':>5}  {'who':<22}{'products':<9}{'rows':<6}{'step':>9}{'no waits':>9}"
        f"{'forward':>9}{'backward':>9}{'SGD':>9}{'bytes/class':>13}{'start s':>9}{'aim':>7}"
    )
    for row in sorted(rows, key=lambda row: (row["classes"], row["sampleRate"], row["name"] != "facetrain")):
        for figures in [row, row.get("reference")]:
            if not figures:
                continue
            ours = figures["name"] == "facetrain"
            size = f"{row['classes']:>9} {row['batch']:>6} {row['sampleRate']:>5}"
            head = f"{size}  {figures['name']:<22}{row['precision']:<9}"
            if "error" in figures:
                print(head + figures["error"][:70])
                continue
            aim = STEP_AIMS.get((row["classes"], row["sampleRate"])) if ours else None
            cells = [head, f"{row['rowsPrecision'] if ours else 'fp32':<6}"]
            for key in ("stepMs", "backToBackMs", "forwardMs", "backwardMs", "optimizerMs"):
                cells.append(cell(figures.get(key), 9))
            cells.append(cell(figures["bytesPerClass"], 13, 0))
            cells.append(cell(row.get("initSeconds") if ours else None, 9))
            print("".join(cells) + cell(aim, 7, 1))


def print_backbones(rows):
    print("\nTraining a backbone: forward and backward pass, or whole step with decoding, head and SGD")
    print(
        f"{'backbone':<15}{'what':<10}{'batch':>6}  {'who':<14}{'products':<10}{'forward ms':>11}{'step ms':>10}"
        f"{'images/s':>10}{'MiB':>8}{'aim':>8}"
    )
    for row in sorted(rows, key=lambda row: (row["graph"], row["mode"], row["batch"], row.get("name", ""))):
        who = row.get("name", "facetrain")
        head = f"{row['graph']:<15}{row['mode']:<10}{row['batch']:>6}  {who:<14}{row['precision']:<10}"
        if "error" in row:
            print(head + row["error"][:70])
            continue
        aim = RATE_AIMS.get((row["graph"], row["mode"], row["batch"])) if who == "facetrain" else None
        times = cell(row["forwardMs"], 11) + cell(row["stepMs"], 10) + cell(row["imagesPerSecond"], 10, 1)
        print(head + times + cell(row["deviceMiB"], 8, 0) + cell(aim, 8, 0))


def main():
    rows = read(sys.argv[1])
    for benchmark, show in (("pfc", print_steps), ("train", print_backbones)):
        chosen = [row for row in rows if row["benchmark"] == benchmark]
        if chosen:
            show(chosen)


if __name__ == "__main__":
    main()
