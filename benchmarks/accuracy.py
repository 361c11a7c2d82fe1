"""Exact match of the shipped checkpoint over weights, caches, page sizes, kernels and batch sizes.

Prints a table and ends with code 1 if a bar is missed: plain weights right in 95 of 100, page and batch size change no
token, FP8 weights or cache within 1 point of plain ones and MXFP4 within 3.

Usage: python benchmarks/accuracy.py [--n N]
"""

import argparse
import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mla_jax
from mla_jax.convert import convert
from mla_jax.evaluation import answer, make_task

CHECKPOINT = Path(__file__).resolve().parents[1] / "examples" / "arithmetic"
CONTEXT = 320


@dataclass(frozen=True)
class Row:
    """A configuration, by what differs from plain weights, cache of the compute dtype, pages of 16, batches of 32.

    Attributes:
      name: for the table.
      weights: container.
      options: of `LLM`.
      same_tokens: whether every token has to be that of the first row.
      points: how many points of exact match it may lose against the first row.
    """

    name: str
    weights: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)
    same_tokens: bool = False
    points: float = 0.0


ROWS = (
    Row("bf16 weights and cache, pages of 16, native, batch 32"),
    Row("pages of 1", options={"page_size": 1}, same_tokens=True),
    Row("pages of 64", options={"page_size": 64}, same_tokens=True),
    Row("batch 1", options={"max_num_seqs": 1}, same_tokens=True),
    Row("reference kernels", options={"kernels": "reference"}, points=1.0),
    Row("FP8 cache", options={"kv_cache_dtype": "fp8"}, points=1.0),
    Row("FP8 weights", "fp8", points=1.0),
    Row("MXFP4 weights", "mxfp4", points=3.0),
    Row("MXFP4 weights, FP8 cache", "mxfp4", {"kv_cache_dtype": "fp8"}, points=3.0),
)


def main() -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="held-out problems (default 100)")
    task = make_task("arithmetic", n=parser.parse_args().n)
    count = len(task.prompts)
    missed: list[str] = []
    first: tuple[float, list[list[int]]] | None = None
    print(f"| configuration | exact match of {count} | 95 % interval | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for row in ROWS:
            folder = CHECKPOINT
            if row.weights != "bf16":
                folder = Path(scratch) / row.weights
                if not folder.exists():
                    convert(CHECKPOINT, folder, weights=row.weights, progress=False)
            with contextlib.redirect_stderr(io.StringIO()):  # the table of kernels, each time
                llm = mla_jax.LLM(folder, **{"max_num_seqs": 32, "max_model_len": CONTEXT} | row.options)
            score, answers = answer(llm, task, progress=False)
            interval = f"{score.low:.3f} to {score.high:.3f}"
            print(f"| {row.name} | {score.exact_match:.3f} | {interval} | {score.seconds:.0f} |", flush=True)
            tokens = [list(got.token_ids) for got in answers]
            if first is None:
                first = score.exact_match, tokens
                if score.exact_match < 0.95:
                    missed.append(f"{row.name}: expected at least 0.95, got {score.exact_match:.3f}")
            elif row.same_tokens and tokens != first[1]:
                different = sum(one != other for one, other in zip(tokens, first[1], strict=True))
                missed.append(f"{row.name}: {different} of {count} answers have other tokens")
            elif 100 * (first[0] - score.exact_match) > row.points + 1e-9:
                missed.append(
                    f"{row.name}: expected to lose at most {row.points} points, got {score.exact_match:.3f}"
                )
    for problem in missed:
        print(problem, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
