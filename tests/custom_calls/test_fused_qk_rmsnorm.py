"""fused_qk_rmsnorm: both norms, what is behind the latent, in place, and the same bits by both contracts."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from native_libraries import ROOT, build, needs_compiler, run_python
from op_base import KERNELS, Builder, Call, OpTests, Rng, normal, poison, same_bits

from custom_calls import registry
from custom_calls.fused_qk_rmsnorm import FUSED_QK_RMSNORM, TARGET, TARGET_V1, fused_qk_rmsnorm
from custom_calls.rmsnorm import rmsnorm

EPS = {"q_eps": 1e-6, "kv_eps": 1e-5}
SHAPES = {"q_a": (5, 24), "kv_a": (5, 14), "q_weight": (24,), "kv_weight": (8,)}


def make(tokens: int, rank_q: int, rank_kv: int, behind: int, scale: float = 1.0, **eps: Any) -> Builder:
    """The columns behind the latent are NaN: they must come back as they are."""

    def build(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        kv_a = poison((tokens, rank_kv + behind), dtype)
        kv_a[:, :rank_kv] = normal(rng, (tokens, rank_kv), dtype, scale)
        arrays = {
            "q_a": normal(rng, (tokens, rank_q), dtype, scale),
            "kv_a": kv_a,
            "q_weight": normal(rng, (rank_q,), weight_dtype),
            "kv_weight": normal(rng, (rank_kv,), weight_dtype),
        }
        return Call(arrays, eps or EPS, extreme=scale < 1e-30)

    return build


def expected(
    q_a: Any, kv_a: Any, q_weight: Any, kv_weight: Any, *, q_eps: float, kv_eps: float | None = None
) -> tuple[oracle.Bounded, oracle.Bounded]:
    rank = kv_weight.shape[0]
    (q,) = oracle.rmsnorm(q_a, q_weight, eps=q_eps)
    (latent,) = oracle.rmsnorm(kv_a[:, :rank], kv_weight, eps=q_eps if kv_eps is None else kv_eps)
    rest = oracle.f64(kv_a[:, rank:])
    value = np.concatenate([latent.value, rest], axis=1)
    error = np.concatenate([latent.error, np.zeros_like(rest)], axis=1)
    return q, oracle.Bounded(value, error, max(latent.scale, float(np.abs(rest).max(initial=0))))


def some_rows(call: Call) -> list[tuple[Any, Call]]:
    at = [slice(0, 1), slice(9, 10), slice(16, 17), slice(3, 14)]
    return [(rows, call.changed(q_a=call.arrays["q_a"][rows], kv_a=call.arrays["kv_a"][rows])) for rows in at]


def described(shape: tuple[int, ...], dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


CASES = {
    "T0": make(0, 24, 8, 6),
    "T1-N1": make(1, 1, 1, 0),
    "T3-odd": make(3, 7, 5, 3),
    "T17-no-rope": make(17, 40, 33, 0),
    "T1-V3": make(1, 1536, 512, 64),
    # Ways of GPU kernels.
    "T9-V3": make(9, 1536, 512, 64),
    "T5-wide-q": make(5, 2056, 1032, 8),
    "T3-odd-q": make(3, 2049, 1025, 8),
    "T2-long-q": make(2, 8200, 16, 8),
    "one-eps": make(4, 24, 8, 6, q_eps=1e-2),
    "large": make(3, 33, 9, 2, scale=1e17),
    "below-eps": make(3, 33, 9, 2, scale=1e-6),
    "subnormal": make(3, 33, 9, 2, scale=1e-39),
}

ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "q_a-rank": ({"q_a": described((5, 24, 1))}, "argument 'q_a': expected shape (T, N), got (5, 24, 1)"),
    "q_a-dtype": (
        {"q_a": described((5, 24), "int32")},
        "argument 'q_a': expected dtype float32 or bfloat16, got int32",
    ),
    "kv_a-rows": ({"kv_a": described((4, 14))}, "argument 'kv_a': expected shape (5, W), got (4, 14)"),
    "kv_a-dtype": (
        {"kv_a": described((5, 14), "bfloat16")},
        "argument 'kv_a': expected dtype float32, got bfloat16",
    ),
    "q_weight-size": (
        {"q_weight": described((23,))},
        "argument 'q_weight': expected shape (24), got (23,)",
    ),
    "q_weight-dtype": (
        {"q_weight": described((24,), "float16")},
        "argument 'q_weight': expected dtype float32 or bfloat16, got float16",
    ),
    "kv_weight-rank": (
        {"kv_weight": described((8, 1))},
        "argument 'kv_weight': expected shape (R), got (8, 1)",
    ),
    "kv_weight-dtype": (
        {"kv_weight": described((8,), "int8")},
        "argument 'kv_weight': expected dtype float32 or bfloat16, got int8",
    ),
    "kv_weight-size": (
        {"kv_weight": described((15,))},
        "argument 'kv_weight': expected a range inside [0, 14) of kv_a's columns, got [0, 15)",
    ),
    "no-latent": (
        {"kv_weight": described((0,))},
        "argument 'kv_weight': expected a range inside [0, 14) of kv_a's columns, got [0, 0)",
    ),
    "no-query": (
        {"q_a": described((5, 0)), "q_weight": described((0,))},
        "argument 'q_a': expected a range inside [0, 0) of its columns, got [0, 0)",
    ),
}


class TestFusedQkRmsNorm(OpTests):
    function = staticmethod(fused_qk_rmsnorm)
    oracle = staticmethod(expected)
    primitive = "mla_jax.fused_qk_rmsnorm"
    op_name = "fused_qk_rmsnorm"
    variants = (
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
    )
    cases = CASES
    errors = ERRORS
    vmapped = (("q_a", "kv_a"), ("kv_a", "kv_weight"))
    differentiable = ("q_a", "kv_a", "q_weight", "kv_weight")

    @staticmethod
    def small(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        call = make(5, 24, 8, 6)(rng, dtype, weight_dtype)
        return call.changed(kv_a=normal(rng, (5, 14), dtype))

    @staticmethod
    def rows(rng: Rng, *variant: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(17, 40, 24, 3)(rng, *variant)
        return call, some_rows(call)


@pytest.mark.parametrize(
    ("rank_q", "rank_kv", "behind"), [(40, 33, 6), (1536, 512, 64), (2056, 1032, 8), (8200, 33, 7)]
)
@pytest.mark.parametrize("scale", [1.0, 1e-39], ids=["normal", "subnormal"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_as_two_native_norms(
    dtype: str, scale: float, rank_q: int, rank_kv: int, behind: int, rng: Rng
) -> None:
    call = make(9, rank_q, rank_kv, behind, scale)(rng, dtype, "float32")
    q_a, kv_a, q_weight, kv_weight = TestFusedQkRmsNorm.device(call).values()
    q, kv = TestFusedQkRmsNorm.call(call, "native")
    assert same_bits(q, rmsnorm(q_a, q_weight, eps=EPS["q_eps"], kernels="native"))
    assert same_bits(kv[:, :rank_kv], rmsnorm(kv_a, kv_weight, eps=EPS["kv_eps"], kernels="native"))
    assert same_bits(kv[:, rank_kv:], kv_a[:, rank_kv:])
    assert np.count_nonzero(q) > 300, "subnormal numbers are numbers"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.bug("sgl-project/sglang#14497", "test")
def test_in_place(dtype: str, rng: Rng) -> None:
    # Of different widths: JAX gives a donated argument to the first result of its shape.
    call = make(33, 40, 32, 16)(rng, dtype, "float32")
    arrays = TestFusedQkRmsNorm.device(call)
    given = {name: arrays.pop(name) + 0 for name in ("q_a", "kv_a")}
    function = TestFusedQkRmsNorm.bound(call, "native")
    step = jax.jit(lambda given, rest: function({**given, **rest}), donate_argnums=0)
    compiled = step.lower(given, arrays).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == sum(one.nbytes for one in given.values())
    assert memory.temp_size_in_bytes == 0
    assert " copy(" not in compiled.as_text()
    addresses = [given[name].unsafe_buffer_pointer() for name in ("q_a", "kv_a")]
    results = compiled(given, arrays)
    assert [one.unsafe_buffer_pointer() for one in results] == addresses
    assert all(one.is_deleted() for one in given.values())
    for got, want in zip(results, TestFusedQkRmsNorm.call(call, "native"), strict=True):
        assert same_bits(got, want)


@pytest.mark.parametrize("kernels", KERNELS)
def test_without_donation_the_callers_arrays_are_left_alone(kernels: str, rng: Rng) -> None:
    call = make(5, 24, 8, 6)(rng, "float32", "float32")
    arrays = TestFusedQkRmsNorm.device(call)
    jax.jit(TestFusedQkRmsNorm.bound(call, kernels))(arrays)
    assert all(same_bits(arrays[name], call.arrays[name]) for name in arrays)


def raw_call(
    shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str], results: dict[str, tuple[int, ...]]
) -> list[jax.Array]:
    """The handler itself on ones, without aliases."""
    arrays = {name: jnp.ones(shape, dtypes.get(name, "float32")) for name, shape in shapes.items()}
    outs = [
        jax.ShapeDtypeStruct(results.get(name, shapes[name]), dtypes.get(f"new_{name}", arrays[name].dtype))
        for name in ("q_a", "kv_a")
    ]
    assert TARGET in registry.library("cpu").targets
    return jax.ffi.ffi_call(TARGET, outs)(*arrays.values(), q_eps=np.float32(0), kv_eps=np.float32(0))


FFI_ERRORS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any], str]] = {
    "q_a-type": ({}, {"q_a": "float16"}, {}, "'q_a': expected float32 or bfloat16, got float16"),
    "kv_a-type": ({}, {"kv_a": "bfloat16"}, {}, "'kv_a': expected float32 (the type of 'q_a'), got bfloat16"),
    "q_weight-type": ({}, {"q_weight": "float16"}, {}, "'q_weight': expected float32 or bfloat16, got float16"),
    "kv_weight-type": ({}, {"kv_weight": "float16"}, {}, "'kv_weight': expected float32 or bfloat16, got float16"),
    "q_a-rank": ({"q_a": (5, 24, 1)}, {}, {}, "'q_a': expected rank 2, got shape (5, 24, 1)"),
    "kv_weight-rank": ({"kv_weight": (8, 1)}, {}, {}, "'kv_weight': expected rank 1, got shape (8, 1)"),
    "kv_a-rows": ({"kv_a": (4, 14)}, {}, {}, "'kv_a': expected shape (5, any), got shape (4, 14)"),
    "q_weight-size": ({"q_weight": (23,)}, {}, {}, "'q_weight': expected shape (24), got shape (23)"),
    "kv_weight-size": (
        {"kv_weight": (15,)}, {}, {}, "'kv_weight': expected at most 14 elements (the width of 'kv_a'), got 15",
    ),
    "new_q_a": ({}, {}, {"q_a": (5, 23)}, "'new_q_a': expected shape (5, 24), got shape (5, 23)"),
    "new_kv_a": ({}, {}, {"kv_a": (5, 15)}, "'new_kv_a': expected shape (5, 14), got shape (5, 15)"),
    "new_q_a-type": (
        {}, {"new_q_a": "bfloat16"}, {}, "'new_q_a': expected float32 (the type of 'q_a'), got bfloat16",
    ),
    "new_kv_a-type": (
        {}, {"new_kv_a": "bfloat16"}, {}, "'new_kv_a': expected float32 (the type of 'q_a'), got bfloat16",
    ),
    "new_q_a-own": ({}, {}, {}, "'new_q_a': expected the buffer of 'q_a' (an alias), got a buffer of its own"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FFI_ERRORS))
def test_the_handler_refuses_what_no_caller_sends(case: str) -> None:
    shapes, dtypes, results, message = FFI_ERRORS[case]
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        raw_call({**SHAPES, **shapes}, dtypes, results)
    assert f"mla_jax.fused_qk_rmsnorm: argument {message}" in str(raised.value)


# ---- two contracts ----


def offering(*targets: str, contract: int) -> registry.Library:
    return registry.Library(
        "cpu", "fake", frozenset(targets), "fake", {"ops": {"mla_jax.fused_qk_rmsnorm": contract}}
    )


@pytest.mark.parametrize(("target", "contract"), [(TARGET, 2), (TARGET_V1, 1)])
def test_the_contract_is_the_librarys(target: str, contract: int, rng: Rng) -> None:
    call = TestFusedQkRmsNorm.small(rng, "float32", "float32")
    with registry.declared(offering(target, contract=contract)):
        choice = FUSED_QK_RMSNORM.choice("cpu", "native")
        text = (
            jax.jit(TestFusedQkRmsNorm.bound(call, "auto")).lower(TestFusedQkRmsNorm.device(call)).as_text()
        )
    assert choice == registry.Choice("native", "fake", (target,))
    assert [one for one in (TARGET, TARGET_V1) if f"@{one}" in text] == [target]


def test_the_newer_contract_is_preferred() -> None:
    with registry.declared(offering(TARGET_V1, TARGET, contract=2)):
        assert FUSED_QK_RMSNORM.choice("cpu", "native").targets == (TARGET,)


@pytest.mark.bug("sgl-project/sglang#24799", "test")
def test_another_contract_is_refused_with_all_versions() -> None:
    op = "mla_jax.fused_qk_rmsnorm"
    with (
        registry.declared(offering(f"{op}.v3", contract=3)),
        pytest.raises(registry.KernelUnavailableError) as raised,
    ):
        FUSED_QK_RMSNORM.choice("cpu", "native")
    assert str(raised.value) == (
        f"{op} has no native kernel on platform 'cpu': fake offers contract 3 of {op}, this package speaks 1 and 2"
    )


BOTH_CONTRACTS = """
import ml_dtypes, numpy as np, jax, jax.numpy as jnp
from custom_calls import registry
from custom_calls.fused_qk_rmsnorm import TARGET, TARGET_V1, fused_qk_rmsnorm

