"""Which implementation each op runs, and why: what loading prints and `doctor` shows."""

import os
from dataclasses import dataclass

import jax

import custom_calls
from custom_calls.errors import KernelUnavailableError
from custom_calls.op import OPS
from custom_calls.registry import Kernels

assert custom_calls.__all__, "importing the package registers the ops"


@dataclass(frozen=True)
class KernelRow:
    """One op on one platform.

    Attributes:
      op: its name in the jaxpr.
      implementation: "native", "reference" or "refused".
      reason: one sentence.
    """

    op: str
    implementation: str
    reason: str


def kernel_table(kernels: Kernels = "auto", platform: str | None = None) -> tuple[KernelRow, ...]:
    """One row an op, for `platform` (JAX's default backend unless given). Asks, and warns of nothing."""
    where = platform or lowering_platform()
    rows = []
    for name, op in OPS.items():
        try:
            choice = op.choice(where, kernels, warn=False)
            rows.append(KernelRow(name, choice.implementation, choice.reason))
        except KernelUnavailableError as error:
            rows.append(KernelRow(name, "refused", str(error)))
    return tuple(rows)


def lowering_platform() -> str:
    """The lowering platform of JAX's default backend: "cpu", "cuda" or "rocm".

    Raises:
      KernelUnavailableError: JAX cannot start a backend.
    """
    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as failure:  # an assertion where JAX_PLATFORMS names absent devices
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise KernelUnavailableError(
            f"JAX cannot start a backend (JAX_PLATFORMS={asked!r}): {str(failure) or 'no such device is here'}"
        ) from failure
    if backend != "gpu":
        return backend
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"


def format_table(rows: tuple[KernelRow, ...]) -> str:
    """The rows as aligned text."""
    width = max(len(row.op) for row in rows)
    return "\n".join(f"{row.op:<{width}}  {row.implementation:<9}  {row.reason}" for row in rows)
