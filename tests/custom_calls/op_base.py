"""The test base that every op shares: an op's file supplies calls and an oracle, nothing else.

Bounds, for every op, never fitted to a result (oracle.py derives the errors):
- elementwise: round(value - error) <= y <= round(value + error), `error` being the float32 arithmetic
  before the one final rounding;
- float32 results: max|y - value| <= 1e-5 * scale, scale = the largest sum of absolute terms; cosine
  difference < 1e-9;
- bfloat16 results: max|y - value| <= 2 ulp(scale); cosine difference < 1e-5. One rounding moves each
  element by at most 2^-8 of itself, hence the cosine by at most (2^-8)^2 / 2 = 7.6e-6.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest

from custom_calls import registry
from custom_calls.errors import (
    KernelFallbackWarning,
    KernelUnavailableError,
    MlaJaxError,
    UnsupportedTransformError,
)
from custom_calls.op import OPS

KERNELS = ("reference", "native")
Array = np.ndarray
Rng = np.random.Generator


@dataclass(frozen=True)
class Call:
    """Arguments of one call, by name. `extreme`: values so large that only the elementwise bound holds."""

    arrays: dict[str, Array | None]
    static: dict[str, Any] = field(default_factory=dict)
    extreme: bool = False

    def changed(self, **changes: Any) -> "Call":
        arrays = {name: changes.get(name, value) for name, value in self.arrays.items()}
        others = {name: value for name, value in changes.items() if name not in self.arrays}
        return replace(self, arrays=arrays, static={**self.static, **others})


Builder = Callable[..., Call]


def poison(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """NaN everywhere: memory that nothing may read."""
    return np.full(shape, np.nan, np.float32).astype(dtype)


def normal(rng: Rng, shape: tuple[int, ...], dtype: Any = np.float32, scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(np.float32).astype(np.dtype(dtype))


def integers(rng: Rng, shape: tuple[int, ...], dtype: Any = np.float32, limit: int = 8) -> Array:
    """Small integers: products and sums of them are exact in float32, so a result has no error at all."""
    return rng.integers(-limit, limit + 1, shape).astype(np.float32).astype(np.dtype(dtype))


def bits(array: Any) -> Array:
    """The array's bytes: equality of NaN and of the sign of zero included."""
    values = np.ascontiguousarray(np.asarray(array))
    return values.reshape(-1).view(np.uint8)


def same_bits(got: Any, want: Any) -> bool:
    got, want = np.asarray(got), np.asarray(want)
    return got.shape == want.shape and got.dtype == want.dtype and np.array_equal(bits(got), bits(want))


def cosine_difference(got: Array, want: Array) -> float:
    """1 - cos of the angle between the two, as a formula that does not cancel."""
    norm_got, norm_want = np.linalg.norm(got), np.linalg.norm(want)
    if norm_got == 0 or norm_want == 0:
        return 0.0 if norm_got == norm_want else 1.0
    return 0.5 * float(np.sum((got / norm_got - want / norm_want) ** 2))


def bfloat16_ulp(x: float) -> float:
    return 2.0 ** (np.floor(np.log2(x)) - 7) if x > 0 else 0.0


def check(got: Any, want: oracle.Bounded, what: str, extreme: bool = False) -> None:
    """Fails, with cosine difference and maximum error, unless `got` is within the module's bounds."""
    got = np.asarray(got)
    dtype = got.dtype
    assert got.shape == want.value.shape, f"{what}: shape {got.shape}, expected {want.value.shape}"
    actual = oracle.f64(got)
    with np.errstate(invalid="ignore"):
        low = oracle.round_to(want.value - want.error, dtype)
        high = oracle.round_to(want.value + want.error, dtype)
        both_nan = np.isnan(actual) & np.isnan(want.value)
        wrong = ~((low <= actual) & (actual <= high)) & ~both_nan
    finite = np.isfinite(actual) & np.isfinite(want.value)
    difference = np.abs(actual[finite] - want.value[finite])
    worst = float(difference.max(initial=0.0))
    cosine = cosine_difference(actual[finite], want.value[finite])
    numbers = (
        f"{what} ({dtype}): max error {worst:.3e} at scale {want.scale:.3e}, cosine difference {cosine:.3e}"
    )
    if wrong.any():
        at = tuple(int(i[0]) for i in np.nonzero(wrong))
        pytest.fail(
            f"{numbers}; {int(wrong.sum())} of {wrong.size} outside their bounds, first {at}: got {actual[at]!r}, "
            f"expected {want.value[at]!r} in [{low[at]!r}, {high[at]!r}]"
        )
    if extreme or not finite.any():
        return
    if dtype == np.float32:
        assert worst <= oracle.BOUND_FLOAT32 * want.scale + oracle.FLUSHED, numbers
        assert cosine < 1e-9, numbers
    if dtype == ml_dtypes.bfloat16:
        assert worst <= 2 * bfloat16_ulp(want.scale), numbers
        assert cosine < 1e-5, numbers


