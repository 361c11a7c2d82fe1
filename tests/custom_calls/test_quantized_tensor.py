"""QuantizedTensor: a pytree whose fields are checked, and its values, exactly rounded, in every container."""

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import oracle_quantized
import pytest
from op_base import Rng, same_bits
from oracle_quantized import LAYOUTS, random_weight

from custom_calls.errors import LayoutError, ShapeError
from custom_calls.quantized_tensor import (
    CODES,
    CONTAINERS,
    QuantizedTensor,
    check_weight,
    dequantize,
    in_rows,
    native_attributes,
    scale_shape,
    shuffle,
    to_fnuz,
    to_vnni,
)

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
VALUES = jax.jit(dequantize, static_argnums=1)
EACH = pytest.mark.parametrize("layout", LAYOUTS)


def tensor(rng: Rng, shape: tuple[int, ...], layout: str, **kwargs: Any) -> QuantizedTensor:
    data, scale = random_weight(rng, shape, layout)
    container, block = LAYOUTS[layout]
    return QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), container, block, **kwargs)


def exact(q: QuantizedTensor) -> np.ndarray:
    scale = np.asarray(q.scale)
    if q.scale_layout == "column_major":
        scale = np.swapaxes(scale, -1, -2)
    return oracle_quantized.values(np.asarray(q.data), scale, q.container, q.block)


def check_values(q: QuantizedTensor) -> None:
    """Rounded to float32, then to bfloat16; bit for bit."""
    want = oracle.round_to(exact(q), np.dtype(np.float32)).astype(np.float32)
    assert same_bits(VALUES(q), want)
    assert same_bits(VALUES(q, "bfloat16"), want.astype(BF16))


# ---- values ----


@EACH
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_values(layout: str, lead: tuple[int, ...], rng: Rng) -> None:
    # 130 rows and 200 columns: the last blocks of every layout with blocks are ragged.
    shape = (*lead, 130, 160 if layout in ("mxfp4", "int4_group32") else 200)
    q = tensor(rng, shape, layout)
    assert q.shape == shape and q.ndim == len(shape)
    check_values(q)
    if not lead:
        assert same_bits(dequantize(q), VALUES(q))


@pytest.mark.parametrize(
    ("rows", "columns", "scales"),
    [(576, 256, (5, 2)), (160, 384, (2, 3)), (160, 130, (2, 2)), (128, 128, (1, 1)), (1, 1, (1, 1)), (129, 7, (2, 1))],
)  # fmt: skip
def test_ragged_fp8_blocks(rows: int, columns: int, scales: tuple[int, int], rng: Rng) -> None:
    q = tensor(rng, (rows, columns), "fp8_block128")
    assert q.scale.shape == scales
    # A scale of its own for each block: which block a value belongs to shows in its exponent.
    powers = np.ldexp(np.float32(1), np.arange(scales[0] * scales[1])).reshape(scales)
    ones = np.ones((rows, columns), np.float32).astype(FP8)
    q = QuantizedTensor(jnp.asarray(ones), jnp.asarray(powers), "fp8_block", (128, 128))
    want = np.repeat(np.repeat(powers, 128, 0)[:rows], 128, 1)[:, :columns]
    assert same_bits(VALUES(q), want)


def test_values_of_every_code() -> None:
    every = np.arange(256, dtype=np.uint8)
    scale = np.float32([0.3])
    q = QuantizedTensor(jnp.asarray(every.view(FP8)[None]), jnp.asarray(scale), "fp8_channel", (1, 0))
    got, want = np.asarray(VALUES(q))[0], every.view(FP8).astype(np.float32) * scale
    assert np.isnan(got[[0x7F, 0xFF]]).all() and np.isnan(got).sum() == 2
    assert np.array_equal(got, want, equal_nan=True)
    q = QuantizedTensor(
        jnp.asarray(every[None]), jnp.asarray(np.full((1, 2), 0.3, np.float32)), "int4_group", (1, 256)
    )
    assert same_bits(VALUES(q)[0], (oracle_quantized.unpack(every).astype(np.float32) - 8) * np.float32(0.3))
    codes = np.tile(np.arange(16, dtype=np.uint8), 2)
    packed = np.broadcast_to(oracle_quantized.pack(codes), (256, 16))
    q = QuantizedTensor(jnp.asarray(packed), jnp.asarray(every[:, None]), "mxfp4")
    got = np.asarray(VALUES(q))
    with np.errstate(over="ignore"):
        want = (oracle_quantized.E2M1[codes] * np.ldexp(1.0, np.arange(255) - 127)[:, None]).astype(
            np.float32
        )
    assert same_bits(got[:255], want) and np.isnan(got[255]).all()
    narrow = np.asarray(VALUES(q, "bfloat16"))
    assert same_bits(narrow[:255], want.astype(BF16)) and np.isnan(narrow[255]).all(), (
        "all are exact in bfloat16"
    )


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("layout", ["mxfp4", "fp8_block128", "fp8_block24x40", "int4_group32"])
def test_column_major_scales(layout: str, lead: tuple[int, ...], rng: Rng) -> None:
    q = tensor(rng, (*lead, 70, 320), layout)
    scale = jnp.swapaxes(q.scale, -1, -2)
    transposed = QuantizedTensor(q.data, scale, q.container, q.block, scale_layout="column_major")
    assert transposed.shape == q.shape
    assert same_bits(VALUES(transposed), VALUES(q))
    check_values(transposed)


