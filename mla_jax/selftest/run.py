"""Runs the cases of a self-test and reports them as plain data, to be attached to an issue."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from custom_calls import registry
from custom_calls.errors import KernelUnavailableError
from custom_calls.op import OPS
from custom_calls.registry import Kernels
from mla_jax import doctor
from mla_jax.errors import RequestError
from mla_jax.kernel_table import lowering_platform
from mla_jax.machine import product_rate, read_rate, seconds_of
from mla_jax.selftest.cases import Arrays, Case, cases

PLATFORMS = ("cpu", "cuda", "rocm")

_TIMES: dict[Kernels, int] = {"native": 20, "reference": 5}


@dataclass(frozen=True)
class Bound:
    """How far two implementations may be apart.

    Attributes:
      largest: of any difference, relative to the largest magnitude.
      share: of the values that may differ by more than float32 arithmetic does.
    """

    largest: float
    share: float


CODES = {
    "exact": Bound(0.0, 0.0),
    "mxfp4": Bound(1 / 3, 0.01),
    "fp8": Bound(2.0**-3, 0.01),
    "float8_e4m3fn": Bound(2.0**-3, 0.01),
}
"""Of codes: one step of the format at its largest magnitude, where a value lies on the border between two."""

FLOAT32 = 2e-5
"""Of float32 results: each implementation is within 1e-5 of the largest sum of terms."""


def selftest(platform: str | None = None) -> dict[str, Any]:
    """Compares and times every op.

    Args:
      platform: "cpu", "cuda" or "rocm"; JAX's default backend unless given. Must be asked for before JAX has
        started a backend.

    Returns:
      {"doctor": `mla_jax.doctor.report()`, "read_gb_per_s", "product_gflop_per_s", "cases": a dict a case, with op,
      case, implementation and reason (as `doctor` has them), agrees (None without a native kernel), max_error and
      bound (relative), microseconds and reference_microseconds (of a call; None where it failed), error (a sentence
      where a kernel failed), "problem": a sentence where the platform has no native library, so that there is nothing
      to check, else None, "agrees": whether there is one and no case differs or fails}.

    Raises:
      RequestError: no such platform.
      KernelUnavailableError: JAX cannot start it here.
    """
    if platform is not None:
        if platform not in PLATFORMS:
            raise RequestError(f"platform: expected one of {', '.join(PLATFORMS)}, got {platform!r}")
        jax.config.update("jax_platforms", platform)
    started = lowering_platform()
    if platform not in (None, started):
        raise KernelUnavailableError(f"platform: expected {platform}, but JAX runs on {started}")
    found = [_run(case, started) for case in cases()]
    library = registry.library(started)
    problem = None if library.targets else library.reason
    return {
        "doctor": doctor.report(),
        "read_gb_per_s": read_rate() / 1e9,
        "product_gflop_per_s": product_rate("bfloat16") / 1e9,
        "cases": found,
        "problem": problem,
        "agrees": problem is None
        and all(row["agrees"] is not False and row["error"] is None for row in found),
    }


def _run(case: Case, platform: str) -> dict[str, Any]:
    choice = OPS[case.op].choice(platform, "auto", warn=False)
    native = choice.implementation == "native"
    row: dict[str, Any] = {
        "op": case.op,
        "case": case.what,
        "implementation": choice.implementation,
        "reason": choice.reason,
        "agrees": None,
        "max_error": None,
        "bound": None,
        "microseconds": None,
        "reference_microseconds": None,
        "error": None,
    }
    try:
        theirs, row["reference_microseconds"] = _results(case, "reference")
        if native:
            ours, row["microseconds"] = _results(case, "native")
            row["agrees"], row["max_error"], row["bound"] = compare(case, ours, theirs)
    except jax.errors.JaxRuntimeError as failure:
        row["error"] = " ".join(str(failure).split())
    return row


def _results(case: Case, kernels: Kernels) -> tuple[list[np.ndarray], float]:
    """Every result of one call, and the microseconds of a call."""

    # What a call updates is given away, as a step gives its pool away, and taken back from its results.
    def call(updated: dict[str, Any], others: dict[str, Any]) -> Arrays:
        return case.run({**others, **updated}, kernels)

    jitted = jax.jit(call, donate_argnums=0)
    others = {name: value for name, value in case.arguments.items() if name not in case.updated}
    state = {name: jax.numpy.array(case.arguments[name]) for name in case.updated}
    results = jitted(state, others)
    once = [np.asarray(result) for result in results]
    state = {name: results[index] for name, index in case.updated.items()}

    def step() -> Arrays:
        nonlocal state
        results = jitted(state, others)
        state = {name: results[index] for name, index in case.updated.items()}
        return tuple(result for i, result in enumerate(results) if i not in case.updated.values())

    return once, 1e6 * seconds_of(step, _TIMES[kernels])


def compare(case: Case, ours: list[np.ndarray], theirs: list[np.ndarray]) -> tuple[bool, float, float]:
    """(whether all results are within their bounds, error and bound of the result that is closest to its bound)."""
    agree, worst = True, (0.0, 0.0)
    for i, (got, want) in enumerate(zip(ours, theirs, strict=True)):
        error, differing = _difference(got, want)
        bound = CODES.get(case.coded.get(i, "")) or Bound(_rounding(want), 1.0)
        agree = agree and error <= bound.largest and differing <= bound.share
        if _of(error, bound.largest) >= _of(*worst):
            worst = (error, bound.largest)
    return agree, *worst


def _of(error: float, bound: float) -> float:
    return error / bound if bound else error


def _difference(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """Largest difference relative to the largest magnitude, and the share of values that differ."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    if a.size == 0:
        return 0.0, 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.isfinite(a[~same]).all() or not np.isfinite(b[~same]).all():
        return math.inf, float(np.mean(~same))
    scale = float(np.max(np.abs(b), where=np.isfinite(b), initial=0.0)) or 1.0
    apart = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b))) / scale
    return float(apart.max()), float(np.mean(apart > FLOAT32))


