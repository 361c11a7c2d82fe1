"""What runs on a GPU is named: every name is a test of its file, so that none is dropped by being renamed."""

from pathlib import Path

import pytest
from native_forms import ALSO_ON_A_GPU, EVERYWHERE_ON_A_GPU, OPS

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("file", OPS)
def test_what_runs_on_a_gpu_exists(file: str) -> None:
    text = (HERE / file).read_text() + (HERE / "op_base.py").read_text()
    names = (*EVERYWHERE_ON_A_GPU, *ALSO_ON_A_GPU.get(file, ()))
    assert [name for name in names if f"def {name}(" not in text] == []


def test_only_files_that_run_on_a_gpu_are_named() -> None:
    assert set(ALSO_ON_A_GPU) <= set(OPS)