def test_a_vector_of_values(rng: Rng) -> None:
    for layout in ("mxfp4", "int4_group32", "fp8_channel"):
        q = tensor(rng, (64,), layout)
        assert q.shape == (64,) and q.ndim == 1
        got = VALUES(q)
        want = VALUES(QuantizedTensor(q.data[None], q.scale[None], q.container, q.block))
        assert got.shape == (64,) and same_bits(got, want[0])


def test_a_ragged_last_mxfp4_group(rng: Rng) -> None:
    data, scale = rng.integers(0, 256, (5, 34), np.uint8), rng.integers(100, 140, (5, 3)).astype(np.uint8)
    q = QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4")
    assert q.shape == (5, 68)
    check_values(q)


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (0, 3, 64)], ids=str)
@EACH
def test_nothing_at_all(layout: str, shape: tuple[int, ...], rng: Rng) -> None:
    q = tensor(rng, shape, layout)
    assert VALUES(q).shape == shape and q.shape == shape


def test_dtype_of_values(rng: Rng) -> None:
    with pytest.raises(
        ShapeError,
        match="^dequantize: argument 'dtype': expected dtype float32 or bfloat16, got float16$",
    ):
        dequantize(tensor(rng, (4, 32), "mxfp4"), "float16")


@pytest.mark.parametrize("layout", ["fp8_block128", "fp8_channel", "fp8_tensor"])
def test_fnuz_codes_hold_the_same_values(layout: str, rng: Rng) -> None:
    ocp = tensor(rng, (6, 256), layout)
    every = np.tile(np.arange(256, dtype=np.uint8), (6, 1)).view(FP8)
    ocp = QuantizedTensor(jnp.asarray(every), ocp.scale, ocp.container, ocp.block)
    fnuz = to_fnuz(ocp)
    assert fnuz.data.dtype == ml_dtypes.float8_e4m3fnuz and fnuz.scale.dtype == np.float32
    assert same_bits(fnuz.scale, np.asarray(ocp.scale) * 2)
    assert (fnuz.container, fnuz.block, fnuz.shape) == (ocp.container, ocp.block, ocp.shape)
    got, want = np.asarray(VALUES(fnuz)), np.asarray(VALUES(ocp))
    # The codes mean half as much: exact, also where e4m3fn is subnormal. FNUZ has no minus zero.
    assert np.array_equal(got, want, equal_nan=True)
    assert np.isnan(got).sum() == 12 and not np.signbit(got[:, 0x80]).any()
    assert np.array_equal(got, exact(fnuz).astype(np.float32), equal_nan=True)
    check_values(to_fnuz(tensor(rng, (6, 256), layout)))


def test_only_fp8_becomes_fnuz(rng: Rng) -> None:
    fp8 = tensor(rng, (4, 32), "fp8_channel")
    with pytest.raises(LayoutError, match=r"^to_fnuz: expected float8_e4m3fn data, got uint8$"):
        to_fnuz(tensor(rng, (4, 32), "mxfp4"))
    with pytest.raises(LayoutError, match=r"^to_fnuz: expected float8_e4m3fn data, got float8_e4m3fnuz$"):
        to_fnuz(to_fnuz(fp8))


@EACH
def test_the_kernels_are_told_container_and_codes(layout: str, rng: Rng) -> None:
    q = tensor(rng, (6, 160), layout)
    code = {"mxfp4": 0, "int4_group": 2}.get(q.container, 1)
    told = native_attributes(q.data, q.container, q.block, prefix="down_")
    assert told == {
        "down_code": 3 if layout.endswith("fnuz") else code,
        "down_block_n": q.block[0],
        "down_block_k": q.block[1],
    }
    assert all(type(value) is np.int64 for value in told.values())
    if code == 1:
        ocp = QuantizedTensor(jnp.zeros((6, 160), jnp.float8_e4m3fn), q.scale, q.container, q.block)
        assert native_attributes(ocp.data, ocp.container, ocp.block)["code"] == 1
        assert native_attributes(to_fnuz(ocp).data, ocp.container, ocp.block)["code"] == 3