class OpTests:
    """Base of one op's tests. The attributes are what a file supplies."""

    function: ClassVar[Callable[..., Any]]
    oracle: ClassVar[Callable[..., tuple[oracle.Bounded, ...]]]
    primitive: ClassVar[str]
    op_name: ClassVar[str]
    """What error messages start with."""
    variants: ClassVar[tuple[tuple[str, ...], ...]] = (("float32",), ("bfloat16",))
    """Dtypes that each case is built for."""
    cases: ClassVar[dict[str, Builder]]
    """Case name -> builder(rng, *variant)."""
    small: ClassVar[Builder]
    """The call that the tests of transformations use: builder(rng, *variant)."""
    errors: ClassVar[dict[str, tuple[dict[str, Any], str]]]
    """Name -> (changes to the small call, message behind the op's name)."""
    vmapped: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Sets of arguments to batch; empty where vmap is refused."""
    differentiable: ClassVar[tuple[str, ...]] = ()
    """Arguments with a derivative; empty where grad is refused."""
    rows: ClassVar[Callable[..., tuple[Call, list[tuple[Any, Call]]]]]
    """builder(rng, *variant) -> (a call, [(index of some of its rows, the call that has only those)])."""

    # ---- plumbing ----

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        names = metafunc.fixturenames
        if "case" in names:
            metafunc.parametrize("case", list(self.cases))
        if "error" in names:
            metafunc.parametrize("error", list(self.errors))
        if "batched" in names:
            metafunc.parametrize(
                "batched", self.vmapped or [()], ids=lambda names: "+".join(names) or "refused"
            )
        if "variant" in names:
            metafunc.parametrize("variant", self.variants, ids="-".join)
        if "kernels" in names:
            metafunc.parametrize("kernels", KERNELS)

    @classmethod
    def call(cls, call: Call, kernels: str = "reference") -> tuple[Any, ...]:
        result = cls.bound(call, kernels)(cls.device(call))
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    @classmethod
    def bound(cls, call: Call, kernels: str) -> Callable[[dict[str, Any]], Any]:
        """The op as a function of its arrays alone."""
        return lambda arrays: cls.function(**arrays, **call.static, kernels=kernels)

    @staticmethod
    def device(call: Call) -> dict[str, Any]:
        return {name: jnp.asarray(value) for name, value in call.arrays.items() if value is not None}

    @classmethod
    def expected(cls, call: Call) -> tuple[oracle.Bounded, ...]:
        return cls.oracle(**call.arrays, **call.static)

    @classmethod
    def check_call(cls, call: Call, kernels: str) -> tuple[Any, ...]:
        got = cls.call(call, kernels)
        for number, (value, want) in enumerate(zip(got, cls.expected(call), strict=True)):
            check(value, want, f"{cls.primitive} [{kernels}] output {number}", call.extreme)
        return got

    @classmethod
    def small_call(cls, rng: Rng, variant: tuple[str, ...] | None = None) -> Call:
        return cls.small(rng, *(variant or cls.variants[0]))

    # ---- tests ----

    def test_matches_oracle(self, kernels: str, variant: tuple[str, ...], case: str, rng: Rng) -> None:
        self.check_call(self.cases[case](rng, *variant), kernels)

    def test_works_inside_jit(self, kernels: str, variant: tuple[str, ...], rng: Rng) -> None:
        call = self.small_call(rng, variant)
        got = jax.tree.leaves(jax.jit(self.bound(call, kernels))(self.device(call)))
        for value, want in zip(got, self.expected(call), strict=True):
            check(value, want, f"{self.primitive} [{kernels}] in jit", call.extreme)

    def test_runs_what_was_asked_for(self, kernels: str, rng: Rng) -> None:
        call = self.small_call(rng)
        text = jax.jit(self.bound(call, kernels)).lower(self.device(call)).as_text()
        forms = OPS[self.primitive].forms(registry.library("cpu"))
        assert bool(self._called(text)) == (kernels == "native" and () not in forms), text

    @pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["bare", "jit"])
    def test_is_one_named_equation(self, kernels: str, wrap: Callable[..., Any], rng: Rng) -> None:
        call = self.small_call(rng)
        jaxpr = jax.make_jaxpr(wrap(self.bound(call, kernels)))(self.device(call)).jaxpr
        while len(jaxpr.eqns) == 1 and "jaxpr" in jaxpr.eqns[0].params:
            jaxpr = jaxpr.eqns[0].params["jaxpr"].jaxpr
        assert [eqn.primitive.name for eqn in jaxpr.eqns] == [self.primitive]

    @pytest.mark.parametrize("platforms", [("rocm",), ("cuda",), ("cpu", "rocm")], ids="+".join)
    def test_falls_back_where_there_is_no_library(self, platforms: tuple[str, ...], rng: Rng) -> None:
        call = self.small_call(rng)
        traced = jax.jit(self.bound(call, "auto")).trace(self.device(call))
        message = f"{self.primitive} falls back to its pure-JAX reference on platform '{platforms[-1]}'"
        with registry.declared(registry.library("cpu")), self._unless_xla(pytest.warns, message):
            text = traced.lower(lowering_platforms=platforms).as_text()
        assert "func.func public @main" in text
        assert bool(self._called(text)) == ("cpu" in platforms)

    @pytest.mark.parametrize("platforms", [("rocm",), ("cuda",), ("cpu", "rocm")], ids="+".join)
    def test_native_is_refused_where_there_is_none(self, platforms: tuple[str, ...], rng: Rng) -> None:
        call = self.small_call(rng)
        traced = jax.jit(self.bound(call, "native")).trace(self.device(call))
        message = f"{self.primitive} has no native kernel on platform '{platforms[-1]}': no native"
        with registry.declared(registry.library("cpu")), self._unless_xla(pytest.raises, message):
            traced.lower(lowering_platforms=platforms)

    @pytest.mark.parametrize("platform", ["rocm", "cuda"])
    def test_lowers_for_gpus_from_this_host(self, platform: str, rng: Rng) -> None:
        call = self.small_call(rng)
        for targets in self._gpu_forms():
            library = registry.Library(platform, "declared", frozenset(targets), "declared", {})
            with registry.declared(library):
                traced = jax.jit(self.bound(call, "native")).trace(self.device(call))
                text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert self._called(text) <= set(targets)
            assert bool(self._called(text)) == bool(targets)

    def _gpu_forms(self) -> list[tuple[str, ...]]:
        bare = registry.Library("rocm", None, frozenset(), "none", {})
        return list(OPS[self.primitive].forms(bare))

    def _unless_xla(self, expectation: Any, message: str) -> Any:
        """What a missing library costs; nothing where the native form on GPUs is a computation of XLA's own."""
        if () in self._gpu_forms():
            return contextlib.nullcontext()
        error = KernelFallbackWarning if expectation is pytest.warns else KernelUnavailableError
        return expectation(error, match=message)

    def _called(self, text: str) -> set[str]:
        """The op's custom-call targets in a lowered module."""
        known = {*itertools.chain(*OPS[self.primitive].natives, *self._gpu_forms())}
        return {target for target in known if f"@{target}" in text}

    def test_wrong_arguments_are_named(self, error: str, rng: Rng) -> None:
        changes, message = self.errors[error]
        made = {
            name: np.zeros(value.shape, value.dtype) if isinstance(value, jax.ShapeDtypeStruct) else value
            for name, value in changes.items()
        }
        with pytest.raises((MlaJaxError, ValueError)) as raised:
            self.call(self.small_call(rng).changed(**made))
        assert str(raised.value) == f"{self.op_name}: {message}"
        assert isinstance(raised.value, MlaJaxError)

    def test_vmap(self, kernels: str, batched: tuple[str, ...], rng: Rng) -> None:
        call = self.small_call(rng)
        if not batched:
            self._vmap_is_refused(call, kernels)
            return
        calls = [call, *(self._varied(call, batched, rng) for _ in range(2))]
        stacked = self.device(call)
        axes: dict[str, int | None] = dict.fromkeys(stacked)
        for number, name in enumerate(batched):
            # One argument is batched at its last axis: the rule must move it.
            axes[name] = stacked[name].ndim if number == 0 else 0
            stacked[name] = jnp.stack([jnp.asarray(c.arrays[name]) for c in calls], axis=axes[name])
        got = jax.tree.leaves(jax.jit(jax.vmap(self.bound(call, kernels), in_axes=(axes,)))(stacked))
        for element, one in enumerate(calls):
            for value, alone, want in zip(got, self.call(one, kernels), self.expected(one), strict=True):
                check(value[element], want, f"{self.primitive} [{kernels}] in vmap", call.extreme)
                if kernels == "native":
                    assert same_bits(value[element], alone)

    @staticmethod
    def _varied(call: Call, names: tuple[str, ...], rng: Rng) -> Call:
        """The same call with other values: a permutation along each named argument's first axis."""
        return call.changed(**{name: rng.permutation(call.arrays[name], axis=0) for name in names})

    def _vmap_is_refused(self, call: Call, kernels: str) -> None:
        stacked = jax.tree.map(lambda array: jnp.stack([array, array]), self.device(call))
        with pytest.raises(UnsupportedTransformError, match=f"{self.primitive} has no vmap rule"):
            jax.vmap(self.bound(call, kernels))(stacked)
        assert issubclass(UnsupportedTransformError, NotImplementedError)

    def test_gradient(self, kernels: str, rng: Rng) -> None:
        call = self.small_call(rng)
        if not self.differentiable:
            self._gradient_is_refused(call, kernels)
            return
        outputs = self.expected(call)
        weights = [rng.standard_normal(output.value.shape).astype(np.float32) for output in outputs]
        moving = {name: jnp.asarray(call.arrays[name]) for name in self.differentiable}

        def loss(values: dict[str, Any], which: str) -> Any:
            results = jax.tree.leaves(self.bound(call, which)({**self.device(call), **values}))
            return sum(jnp.sum(result * weight) for result, weight in zip(results, weights, strict=True))

        got = jax.jit(jax.grad(functools.partial(loss, which=kernels)))(moving)
        want = jax.jit(jax.grad(functools.partial(loss, which="reference")))(moving)
        for name in self.differentiable:
            scale = float(np.abs(want[name]).max())
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
            # Central differences of the float64 oracle along a random direction.
            direction = rng.standard_normal(moving[name].shape)
            step, values = 1e-5, []
            for side in (1, -1):
                arrays = {n: oracle.f64(a) if n in self.differentiable else a for n, a in call.arrays.items()}
                arrays[name] = arrays[name] + side * step * direction
                results = self.expected(replace(call, arrays=arrays))
                values.append(sum(float(np.sum(r.value * w)) for r, w in zip(results, weights, strict=True)))
            numeric = (values[0] - values[1]) / (2 * step)
            analytic = oracle.f64(got[name]) * direction
            # The error of float32 gradients relative to the terms of the sum; the step's is step^2.
            assert abs(analytic.sum() - numeric) <= 1e-4 * np.abs(analytic).sum() + 1e-8, name

    def _gradient_is_refused(self, call: Call, kernels: str) -> None:
        floats = {n: v for n, v in self.device(call).items() if v.dtype == jnp.float32}

        def loss(values: dict[str, Any]) -> Any:
            return jnp.sum(jax.tree.leaves(self.bound(call, kernels)({**self.device(call), **values}))[0])

        with pytest.raises(UnsupportedTransformError, match=f"{self.primitive} cannot be differentiated: it"):
            jax.grad(loss)(floats)

    def test_rows_do_not_depend_on_the_batch(self, variant: tuple[str, ...], rng: Rng) -> None:
        self.check_rows(*self.rows(rng, *variant))

    @classmethod
    def check_rows(cls, whole_call: Call, parts: list[tuple[Any, Call]]) -> None:
        """That the rows of each part have the bits in the whole call that they have alone."""
        full = cls.call(whole_call, "native")
        for where, part in parts:
            for whole, single in zip(full, cls.call(part, "native"), strict=True):
                assert same_bits(np.asarray(whole)[where], single), f"rows {where}"

    def test_two_threads_at_once(self, rng: Rng) -> None:
        calls = [self.small_call(rng, self.variants[-1]) for _ in range(2)]
        function = jax.jit(self.bound(calls[0], "native"))
        want = [jax.tree.map(np.asarray, function(self.device(call))) for call in calls]
        failures: list[str] = []
        barrier = threading.Barrier(2)

        def work(number: int) -> None:
            barrier.wait()
            for attempt in range(20):
                got = function(self.device(calls[number]))
                same = [
                    same_bits(g, w)
                    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want[number]), strict=True)
                ]
                if not all(same):
                    failures.append(f"thread {number}, attempt {attempt}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
