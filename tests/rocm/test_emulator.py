"""The emulator around the instructions: launches, bounds, poison, barriers, budgets, bundles, refusals."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from emulation import EmulatorError, Module, loaded, poisoned
from hip_toolchain import ARCHITECTURES, compile_hip

KERNELS = Path(__file__).resolve().parent / "kernels"
BF16 = ml_dtypes.bfloat16


def source(name: str, **replaced: str) -> str:
    """A kernel of the folder with the device header in front; keywords are defined as macros."""
    macros = "".join(f"#define {key} {value}\n" for key, value in replaced.items())
    return macros + (KERNELS / "device.h").read_text() + (KERNELS / f"{name}.hip").read_text()


def run_norm(
    image: bytes, architecture: str, x: np.ndarray, weight: np.ndarray, **options: int
) -> np.ndarray:
    y = poisoned(x.shape, BF16)
    with loaded(image, architecture) as module:
        rows, columns = x.shape
        arguments = [x.view(np.uint16), weight.view(np.uint16), y.view(np.uint16), columns, 1e-5]
        module.launch("norm", [rows], [256], arguments, **options)
    return y


def norm_oracle(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide * wide).mean(1, keepdims=True) + 1e-5) * weight.astype(np.float64)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("columns", [1, 257])
def test_a_kernel_of_four_waves(
    architecture: str, columns: int, order: int, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((3, columns)).astype(BF16)
    weight = rng.standard_normal(columns).astype(BF16)
    y = run_norm(compile_hip(source("norm"), architecture), architecture, x, weight, order=order)
    # One rounding to bf16, 2^-9 relative, and float32's own errors far below it.
    np.testing.assert_allclose(y.astype(np.float64), norm_oracle(x, weight), rtol=2**-8, atol=1e-30)


def test_a_bundle_holds_both_architectures(architecture: str, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 70)).astype(BF16), np.ones(70, BF16)
    bundle = compile_hip(source("norm"), *ARCHITECTURES)
    single = compile_hip(source("norm"), architecture)
    assert bundle.startswith(b"__CLANG_OFFLOAD_BUNDLE__") and single.startswith(b"\x7fELF")
    np.testing.assert_array_equal(
        run_norm(bundle, architecture, x, weight).view(np.uint16),
        run_norm(single, architecture, x, weight).view(np.uint16),
    )


def test_another_processor_is_refused(architecture: str) -> None:
    other = next(name for name in ARCHITECTURES if name != architecture)
    with pytest.raises(EmulatorError, match=f"another processor than {architecture}"):
        Module(compile_hip(source("norm"), other), architecture)
