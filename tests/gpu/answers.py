"""Prints what the trained checkpoint answers where JAX computes, as JSON: tokens, and exact match with its interval.

Usage: python answers.py N WEIGHTS DTYPE, with WEIGHTS bf16 or mxfp4 and DTYPE float32 or bfloat16.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import jax

import mla_jax
from mla_jax.convert import convert
from mla_jax.evaluation import answer, make_task

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "arithmetic"


def main(count: int, weights: str, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        folder = CHECKPOINT
        if weights != "bf16":
            folder = Path(scratch) / weights
            convert(CHECKPOINT, folder, weights=weights, progress=False)
        llm = mla_jax.LLM(folder, dtype=dtype, max_num_seqs=32, max_model_len=320)
        score, answers = answer(llm, make_task("arithmetic", n=count), progress=False)
    print(
        json.dumps(
            {
                "backend": jax.default_backend(),
                "exact_match": score.exact_match,
                "low": score.low,
                "high": score.high,
                "tokens": [list(one.token_ids) for one in answers],
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
