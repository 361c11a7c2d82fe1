"""expert_mlp: routing, padded ids, duplicates, isolation of rows and experts."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import oracle
import pytest
from expert_calls import with_ids
from op_base import KERNELS, Builder, Call, OpTests, Rng, normal, same_bits

from custom_calls.expert_mlp import expert_mlp

INT_MAX, INT_MIN = 2**31 - 1, -(2**31)


def make(tokens: int, width: int, inner: int, experts: int, k: int, scale: float = 1.0) -> Builder:
    def build(rng: Rng, dtype: str) -> Call:
        order = np.argsort(rng.random((tokens, max(experts, k))), axis=1)[:, :k]
        return Call(
            {
                "x": normal(rng, (tokens, width), dtype, scale),
                "gate_up": normal(rng, (experts, 2 * inner, width), dtype, 1 / np.sqrt(width)),
                "down": normal(rng, (experts, width, inner), dtype, 1 / np.sqrt(inner)),
                "topk_ids": order.astype(np.int32),
                "topk_weights": rng.random((tokens, k)).astype(np.float32),
            },
            extreme=scale > 100,
        )

    return build


class TestExpertMlp(OpTests):
    function = staticmethod(expert_mlp)
    oracle = staticmethod(oracle.expert_mlp)
    primitive = "mla_jax.expert_mlp"
    op_name = "expert_mlp"
    cases = {  # noqa: RUF012
        "T0": make(0, 8, 4, 3, 2),
        "T1-E1-k1": make(1, 7, 1, 1, 1),
        "T1-E8-k6": make(1, 40, 33, 8, 6),
        "T3-E5-k2": make(3, 33, 7, 5, 2),
        "T17-E4-k3": make(17, 24, 17, 4, 3),
        "T65-E8-k2": make(65, 40, 12, 8, 2),
        "T140-E2-k1": make(140, 9, 5, 2, 1),
        "wide": make(2, 300, 70, 3, 2),
        # More experts than threads that place tokens on a GPU, more slots than it adds at once.
        "T30-E520-k11": make(30, 9, 2, 520, 11),
        "one-expert-for-all": with_ids(make(17, 24, 9, 6, 1), 4),
        "duplicates": with_ids(make(17, 24, 9, 3, 6), 0, 1, 2),
        "padded": with_ids(make(17, 24, 9, 3, 4), 0, 2, 3),
        "out-of-range": with_ids(make(17, 24, 9, 3, 4), 1, -1, 3, 4, INT_MAX, INT_MIN),
        "none-chosen": with_ids(make(5, 24, 9, 3, 4), -1, 3, INT_MAX, INT_MIN),
        # Gates of +-60 and more: silu is 0 or the identity, and exp must not overflow into NaN.
        "saturated": make(9, 24, 9, 3, 2, scale=200.0),
    }
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((4,), "float32")},
            "argument 'x': expected shape (T, C), got (4,)",
        ),
        "x-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 8), "float16")},
            "argument 'x': expected dtype float32 or bfloat16, got float16",
        ),
        "gate-up-width": (
            {"gate_up": jax.ShapeDtypeStruct((3, 10, 9), "float32")},
            "argument 'gate_up': expected shape (E, 2 I, 8), got (3, 10, 9)",
        ),
        "gate-up-odd": (
            {"gate_up": jax.ShapeDtypeStruct((3, 9, 8), "float32")},
            "argument 'gate_up': expected an even number of rows, got 9",
        ),
        "gate-up-dtype": (
            {"gate_up": jax.ShapeDtypeStruct((3, 10, 8), "bfloat16")},
            "argument 'gate_up': expected dtype float32, got bfloat16",
        ),
        "down-shape": (
            {"down": jax.ShapeDtypeStruct((3, 5, 8), "float32")},
            "argument 'down': expected shape (3, 8, 5), got (3, 5, 8)",
        ),
        "down-dtype": (
            {"down": jax.ShapeDtypeStruct((3, 8, 5), "bfloat16")},
            "argument 'down': expected dtype float32, got bfloat16",
        ),
        "ids-tokens": (
            {"topk_ids": jax.ShapeDtypeStruct((5, 2), "int32")},
            "argument 'topk_ids': expected shape (4, k), got (5, 2)",
        ),
        "ids-dtype": (
            {"topk_ids": jax.ShapeDtypeStruct((4, 2), "uint32")},
            "argument 'topk_ids': expected dtype int32, got uint32",
        ),
        "weights-shape": (
            {"topk_weights": jax.ShapeDtypeStruct((4, 3), "float32")},
            "argument 'topk_weights': expected shape (4, 2), got (4, 3)",
        ),
        "weights-dtype": (
            {"topk_weights": jax.ShapeDtypeStruct((4, 2), "bfloat16")},
            "argument 'topk_weights': expected dtype float32, got bfloat16",
        ),
    }
    vmapped = (("x", "topk_ids", "topk_weights"), ("gate_up", "down"))
    differentiable = ("x", "gate_up", "down", "topk_weights")

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        return make(4, 8, 5, 3, 2)(rng, dtype)

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(70, 33, 20, 4, 2)(rng, dtype)
        at = [slice(0, 1), slice(33, 34), slice(69, 70), slice(0, 2), slice(5, 30)]
        rowed = ("x", "topk_ids", "topk_weights")
        return call, [
            (rows, call.changed(**{name: call.arrays[name][rows] for name in rowed})) for rows in at
        ]


@pytest.mark.parametrize(
    "size", [(5, 24, 16, 3, 2), (17, 24, 16, 4, 3), (680, 72, 512, 40, 1), (891, 72, 1024, 27, 1)], ids=str
)
def test_native_products_on_matrix_cores(size: tuple[int, int, int, int, int], rng: Rng) -> None:
    # Widths in whole runs of 16 bytes. The last two fill a GPU's blocks of 128 rows, and of 256.
    TestExpertMlp.check_call(make(*size)(rng, "bfloat16"), "native")


@pytest.mark.parametrize("kernels", KERNELS)
def test_nothing_leaks_out_of_a_nan_row(kernels: str, rng: Rng) -> None:
    call = make(9, 24, 7, 4, 3)(rng, "float32")
    x = call.arrays["x"].copy()
    x[[2, 5]] = np.nan
    (got,) = TestExpertMlp.call(call.changed(x=x), kernels)
    (clean,) = TestExpertMlp.call(call, kernels)
    keep = [t for t in range(9) if t not in (2, 5)]
    assert np.isnan(np.asarray(got)[[2, 5]]).all()
    assert same_bits(np.asarray(got)[keep], np.asarray(clean)[keep])


@pytest.mark.parametrize("kernels", KERNELS)
def test_padded_entries_ignore_their_weight_and_row(kernels: str, rng: Rng) -> None:
    call = make(6, 24, 7, 4, 2)(rng, "bfloat16")
    ids, weights, x = (call.arrays[name].copy() for name in ("topk_ids", "topk_weights", "x"))
    ids[:, 1], weights[:, 1] = 4, np.nan
    ids[3], x[3] = [-1, 4], np.nan
    (got,) = TestExpertMlp.check_call(call.changed(topk_ids=ids, topk_weights=weights, x=x), kernels)
    assert same_bits(got[3], np.zeros(24, ml_dtypes.bfloat16))


@pytest.mark.parametrize("kernels", KERNELS)
def test_only_chosen_experts_matter(kernels: str, rng: Rng, poison: Any) -> None:
    call = with_ids(make(9, 24, 7, 4, 3), 0, 2)(rng, "float32")
    gate_up, down = call.arrays["gate_up"].copy(), call.arrays["down"].copy()
    for expert in (1, 3):
        gate_up[expert], down[expert] = poison(gate_up[expert].shape), poison(down[expert].shape)
    (got,) = TestExpertMlp.call(call.changed(gate_up=gate_up, down=down), kernels)
    assert same_bits(got, TestExpertMlp.call(call, kernels)[0])


@pytest.mark.parametrize("kernels", KERNELS)
def test_intermediate_is_rounded_like_a_stored_activation(kernels: str) -> None:
    # silu(88) is 88; 88 * 2.9296875 = 257.8125 is stored as 258 in bfloat16, and 258 - 257.8125 = 0.1875
    # shows in the difference to 256 of the other column.
    bf16 = ml_dtypes.bfloat16
    call = Call(
        {
            "x": np.array([[1.0, 0.0]], bf16),
            "gate_up": np.array([[[88, 0], [88, 0], [2.9296875, 0], [2.90625, 0]]], bf16),
            "down": np.array([[[1, -1], [0, 0]]], bf16),
            "topk_ids": np.zeros((1, 1), np.int32),
            "topk_weights": np.ones((1, 1), np.float32),
        }
    )
    hidden = (np.float32([88, 88]) * call.arrays["gate_up"][0, 2:, 0].astype(np.float32)).astype(bf16)
    (got,) = TestExpertMlp.call(call, kernels)
    want = np.float32(hidden[0]) - np.float32(hidden[1])
    assert want != np.float32(88) * np.float32(2.9296875 - 2.90625)
    assert float(got[0, 0]) == float(bf16(want))
