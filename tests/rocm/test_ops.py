"""The shared tests of every op, run on gfx942 and gfx950 code objects in the emulator."""

import dataclasses
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import emulated_cpu
import pytest

SHARED = Path(__file__).resolve().parents[1] / "custom_calls"
sys.path.append(str(SHARED))
from native_forms import CHOSEN, OPS  # noqa: E402


@dataclasses.dataclass(frozen=True)
class SharedRun:
    """How one file's shared tests ended on one architecture, and the kernels that were launched."""

    status: int
    output: str
    errors: str

    @property
    def kernels(self) -> frozenset[str]:
        line = re.search(r"^emulated kernels:(.*)$", self.output, re.MULTILINE)
        return frozenset(line[1].split()) if line else frozenset()


def run_shared_tests(file: str, architecture: str) -> SharedRun:
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
    return SharedRun(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], SharedRun]:
    """`run_shared_tests`, once a session: what one test or worker has run, or is running, serves the others."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers

    def run(file: str, architecture: str) -> SharedRun:
        record = folder / f"{architecture}-{file}.json"
        with record.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not record.exists():
                record.write_text(json.dumps(dataclasses.asdict(run_shared_tests(file, architecture))))
        return SharedRun(**json.loads(record.read_text()))

    return run


def test_every_op_of_the_library_is_run() -> None:
    served = {target.rsplit(".", 1)[0] for target in emulated_cpu.module().registrations()}
    assert served == {op for ops in OPS.values() for op in ops}


@pytest.mark.parametrize("file", OPS)
def test_shared_tests(file: str, architecture: str, shared_run: Callable[[str, str], SharedRun]) -> None:
    done = shared_run(file, architecture)
    assert done.status == 0, done.output[-6000:] + done.errors[-2000:]
    assert re.search(r"\n\d+ passed, \d+ deselected in", done.output), done.output[-2000:]
    assert done.kernels, done.output[-2000:]


# Alone it runs every shared test of an architecture.
@pytest.mark.timeout(1200)
def test_every_kernel_is_launched(architecture: str, shared_run: Callable[[str, str], SharedRun]) -> None:
    launched_by = {file: shared_run(file, architecture).kernels for file in OPS}
    assert all(launched_by.values()), f"launched nothing: {[file for file in OPS if not launched_by[file]]}"
    launched = frozenset[str]().union(*launched_by.values())
    held = emulated_cpu.kernels(architecture)
    assert launched <= held, f"launched, but in no code object: {sorted(launched - held)}"
    assert held <= launched, (
        f"of {len(held)} kernels for {architecture} never launched: {sorted(held - launched)}"
    )
