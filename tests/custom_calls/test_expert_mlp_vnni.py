"""expert_mlp over MXFP4 experts in the layout of matrix units: either weight or both, blocks of any number of rows."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from expert_calls import WEIGHTS, spoiled, with_ids
from op_base import KERNELS, Builder, Call, OpTests, Rng, check, normal, same_bits
from oracle_quantized import LAYOUTS, NAN_SCALE, random_weight, vnni_rows, vnni_tiles

from custom_calls.errors import LayoutError
from custom_calls.expert_mlp import WHOLE_ROWS, expert_mlp
from custom_calls.expert_mlp_quantized import TARGET
from custom_calls.linear import INVARIANT_ROWS
from custom_calls.quantized_tensor import QuantizedTensor, in_rows, shuffle, to_vnni
from custom_calls.registry import library

BF16 = ml_dtypes.bfloat16
BOTH = pytest.mark.parametrize("kernels", KERNELS)
EACH_TYPE = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
OF_TOKENS = ("x", "topk_ids", "topk_weights")

FORMS = {name: (*layout, "row_major") for name, layout in LAYOUTS.items()} | {
    "vnni": ("mxfp4", (1, 32), "vnni")
}
"""Container, block and data layout."""


def tensor_of(data: Any, scale: Any, form: tuple[Any, ...]) -> QuantizedTensor:
    container, block, data_layout = form
    return QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), container, block, data_layout=data_layout)


def run(
    x: Any, gate_up: Any, gate_up_scale: Any, down: Any, down_scale: Any, topk_ids: Any, topk_weights: Any,
    *, gate_up_form: Any, down_form: Any, **static: Any,
) -> jax.Array:  # fmt: skip
    into, out = tensor_of(gate_up, gate_up_scale, gate_up_form), tensor_of(down, down_scale, down_form)
    return expert_mlp(x, into, out, topk_ids, topk_weights, **static)


def expected(
    x: Any, gate_up: Any, gate_up_scale: Any, down: Any, down_scale: Any, topk_ids: Any, topk_weights: Any,
    *, gate_up_form: Any, down_form: Any,
) -> tuple[Any, ...]:  # fmt: skip
    into, out = (gate_up, gate_up_scale), (down, down_scale)
    if gate_up_form[2] == "vnni":
        into = vnni_rows(*into, 16 * gate_up.shape[1])
    if down_form[2] == "vnni":
        out = vnni_rows(*out, 16 * down.shape[1])
    return oracle_quantized.expert_mlp(
        x, *into, *out, topk_ids, topk_weights, gate_up_layout=gate_up_form[:2], down_layout=down_form[:2]
    )


def random_experts(rng: Rng, shape: tuple[int, int, int], form: str) -> tuple[np.ndarray, np.ndarray]:
    if form != "vnni":
        return random_weight(rng, shape, form)
    # Every byte holds two codes, wherever it lies.
    experts, rows, columns = shape
    size = (experts, rows // 16, columns // 32)
    scale = rng.integers(120, 126, (*size, 16)).astype(np.uint8)
    return rng.integers(0, 256, (*size, 4, 64), np.uint8), scale


def make(
    tokens: int, width: int, inner: int, experts: int, k: int, into: str = "vnni", out: str | None = None
) -> Builder:
    def build(rng: Rng, dtype: str) -> Call:
        order = np.argsort(rng.random((tokens, max(experts, k))), axis=1)[:, :k]
        gate_up, gate_up_scale = random_experts(rng, (experts, 2 * inner, width), into)
        down, down_scale = random_experts(rng, (experts, width, inner), out or into)
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
            {"gate_up_form": FORMS[into], "down_form": FORMS[out or into]},
        )

    return build


def with_tiny_scales(base: Builder) -> Builder:
    """A few scales of experts 0 and 1 are ones that the arithmetic of ordinary ones may not serve."""

    def build(rng: Rng, dtype: str) -> Call:
        call = base(rng, dtype)
        changes = {}
        for name in WEIGHTS:
            scale = call.arrays[f"{name}_scale"].copy()
            scale[0, 0, 0, 3], scale[0, -1, -1, 15], scale[1, -1, 0, :2] = 0, 1, [2, 0]
            changes[f"{name}_scale"] = scale
        return call.changed(**changes)

    return build


def of_rows(call: Call, rows: slice) -> Call:
    return call.changed(**{name: call.arrays[name][rows] for name in OF_TOKENS})


PAIRS = (
    ("vnni", "vnni"), ("vnni", "mxfp4"), ("mxfp4", "vnni"), ("vnni", "fp8_block128"), ("fp8_block128", "vnni"),
    ("vnni", "int4_group20_bfloat16"), ("fp8_block24x40", "vnni"),
)  # fmt: skip
EACH_PAIR = pytest.mark.parametrize(("into", "out"), PAIRS[:5])


class TestExpertMlpVnni(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(expected)
    primitive = "mla_jax.expert_mlp_quantized"
    op_name = "expert_mlp"
    # The gate rows and up rows of an expert, and its columns, end anywhere in blocks of 96 and 192.
    cases = {  # noqa: RUF012
        "T0": make(0, 32, 32, 3, 2),
        "T1-E1-k1": make(1, 32, 32, 1, 1),
        "T1-I224": make(1, 416, 224, 4, 3),
        **{f"{into}-and-{out}": make(6, 96, 160, 3, 2, into, out) for into, out in PAIRS},
        "I16": make(5, 32, 16, 4, 2, "vnni", "fp8_block128"),
        "I48": make(17, 96, 48, 4, 3, "vnni", "fp8_block128"),
        "I208": make(7, 224, 208, 3, 2, "vnni", "fp8_block128"),
        "I208-T40-k1": make(40, 160, 208, 2, 1, "vnni", "int4_group20_bfloat16"),
        "T17-E4-k3": make(17, 160, 96, 4, 3),
        "T33-C416": make(33, 416, 288, 2, 2),
        "T49-k1": with_ids(make(49, 64, 224, 2, 1), 1),
        "T66-k1": with_ids(make(66, 224, 32, 2, 1), 1),
        "T140-k1": with_ids(make(140, 32, 32, 2, 1), 1),
        # Of one expert: as many pairs as a turn has, and more of them, each twice.
        "T384-k1": with_ids(make(384, 32, 32, 2, 1), 1),
        "T340-k2": with_ids(make(340, 64, 224, 3, 2), 1),
        "T340-E17-k1": make(340, 64, 96, 17, 1),
        "one-expert-for-all": with_ids(make(17, 32, 32, 6, 1), 4),
        "duplicates": with_ids(make(17, 32, 64, 3, 6), 0, 1, 2),
        "padded": with_ids(make(17, 32, 32, 3, 4, "vnni", "fp8_block128"), 0, 2, 3),
        "out-of-range": with_ids(make(17, 32, 32, 3, 4), 1, -1, 3, 4, INT_MAX, INT_MIN),
        "none-chosen": with_ids(make(5, 32, 32, 3, 4), -1, 3, INT_MAX, INT_MIN),
        "tiny-scales": with_tiny_scales(make(60, 96, 64, 3, 2)),
    }
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((4,), "float32")},
            "argument 'x': expected shape (T, C), got (4,)",
        ),
        "gate-up-width": (
            {"x": jax.ShapeDtypeStruct((4, 32), "float32")},
            "argument 'gate_up': expected shape (E, 2 I, 32), got (3, 64, 64)",
        ),
        "gate-up-matrix": (
            {
                "gate_up": jax.ShapeDtypeStruct((4, 2, 4, 64), "uint8"),
                "gate_up_scale": jax.ShapeDtypeStruct((4, 2, 16), "uint8"),
            },
            "argument 'gate_up': expected shape (E, 2 I, 64), got (64, 64)",
        ),
        "down-shape": (
            {
                "down": jax.ShapeDtypeStruct((3, 4, 2, 4, 64), "uint8"),
                "down_scale": jax.ShapeDtypeStruct((3, 4, 2, 16), "uint8"),
            },
            "argument 'down': expected shape (3, 64, 32), got (3, 64, 64)",
        ),
        "down-experts": (
            {
                "down": jax.ShapeDtypeStruct((2, 4, 1, 4, 64), "uint8"),
                "down_scale": jax.ShapeDtypeStruct((2, 4, 1, 16), "uint8"),
            },
            "argument 'down': expected shape (3, 64, 32), got (2, 64, 32)",
        ),
        "ids-tokens": (
            {"topk_ids": jax.ShapeDtypeStruct((5, 2), "int32")},
            "argument 'topk_ids': expected shape (4, k), got (5, 2)",
        ),
    }
    vmapped = (
        OF_TOKENS,
        ("gate_up", "gate_up_scale", "down", "down_scale"),
    )
    differentiable = ("x", "topk_weights")

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        return make(4, 64, 32, 3, 2)(rng, dtype)

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(70, 160, 224, 4, 2)(rng, dtype)
        at = [slice(0, 1), slice(33, 34), slice(69, 70), slice(0, 2), slice(5, 30)]
        return call, [(rows, of_rows(call, rows)) for rows in at]


def test_the_tests_rows_of_a_stack_are_those_of_its_matrices(rng: Rng) -> None:
    data, scale = random_weight(rng, (2, 32, 96), "mxfp4")
    tiles = [np.stack(each) for each in zip(*(vnni_tiles(*one, 0) for one in zip(data, scale, strict=True)),
                                            strict=True)]  # fmt: skip
    back = vnni_rows(*tiles, 32)
    assert same_bits(back[0], data) and same_bits(back[1], scale)


# ---- a pair and the other pairs ----


@EACH_TYPE
@EACH_PAIR
def test_a_row_is_the_same_alone_and_among_others_of_its_expert(
    into: str, out: str, dtype: str, rng: Rng
) -> None:
    most = INVARIANT_ROWS + 2
    many = with_ids(make(most, 96, 224, 2, 1, into, out), 1)(rng, dtype)
    if into == out == "vnni":
        many = with_tiny_scales(lambda *_: many)(rng, dtype)
    few = of_rows(many, slice(0, INVARIANT_ROWS))
    (full,) = TestExpertMlpVnni.check_call(few, "native")
    for tokens in (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, *range(49, INVARIANT_ROWS)):
        for first in range(INVARIANT_ROWS) if tokens == 1 else (0, INVARIANT_ROWS - tokens):
            rows = slice(first, first + tokens)
            (part,) = TestExpertMlpVnni.call(of_rows(few, rows), "native")
            assert same_bits(np.asarray(full)[rows], part), f"{tokens} tokens from {first}"
    (full,) = TestExpertMlpVnni.check_call(many, "native")
    for rows in (slice(0, most - 1), slice(1, most)):
        (part,) = TestExpertMlpVnni.call(of_rows(many, rows), "native")
        assert same_bits(np.asarray(full)[rows], part), f"of many: {rows}"


@EACH_TYPE
@EACH_PAIR
def test_a_row_is_the_same_in_any_turn_of_its_expert(into: str, out: str, dtype: str, rng: Rng) -> None:
    # A few pairs of nobody lie between those of an expert, which take two turns.
    call = with_ids(make(340, 64, 224, 3, 2, into, out), 1, 1, 1, 1, 3)(rng, dtype)
    assert (call.arrays["topk_ids"] == 1).sum() > 384
    (full,) = TestExpertMlpVnni.call(call, "native")
    for rows in (slice(0, 60), slice(100, 165), slice(140, 340)):
        assert (call.arrays["topk_ids"][rows] == 1).sum() > INVARIANT_ROWS
        (part,) = TestExpertMlpVnni.call(of_rows(call, rows), "native")
        assert same_bits(np.asarray(full)[rows], part), str(rows)


@EACH_PAIR
def test_a_pair_is_summed_alike_among_any_number(into: str, out: str, rng: Rng) -> None:
    isa = library("cpu").abi.get("isa")
    alike = isa == "amx" or (isa == "avx512vnni" and into == out == "vnni")
    if jax.default_backend() != "cpu" or not alike:
        pytest.skip(f"these weights and {isa}: more than 64 pairs of an expert are summed in another order")
    call = with_ids(make(340, 64, 224, 3, 2, into, out), 0, 1, 1, 1, 1, 1, 1, 3)(rng, "bfloat16")
    assert (call.arrays["topk_ids"] == 1).sum() > 384
    (full,) = TestExpertMlpVnni.call(call, "native")
    for rows in (slice(0, 1), slice(191, 192), slice(339, 340), slice(30, 32), slice(100, 149), slice(9, 75)):
        (part,) = TestExpertMlpVnni.call(of_rows(call, rows), "native")
        assert same_bits(np.asarray(full)[rows], part), str(rows)


@pytest.mark.parametrize(
    ("into", "out", "kernels"),
    [*((*pair, "native") for pair in PAIRS), ("vnni", "vnni", "reference")],
)
@EACH_TYPE
def test_unchosen_experts_are_not_read(dtype: str, into: str, out: str, kernels: str, rng: Rng) -> None:
    call = with_ids(make(9, 64, 160, 5, 3, into, out), 0, 3)(rng, dtype)
    call.arrays["topk_ids"][[0, 7]], call.arrays["topk_ids"][1, 0] = 0, 3
    (got,) = TestExpertMlpVnni.call(spoiled(call, 1, 2, 4), kernels)
    assert same_bits(got, TestExpertMlpVnni.call(call, kernels)[0])
    (broken,) = TestExpertMlpVnni.call(spoiled(call, 3), kernels)
    used = (call.arrays["topk_ids"] == 3).any(1)
    assert used.any() and not used.all()
    assert np.array_equal(np.isnan(np.asarray(broken, np.float32)).all(1), used)
    assert same_bits(np.asarray(broken)[~used], np.asarray(got)[~used])


@BOTH
@EACH_TYPE
@pytest.mark.parametrize("tokens", [3, 20, 70])
def test_a_broken_row_of_an_expert_stays_in_its_column(
    tokens: int, dtype: str, kernels: str, rng: Rng
) -> None:
    call = make(tokens, 224, 32, 2, 1)(rng, dtype)
    scale = call.arrays["down_scale"].copy()
    scale[1, 13, 0, 5] = NAN_SCALE  # row 213
    (got,) = TestExpertMlpVnni.call(call.changed(down_scale=scale), kernels)
    (clean,) = TestExpertMlpVnni.call(call, kernels)
    got, clean = np.asarray(got), np.asarray(clean)
    chosen = call.arrays["topk_ids"][:, 0] == 1
    assert np.array_equal(np.isnan(got[:, 213].astype(np.float32)), chosen)
    assert same_bits(np.delete(got, 213, 1), np.delete(clean, 213, 1))
    assert same_bits(got[~chosen], clean[~chosen])


@BOTH
def test_nothing_leaks_out_of_a_nan_row(kernels: str, rng: Rng) -> None:
    call = make(40, 64, 32, 4, 3)(rng, "bfloat16")
    x = call.arrays["x"].copy()
    x[[2, 35]] = np.nan
    (got,) = TestExpertMlpVnni.call(call.changed(x=x), kernels)
    (clean,) = TestExpertMlpVnni.call(call, kernels)
    keep = np.delete(np.arange(40), [2, 35])
    assert np.isnan(np.asarray(got, np.float32)[[2, 35]]).all()
    assert same_bits(np.asarray(got)[keep], np.asarray(clean)[keep])


@BOTH
def test_padded_entries_ignore_their_weight_and_row(kernels: str, rng: Rng) -> None:
    call = make(6, 64, 32, 4, 2)(rng, "bfloat16")
    ids, weights, x = (call.arrays[name].copy() for name in ("topk_ids", "topk_weights", "x"))
    ids[:, 1], weights[:, 1] = 4, np.nan
    ids[3], x[3] = [-1, 4], np.nan
    (got,) = TestExpertMlpVnni.check_call(call.changed(topk_ids=ids, topk_weights=weights, x=x), kernels)
    assert same_bits(got[3], np.zeros(64, BF16))


# ---- beside rows ----


@BOTH
@EACH_TYPE
@pytest.mark.parametrize("tokens", [1, 17, 100])
def test_experts_in_rows_give_the_same_within_the_bounds(
    tokens: int, dtype: str, kernels: str, rng: Rng
) -> None:
    call = make(tokens, 96, 224, 3, 2, "mxfp4")(rng, dtype)
    into, out = (
        tensor_of(call.arrays[name], call.arrays[f"{name}_scale"], FORMS["mxfp4"]) for name in WEIGHTS
    )
    x, *rest = (jnp.asarray(call.arrays[name]) for name in OF_TOKENS)
    (want,) = TestExpertMlpVnni.expected(call)
    results = []
    for gate_up in (into, to_vnni(into)):
        for down in (out, to_vnni(out)):
            results.append(expert_mlp(x, gate_up, down, *rest, kernels=kernels))
            check(
                results[-1], want, f"expert_mlp [{kernels}] of {gate_up.data_layout} and {down.data_layout}"
            )
    if kernels == "reference":
        assert all(same_bits(result, results[0]) for result in results[1:])


# ---- what is refused ----


@pytest.mark.parametrize("rows", [16, 48, 80, 40, 2])
def test_gate_and_up_rows_are_whole_tiles(rows: int, rng: Rng) -> None:
    into = to_vnni(tensor_of(*random_weight(rng, (3, rows, 64), "mxfp4"), FORMS["mxfp4"]))
    out = tensor_of(*random_weight(rng, (3, 64, rows // 2), "fp8_channel"), FORMS["fp8_channel"])
    rest = (jnp.zeros((4, 2), jnp.int32), jnp.ones((4, 2)))
    with pytest.raises(LayoutError) as raised:
        expert_mlp(jnp.ones((4, 64)), into, out, *rest)
    assert str(raised.value) == (
        f"expert_mlp: argument 'gate_up': expected a multiple of {WHOLE_ROWS} rows for data_layout 'vnni', got {rows}"
    )
    assert expert_mlp(jnp.ones((4, 64)), in_rows(into), out, *rest).shape == (4, 64)


@pytest.mark.parametrize("rows", [16, 48, 40, 1])
def test_down_rows_are_whole_tiles(rows: int, rng: Rng) -> None:
    into = tensor_of(*random_weight(rng, (3, 64, rows), "fp8_channel"), FORMS["fp8_channel"])
    out = to_vnni(tensor_of(*random_weight(rng, (3, rows, 32), "mxfp4"), FORMS["mxfp4"]))
    rest = (jnp.zeros((4, 2), jnp.int32), jnp.ones((4, 2)))
    with pytest.raises(LayoutError) as raised:
        expert_mlp(jnp.ones((4, rows)), into, out, *rest)
    assert str(raised.value) == (
        f"expert_mlp: argument 'down': expected a multiple of {WHOLE_ROWS} rows for data_layout 'vnni', got {rows}"
    )
    assert expert_mlp(jnp.ones((4, rows)), into, in_rows(out), *rest).shape == (4, rows)


@pytest.mark.parametrize("name", WEIGHTS)
def test_shuffled_experts_are_refused(name: str, rng: Rng) -> None:
    shapes = {"gate_up": (3, 64, 64), "down": (3, 64, 32)}
    made = {
        each: tensor_of(*random_weight(rng, shape, "mxfp4"), FORMS["mxfp4"]) for each, shape in shapes.items()
    }
    made[name] = shuffle(made[name])
    message = f"expert_mlp: argument '{name}': expected data_layout 'row_major' or 'vnni', got 'shuffled'"
    with pytest.raises(LayoutError, match=message):
        expert_mlp(jnp.ones((4, 64)), *made.values(), jnp.zeros((4, 2), jnp.int32), jnp.ones((4, 2)))


# ---- the kernel's own checks ----

U8, F32 = np.uint8, np.float32
GOOD: dict[str, Any] = {
    "x": np.ones((4, 64), F32),
    "gate_up": np.zeros((3, 4, 2, 4, 64), U8),
    "gate_up_scale": np.zeros((3, 4, 2, 16), U8),
    "down": np.zeros((3, 4, 1, 4, 64), U8),
    "down_scale": np.zeros((3, 4, 1, 16), U8),
    "topk_ids": np.zeros((4, 2), np.int32),
    "topk_weights": np.zeros((4, 2), F32),
}
NAMED = {f"{w}_{n}": v for w in WEIGHTS for n, v in (("code", 4), ("block_n", 1), ("block_k", 32))}
TILES = "expected (..., tiles, groups, 4, 64) in blocks of 1 x 32"

FFI_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "gate-up-type": (
        {"gate_up": GOOD["gate_up"].astype(F32)}, "argument 'gate_up': expected uint8, got float32"
    ),
    "down-type": ({"down": GOOD["down"].astype(F32)}, "argument 'down': expected uint8, got float32"),
    "gate-up-scale-type": (
        {"gate_up_scale": GOOD["gate_up_scale"].astype(F32)},
        "argument 'scale': expected uint8, got float32",
    ),
    "gate-up-rows": (
        {"gate_up": np.zeros((3, 64, 32), U8), "gate_up_scale": np.zeros((3, 64, 2), U8)},
        "argument 'gate_up': expected at least rank 4, got shape (3, 64, 32)",
    ),
    "gate-up-matrix": (
        {"gate_up": np.zeros((4, 2, 4, 64), U8), "gate_up_scale": np.zeros((4, 2, 16), U8)},
        "argument 'gate_up': expected rank 5, got shape (4, 2, 4, 64)",
    ),
    "down-rows": (
        {"down": np.zeros((3, 64, 16), U8), "down_scale": np.zeros((3, 64, 1), U8)},
        "argument 'down': expected at least rank 4, got shape (3, 64, 16)",
    ),
    "down-stacks": (
        {"down": np.zeros((1, 3, 4, 1, 4, 64), U8), "down_scale": np.zeros((1, 3, 4, 1, 16), U8)},
        "argument 'down': expected rank 5, got shape (1, 3, 4, 1, 4, 64)",
    ),
    "row-major-code-of-tiles": (
        {"down_code": 0, "down_scale": np.zeros((3, 4, 1, 4, 4), U8)},
        "argument 'down': expected rank 3, got shape (3, 4, 1, 4, 64)",
    ),
    "shuffled": (
        {"gate_up": np.zeros((3, 4, 2, 16, 16), U8)},
        f"argument 'gate_up': {TILES}, got shape (3, 4, 2, 16, 16)",
    ),
    "words": (
        {"down": np.zeros((3, 4, 1, 8, 32), U8)}, f"argument 'down': {TILES}, got shape (3, 4, 1, 8, 32)"
    ),
    "block-rows": ({"gate_up_block_n": 2}, f"argument 'gate_up': {TILES}, got shape (3, 4, 2, 4, 64)"),
    "block-columns": ({"down_block_k": 16}, f"argument 'down': {TILES}, got shape (3, 4, 1, 4, 64)"),
    "gate-up-scale": (
        {"gate_up_scale": np.zeros((3, 4, 1, 16), U8)},
        "argument 'scale': expected 384 elements, got shape (3, 4, 1, 16)",
    ),
    "down-scale": (
        {"down_scale": np.zeros((2, 4, 1, 16), U8)},
        "argument 'scale': expected 192 elements, got shape (2, 4, 1, 16)",
    ),
    "down-experts": (
        {"down": np.zeros((2, 4, 1, 4, 64), U8), "down_scale": np.zeros((2, 4, 1, 16), U8)},
        "argument 'down': expected as many experts as 'gate_up' and the width of 'x' in rows, "
        "got shape (2, 4, 1, 4, 64)",
    ),
    "down-tiles": (
        {"down": np.zeros((3, 3, 1, 4, 64), U8), "down_scale": np.zeros((3, 3, 1, 16), U8)},
        "argument 'down': expected as many experts as 'gate_up' and the width of 'x' in rows, "
        "got shape (3, 3, 1, 4, 64)",
    ),
    "gate-up-inner": (
        {"down": np.zeros((3, 4, 2, 4, 64), U8), "down_scale": np.zeros((3, 4, 2, 16), U8)},
        "argument 'gate_up': expected (experts, 2 * inner, hidden) for inner 64 and hidden 64, got 64 x 64",
    ),
    "gate-up-half-a-tile": (
        {
            "gate_up": np.zeros((3, 3, 2, 4, 64), U8),
            "gate_up_scale": np.zeros((3, 3, 2, 16), U8),
            "down": np.zeros((3, 64, 24), ml_dtypes.float8_e4m3fn),
            "down_scale": np.zeros((3, 64), F32),
            "down_code": 1,
            "down_block_k": 0,
        },
        "argument 'gate_up': expected inner a multiple of 16 in the vnni layout, got 24",
    ),
    "y-shape": ({"out": (4, 32)}, "argument 'y': expected shape (4, 64), got shape (4, 32)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    changes, message = FFI_ERRORS[name]
    arrays = [jnp.asarray(changes.get(key, value)) for key, value in GOOD.items()]
    out = jax.ShapeDtypeStruct(changes.get("out", (4, 64)), np.float32)
    named = {key: np.int64(changes.get(key, value)) for key, value in NAMED.items()}
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.block_until_ready(jax.ffi.ffi_call(TARGET, out)(*arrays, **named))
    assert f"mla_jax.expert_mlp_quantized: {message}" in str(raised.value)
