"""Processors that native libraries are built for: which platform lowers for each, and which FP8 it multiplies.

The one table that the registry, the load step for FP8 weights and `mla_jax.verify.product` read.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax

Fp8Codes = Literal["e4m3fn", "e4m3fnuz"]
FP8_CODES: tuple[Fp8Codes, ...] = get_args(Fp8Codes)


@dataclass(frozen=True)
class Architecture:
    """One instruction set as compilers name it.

    Attributes:
      name: such as "gfx942", "sm_90" or "x86-64".
      platform: the lowering platform.
      fp8: "e4m3fn" is OCP's, "e4m3fnuz" has one zero, one NaN and half the range.
    """

    name: str
    platform: str
    fp8: Fp8Codes


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("x86-64", "cpu", "e4m3fn"),
        Architecture("aarch64", "cpu", "e4m3fn"),
        Architecture("sm_90", "cuda", "e4m3fn"),
        Architecture("gfx942", "rocm", "e4m3fnuz"),
        Architecture("gfx950", "rocm", "e4m3fn"),
    )
}
"""Every architecture by name. A device of none of them has no native kernels: gfx940 and gfx941, early steppings of
gfx942, load no code object of gfx942's."""

PLATFORMS = tuple(dict.fromkeys(one.platform for one in ARCHITECTURES.values()))
"""Every lowering platform that ops have a rule for."""


def architecture_of(device: Any) -> str:
    """A device's architecture as compilers name it, whether the table has it or not; "" for a CPU.

    Args:
      device: a `jax.Device`. ROCm says "gfx942:sramecc+:xnack-", CUDA says "9.0".
    """
    said = str(getattr(device, "compute_capability", "")).partition(":")[0]
    capability = re.fullmatch(r"(\d+)\.(\d+)", said)
    return f"sm_{capability.group(1)}{capability.group(2)}" if capability else said


def architectures_here(platform: str) -> tuple[str, ...]:
    """Of this process's GPUs of a lowering platform, each once; () for "cpu" and on a host without them."""
    if platform == "cpu":
        return ()
    try:
        devices = jax.devices(platform)
    except (RuntimeError, AssertionError):  # an assertion where JAX_PLATFORMS names absent devices
        return ()
    return tuple(dict.fromkeys(map(architecture_of, devices)))


def fp8_codes(architecture: str) -> Fp8Codes:
    """The FP8 codes of an architecture; OCP's for one that the table lacks."""
    return ARCHITECTURES[architecture].fp8 if architecture in ARCHITECTURES else "e4m3fn"
