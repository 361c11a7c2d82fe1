"""The shared tests of every op that the GPU's library serves, on the GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from custom_calls import registry
from mla_jax.kernel_table import lowering_platform

SHARED = Path(__file__).resolve().parents[1] / "custom_calls"
sys.path.append(str(SHARED))
from native_forms import OPS, chosen_on_a_gpu  # noqa: E402


def test_every_op_of_the_library_is_run() -> None:
    served = {target.rsplit(".", 1)[0] for target in registry.library(lowering_platform()).targets}
    assert served == {op for ops in OPS.values() for op in ops}


@pytest.mark.parametrize("file", OPS)
def test_shared_tests(file: str) -> None:
    """In a process of its own: a fault on a GPU ends the process that it happens in."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen_on_a_gpu(file),
        str(SHARED / file),
    ]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=SHARED.parents[1])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
