"""The registry: whatever is wrong with a native library costs its own ops, with one exact sentence."""

import datetime
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native_libraries import run_python

from custom_calls import registry
from custom_calls.abi import PROJECT_ABI, abi_mismatch, announced_targets, runtime_ffi_version
from custom_calls.architectures import ARCHITECTURES
from custom_calls.errors import KernelFallbackWarning, KernelUnavailableError
from custom_calls.linear import linear
from custom_calls.op import OPS
from custom_calls.registry import Library

RUNTIME = runtime_ffi_version()
MODULE = "custom_calls._cpu"
MACHINES = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}
"""What Python calls a machine, and compilers its architecture."""


class FakeModule:
    """A native library as the registry sees it."""

    def __init__(self, targets: tuple[str, ...] = ("mla_jax.linear.v1",), **abi: Any) -> None:
        self.record = {
            "project_abi": PROJECT_ABI,
            "platform": "cpu",
            "ffi_api": RUNTIME,
            "architectures": ("x86-64",),
            "ops": {target.removesuffix(".v1"): 1 for target in targets},
            **abi,
        }
        self.targets = targets

    def abi(self) -> dict[str, Any]:
        return self.record

    def registrations(self) -> dict[str, object]:
        return dict.fromkeys(self.targets, datetime.datetime_CAPI)


def raising(error: BaseException) -> Callable[..., Any]:
    def run(*_: Any, **__: Any) -> Any:
        raise error

    return run