def _rounding(want: np.ndarray) -> float:
    """Two units in the last place of the largest magnitude for each of the two, relative to it."""
    if want.dtype != jax.numpy.bfloat16:
        return FLOAT32
    values = np.abs(want.astype(np.float64))
    largest = float(np.max(values, where=np.isfinite(values), initial=0.0)) or 1.0
    return float(4 * 2.0 ** (math.floor(math.log2(largest)) - 7) / largest)


def format_report(found: dict[str, Any]) -> str:
    """The report as text for people."""
    facts = found["doctor"]
    lines = [
        f"{facts['backend']}: {', '.join(facts['devices'])}; reads {found['read_gb_per_s']:.0f} GB/s, "
        f"multiplies {found['product_gflop_per_s']:.0f} GFLOP/s",
        f"{'op':<28} {'native us':>10} {'reference':>10} {'error':>9} {'bound':>9}  case",
    ]
    for row in found["cases"]:
        name = row["op"].removeprefix("mla_jax.")
        lines.append(
            f"{name:<28} {_number(row['microseconds'], '.1f'):>10} {_number(row['reference_microseconds'], '.1f'):>10} "
            f"{_number(row['max_error'], '.1e'):>9} {_number(row['bound'], '.1e'):>9}  {row['case']}{_verdict(row)}"
        )
    wrong = sum(row["agrees"] is False or row["error"] is not None for row in found["cases"])
    alone = sorted({row["op"] for row in found["cases"] if row["implementation"] != "native"})
    if alone:
        lines.append(f"without a native kernel here: {', '.join(alone)}")
    if wrong:
        lines.append(f"{wrong} cases differ or fail")
    if found["problem"]:
        lines.append(f"no native library was checked: {found['problem']}")
    if found["agrees"]:
        lines.append("all native kernels agree with their references")
    return "\n".join(lines)


def _verdict(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"  FAILED: {row['error']}"
    return "  DIFFERS" if row["agrees"] is False else ""


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
