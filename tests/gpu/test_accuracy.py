"""The trained checkpoint on a GPU and on the CPU: the same tokens in float32, the same accuracy otherwise."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("answers.py")


def answers(count: int, weights: str, dtype: str, platform: str) -> dict[str, Any]:
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if platform == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, str(SCRIPT), str(count), weights, dtype]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["backend"] == platform
    return found


def test_float32_gives_the_tokens_of_the_cpu() -> None:
    gpu, cpu = (answers(40, "bf16", "float32", platform) for platform in ("gpu", "cpu"))
    assert gpu["tokens"] == cpu["tokens"]
    assert gpu["exact_match"] >= 0.95


@pytest.mark.parametrize("weights", ["bf16", "mxfp4"])
def test_accuracy_is_that_of_the_cpu(weights: str) -> None:
    gpu, cpu = (answers(100, weights, "bfloat16", platform) for platform in ("gpu", "cpu"))
    print(f"{weights}: {gpu['exact_match']} on the GPU, {cpu['exact_match']} on the CPU")
    assert gpu["low"] <= cpu["exact_match"] <= gpu["high"]
    assert cpu["low"] <= gpu["exact_match"] <= cpu["high"]