def must_not_register(*_: Any, **__: Any) -> None:
    raise AssertionError("a refused library reached XLA")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ModuleNotFoundError("No module named 'custom_calls._cpu'"),
            "ModuleNotFoundError: No module named 'custom_calls._cpu'",
        ),
        (
            ImportError("libgomp.so.1: cannot open shared object"),
            "ImportError: libgomp.so.1: cannot open shared object",
        ),
        (SystemError("initialization failed"), "SystemError: initialization failed"),
        (OSError(8, "Exec format error"), "OSError: [Errno 8] Exec format error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_library_that_cannot_be_imported(error: Exception, sentence: str) -> None:
    found = registry.probe("cpu", MODULE, raising(error), must_not_register)
    assert found == Library("cpu", MODULE, frozenset(), f"{MODULE} cannot be loaded: {sentence}", {})


NEWER_MINOR, OTHER_MAJOR = (RUNTIME[0], RUNTIME[1] + 1), (RUNTIME[0] + 1, 0)


def ffi_sentence(built: tuple[int, ...]) -> str:
    return (
        f"was compiled against XLA FFI {'.'.join(map(str, built))}, the installed jaxlib has "
        f"{RUNTIME[0]}.{RUNTIME[1]}; rebuild it against the oldest supported jaxlib"
    )


@pytest.mark.parametrize(
    ("abi", "sentence"),
    [
        ({"ffi_api": NEWER_MINOR}, ffi_sentence(NEWER_MINOR)),
        ({"ffi_api": OTHER_MAJOR}, ffi_sentence(OTHER_MAJOR)),
        ({"ffi_api": ()}, ffi_sentence(())),
        ({"project_abi": 2}, "speaks project ABI 2, this package speaks 1; reinstall it"),
        ({"project_abi": 0}, "speaks project ABI 0, this package speaks 1; reinstall it"),
        ({"project_abi": None}, "speaks project ABI None, this package speaks 1; reinstall it"),
        ({"platform": "rocm"}, "was built for platform 'rocm', expected 'cpu'"),
        (
            {"error": "MLA_JAX_CPU_ISA: expected baseline, got 'sse9'"},
            "MLA_JAX_CPU_ISA: expected baseline, got 'sse9'",
        ),
        ({"error": "no", "project_abi": 2, "platform": "rocm"}, "no"),
    ],
    ids=[
        "newer-ffi",
        "other-ffi-major",
        "no-ffi",
        "newer-abi",
        "older-abi",
        "no-abi",
        "platform",
        "error",
        "error-first",
    ],
)
def test_a_library_with_another_abi_is_never_registered(abi: dict[str, Any], sentence: str) -> None:
    module = FakeModule(**abi)
    found = registry.probe("cpu", MODULE, lambda _: module, must_not_register)
    assert found == Library("cpu", MODULE, frozenset(), f"{MODULE} {sentence}", module.record)


def test_an_older_ffi_of_the_same_major_version_is_welcome() -> None:
    registered: list[tuple[str, str]] = []

    def register(target: str, capsule: object, *, platform: str) -> None:
        del capsule
        registered.append((target, platform))

    module = FakeModule(("a.v1", "b.v1"), ffi_api=(RUNTIME[0], 0))
    found = registry.probe("cpu", MODULE, lambda _: module, register)
    assert found == Library(
        "cpu", MODULE, frozenset(module.targets), f"{MODULE}, built for cpu", module.record
    )
    assert registered == [("a.v1", "cpu"), ("b.v1", "cpu")]


@pytest.mark.parametrize(("where", "spelling"), [("cpu", "cpu"), ("cuda", "CUDA"), ("rocm", "ROCM")])
@pytest.mark.bug("sgl-project/sglang#27972", "test")
def test_targets_are_registered_under_jaxlibs_platform_name(where: str, spelling: str) -> None:
    seen = []
    module = FakeModule(("a.v1",), platform=where)
    registry.probe(where, "m", lambda _: module, lambda *_, platform: seen.append(platform))
    assert seen == [spelling]


def test_a_library_that_fails_while_it_is_registered() -> None:
    found = registry.probe("cpu", MODULE, lambda _: FakeModule(), raising(ValueError("duplicate target")))
    assert found.targets == frozenset()
    assert found.reason == f"{MODULE} cannot be registered: ValueError: duplicate target"


def test_a_library_without_an_abi_record() -> None:
    found = registry.probe("cpu", MODULE, lambda _: object(), must_not_register)
    assert found.targets == frozenset()
    assert (
        found.reason
        == f"{MODULE} cannot be registered: AttributeError: 'object' object has no attribute 'abi'"
    )


def test_the_installed_library_serves_every_op() -> None:
    found = registry.library("cpu")
    assert found.reason == f"{MODULE}, built for cpu, running its {found.abi['isa']} code", found.reason
    assert found.targets == {target for op in OPS.values() for target in op.targets}
    assert abi_mismatch(found.abi, "cpu", RUNTIME) is None
    # Built against the oldest supported jaxlib, so that it also runs on newer ones.
    assert tuple(found.abi["ffi_api"]) <= RUNTIME
    assert announced_targets(found.abi) == found.targets
    assert found.abi["architectures"] == (MACHINES[platform.machine()],)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """The process's registry, with a cpu library that could not be loaded."""
    reason = f"{MODULE} cannot be loaded: ImportError: broken"
    monkeypatch.setattr(
        registry, "library", lambda platform: Library(platform, MODULE, frozenset(), reason, {})
    )
    monkeypatch.setattr(registry, "_warned", set())
    return reason


def test_auto_warns_exactly_once_per_op_and_platform(broken: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            choice = registry.choose("mla_jax.linear", ("t",), "cpu", "auto")
            assert choice == registry.Choice("reference", broken)
        registry.choose("mla_jax.absorb", ("t",), "cpu", "auto")
        registry.choose("mla_jax.linear", ("t",), "rocm", "auto")
    assert [warning.category for warning in seen] == [KernelFallbackWarning] * 3
    assert [str(warning.message) for warning in seen] == [
        f"mla_jax.linear falls back to its pure-JAX reference on platform 'cpu': {broken}",
        f"mla_jax.absorb falls back to its pure-JAX reference on platform 'cpu': {broken}",
        f"mla_jax.linear falls back to its pure-JAX reference on platform 'rocm': {broken}",
    ]


def test_asking_without_warning(broken: str) -> None:
    # Warnings are errors here: a warning would fail the test.
    assert registry.choose("op", ("t",), "cpu", "auto", warn=False).reason == broken


def test_native_raises_with_the_reason(broken: str) -> None:
    with pytest.raises(KernelUnavailableError) as raised:
        registry.choose("mla_jax.linear", ("t",), "cpu", "native")
    assert str(raised.value) == f"mla_jax.linear has no native kernel on platform 'cpu': {broken}"
    assert isinstance(raised.value, RuntimeError)


def test_native_raises_through_the_op(broken: str) -> None:
    x, weight = jnp.zeros((2, 31)), jnp.zeros((4, 31))
    with pytest.raises(KernelUnavailableError, match=broken):
        linear(x, weight, kernels="native")


def test_reference_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "library", raising(AssertionError("asked")))
    assert registry.choose("op", ("t",), "cpu", "reference").implementation == "reference"


@pytest.mark.bug("sgl-project/sglang#24799", "test")
def test_a_missing_target_costs_only_its_own_op(monkeypatch: pytest.MonkeyPatch) -> None:
    some = Library("cpu", MODULE, frozenset({"a.v1", "b.v1"}), MODULE, {})
    monkeypatch.setattr(registry, "library", lambda _: some)
    monkeypatch.setattr(registry, "_warned", set())
    both = ("a.v1", "b.v1")
    assert registry.choose("one", both, "cpu", "native") == registry.Choice("native", MODULE, both)
    with pytest.raises(
        KernelUnavailableError, match=f"other has no native kernel.*{MODULE} has no target c.v1, d.v1$"
    ):
        registry.choose("other", ("a.v1", "c.v1", "d.v1"), "cpu", "native")
    with pytest.warns(KernelFallbackWarning, match="has no target c.v1$"):
        registry.choose("other", ("c.v1",), "cpu", "auto")


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(
        KernelUnavailableError, match="kernels: expected one of auto, native, reference, got 'fast'"
    ):
        registry.choose("op", ("t",), "cpu", "fast")  # type: ignore[arg-type]


def test_a_platform_without_any_library() -> None:
    with (
        registry.declared(),
        pytest.warns(KernelFallbackWarning, match="on platform 'rocm': no native library is declared"),
    ):
        assert registry.choose("op", ("t",), "rocm", "auto").implementation == "reference"
    with pytest.warns(
        KernelFallbackWarning, match="on platform 'tpu': no native library exists for platform"
    ):
        assert registry.choose("op", ("t",), "tpu", "auto").implementation == "reference"


def test_check_environment_repeats_only_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_abi(abi: dict[str, Any]) -> None:
        monkeypatch.setattr(registry, "library", lambda _: Library("cpu", MODULE, frozenset(), "", abi))

    with_abi({})
    registry.check_environment()
    with_abi({"error": "MLA_JAX_CPU_ISA: expected baseline, got 'sse9'"})
    with pytest.raises(KernelUnavailableError, match=r"^MLA_JAX_CPU_ISA: expected baseline, got 'sse9'$"):
        registry.check_environment()


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_computes_the_same_sums(isa: str, tmp_path: Path) -> None:
    script = (
        "import jax.numpy as jnp, numpy as np\n"
        "from custom_calls.linear import linear\n"
        "from custom_calls.registry import library\n"
        "x = jnp.arange(-60.0, 60.0).reshape(3, 40).astype(jnp.bfloat16)\n"
        "y = linear(x, x, out_dtype='float32', kernels='native')\n"
        "x = np.asarray(x, np.float32)\n"
        "assert np.array_equal(y, x @ x.T)\n"
        "print(library('cpu').abi['isa'])\n"
    )
    ran = run_python(script, tmp_path, MLA_JAX_CPU_ISA=isa).strip()
    assert ran in ("baseline", isa)


def test_results_of_auto_are_the_native_kernels(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.standard_normal((3, 33)), jnp.float32)
    weight = jnp.asarray(rng.standard_normal((5, 33)), jnp.float32)
    assert np.array_equal(linear(x, weight), linear(x, weight, kernels="native"))


@pytest.mark.bug("sgl-project/sglang#27972", "test")
def test_a_library_for_another_gpu_is_never_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeModule(platform="rocm", architectures=("gfx950",))
    monkeypatch.setattr(registry, "architectures_here", lambda platform: ("gfx942",))
    found = registry.probe("rocm", "m", lambda _: module, must_not_register)
    assert found == Library(
        "rocm", "m", frozenset(), "m was built for gfx950, this machine has gfx942", module.record
    )
    monkeypatch.setattr(registry, "architectures_here", lambda platform: ("gfx950",))
    assert registry.probe("rocm", "m", lambda _: module, lambda *_, platform: None).targets


@pytest.mark.parametrize("stepping", ["gfx940", "gfx941"])
def test_an_early_stepping_is_not_its_successor(monkeypatch: pytest.MonkeyPatch, stepping: str) -> None:
    """No code object of a library loads there."""
    module = FakeModule(platform="rocm", architectures=("gfx942", "gfx950"))
    device = SimpleNamespace(compute_capability=f"{stepping}:sramecc+:xnack-")
    monkeypatch.setattr(jax, "devices", lambda platform: [device])
    found = registry.probe("rocm", "m", lambda _: module, must_not_register)
    assert found.reason == f"m was built for gfx942, gfx950, this machine has {stepping}"


def test_libraries_say_what_devices_call_themselves() -> None:
    """A compiler's own name for an architecture, such as sm_90a, is no device's."""
    built = [library for library in map(registry.library, registry.LIBRARIES) if library.targets]
    assert "cpu" in {library.platform for library in built}
    for library in built:
        for name in library.abi["architectures"]:
            assert ARCHITECTURES[name].platform == library.platform


def test_libraries_of_gpus_say_what_they_spread_work_over() -> None:
    """The smallest GPU that a library has code for: an H200, and an MI350X or MI355X."""
    for name, processors in (("cuda", 132), ("rocm", 256)):
        library = registry.library(name)
        assert not library.targets or library.abi["processors"] == library.processors == processors
    assert Library("rocm", "of an older build", frozenset(), "", {}).processors == 132


def test_a_handler_that_is_none_is_never_registered() -> None:
    module = FakeModule(("a.v1", "b.v1"))
    capsules: dict[str, object] = {**module.registrations(), "b.v1": None}
    module.registrations = lambda: capsules  # type: ignore[method-assign]
    found = registry.probe("cpu", MODULE, lambda _: module, must_not_register)
    assert (found.targets, found.reason) == (
        frozenset(),
        f"{MODULE} cannot be registered: TypeError: b.v1: expected a capsule for execute, got NoneType",
    )


def test_only_what_the_record_announces_is_registered() -> None:
    registered: list[str] = []
    module = FakeModule(("a.v1", "b.v1", "c.v1"), ops={"a": 1, "b": 2, "d": 1})
    found = registry.probe(
        "cpu", MODULE, lambda _: module, lambda target, *_, platform: registered.append(target)
    )
    assert registered == ["a.v1"] and found.targets == {"a.v1"}


@pytest.mark.parametrize("where", ["cuda", "rocm"])
def test_a_library_that_was_not_built(where: str) -> None:
    name = f"custom_calls._{where}"
    absent = ModuleNotFoundError(f"No module named '{name}'", name=name)
    found = registry.probe(where, name, raising(absent), must_not_register)
    assert (found.module, found.targets) == (None, frozenset())
    assert found.reason.startswith(
        f"no native library exists for platform '{where}': {name} is not built; build this package from source where "
    )


def test_a_library_that_lacks_another_module_is_broken_and_not_absent() -> None:
    error = ModuleNotFoundError("No module named 'other'", name="other")
    found = registry.probe("rocm", "m", raising(error), must_not_register)
    assert (found.module, found.reason) == (
        "m",
        "m cannot be loaded: ModuleNotFoundError: No module named 'other'",
    )


def test_declared_libraries_are_the_only_ones_and_only_within() -> None:
    x, weight = jnp.zeros((2, 31)), jnp.zeros((4, 31))
    step = jax.jit(lambda x, weight: linear(x, weight))

    def text() -> str:
        return step.lower(x, weight).as_text()

    before = text()
    assert "@mla_jax.linear.v1" in before
    none = Library("cpu", None, frozenset(), "nothing", {})
    for _ in range(2):
        with registry.declared(none), pytest.warns(KernelFallbackWarning, match="'cpu': nothing"):
            assert "@mla_jax.linear.v1" not in text()
    with (
        registry.declared(),
        pytest.raises(KernelUnavailableError, match="no native library is declared for"),
    ):
        linear(x, weight, kernels="native")
    inner = Library("rocm", "r", frozenset({"a.v1"}), "r", {})
    with registry.declared(none):
        with registry.declared(inner):
            assert registry.library("rocm") is inner
            assert registry.library("cpu").reason == "no native library is declared for platform 'cpu'"
        assert registry.library("cpu") is none
    assert registry.library("cpu").module == MODULE
    assert text() == before


def test_a_warning_within_declared_is_not_the_last_one(broken: str) -> None:
    del broken
    none = Library("cpu", None, frozenset(), "nothing", {})
    with registry.declared(none):
        with pytest.warns(KernelFallbackWarning):
            registry.choose("op", ("t.v1",), "cpu", "auto")
        # Warnings are errors here: a second one would fail the test.
        registry.choose("op", ("t.v1",), "cpu", "auto")
    with pytest.warns(KernelFallbackWarning):
        registry.choose("op", ("t.v1",), "cpu", "auto")
