"""The shared tests of every op, run on gfx942 and gfx950 code objects in the emulator."""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulated_cpu
import pytest

SHARED = Path(__file__).resolve().parents[1] / "custom_calls"
sys.path.append(str(SHARED))
from native_forms import CHOSEN, OPS  # noqa: E402


def test_every_op_of_the_library_is_run() -> None:
    served = {target.rsplit(".", 1)[0] for target in emulated_cpu.module().registrations()}
    assert served == {op for ops in OPS.values() for op in ops}


@pytest.mark.parametrize("file", OPS)
def test_shared_tests(file: str, architecture: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "emulated_cpu",
        "-p",
        "no:cacheprovider",
        "-k",
        CHOSEN,
    ]
    environment = {
        **os.environ,
        "MLA_JAX_EMULATED_ARCH": architecture,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [*command, str(SHARED / file)], capture_output=True, text=True, env=environment, cwd=SHARED.parents[1]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\n\d+ passed, \d+ deselected in", done.stdout), done.stdout[-2000:]
    instructions = re.search(r"last emulated kernel: (\d+) wave-instructions", done.stdout)
    assert instructions is not None and int(instructions[1]) > 0, done.stdout[-2000:]