# ---- the pytree ----


def test_static_fields_are_these() -> None:
    assert [field.name for field in fields(QuantizedTensor)] == [
        "data", "scale", "container", "block", "rounding", "scale_layout", "data_layout", "padding_rows"
    ]  # fmt: skip
    assert CONTAINERS == ("mxfp4", "fp8_block", "fp8_channel", "fp8_tensor", "int4_group")
    assert CODES == {"e2m1": 0, "e4m3": 1, "int4": 2, "e4m3fnuz": 3, "e2m1_vnni": 4}


@EACH
def test_pytree_round_trip(layout: str, rng: Rng) -> None:
    q = tensor(rng, (6, 160), layout, rounding="even" if layout == "mxfp4" else None)
    leaves, structure = jax.tree.flatten(q)
    assert len(leaves) == 2 and leaves[0] is q.data and leaves[1] is q.scale
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, QuantizedTensor)
    for name in ("container", "block", "rounding", "scale_layout"):
        assert getattr(again, name) == getattr(q, name)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(q)]
    assert paths == [".data", ".scale"]
    assert jax.tree.structure(q) == structure
    assert q.nbytes == q.data.nbytes + q.scale.nbytes


def test_the_structure_holds_the_static_fields(rng: Rng) -> None:
    data, scale = (jnp.asarray(a) for a in random_weight(rng, (32, 32), "mxfp4"))
    base = QuantizedTensor(data, scale, "mxfp4")
    named = QuantizedTensor(data, scale, "mxfp4", rounding="floor")
    assert jax.tree.structure(base) != jax.tree.structure(named)
    block = QuantizedTensor(data.view(FP8), jnp.ones((1, 1)), "fp8_block", (128, 128))
    other = QuantizedTensor(data.view(FP8), jnp.ones((1, 1)), "fp8_block", (32, 16))
    assert jax.tree.structure(block) != jax.tree.structure(other)


@EACH
def test_argument_and_result_of_jit(layout: str, rng: Rng) -> None:
    q = tensor(rng, (6, 160), layout)
    traces = []

    @jax.jit
    def run(weight: QuantizedTensor) -> tuple[QuantizedTensor, jax.Array]:
        traces.append(weight.container)
        return weight, dequantize(weight)

    for _ in range(2):
        same, values = run(q)
    assert traces == [q.container]
    assert (same.container, same.block, same.rounding) == (q.container, q.block, q.rounding)
    assert same_bits(same.data, q.data) and same_bits(same.scale, q.scale)
    assert same_bits(values, VALUES(q))


def test_other_transformations_carry_it(rng: Rng) -> None:
    stack = tensor(rng, (3, 8, 64), "mxfp4")
    want = VALUES(stack)
    assert same_bits(jax.vmap(dequantize)(stack), want)
    assert same_bits(jax.lax.map(dequantize, stack), want)
    _, scanned = jax.lax.scan(lambda carry, one: (carry, dequantize(one)), 0, stack)
    assert same_bits(scanned, want)
    abstract = jax.eval_shape(lambda q: q, stack)
    assert isinstance(abstract, QuantizedTensor) and abstract.shape == (3, 8, 64)
    axes = jax.tree.map(lambda _: 0, stack)
    assert (axes.data, axes.scale) == (0, 0), "placeholders are no arrays and are not checked"
    moved = jax.device_put(stack, jax.devices()[0])
    assert same_bits(VALUES(moved), want)


def test_the_gradient_of_a_scale(rng: Rng) -> None:
    q = tensor(rng, (3, 40), "fp8_channel")

    def total(scale: jax.Array) -> jax.Array:
        return jnp.sum(dequantize(QuantizedTensor(q.data, scale, "fp8_channel", (1, 0))))

    got = jax.grad(total)(q.scale)
    want = np.asarray(q.data).astype(np.float64)
    assert np.all(np.abs(got - want.sum(1)) <= oracle.relative(40) * np.abs(want).sum(1))


# ---- what is refused ----

