"""absorb over a quantised kv_b_proj: both products, NaN outside the ranges, blocks across heads, no copy behind."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, check, integers, normal, poison, same_bits
from oracle_quantized import FP8, LAYOUTS, NAN_CODES, NAN_SCALE, random_weight

from custom_calls.absorb import absorb
from custom_calls.absorb_quantized import TARGET
from custom_calls.errors import LayoutError
from custom_calls.linear import linear
from custom_calls.quantized_tensor import QuantizedTensor, to_fnuz

BF16 = ml_dtypes.bfloat16
BOTH = pytest.mark.parametrize("kernels", KERNELS)
CONTRACTS = ("rows", "columns")


def run(x: Any, data: Any, scale: Any, *, container: str, block: tuple[int, int], **static: Any) -> jax.Array:
    return absorb(x, QuantizedTensor(data, scale, container, block), **static)


def spoil(data: np.ndarray, scale: np.ndarray, rows: np.ndarray) -> None:
    """NaN in these rows of a matrix, as far as its container has one for single rows."""
    if data.dtype in NAN_CODES:
        data.view(np.uint8)[rows] = NAN_CODES[data.dtype]
    elif scale.dtype == np.uint8:
        scale[rows] = NAN_SCALE
    else:
        scale[rows] = np.nan


def make(
    tokens: int,
    heads: int,
    rank: int,
    rows: int,
    contract: str,
    layout: str,
    row_offset: int = 0,
    rows_behind: int = 0,
    x_offset: int = 0,
    x_behind: int = 0,
    steep: bool = False,
) -> Builder:
    """Whatever the static ranges leave out is NaN. `steep`: of MXFP4, scales on both sides of 2."""

    def build(rng: Rng, dtype: str) -> Call:
        used = rows if contract == "rows" else rank
        x = poison((tokens, heads, x_offset + used + x_behind), dtype)
        x[:, :, x_offset : x_offset + used] = normal(rng, (tokens, heads, used), dtype)
        of_head = row_offset + rows + rows_behind
        data, scale = random_weight(rng, (heads * of_head, rank), layout)
        if steep:
            scale = rng.integers(122, 134, scale.shape).astype(np.uint8)
        within = np.arange(heads * of_head) % of_head
        spoil(data, scale, (within < row_offset) | (within >= row_offset + rows))
        container, block = LAYOUTS[layout]
        static = {"contract": contract, "row_offset": row_offset, "rows": rows, "x_offset": x_offset}
        return Call(
            {"x": x, "data": data, "scale": scale}, {**static, "container": container, "block": block}
        )

    return build


def both(name: str, *args: Any, layout: str, **kwargs: Any) -> dict[str, Builder]:
    return {f"{layout}-{name}-{contract}": make(*args, contract, layout, **kwargs) for contract in CONTRACTS}


def everywhere(name: str, *args: Any, **kwargs: Any) -> dict[str, Builder]:
    found: dict[str, Builder] = {}
    for layout in LAYOUTS:
        found |= both(name, *args, layout=layout, **kwargs)
    return found


class TestAbsorbQuantized(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(oracle_quantized.absorb)
    primitive = "mla_jax.absorb_quantized"
    op_name = "absorb"
    cases = {  # noqa: RUF012
        **both("T0", 0, 3, 64, 4, layout="mxfp4"),
        **everywhere("T1", 1, 3, 160, 9, row_offset=2, rows_behind=3, x_offset=1, x_behind=2),
        **both("T6", 6, 2, 160, 7, layout="mxfp4", row_offset=1, x_offset=3),
        **both("T6", 6, 2, 180, 7, layout="int4_group20_bfloat16", row_offset=1, x_offset=3),
        # 96 rows a head in blocks of 128: a block of scales spans heads, and a head two blocks.
        **both("spans-heads", 3, 4, 256, 40, layout="fp8_block128", row_offset=8, rows_behind=48),
        **both("spans-heads-behind", 2, 4, 256, 48, layout="fp8_block128", row_offset=48, x_behind=1),
        **both("ragged-rank", 5, 3, 130, 17, layout="fp8_block128"),
        **both("ragged-rank", 5, 3, 33, 17, layout="fp8_block24x40", row_offset=5),
        **both("ragged-rank", 5, 3, 50, 17, layout="int4_group20_bfloat16", rows_behind=5),
        **both("rank1", 2, 3, 1, 1, layout="fp8_channel"),
        # More tokens than a task (64), at the size of a real head.
        **both("T65", 65, 2, 512, 128, layout="mxfp4", row_offset=128, x_offset=2),
        # Aligned as models have it, which is what GPUs decode next to their matrix cores.
        **both("T5-aligned", 5, 2, 256, 128, layout="mxfp4", row_offset=128, x_offset=8),
        **both("T12-aligned", 12, 2, 256, 128, layout="fp8_block128", row_offset=128, x_offset=8),
        **both("T65-aligned", 65, 2, 288, 136, layout="mxfp4", row_offset=128, x_offset=8),
        **both("T17-aligned", 17, 2, 256, 128, layout="fp8_block128", row_offset=128, x_offset=8),
        **both("T9-aligned", 9, 2, 256, 128, layout="fp8_block128_fnuz", row_offset=128, x_offset=8),
        **both("T130-aligned", 130, 2, 256, 128, layout="fp8_block128_fnuz", row_offset=128, x_offset=8),
        **both("ragged-rank", 5, 3, 33, 17, layout="fp8_block128_fnuz", row_offset=5),
        # The latent columns of models, for which a GPU may have kernels by the number of tokens.
        **both(
            "T3-R512", 3, 2, 512, 104, layout="mxfp4", row_offset=8, rows_behind=8, x_offset=8, x_behind=8
        ),
        **both("T16-R512", 16, 2, 512, 40, layout="mxfp4", steep=True),
        **both("T30-R512", 30, 1, 512, 128, layout="mxfp4", row_offset=128, steep=True),
        **both("T50-R512", 50, 2, 512, 96, layout="mxfp4", rows_behind=32, x_offset=8),
        **both("T100-R512", 100, 1, 512, 128, layout="mxfp4", steep=True),
        **both("T136-R512", 136, 2, 512, 136, layout="mxfp4", row_offset=8),
        # More rows than are decoded at a time (64), whatever the number of threads.
        **both("many-rows", 6, 2, 160, 130, layout="fp8_block24x40", row_offset=3),
        **both("T70", 70, 2, 64, 5, layout="fp8_block24x40", rows_behind=1),
    }
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((4, 6), "float32")},
            "argument 'x': expected shape (T, H, D), got (4, 6)",
        ),
        "x-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 3, 7), "int8")},
            "argument 'x': expected dtype float32 or bfloat16, got int8",
        ),
        "contract": ({"contract": "row"}, "argument 'contract': expected 'rows' or 'columns', got 'row'"),
        "weight-per-head": (
            {"data": jax.ShapeDtypeStruct((3, 9, 32), "uint8"), "scale": jax.ShapeDtypeStruct((3, 9, 2), "uint8")},
            "argument 'weight': expected shape (H * W, R), got (3, 9, 64)",
        ),
        "weight-heads": (
            {"data": jax.ShapeDtypeStruct((28, 32), "uint8"), "scale": jax.ShapeDtypeStruct((28, 2), "uint8")},
            "argument 'weight': expected rows in a multiple of x's 3 heads, got (28, 64)",
        ),
        "no-heads": (
            {"x": jax.ShapeDtypeStruct((4, 0, 7), "float32")},
            "argument 'weight': expected rows in a multiple of x's 0 heads, got (27, 64)",
        ),
        "ragged-group": (
            {"data": jax.ShapeDtypeStruct((27, 17), "uint8"), "scale": jax.ShapeDtypeStruct((27, 2), "uint8")},
            "argument 'weight': expected K to be a multiple of 32 for MXFP4, got 34",
        ),
        "rows-too-many": (
            {"row_offset": 5, "rows": 5},
            "argument 'row_offset, rows': expected a range inside [0, 9) of weight's rows, got [5, 10)",
        ),
        "rows-empty": (
            {"rows": 0},
            "argument 'row_offset, rows': expected a range inside [0, 9) of weight's rows, got [2, 2)",
        ),
        "row-negative": (
            {"row_offset": -1},
            "argument 'row_offset, rows': expected a range inside [0, 9) of weight's rows, got [-1, 3)",
        ),
        "x-offset": (
            {"x_offset": 4},
            "argument 'x_offset': expected a range inside [0, 7) of x's columns, got [4, 8)",
        ),
        "x-offset-columns": (
            {"contract": "columns", "x_offset": 0},
            "argument 'x_offset': expected a range inside [0, 7) of x's columns, got [0, 64)",
        ),
    }  # fmt: skip
    vmapped = (("x",), ("data", "scale"), ("x", "data", "scale"))
    differentiable = ("x",)

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        call = make(4, 3, 64, 4, "rows", "mxfp4", row_offset=2, rows_behind=3, x_offset=1, x_behind=2)(
            rng, dtype
        )
        # Nothing is NaN here: permuted rows must not bring one in.
        data, scale = random_weight(rng, (27, 64), "mxfp4")
        return call.changed(x=normal(rng, (4, 3, 7), dtype), data=data, scale=scale)

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(70, 3, 64, 19, "rows", "mxfp4", row_offset=2)(rng, dtype)
        at = [slice(0, 1), slice(33, 34), slice(69, 70), slice(5, 22), slice(64, 70)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_do_not_depend_on_the_batch(dtype: str, layout: str, contract: str, rng: Rng) -> None:
    call = make(70, 2, 160, 19, contract, layout, row_offset=2)(rng, dtype)
    (full,) = TestAbsorbQuantized.call(call, "native")
    check(full, TestAbsorbQuantized.expected(call)[0], f"absorb_quantized {layout}")
    for rows in (slice(0, 1), slice(66, 70), slice(5, 22)):
        (part,) = TestAbsorbQuantized.call(call.changed(x=call.arrays["x"][rows]), "native")
        assert same_bits(np.asarray(full)[rows], part), rows


@BOTH
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("layout", ["mxfp4", "fp8_tensor", "int4_group32"])
def test_sums_of_integers_are_exact(layout: str, contract: str, kernels: str, rng: Rng) -> None:
    # With scales of 2 (MXFP4: its halves become integers) every sum is exact, and many are bfloat16 ties.
    call = make(17, 3, 64, 33, contract, layout)(rng, "bfloat16")
    scale, data = call.arrays["scale"], call.arrays["data"]
    ones = np.full(scale.shape, 128 if layout == "mxfp4" else 1.0, scale.dtype)
    if layout == "fp8_tensor":
        data = integers(rng, data.shape, FP8, 16)
    call = call.changed(x=integers(rng, call.arrays["x"].shape, BF16, 16), scale=ones, data=data)
    (got,) = TestAbsorbQuantized.call(call, kernels)
    exact = TestAbsorbQuantized.expected(call)[0].value.astype(np.float32)
    assert (exact.view(np.uint32) & 0xFFFF == 0x8000).sum() > 50
    assert same_bits(got, exact.astype(BF16))


@BOTH
@pytest.mark.parametrize("contract", CONTRACTS)
def test_nan_stays_with_its_token_and_head(contract: str, kernels: str, rng: Rng) -> None:
    call = make(9, 3, 64, 5, contract, "mxfp4")(rng, "bfloat16")
    (clean,) = TestAbsorbQuantized.call(call, kernels)
    x = call.arrays["x"].copy()
    x[4, 1] = np.nan
    (got,) = TestAbsorbQuantized.call(call.changed(x=x), kernels)
    assert np.isnan(np.asarray(got)[4, 1].astype(np.float32)).all()
    keep = np.ones((9, 3), bool)
    keep[4, 1] = False
    assert same_bits(np.asarray(got)[keep], np.asarray(clean)[keep])


@BOTH
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recoded_weights_give_the_same_bits(dtype: str, contract: str, kernels: str, rng: Rng) -> None:
    # Codes of half the value under scales of twice the value. At sizes that GPUs decode next to their matrix cores,
    # but for an odd rank.
    for layout, tokens, rank, rows in (("fp8_block128", 12, 256, 128), ("fp8_block24x40", 5, 33, 7)):
        call = make(tokens, 2, rank, rows, contract, layout)(rng, dtype)
        x, data, scale = (jnp.asarray(call.arrays[name]) for name in ("x", "data", "scale"))
        weight = QuantizedTensor(data, scale, *LAYOUTS[layout])
        plain, recoded = (
            absorb(x, w, contract=contract, row_offset=0, rows=rows, kernels=kernels)
            for w in (weight, to_fnuz(weight))
        )
        assert same_bits(recoded, plain)


def test_weights_keep_row_major_scales(rng: Rng) -> None:
    data, scale = random_weight(rng, (64, 64), "mxfp4")
    weight = QuantizedTensor(jnp.asarray(data), jnp.asarray(scale.T), "mxfp4", scale_layout="column_major")
    with pytest.raises(LayoutError, match="absorb: argument 'weight': expected row_major scales"):
        absorb(jnp.ones((2, 4, 64)), weight, contract="columns", row_offset=0, rows=4)


# ---- sglang#25463: nothing is copied between the products ----

TOKENS, HEADS, RANK, V = 5, 4, 64, 32
COPIES = re.compile(
    r"= \S+ (copy|transpose|copy-start|slice|concatenate|dynamic-slice)\(|kind=kLoop|kind=kInput"
)


def modules_copies(function: Callable[..., Any], *arrays: Any) -> tuple[list[str], str]:
    text = jax.jit(function).lower(*arrays).compile().as_text()
    return [line.strip() for line in text.splitlines() if COPIES.search(line)], text


def mxfp4(rng: Rng, shape: tuple[int, int]) -> QuantizedTensor:
    data, scale = random_weight(rng, shape, "mxfp4")
    return QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.bug("sgl-project/sglang#25463", "test")
def test_nothing_is_copied_between_absorb_and_o_proj(dtype: str, rng: Rng) -> None:
    x = jnp.asarray(normal(rng, (TOKENS, HEADS, RANK), dtype))
    kv_b, o_proj = mxfp4(rng, (HEADS * 2 * V, RANK)), mxfp4(rng, (96, HEADS * V))

    def block(x: jax.Array, kv_b: QuantizedTensor, o_proj: QuantizedTensor) -> jax.Array:
        out = absorb(x, kv_b, contract="columns", row_offset=V, rows=V, kernels="native")
        return linear(out.reshape(TOKENS, HEADS * V), o_proj, kernels="native")

    copies, text = modules_copies(block, x, kv_b, o_proj)
    assert copies == []
    # Two calls, and a change of shape that moves nothing, are the whole module.
    kinds = re.findall(r"^\s*(?:ROOT )?%?\S+ = \S+ ([\w-]+)\(", text, re.MULTILINE)
    assert set(kinds) <= {"parameter", "custom-call", "bitcast"} and kinds.count("custom-call") == 2, text

    def head_major(x: jax.Array, kv_b: QuantizedTensor, o_proj: QuantizedTensor) -> jax.Array:
        out = absorb(x, kv_b, contract="columns", row_offset=V, rows=V, kernels="native")
        out = jax.lax.optimization_barrier(jnp.swapaxes(out, 0, 1))
        return linear(jnp.swapaxes(out, 0, 1).reshape(TOKENS, HEADS * V), o_proj, kernels="native")

    assert modules_copies(head_major, x, kv_b, o_proj)[0] != [], "this test could not see a copy"


def test_the_weight_is_read_whole_by_both_products(rng: Rng) -> None:
    # A row range of kv_b_proj is an attribute of the call: a slice in front of it would be a copy.
    kv_b = mxfp4(rng, (HEADS * 2 * V, RANK))
    q = jnp.asarray(normal(rng, (TOKENS, HEADS, V + 8)))

    def both_products(q: jax.Array, kv_b: QuantizedTensor) -> jax.Array:
        latent = absorb(q, kv_b, contract="rows", row_offset=0, rows=V, x_offset=8, kernels="native")
        return absorb(latent, kv_b, contract="columns", row_offset=V, rows=V, kernels="native")

    copies, text = modules_copies(both_products, q, kv_b)
    assert copies == [] and text.count(TARGET) >= 2


# ---- the kernel's own checks ----

X, DATA, SCALE = np.ones((2, 3, 7), np.float32), np.zeros((27, 32), np.uint8), np.zeros((27, 2), np.uint8)
NAMED = {
    "x_offset": 1, "row_offset": 2, "rows_used": 4, "contract": 0, "code": 0, "block_n": 1, "block_k": 32
}  # fmt: skip
WIDE = {"x": np.ones((2, 3, 64), np.float32), "contract": 1, "x_offset": 0, "out": (2, 3, 4)}

FFI_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"code": 7}, "argument 'code': expected 0 (e2m1), 1 (e4m3), 2 (int4) or 3 (e4m3fnuz), got 7"),
    "data-stack": (
        {"data": DATA[None].repeat(2, 0), "scale": SCALE[None].repeat(2, 0)},
        "argument 'data': expected (heads * rows, rank) for 3 heads, got shape (2, 27, 32)",
    ),
    "data-heads": (
        {"data": DATA[:26], "scale": SCALE[:26]},
        "argument 'data': expected (heads * rows, rank) for 3 heads, got shape (26, 32)",
    ),
    "no-heads": (
        {"x": X[:, :0]}, "argument 'data': expected (heads * rows, rank) for 0 heads, got shape (27, 32)"
    ),
    "scale": ({"scale": SCALE[:26]}, "argument 'scale': expected 54 elements, got shape (26, 2)"),
    "x-type": ({"x": X.astype(np.int32)}, "argument 'x': expected float32 or bfloat16, got int32"),
    "x-rank": ({"x": X[0]}, "argument 'x': expected rank 3, got shape (3, 7)"),
    "y-type": ({"dtype": BF16}, "argument 'y': expected float32 (the type of 'x'), got bfloat16"),
    "y-shape": ({"out": (2, 3, 63)}, "argument 'y': expected shape (2, 3, 64), got shape (2, 3, 63)"),
    "y-shape-columns": (
        {**WIDE, "out": (2, 3, 64)}, "argument 'y': expected shape (2, 3, 4), got shape (2, 3, 64)"
    ),
    "contract": ({"contract": 2}, "argument 'contract': expected 0 (rows) or 1 (columns), got 2"),
    "rows-used": (
        {"rows_used": 10}, "argument 'rows_used': expected between 0 and 9 (the rows of a head), got 10"
    ),
    "rows-negative": (
        {"rows_used": -1}, "argument 'rows_used': expected between 0 and 9 (the rows of a head), got -1"
    ),
    "row-offset": (
        {"row_offset": 6},
        "argument 'row_offset': expected 0 <= row_offset and row_offset + 4 <= 9 (the rows of a head), got 6",
    ),
    "row-offset-negative": (
        {"row_offset": -1},
        "argument 'row_offset': expected 0 <= row_offset and row_offset + 4 <= 9 (the rows of a head), got -1",
    ),
    "x-offset": (
        {"x_offset": 4},
        "argument 'x_offset': expected 0 <= x_offset and x_offset + 4 <= 7 (the width of 'x'), got 4",
    ),
    "x-offset-columns": (
        {**WIDE, "x_offset": 1},
        "argument 'x_offset': expected 0 <= x_offset and x_offset + 64 <= 64 (the width of 'x'), got 1",
    ),
    "x-offset-huge": (
        {"x_offset": 2**63 - 2},
        f"argument 'x_offset': expected 0 <= x_offset and x_offset + 4 <= 7 (the width of 'x'), got {2**63 - 2}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    changes, message = FFI_ERRORS[name]
    arrays = [changes.get(key, value) for key, value in (("x", X), ("data", DATA), ("scale", SCALE))]
    out = jax.ShapeDtypeStruct(changes.get("out", (2, 3, 64)), changes.get("dtype", np.float32))
    named = {key: np.int64(changes.get(key, value)) for key, value in NAMED.items()}
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.block_until_ready(jax.ffi.ffi_call(TARGET, out)(*map(jnp.asarray, arrays), **named))
    assert f"mla_jax.absorb_quantized: {message}" in str(raised.value)
