"""Draws the rows of cpu/run.py or gpu/run.py under the roofline of the machine that they were measured on.

python benchmarks/roofline.py REPORT.json OUT.png      (needs matplotlib: pip install ".[train]")

A row that was measured in turns with yardsticks of its own, on a machine that moves, keeps its share of those.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text())

    try:
        import matplotlib
    except ImportError:
        sys.exit('roofline.py: needs matplotlib: pip install ".[train]"')
    matplotlib.use("Agg")
    from matplotlib import pyplot

    read, product = report["read_bytes_per_s"], report["matrix_flop_per_s"]
    points = defaultdict(list)
    unit, name = (1e12, "T") if product >= 1e13 else (1e9, "G")
    for row in report["rows"]:
        if row.get("us") and row.get("bytes") and row.get("flop"):
            x, rate = row["flop"] / row["bytes"], row["flop"] / row["us"] * 1e6
            if "product_gflop_s" in row:
                rate *= min(x * read, product) / min(x * row["read_gb_s"], row["product_gflop_s"]) / 1e9
            points[row["op"]].append((x, rate))
    if not points:
        sys.exit(f"roofline.py: no row of {arguments.report} has us, bytes and flop")
    figure, axes = pyplot.subplots(figsize=(12, 6.5), dpi=110)
    lowest = min(x for found in points.values() for x, _ in found) / 2
    highest = 2 * max(max(x for found in points.values() for x, _ in found), product / read)
    axes.plot(
        [lowest, product / read, highest],
        [lowest * read / unit, product / unit, product / unit],
        color="black",
        linewidth=1.2,
        label=f"reads {read / unit:.3g} {name}B/s, multiplies {product / unit:.0f} {name}FLOP/s",
    )
    markers = "osv^D<>Ph*X8p"
    for i, (op, found) in enumerate(sorted(points.items())):
        axes.scatter(
            [x for x, _ in found],
            [y / unit for _, y in found],
            s=26,
            marker=markers[i % len(markers)],
            label=op,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte")
    axes.set_ylabel(f"{name}FLOP/s")
    axes.set_title(f"{report['device']}: each kernel at each of its sizes")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()
