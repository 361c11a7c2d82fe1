"""Draws how a decode step's time grows with depth, batch and page size, from the rows "decode by ..." of run.py.

python benchmarks/cpu/growth.py REPORT.json OUT.png      (needs matplotlib: pip install ".[train]")
"""

import argparse
import json
import re
from pathlib import Path

AXES = {
    "depth": ("batch 1", "tokens before the step"),
    "batch": ("depth 512", "sequences"),
    "page size": ("4 x 4096", "tokens a page"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text())

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), dpi=90)
    for panel, (name, (fixed, label)) in zip(panels, AXES.items(), strict=True):
        rows = [row for row in report["rows"] if row["op"] == f"decode by {name}"]
        if not rows:
            parser.error(f"{arguments.report} has no rows 'decode by {name}': run.py --only growth")
        found = [
            dict(
                zip(("batch", "depth", "page size"), map(int, re.findall(r"\d+", row["shape"])), strict=True)
            )
            for row in rows
        ]
        x = [values[name] for values in found]
        milliseconds = [row["us"] / 1e3 for row in rows]
        panel.plot(x, milliseconds, marker="o", label="measured")
        panel.plot(
            x,
            [ms * row["of_floor"] for ms, row in zip(milliseconds, rows, strict=True)],
            color="black",
            label="floor",
        )
        panel.set_xlabel(label)
        panel.set_ylabel("ms a step")
        panel.set_ylim(bottom=0)
        panel.set_title(f"{name} ({fixed})", fontsize=10)
        if name == "page size":
            panel.set_xscale("log", base=2)
        panel.grid(True, linewidth=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(report["device"], fontsize=10)
    figure.tight_layout()
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()