U8, F8, F32, B16 = "uint8", "float8_e4m3fn", "float32", "bfloat16"
REFUSED: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any], type, str]] = {
    "container": (
        ((4, 16), U8), ((4, 1), U8), {"container": "mxfp6"}, ShapeError,
        "argument 'container': expected 'mxfp4' or 'fp8_block' or 'fp8_channel' or 'fp8_tensor' or 'int4_group', "
        "got 'mxfp6'",
    ),
    "layout": (
        ((4, 16), U8), ((4, 1), U8), {"scale_layout": "swizzled"}, ShapeError,
        "argument 'scale_layout': expected 'row_major' or 'column_major', got 'swizzled'",
    ),
    "rounding": (
        ((4, 16), U8), ((4, 1), U8), {"rounding": "up"}, ShapeError,
        "argument 'rounding': expected 'floor' or 'even' or 'ceil' or 'rceil', got 'up'",
    ),
    "mxfp4-data": (((4, 16), F8), ((4, 1), U8), {}, ShapeError, f"argument 'data': expected dtype uint8, got {F8}"),
    "mxfp4-scale-dtype": (
        ((4, 16), U8), ((4, 1), F32), {}, ShapeError, "argument 'scale': expected dtype uint8, got float32",
    ),
    "mxfp4-block": (
        ((4, 16), U8), ((4, 2), U8), {"block": (1, 16)}, LayoutError,
        "field 'block': (1, 16) is not one of container 'mxfp4'",
    ),
    "mxfp4-scale": (
        ((4, 17), U8), ((4, 1), U8), {}, ShapeError,
        "field 'scale': expected shape (4, 2) for values (4, 34) in blocks of (1, 32), got (4, 1)",
    ),
    "mxfp4-transposed": (
        ((4, 32), U8), ((2, 4), U8), {}, ShapeError,
        "field 'scale': expected shape (4, 2) for values (4, 64) in blocks of (1, 32), got (2, 4)",
    ),
    "mxfp4-not-transposed": (
        ((4, 32), U8), ((4, 2), U8), {"scale_layout": "column_major"}, ShapeError,
        "field 'scale': expected shape (2, 4) for values (4, 64) in blocks of (1, 32), got (4, 2)",
    ),
    "mxfp4-vector-transposed": (
        ((32,), U8), ((2,), U8), {"scale_layout": "column_major"}, LayoutError,
        "field 'scale_layout': 'mxfp4' has no column-major scales",
    ),
    "mxfp4-stack": (
        ((2, 4, 16), U8), ((4, 1), U8), {}, ShapeError,
        "field 'scale': expected shape (2, 4, 1) for values (2, 4, 32) in blocks of (1, 32), got (4, 1)",
    ),
    "scalar": (
        ((), U8), ((), U8), {}, ShapeError, "field 'data': expected at least 1 dimensions, got shape ()",
    ),
    "fp8-data": (
        ((4, 16), U8), ((1, 1), F32), {"container": "fp8_block", "block": (128, 128)}, ShapeError,
        "argument 'data': expected dtype float8_e4m3fn or float8_e4m3fnuz, got uint8",
    ),
    "fp8-e5m2": (
        ((4, 16), "float8_e5m2"), ((1, 1), F32), {"container": "fp8_block", "block": (128, 128)}, ShapeError,
        "argument 'data': expected dtype float8_e4m3fn or float8_e4m3fnuz, got float8_e5m2",
    ),
    "mxfp4-fnuz": (
        ((4, 16), "float8_e4m3fnuz"), ((4, 1), U8), {}, ShapeError,
        "argument 'data': expected dtype uint8, got float8_e4m3fnuz",
    ),
    "fp8-scale-dtype": (
        ((4, 16), F8), ((1, 1), B16), {"container": "fp8_block", "block": (128, 128)}, ShapeError,
        "argument 'scale': expected dtype float32, got bfloat16",
    ),
    "fp8-block-zero": (
        ((4, 16), F8), ((1, 1), F32), {"container": "fp8_block", "block": (0, 128)}, LayoutError,
        "field 'block': (0, 128) is not one of container 'fp8_block'",
    ),
    "fp8-block-negative": (
        ((4, 16), F8), ((1, 1), F32), {"container": "fp8_block", "block": (128, -1)}, LayoutError,
        "field 'block': (128, -1) is not one of container 'fp8_block'",
    ),
    "fp8-block-default": (
        ((576, 16), F8), ((5, 1), F32), {"container": "fp8_block"}, ShapeError,
        "field 'scale': expected shape (576, 1) for values (576, 16) in blocks of (1, 32), got (5, 1)",
    ),
    "fp8-ragged": (
        ((576, 256), F8), ((4, 2), F32), {"container": "fp8_block", "block": (128, 128)}, ShapeError,
        "field 'scale': expected shape (5, 2) for values (576, 256) in blocks of (128, 128), got (4, 2)",
    ),
    "fp8-vector": (
        ((16,), F8), ((1,), F32), {"container": "fp8_block", "block": (128, 128)}, ShapeError,
        "field 'data': expected at least 2 dimensions, got shape (16,)",
    ),
    "channel-block": (
        ((4, 16), F8), ((4,), F32), {"container": "fp8_channel"}, LayoutError,
        "field 'block': (1, 32) is not one of container 'fp8_channel'",
    ),
    "channel-scale": (
        ((4, 16), F8), ((4, 1), F32), {"container": "fp8_channel", "block": (1, 0)}, ShapeError,
        "field 'scale': expected shape (4,) for values (4, 16) in blocks of (1, 0), got (4, 1)",
    ),
    "channel-transposed": (
        ((4, 16), F8), ((4,), F32),
        {"container": "fp8_channel", "block": (1, 0), "scale_layout": "column_major"}, LayoutError,
        "field 'scale_layout': 'fp8_channel' has no column-major scales",
    ),
    "channel-transposed-stack": (
        ((2, 4, 16), F8), ((2, 4), F32),
        {"container": "fp8_channel", "block": (1, 0), "scale_layout": "column_major"}, LayoutError,
        "field 'scale_layout': 'fp8_channel' has no column-major scales",
    ),
    "tensor-block": (
        ((4, 16), F8), ((), F32), {"container": "fp8_tensor", "block": (1, 0)}, LayoutError,
        "field 'block': (1, 0) is not one of container 'fp8_tensor'",
    ),
    "tensor-scale": (
        ((4, 16), F8), ((1,), F32), {"container": "fp8_tensor", "block": (0, 0)}, ShapeError,
        "field 'scale': expected shape () for values (4, 16) in blocks of (0, 0), got (1,)",
    ),
    "tensor-stack": (
        ((3, 4, 16), F8), ((), F32), {"container": "fp8_tensor", "block": (0, 0)}, ShapeError,
        "field 'scale': expected shape (3,) for values (3, 4, 16) in blocks of (0, 0), got ()",
    ),
    "tensor-transposed": (
        ((3, 2, 4, 16), F8), ((2, 3), F32),
        {"container": "fp8_tensor", "block": (0, 0), "scale_layout": "column_major"}, LayoutError,
        "field 'scale_layout': 'fp8_tensor' has no column-major scales",
    ),
    "int4-data": (
        ((4, 16), "int8"), ((4, 1), F32), {"container": "int4_group"}, ShapeError,
        "argument 'data': expected dtype uint8, got int8",
    ),
    "int4-scale-dtype": (
        ((4, 16), U8), ((4, 1), U8), {"container": "int4_group"}, ShapeError,
        "argument 'scale': expected dtype float32 or bfloat16, got uint8",
    ),
    "int4-block-rows": (
        ((4, 16), U8), ((2, 1), F32), {"container": "int4_group", "block": (2, 32)}, LayoutError,
        "field 'block': (2, 32) is not one of container 'int4_group'",
    ),
    "int4-block-one": (
        ((4, 16), U8), ((4, 32), F32), {"container": "int4_group", "block": (1, 1)}, LayoutError,
        "field 'block': (1, 1) is not one of container 'int4_group'",
    ),
    "int4-scale": (
        ((4, 32), U8), ((4, 1), F32), {"container": "int4_group"}, ShapeError,
        "field 'scale': expected shape (4, 2) for values (4, 64) in blocks of (1, 32), got (4, 1)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_fields_are_named(name: str) -> None:
    (shape, dtype), (scales, scale_dtype), changes, kind, message = REFUSED[name]
    given = {"container": "mxfp4", **changes}
    with pytest.raises(kind) as raised:
        QuantizedTensor(jnp.zeros(shape, dtype), jnp.zeros(scales, scale_dtype), **given)
    assert str(raised.value) == f"QuantizedTensor: {message}"
    with pytest.raises(kind):
        jax.eval_shape(
            lambda d, s: QuantizedTensor(d, s, **given),
            jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(scales, scale_dtype),
        )  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_is_made_of_its_row_of_the_table(container: str) -> None:
    block = {"mxfp4": (1, 32), "fp8_block": (3, 5), "fp8_channel": (1, 0), "fp8_tensor": (0, 0)}
    size = block.get(container, (1, 16))
    shape = (2, 7, 64)
    want = {
        "mxfp4": (2, 7, 2),
        "fp8_block": (2, 3, 13),
        "fp8_channel": (2, 7),
        "fp8_tensor": (2,),
        "int4_group": (2, 7, 4),
    }
    assert scale_shape(container, shape, size) == want[container]


def test_weights_have_row_major_scales_and_whole_groups(rng: Rng) -> None:
    q = tensor(rng, (4, 64), "mxfp4")
    check_weight("linear", "weight", q)
    turned = QuantizedTensor(q.data, q.scale.T, "mxfp4", scale_layout="column_major")
    with pytest.raises(LayoutError) as wrong:
        check_weight("linear", "weight", turned)
    assert str(wrong.value) == (
        "linear: argument 'weight': expected row_major scales, got column_major: only activations may have "
        "column_major ones"
    )
    ragged = QuantizedTensor(q.data[:, :17], q.scale, "mxfp4")
    with pytest.raises(ShapeError) as wrong:
        check_weight("absorb", "weight", ragged)
    assert str(wrong.value) == (
        "absorb: argument 'weight': expected K to be a multiple of 32 for MXFP4, got 34"
    )


# ---- the shuffled layout ----


@pytest.mark.parametrize(
    ("lead", "rows", "columns"),
    [((), 16, 512), ((), 37, 544), ((), 1, 32), ((3,), 20, 64), ((2, 2), 33, 1056), ((), 0, 64)],
    ids=str,
)  # fmt: skip
def test_shuffled_bytes_lie_where_the_layout_says(
    lead: tuple[int, ...], rows: int, columns: int, rng: Rng
) -> None:
    q = tensor(rng, (*lead, rows, columns), "mxfp4", rounding="even")
    made = shuffle(q)
    tiles, groups = -(-rows // 16), columns // 32
    assert made.data.shape == (*lead, tiles, groups, 16, 16) and made.data.dtype == np.uint8
    assert made.scale.shape == (*lead, tiles, -(-groups // 16), 16, 16)
    assert (made.data_layout, made.padding_rows, made.rounding) == ("shuffled", -rows % 16, "even")
    assert made.shape == q.shape and made.ndim == q.ndim
    for before, after, fill in ((q.data, made.data, 0), (q.scale, made.scale, 127)):
        old, new = np.asarray(before), np.asarray(after)
        row, chunk = np.arange(16 * tiles), np.arange(new.shape[-3])
        for r in row:
            for c in chunk:
                want = np.full((*lead, 16), fill, np.uint8)
                if r < rows:
                    part = old[..., r, 16 * c : 16 * c + 16]
                    want[..., : part.shape[-1]] = part
                assert same_bits(new[..., r // 16, c, r % 16, :], want)
    back = in_rows(made)
    assert same_bits(back.data, q.data) and same_bits(back.scale, q.scale)
    assert (back.data_layout, back.padding_rows, back.rounding) == ("row_major", 0, "even")
    assert same_bits(VALUES(made), VALUES(q))
    assert shuffle(made) is made and in_rows(q) is q


def test_shuffled_is_a_field_of_the_pytree(rng: Rng) -> None:
    made = shuffle(tensor(rng, (20, 64), "mxfp4"))
    leaves, structure = jax.tree.flatten(made)
    assert len(leaves) == 2 and leaves[0] is made.data and leaves[1] is made.scale
    assert structure != jax.tree.structure(shuffle(tensor(rng, (21, 64), "mxfp4")))
    traced = jax.eval_shape(shuffle, tensor(rng, (20, 64), "mxfp4"))
    assert (traced.shape, traced.data_layout, traced.padding_rows) == ((20, 64), "shuffled", 12)


SHUFFLED = {"container": "mxfp4", "data_layout": "shuffled"}
NOT_SHUFFLED = {
    "layout": (
        ((4, 16), U8), ((4, 1), U8), {"container": "mxfp4", "data_layout": "tiled"}, ShapeError,
        "argument 'data_layout': expected 'row_major' or 'shuffled' or 'vnni', got 'tiled'",
    ),
    "container": (
        ((1, 2, 16, 16), U8), ((1, 1, 16, 16), F32), {**SHUFFLED, "container": "int4_group"}, LayoutError,
        "field 'data_layout': only 'mxfp4' with row_major scales can be shuffled, got 'int4_group' with row_major "
        "scales",
    ),
    "scales": (
        ((1, 2, 16, 16), U8), ((1, 1, 16, 16), U8), {**SHUFFLED, "scale_layout": "column_major"}, LayoutError,
        "field 'data_layout': only 'mxfp4' with row_major scales can be shuffled, got 'mxfp4' with column_major "
        "scales",
    ),
    "data": (
        ((1, 2, 16, 8), U8), ((1, 1, 16, 16), U8), SHUFFLED, ShapeError,
        "field 'data': expected shape (..., ceil(N/16), K/32, 16, 16) for shuffled data, got (1, 2, 16, 8)",
    ),
    "rank": (
        ((2, 16, 16), U8), ((1, 1, 16, 16), U8), SHUFFLED, ShapeError,
        "field 'data': expected shape (..., ceil(N/16), K/32, 16, 16) for shuffled data, got (2, 16, 16)",
    ),
    "scale": (
        ((1, 17, 16, 16), U8), ((1, 1, 16, 16), U8), {**SHUFFLED, "padding_rows": 3}, ShapeError,
        "field 'scale': expected shape (1, 2, 16, 16) for shuffled values (13, 544), got (1, 1, 16, 16)",
    ),
    "padding": (
        ((1, 2, 16, 16), U8), ((1, 1, 16, 16), U8), {**SHUFFLED, "padding_rows": 16}, ShapeError,
        "field 'padding_rows': expected 0 to 15, and 0 without tiles, got 16",
    ),
    "no-tiles": (
        ((0, 2, 16, 16), U8), ((0, 1, 16, 16), U8), {**SHUFFLED, "padding_rows": 1}, ShapeError,
        "field 'padding_rows': expected 0 to 15, and 0 without tiles, got 1",
    ),
    "rows": (
        ((4, 16), U8), ((4, 1), U8), {"container": "mxfp4", "padding_rows": 1}, LayoutError,
        "field 'padding_rows': expected 0 for row_major data, got 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_SHUFFLED)
def test_wrong_fields_of_the_shuffled_layout_are_named(name: str) -> None:
    (shape, dtype), (scales, scale_dtype), given, kind, message = NOT_SHUFFLED[name]
    with pytest.raises(kind) as raised:
        QuantizedTensor(jnp.zeros(shape, dtype), jnp.zeros(scales, scale_dtype), **given)
    assert str(raised.value) == f"QuantizedTensor: {message}"


def test_what_cannot_be_shuffled_or_read_is_refused(rng: Rng) -> None:
    with pytest.raises(LayoutError, match=r"shuffle: expected an mxfp4 matrix .* got fp8_block \(4, 200\)"):
        shuffle(tensor(rng, (4, 200), "fp8_block128"))
    with pytest.raises(LayoutError, match=r"shuffle: expected an mxfp4 matrix .* got mxfp4 \(64,\)"):
        shuffle(QuantizedTensor(jnp.zeros(32, U8), jnp.zeros(2, U8), "mxfp4"))
    with pytest.raises(ShapeError, match="shuffle: argument 'tensor': expected K to be a multiple of 32"):
        shuffle(QuantizedTensor(jnp.zeros((4, 17), U8), jnp.zeros((4, 2), U8), "mxfp4"))
    made = shuffle(tensor(rng, (4, 64), "mxfp4"))
    check_weight("linear", "weight", made, ("row_major", "shuffled"))
    with pytest.raises(LayoutError) as wrong:
        check_weight("absorb", "weight", made)
    assert str(wrong.value) == (
        "absorb: argument 'weight': expected data_layout 'row_major', got 'shuffled': see "
        "custom_calls.quantized_tensor.in_rows"
    )


# ---- the vnni layout ----


@pytest.mark.parametrize(
    ("lead", "rows", "columns"),
    [((), 16, 64), ((), 37, 160), ((), 1, 32), ((3,), 20, 64), ((2, 2), 33, 96), ((), 0, 64), ((), 5, 0)],
    ids=str,
)  # fmt: skip
def test_vnni_words_lie_where_the_layout_says(
    lead: tuple[int, ...], rows: int, columns: int, rng: Rng
) -> None:
    q = tensor(rng, (*lead, rows, columns), "mxfp4", rounding="even")
    for made in (to_vnni(q), jax.jit(to_vnni)(q)):
        tiles, groups = -(-rows // 16), columns // 32
        assert made.data.shape == (*lead, tiles, groups, 4, 64) and made.data.dtype == np.uint8
        assert made.scale.shape == (*lead, tiles, groups, 16) and made.scale.dtype == np.uint8
        assert (made.data_layout, made.padding_rows, made.rounding) == ("vnni", -rows % 16, "even")
        assert made.shape == q.shape and made.ndim == q.ndim
        for at in np.ndindex(lead):
            data, scale = oracle_quantized.vnni_tiles(np.asarray(q.data)[at], np.asarray(q.scale)[at], 127)
            assert same_bits(made.data[at], data) and same_bits(made.scale[at], scale)
        for back in (in_rows(made), jax.jit(in_rows)(made)):
            assert same_bits(back.data, q.data) and same_bits(back.scale, q.scale)
            assert (back.data_layout, back.padding_rows, back.rounding) == ("row_major", 0, "even")
        assert same_bits(VALUES(made), VALUES(q))
    assert to_vnni(made) is made


def test_one_layout_of_tiles_becomes_the_other(rng: Rng) -> None:
    q = tensor(rng, (2, 37, 544), "mxfp4")
    for got, want in ((to_vnni(shuffle(q)), to_vnni(q)), (shuffle(to_vnni(q)), shuffle(q))):
        assert same_bits(got.data, want.data) and same_bits(got.scale, want.scale)
        assert jax.tree.structure(got) == jax.tree.structure(want)


def test_vnni_is_a_field_of_the_pytree(rng: Rng) -> None:
    made = to_vnni(tensor(rng, (20, 64), "mxfp4"))
    leaves, structure = jax.tree.flatten(made)
    assert len(leaves) == 2 and leaves[0] is made.data and leaves[1] is made.scale
    assert structure != jax.tree.structure(to_vnni(tensor(rng, (21, 64), "mxfp4")))
    traced = jax.eval_shape(to_vnni, tensor(rng, (20, 64), "mxfp4"))
    assert (traced.shape, traced.data_layout, traced.padding_rows) == ((20, 64), "vnni", 12)


def test_the_kernels_are_told_of_vnni(rng: Rng) -> None:
    made = to_vnni(tensor(rng, (3, 32, 64), "mxfp4"))
    told = native_attributes(made.data, made.container, made.block, made.data_layout, prefix="down_")
    assert told == {"down_code": 4, "down_block_n": 1, "down_block_k": 32}
    assert all(type(value) is np.int64 for value in told.values())
    assert native_attributes(made.data, made.container, made.block, "row_major")["code"] == 0


VNNI = {"container": "mxfp4", "data_layout": "vnni"}
NOT_VNNI = {
    "container": (
        ((1, 2, 4, 64), U8), ((1, 2, 16), F32), {**VNNI, "container": "int4_group"}, LayoutError,
        "field 'data_layout': only 'mxfp4' with row_major scales can be vnni, got 'int4_group' with row_major scales",
    ),
    "scales": (
        ((1, 2, 4, 64), U8), ((1, 2, 16), U8), {**VNNI, "scale_layout": "column_major"}, LayoutError,
        "field 'data_layout': only 'mxfp4' with row_major scales can be vnni, got 'mxfp4' with column_major scales",
    ),
    "shuffled-data": (
        ((1, 2, 16, 16), U8), ((1, 2, 16), U8), VNNI, ShapeError,
        "field 'data': expected shape (..., ceil(N/16), K/32, 4, 64) for vnni data, got (1, 2, 16, 16)",
    ),
    "rank": (
        ((2, 4, 64), U8), ((2, 16), U8), VNNI, ShapeError,
        "field 'data': expected shape (..., ceil(N/16), K/32, 4, 64) for vnni data, got (2, 4, 64)",
    ),
    "scale": (
        ((1, 17, 4, 64), U8), ((1, 16, 16), U8), {**VNNI, "padding_rows": 3}, ShapeError,
        "field 'scale': expected shape (1, 17, 16) for vnni values (13, 544), got (1, 16, 16)",
    ),
    "padding": (
        ((1, 2, 4, 64), U8), ((1, 2, 16), U8), {**VNNI, "padding_rows": 16}, ShapeError,
        "field 'padding_rows': expected 0 to 15, and 0 without tiles, got 16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_VNNI)
def test_wrong_fields_of_the_vnni_layout_are_named(name: str) -> None:
    (shape, dtype), (scales, scale_dtype), given, kind, message = NOT_VNNI[name]
    with pytest.raises(kind) as raised:
        QuantizedTensor(jnp.zeros(shape, dtype), jnp.zeros(scales, scale_dtype), **given)
    assert str(raised.value) == f"QuantizedTensor: {message}"


def test_what_cannot_be_vnni_or_read_is_refused(rng: Rng) -> None:
    with pytest.raises(LayoutError, match=r"to_vnni: expected an mxfp4 matrix .* got fp8_block \(4, 200\)"):
        to_vnni(tensor(rng, (4, 200), "fp8_block128"))
    with pytest.raises(LayoutError, match=r"to_vnni: expected an mxfp4 matrix .* got mxfp4 \(64,\)"):
        to_vnni(QuantizedTensor(jnp.zeros(32, U8), jnp.zeros(2, U8), "mxfp4"))
    with pytest.raises(ShapeError, match="to_vnni: argument 'tensor': expected K to be a multiple of 32"):
        to_vnni(QuantizedTensor(jnp.zeros((4, 17), U8), jnp.zeros((4, 2), U8), "mxfp4"))
    q = tensor(rng, (4, 64), "mxfp4")
    turned = QuantizedTensor(q.data, q.scale.T, "mxfp4", scale_layout="column_major")
    with pytest.raises(LayoutError, match="to_vnni: argument 'tensor': expected row_major scales"):
        to_vnni(turned)
    check_weight("linear", "weight", to_vnni(q), ("row_major", "vnni"))
    with pytest.raises(
        LayoutError, match="absorb: argument 'weight': .* 'row_major', got 'vnni': see .*in_rows"
    ):
        check_weight("absorb", "weight", to_vnni(q))
