"""What every test runs under: strict dtypes and ranks, warnings as errors, one seeded generator a test."""

import gc
import hashlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent

# Helper modules of test folders are plain modules (`import op_base`). Their folders go to the end of the
# path: nothing that is installed can be shadowed, least of all `custom_calls` by tests/custom_calls.
HELPERS = {
    "custom_calls": ("oracle", "op_base", "native_libraries"),
    "mla_jax": ("faults",),
    "tools": ("scripts",),
    "rocm": ("snippets",),
}
for _folder, _modules in HELPERS.items():
    _path = str(TESTS / _folder)
    if _path not in sys.path:
        sys.path.append(_path)
    pytest.register_assert_rewrite(*_modules)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

MOST_RESIDENT_BYTES = 2 << 30
SEED_VARIABLE = "MLA_JAX_TEST_SEED"
INSTALLED_VARIABLE = "MLA_JAX_EXPECT_INSTALLED"


def _imported_from() -> dict[str, Path]:
    import custom_calls
    import mla_jax

    return {module.__name__: Path(str(module.__file__)).resolve() for module in (mla_jax, custom_calls)}


def pytest_sessionstart(session: pytest.Session) -> None:
    """The wheel run must test the wheel: a checkout on the path would hide a file that it lacks."""
    del session
    if os.environ.get(INSTALLED_VARIABLE) == "1":
        inside = {name: path for name, path in _imported_from().items() if path.is_relative_to(TESTS.parent)}
        # A wheel's own environment may lie in the checkout's build folder; its packages are still installed.
        inside = {name: path for name, path in inside.items() if "site-packages" not in path.parts}
        if inside:
            raise pytest.UsageError(f"{INSTALLED_VARIABLE}=1, but imported from the checkout: {inside}")


def pytest_report_header() -> list[str]:
    if os.environ.get(INSTALLED_VARIABLE) != "1":
        return []
    return [f"{name}: imported from {path}" for name, path in _imported_from().items()]


def seed_of(test_id: str) -> int:
    """The same on every machine and in every run; the environment may replace it."""
    given = os.environ.get(SEED_VARIABLE)
    return int(given) if given else int.from_bytes(hashlib.sha256(test_id.encode()).digest()[:4], "big")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator whose seed follows from the test's id and is printed when the test fails."""
    seed = seed_of(request.node.nodeid)
    request.node.user_properties.append(("seed", seed))
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    seed = dict(item.user_properties).get("seed")
    if report.failed and seed is not None:
        report.sections.append(("seed", f"{SEED_VARIABLE}={seed}"))
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between modules compiled programs are dropped, of which thousands would otherwise add up to gigabytes."""
    if nextitem is not None and nextitem.path != item.path and _resident_bytes() > MOST_RESIDENT_BYTES:
        jax.clear_caches()
        gc.collect()


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the peak instead
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()


@pytest.fixture
def poison() -> Callable[..., np.ndarray]:
    """poison(shape, dtype): an array of NaN, for memory that nothing may read."""
    import op_base

    return op_base.poison
