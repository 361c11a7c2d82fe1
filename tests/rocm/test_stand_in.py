"""The whole path: jax.jit, an FFI handler, the stand-in libamdhip64, a code object, the emulator."""

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from emulation import check, library
from hip_toolchain import ARCHITECTURES, BUILD, compile_hip
from test_emulator import norm_oracle, source

HANDLER = Path(__file__).resolve().parent / "handlers" / "norm.cc"
TARGET = "rocm_tests_norm"


@pytest.fixture(scope="module")
def _handler() -> None:
    """Builds and registers the handler: on the CPU platform, whose buffers are the process's own memory."""
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        f"-I{jax.ffi.include_dir()}",
        str(HANDLER),
        "-ldl",
    ]
    digest = hashlib.sha256("\0".join(command).encode() + HANDLER.read_bytes()).hexdigest()[:24]
    built = BUILD / f"handler-{digest}.so"
    if not built.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = f"{built}.{os.getpid()}"
        subprocess.run([*command, "-o", partial], check=True)
        os.replace(partial, built)
    library()  # what the handler finds by its soname
    handler = ctypes.CDLL(str(built)).NormHandler
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")


@jax.jit
def norm(image: jax.Array, x: jax.Array, weight: jax.Array) -> jax.Array:
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return call(image, x, weight, epsilon=np.float32(1e-5))


def bundle() -> jax.Array:
    return jnp.asarray(np.frombuffer(compile_hip(source("norm"), *ARCHITECTURES), np.uint8))


@pytest.mark.usefixtures("_handler")
def test_jit_reaches_the_code_object(architecture: str, rng: np.random.Generator) -> None:
    check(library().emu_set_arch(architecture.encode()))
    x = rng.standard_normal((3, 301)).astype(ml_dtypes.bfloat16)
    weight = rng.standard_normal(301).astype(ml_dtypes.bfloat16)
    y = norm(bundle(), jnp.asarray(x), jnp.asarray(weight))
    # One rounding to bf16.
    np.testing.assert_allclose(np.asarray(y, np.float64), norm_oracle(x, weight), rtol=2**-8)


@pytest.mark.usefixtures("_handler")
def test_denormals_survive_threads_that_flush_them(architecture: str) -> None:
    """XLA's CPU threads flush denormals; a kernel whose descriptor keeps them must not notice."""
    check(library().emu_set_arch(architecture.encode()))
    tiny = np.full(64, 0x0003, np.uint16).view(ml_dtypes.bfloat16)
    x = jnp.ones((1, 64), jnp.bfloat16)
    y = np.asarray(norm(bundle(), x, jnp.asarray(tiny)))
    np.testing.assert_array_equal(y.view(np.uint16), np.broadcast_to(np.uint16(3), (1, 64)))


@pytest.mark.usefixtures("_handler")
def test_a_failed_launch_is_the_handlers_error(architecture: str) -> None:
    check(library().emu_set_arch(architecture.encode()))
    other = next(name for name in ARCHITECTURES if name != architecture)
    image = jnp.asarray(np.frombuffer(compile_hip(source("norm"), other), np.uint8))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no kernel image is available"):
        norm(image, jnp.ones((1, 64), jnp.bfloat16), jnp.ones(64, jnp.bfloat16)).block_until_ready()
