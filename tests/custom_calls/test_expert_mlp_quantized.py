"""expert_mlp over quantised experts: mixed containers, routing, unchosen experts full of NaN."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from expert_calls import WEIGHTS, spoiled, with_ids
from op_base import KERNELS, Builder, Call, OpTests, Rng, normal, same_bits
from oracle_quantized import FP8, LAYOUTS, random_weight

from custom_calls.errors import LayoutError, ShapeError
from custom_calls.expert_mlp import expert_mlp
from custom_calls.expert_mlp_quantized import TARGET
from custom_calls.quantized_tensor import QuantizedTensor, to_fnuz
from custom_calls.registry import library

BF16 = ml_dtypes.bfloat16
BOTH = pytest.mark.parametrize("kernels", KERNELS)
INT_MAX, INT_MIN = 2**31 - 1, -(2**31)


def run(
    x: Any, gate_up: Any, gate_up_scale: Any, down: Any, down_scale: Any, topk_ids: Any, topk_weights: Any,
    *, gate_up_layout: Any, down_layout: Any, **static: Any,
) -> jax.Array:  # fmt: skip
    into = QuantizedTensor(gate_up, gate_up_scale, *gate_up_layout)
    out = QuantizedTensor(down, down_scale, *down_layout)
    return expert_mlp(x, into, out, topk_ids, topk_weights, **static)


def make(
    tokens: int, width: int, inner: int, experts: int, k: int, into: str = "mxfp4", out: str | None = None
) -> Builder:
    def build(rng: Rng, dtype: str) -> Call:
        order = np.argsort(rng.random((tokens, max(experts, k))), axis=1)[:, :k]
        gate_up, gate_up_scale = random_weight(rng, (experts, 2 * inner, width), into)
        down, down_scale = random_weight(rng, (experts, width, inner), out or into)
        return Call(
            {
                "x": normal(rng, (tokens, width), dtype),
                "gate_up": gate_up,
                "gate_up_scale": gate_up_scale,
                "down": down,
                "down_scale": down_scale,
                "topk_ids": order.astype(np.int32),
                "topk_weights": rng.random((tokens, k)).astype(np.float32),
            },
            {"gate_up_layout": LAYOUTS[into], "down_layout": LAYOUTS[out or into]},
        )

    return build


PAIRS = (
    ("fp8_block128_fnuz", "fp8_block128"), ("mxfp4", "fp8_block128_fnuz"),
    ("mxfp4", "fp8_block128"), ("fp8_block24x40", "mxfp4"), ("fp8_tensor", "int4_group20_bfloat16"),
)  # fmt: skip


class TestExpertMlpQuantized(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(oracle_quantized.expert_mlp)
    primitive = "mla_jax.expert_mlp_quantized"
    op_name = "expert_mlp"
    cases = {  # noqa: RUF012
        "T0": make(0, 32, 32, 3, 2),
        "T1-E1-k1": make(1, 32, 32, 1, 1),
        **{layout: make(5, 64, 64, 4, 2, layout) for layout in LAYOUTS},
        **{f"{into}-and-{out}": make(6, 96, 64, 3, 2, into, out) for into, out in PAIRS},
        "T17-E4-k3": make(17, 64, 96, 4, 3),
        "ragged-blocks": make(3, 150, 130, 3, 2, "fp8_block128"),
        "ragged-small-blocks": make(3, 50, 33, 3, 2, "fp8_block24x40"),
        "odd-sizes": make(3, 33, 7, 5, 2, "fp8_channel"),
        "odd-sizes-fnuz": make(3, 33, 7, 5, 2, "fp8_block128_fnuz"),
        "T130-fnuz": make(130, 64, 32, 3, 2, "fp8_block128_fnuz"),
        # More than a tile's 128 pairs for one expert.
        "T140-k1": with_ids(make(140, 32, 32, 2, 1), 1),
        # So many that GPUs take them through shared memory.
        "T340-E17-k1": make(340, 64, 512, 17, 1),
        "wide": make(2, 576, 64, 2, 2, "mxfp4", "fp8_block128"),
        "one-expert-for-all": with_ids(make(17, 32, 32, 6, 1), 4),
        "duplicates": with_ids(make(17, 32, 64, 3, 6), 0, 1, 2),
        "padded": with_ids(make(17, 32, 32, 3, 4, "int4_group32"), 0, 2, 3),
        "out-of-range": with_ids(make(17, 32, 32, 3, 4), 1, -1, 3, 4, INT_MAX, INT_MIN),
        "none-chosen": with_ids(make(5, 32, 32, 3, 4), -1, 3, INT_MAX, INT_MIN),
    }
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((4,), "float32")},
            "argument 'x': expected shape (T, C), got (4,)",
        ),
        "x-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 64), "float16")},
            "argument 'x': expected dtype float32 or bfloat16, got float16",
        ),
        "gate-up-width": (
            {"x": jax.ShapeDtypeStruct((4, 32), "float32")},
            "argument 'gate_up': expected shape (E, 2 I, 32), got (3, 64, 64)",
        ),
        "gate-up-matrix": (
            {
                "gate_up": jax.ShapeDtypeStruct((64, 32), "uint8"),
                "gate_up_scale": jax.ShapeDtypeStruct((64, 2), "uint8"),
            },
            "argument 'gate_up': expected shape (E, 2 I, 64), got (64, 64)",
        ),
        "gate-up-odd": (
            {
                "gate_up": jax.ShapeDtypeStruct((3, 63, 32), "uint8"),
                "gate_up_scale": jax.ShapeDtypeStruct((3, 63, 2), "uint8"),
            },
            "argument 'gate_up': expected an even number of rows, got 63",
        ),
        "down-shape": (
            {
                "down": jax.ShapeDtypeStruct((3, 64, 32), "uint8"),
                "down_scale": jax.ShapeDtypeStruct((3, 64, 2), "uint8"),
            },
            "argument 'down': expected shape (3, 64, 32), got (3, 64, 64)",
        ),
        "down-experts": (
            {
                "down": jax.ShapeDtypeStruct((2, 64, 16), "uint8"),
                "down_scale": jax.ShapeDtypeStruct((2, 64, 1), "uint8"),
            },
            "argument 'down': expected shape (3, 64, 32), got (2, 64, 32)",
        ),
        "down-ragged-group": (
            {
                "gate_up": jax.ShapeDtypeStruct((3, 68, 32), "uint8"),
                "gate_up_scale": jax.ShapeDtypeStruct((3, 68, 2), "uint8"),
                "down": jax.ShapeDtypeStruct((3, 64, 17), "uint8"),
                "down_scale": jax.ShapeDtypeStruct((3, 64, 2), "uint8"),
            },
            "argument 'down': expected K to be a multiple of 32 for MXFP4, got 34",
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
    vmapped = (
        ("x", "topk_ids", "topk_weights"),
        ("gate_up", "gate_up_scale", "down", "down_scale"),
    )
    differentiable = ("x", "topk_weights")

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        return make(4, 64, 32, 3, 2)(rng, dtype)

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(70, 64, 64, 4, 2, "mxfp4", "fp8_block24x40")(rng, dtype)
        at = [slice(0, 1), slice(33, 34), slice(69, 70), slice(0, 2), slice(5, 30)]
        rowed = ("x", "topk_ids", "topk_weights")
        return call, [
            (rows, call.changed(**{name: call.arrays[name][rows] for name in rowed})) for rows in at
        ]


@pytest.mark.parametrize("size", [(40, 64, 32, 3, 1), (680, 96, 512, 40, 1), (891, 32, 1024, 27, 1)], ids=str)
@pytest.mark.parametrize("layout", ["mxfp4", "fp8_block128", "fp8_block128_fnuz", "int4_group32"])
def test_native_products_of_many_tokens(layout: str, size: tuple[int, int, int, int, int], rng: Rng) -> None:
    # The last two fill a GPU's blocks of 128 rows, and of 256.
    TestExpertMlpQuantized.check_call(make(*size, layout)(rng, "bfloat16"), "native")


@pytest.mark.parametrize(
    ("layout", "kernels"),
    [*((layout, "native") for layout in LAYOUTS), ("mxfp4", "reference"), ("fp8_block128", "reference")],
)
def test_unchosen_experts_are_not_read(layout: str, kernels: str, rng: Rng) -> None:
    call = with_ids(make(9, 64, 64, 5, 3, layout), 0, 3)(rng, "bfloat16")
    call.arrays["topk_ids"][[0, 7]], call.arrays["topk_ids"][1, 0] = 0, 3
    (got,) = TestExpertMlpQuantized.call(spoiled(call, 1, 2, 4), kernels)
    assert same_bits(got, TestExpertMlpQuantized.call(call, kernels)[0])
    (broken,) = TestExpertMlpQuantized.call(spoiled(call, 3), kernels)
    used = (call.arrays["topk_ids"] == 3).any(1)
    assert used.any() and not used.all()
    assert np.array_equal(np.isnan(np.asarray(broken, np.float32)).all(1), used)
    assert same_bits(np.asarray(broken)[~used], np.asarray(got)[~used])


@BOTH
def test_nothing_leaks_out_of_a_nan_row(kernels: str, rng: Rng) -> None:
    call = make(9, 64, 32, 4, 3, "mxfp4", "int4_group32")(rng, "float32")
    x = call.arrays["x"].copy()
    x[[2, 5]] = np.nan
    (got,) = TestExpertMlpQuantized.call(call.changed(x=x), kernels)
    (clean,) = TestExpertMlpQuantized.call(call, kernels)
    keep = [t for t in range(9) if t not in (2, 5)]
    assert np.isnan(np.asarray(got)[[2, 5]]).all()
    assert same_bits(np.asarray(got)[keep], np.asarray(clean)[keep])


@BOTH
def test_padded_entries_ignore_their_weight_and_row(kernels: str, rng: Rng) -> None:
    call = make(6, 64, 32, 4, 2)(rng, "bfloat16")
    ids, weights, x = (call.arrays[name].copy() for name in ("topk_ids", "topk_weights", "x"))
    ids[:, 1], weights[:, 1] = 4, np.nan
    ids[3], x[3] = [-1, 4], np.nan
    (got,) = TestExpertMlpQuantized.check_call(call.changed(topk_ids=ids, topk_weights=weights, x=x), kernels)
    assert same_bits(got[3], np.zeros(64, BF16))


@BOTH
def test_gate_rows_come_first_and_the_intermediate_is_rounded(kernels: str) -> None:
    # silu(96) = 96, so each inner value is 96 times up: 96 * 2.75 = 264 and 96 * 2.6875 = 258, both bfloat16,
    # but 96 * 2.71875 = 261 becomes 260 when it is stored (a tie that goes to the even one).
    one = np.zeros((1, 6, 2), np.float32)
    one[0, :3, 0], one[0, 3:, 0] = 96, [2.75, 2.6875, 2.71875]
    data = np.float32(one) / np.float32([96, 96, 96, 1 / 64, 1 / 64, 1 / 64])[None, :, None]
    scale = np.float32([[96, 96, 96, 1 / 64, 1 / 64, 1 / 64]])
    exact = data.astype(FP8)
    exact[0, 3:, 0] = np.array([176, 172, 174], np.float32).astype(FP8)  # 2.75 * 64 = 176; e4m3 keeps 4 bits
    values = exact.astype(np.float32)[0, :, 0] * scale[0]
    down = np.zeros((1, 2, 3), np.float32)
    down[0, 0], down[0, 1] = [1, -1, 0], [0, 0, 1]
    call = Call(
        {
            "x": np.array([[1, 0]], BF16),
            "gate_up": exact,
            "gate_up_scale": scale,
            "down": down.astype(FP8),
            "down_scale": np.ones((1, 2), np.float32),
            "topk_ids": np.zeros((1, 1), np.int32),
            "topk_weights": np.ones((1, 1), np.float32),
        },
        {"gate_up_layout": ("fp8_channel", (1, 0)), "down_layout": ("fp8_channel", (1, 0))},
    )
    hidden = (values[:3] * values[3:]).astype(BF16).astype(np.float32)
    want = np.array([hidden[0] - hidden[1], hidden[2]], BF16)
    assert same_bits(TestExpertMlpQuantized.call(call, kernels)[0][0], want)


# 300 tokens x 3 slots over 4 experts, one of them in every slot: duplicates add up in order.
MANY_PAIRS = with_ids(make(300, 64, 96, 4, 3, "mxfp4", "fp8_block24x40"), 0, 1, 2, 2, 2, 4)


def test_many_experts_and_more_pairs_than_a_tile(rng: Rng) -> None:
    call = MANY_PAIRS(rng, "bfloat16")
    assert (call.arrays["topk_ids"] == 2).sum() > 256
    TestExpertMlpQuantized.check_call(call, "native")


def test_with_matrix_tiles_pairs_are_the_same_in_any_call(rng: Rng) -> None:
    if jax.default_backend() != "cpu" or library("cpu").abi.get("isa") != "amx":
        pytest.skip("no AMX here: more than 64 pairs of an expert are summed in another order")
    call = MANY_PAIRS(rng, "bfloat16")
    (got,) = TestExpertMlpQuantized.call(call, "native")
    for rows in (slice(0, 1), slice(140, 200), slice(299, 300)):
        part = call.changed(**{name: call.arrays[name][rows] for name in ("x", "topk_ids", "topk_weights")})
        assert same_bits(np.asarray(got)[rows], TestExpertMlpQuantized.call(part, "native")[0])


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recoded_experts_give_the_same_bits(dtype: str, kernels: str, rng: Rng) -> None:
    # Codes of half the value under scales of twice the value; either weight alone, and both.
    call = make(5, 64, 40, 3, 2, "fp8_block24x40", "fp8_channel")(rng, dtype)
    into, out = (
        QuantizedTensor(
            jnp.asarray(call.arrays[name]),
            jnp.asarray(call.arrays[f"{name}_scale"]),
            *call.static[f"{name}_layout"],
        )
        for name in WEIGHTS
    )
    rest = [jnp.asarray(call.arrays[name]) for name in ("topk_ids", "topk_weights")]
    x = jnp.asarray(call.arrays["x"])
    want = expert_mlp(x, into, out, *rest, kernels=kernels)
    for gate_up, down in ((to_fnuz(into), out), (into, to_fnuz(out)), (to_fnuz(into), to_fnuz(out))):
        assert same_bits(expert_mlp(x, gate_up, down, *rest, kernels=kernels), want)


def test_both_weights_are_quantised_or_neither(rng: Rng) -> None:
    arrays = {
        name: jnp.asarray(value) for name, value in make(4, 64, 32, 3, 2)(rng, "float32").arrays.items()
    }
    into = QuantizedTensor(arrays["gate_up"], arrays["gate_up_scale"], "mxfp4")
    out = QuantizedTensor(arrays["down"], arrays["down_scale"], "mxfp4")
    rest = (arrays["topk_ids"], arrays["topk_weights"])
    for gate_up, down in ((into, jnp.ones((3, 64, 32))), (jnp.ones((3, 64, 64)), out)):
        with pytest.raises(LayoutError) as raised:
            expert_mlp(arrays["x"], gate_up, down, *rest)
        assert str(raised.value) == (
            "expert_mlp: arguments 'gate_up' and 'down': expected both or neither to be quantised"
        )
    turned = QuantizedTensor(out.data, jnp.swapaxes(out.scale, 1, 2), "mxfp4", scale_layout="column_major")
    with pytest.raises(LayoutError, match="expert_mlp: argument 'down': expected row_major scales"):
        expert_mlp(arrays["x"], into, turned, *rest)
    assert issubclass(LayoutError, TypeError) and issubclass(ShapeError, ValueError)


# ---- the kernel's own checks ----

GOOD: dict[str, Any] = {
    "x": np.ones((4, 64), np.float32),
    "gate_up": np.zeros((3, 64, 32), np.uint8),
    "gate_up_scale": np.zeros((3, 64, 2), np.uint8),
    "down": np.zeros((3, 64, 16), np.uint8),
    "down_scale": np.zeros((3, 64, 1), np.uint8),
    "topk_ids": np.zeros((4, 2), np.int32),
    "topk_weights": np.zeros((4, 2), np.float32),
}
NAMED = {f"{w}_{n}": v for w in WEIGHTS for n, v in (("code", 0), ("block_n", 1), ("block_k", 32))}

FFI_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "code": (
        {"down_code": 5},
        "argument 'code': expected 0 (e2m1), 1 (e4m3), 2 (int4), 3 (e4m3fnuz) or 4 (e2m1, vnni), got 5",
    ),
    "gate-up-type": ({"gate_up_code": 1}, "argument 'gate_up': expected float8_e4m3fn, got uint8"),
    "down-type": ({"down_code": 1}, "argument 'down': expected float8_e4m3fn, got uint8"),
    "gate-up-scale": (
        {"gate_up_scale": np.zeros((3, 64, 1), np.uint8)},
        "argument 'scale': expected 384 elements, got shape (3, 64, 1)",
    ),
    "down-scale": (
        {"down_scale": np.zeros((2, 64, 1), np.uint8)},
        "argument 'scale': expected 192 elements, got shape (2, 64, 1)",
    ),
    "x-type": (
        {"x": np.ones((4, 64), np.float16)},
        "argument 'x': expected float32 or bfloat16, got float16",
    ),
    "x-rank": ({"x": np.ones((4, 1, 64), np.float32)}, "argument 'x': expected rank 2, got shape (4, 1, 64)"),
    "ids-type": (
        {"topk_ids": np.zeros((4, 2), np.uint32)},
        "argument 'topk_ids': expected int32, got uint32",
    ),
    "weights-type": (
        {"topk_weights": np.zeros((4, 2), BF16)},
        "argument 'topk_weights': expected float32 (the type of 'topk_weights'), got bfloat16",
    ),
    "y-type": ({"dtype": BF16}, "argument 'y': expected float32 (the type of 'x'), got bfloat16"),
    "gate-up-rank": (
        {"gate_up": np.zeros((64, 32), np.uint8), "gate_up_scale": np.zeros((64, 2), np.uint8)},
        "argument 'gate_up': expected rank 3, got shape (64, 32)",
    ),
    "down-rank": (
        {"down": np.zeros((1, 3, 64, 16), np.uint8), "down_scale": np.zeros((1, 3, 64, 1), np.uint8)},
        "argument 'down': expected rank 3, got shape (1, 3, 64, 16)",
    ),
    "down-experts": (
        {"down": np.zeros((2, 64, 16), np.uint8), "down_scale": np.zeros((2, 64, 1), np.uint8)},
        "argument 'down': expected as many experts as 'gate_up' and the width of 'x' in rows, "
        "got shape (2, 64, 16)",
    ),
    "down-rows": (
        {"down": np.zeros((3, 63, 16), np.uint8), "down_scale": np.zeros((3, 63, 1), np.uint8)},
        "argument 'down': expected as many experts as 'gate_up' and the width of 'x' in rows, "
        "got shape (3, 63, 16)",
    ),
    "gate-up-inner": (
        {"down": np.zeros((3, 64, 32), np.uint8), "down_scale": np.zeros((3, 64, 2), np.uint8)},
        "argument 'gate_up': expected (experts, 2 * inner, hidden) for inner 64 and hidden 64, got 64 x 64",
    ),
    "ids-tokens": (
        {"topk_ids": np.zeros((5, 2), np.int32)},
        "argument 'topk_ids': expected shape (4, any), got shape (5, 2)",
    ),
    "weights-slots": (
        {"topk_weights": np.zeros((4, 3), np.float32)},
        "argument 'topk_weights': expected shape (4, 2), got shape (4, 3)",
    ),
    "y-shape": ({"out": (4, 32)}, "argument 'y': expected shape (4, 64), got shape (4, 32)"),
}


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    changes, message = FFI_ERRORS[name]
    arrays = [jnp.asarray(changes.get(key, value)) for key, value in GOOD.items()]
    out = jax.ShapeDtypeStruct(changes.get("out", (4, 64)), changes.get("dtype", np.float32))
    named = {key: np.int64(changes.get(key, value)) for key, value in NAMED.items()}
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.block_until_ready(jax.ffi.ffi_call(TARGET, out)(*arrays, **named))
    assert f"mla_jax.expert_mlp_quantized: {message}" in str(raised.value)
