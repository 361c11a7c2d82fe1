"""What a call's results hold when its handler begins, in the emulated library."""

import ctypes
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import native_libraries
import numpy as np
import pytest
from emulation import poisoning

HANDLER = Path(__file__).resolve().parent / "handlers" / "idle.cc"
TARGET = "rocm_tests_idle"
RESULTS = (((3, 5), np.float32), ((0, 5), np.float32), ((7,), ml_dtypes.bfloat16), ((2, 3), np.uint8))


@pytest.fixture(scope="module")
def _handler(tmp_path_factory: pytest.TempPathFactory) -> None:
    built = native_libraries.build(tmp_path_factory.mktemp("idle"), "idle", HANDLER)
    handler = ctypes.cast(ctypes.CDLL(str(built)).IdleHandler, ctypes.c_void_p)
    assert poisoning(handler).value == poisoning(handler).value != handler.value
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(poisoning(handler)), platform="cpu")


@pytest.mark.usefixtures("_handler")
def test_results_that_nothing_writes_are_poison() -> None:
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in RESULTS]
    got = jax.ffi.ffi_call(TARGET, shapes)(jnp.ones((3, 5)))
    for value, (shape, dtype) in zip(got, RESULTS, strict=True):
        assert (value.shape, value.dtype) == (shape, dtype)
        assert (np.asarray(value).reshape(-1).view(np.uint8) == 0xFF).all()
    assert all(np.isnan(np.asarray(value, np.float32)).all() for value in (got[0], got[2]))


@pytest.mark.usefixtures("_handler")
def test_an_argument_that_is_updated_in_place_keeps_its_values(rng: np.random.Generator) -> None:
    cache = rng.standard_normal((4, 6)).astype(np.float32)
    shapes = [jax.ShapeDtypeStruct((3,), np.float32), jax.ShapeDtypeStruct(cache.shape, np.float32)]
    call = jax.ffi.ffi_call(TARGET, shapes, input_output_aliases={1: 1})
    result, updated = jax.jit(call, donate_argnums=1)(jnp.ones(3), jnp.asarray(cache))
    assert np.isnan(np.asarray(result)).all()
    np.testing.assert_array_equal(updated, cache)