new = registry.library("cpu")
old = registry.probe("cpu", "fused_qk_rmsnorm_v1")
assert old.targets == {TARGET_V1} and TARGET_V1 not in new.targets, old.reason
rng = np.random.default_rng(7)
compared = 0
for dtype in (np.float32, ml_dtypes.bfloat16):
    for tokens, rank_q, rank_kv, rope in ((0, 8, 4, 2), (1, 1, 1, 0), (3, 7, 5, 3), (17, 96, 64, 16)):
        shapes = (tokens, rank_q), (tokens, rank_kv + rope), (rank_q,), (rank_kv,)
        arrays = [jnp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]

        def call(*arrays):
            return fused_qk_rmsnorm(*arrays, q_eps=1e-6, kv_eps=1e-3, kernels="native")

        jitted = jax.jit(call)  # one function: what it was compiled to with one library must not serve the other
        results = []
        for library, target in ((new, TARGET), (old, TARGET_V1), (new, TARGET)):
            with registry.declared(library):
                text = jitted.lower(*arrays).as_text()
                assert [one for one in (TARGET, TARGET_V1) if f"@{one}" in text] == [target]
                results += [call(*arrays), jitted(*arrays)]
        for result in results:
            for got, want in zip(result, results[0], strict=True):
                assert got.dtype == want.dtype == dtype and got.shape == want.shape
                assert np.asarray(got).tobytes() == np.asarray(want).tobytes()
                compared += 1
        assert not np.array_equal(np.asarray(results[0][0]), np.asarray(arrays[0])) or tokens == 0
print(compared)
"""


@needs_compiler
@pytest.mark.bug("sgl-project/sglang#24799", "test")
@pytest.mark.bug("sgl-project/sglang#14497", "test")
def test_both_contracts_give_the_same_bits(tmp_path: Path) -> None:
    csrc = ROOT / "csrc"
    build(
        tmp_path,
        "fused_qk_rmsnorm_v1",
        Path(__file__).parent / "native" / "fused_qk_rmsnorm_v1.cc",
        csrc / "fused_qk_rmsnorm" / "cpu_kernel.cc",
        csrc / "common" / "scratch.cc",
        defines=("MLA_ISA=baseline",),
    )
    # Of one instruction set: another one's vectors add up a row in another order.
    assert run_python(BOTH_CONTRACTS, tmp_path, MLA_JAX_CPU_ISA="baseline") == f"{2 * 4 * 6 * 2}\n"
