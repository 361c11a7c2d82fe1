"""From parameters to what is read: every quantised weight of the goldens, and tensors that contradict each other."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import mla_jax
from custom_calls.quantized_tensor import QuantizedTensor, in_rows
from mla_jax.checkpoints.index import SINGLE_FILE, TensorIndex
from mla_jax.checkpoints.plan import expected_storage, plan
from mla_jax.checkpoints.quantization import parse_quantization
from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.checkpoints.streaming import stream
from mla_jax.config import ModelConfig
from mla_jax.errors import CheckpointError
from mla_jax.models import freeze
from mla_jax.parameters import ParamInfo, Source, parameter_table
from mla_jax.quant import MXFP4, Storage

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_quantized"
CASES = sorted(path.name for path in GOLDENS.iterdir())
FP8 = ml_dtypes.float8_e4m3fn
E8M0 = ml_dtypes.float8_e8m0fnu
DTYPES = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "U8": np.uint8,
    "I32": np.int32,
    "F8_E4M3": FP8,
    "F8_E8M0": E8M0,
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def stored_tensors(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(blob[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def nibbles(packed):
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def meaning(tensors, name, block):
    """The values of a stored weight in float32, and the bytes of its codes; None where it is plain."""
    module = name.removesuffix(".weight")
    data = tensors.get(f"{module}.weight_packed", tensors.get(name))
    if data.dtype not in (np.uint8, np.int32, FP8):
        return None
    scale = tensors.get(f"{module}.weight_scale", tensors.get(f"{module}.weight_scale_inv"))
    if data.dtype == np.uint8:
        code = nibbles(data)
        codes = np.where(code & 8, -E2M1[code & 7], E2M1[code & 7])
        wide = np.repeat(np.ldexp(np.float32(1), scale.astype(int) - 127), 32, 1)
    elif data.dtype == np.int32:
        codes = nibbles(data.view(np.uint8)).astype(np.float32) - np.float32(8)
        wide = np.repeat(scale.astype(np.float32), codes.shape[1] // scale.shape[1], 1)
    else:
        codes, scale = data.astype(np.float32), scale.astype(np.float32)
        if scale.size == 1:
            wide = np.full(codes.shape, scale.reshape(()))
        elif scale.shape in ((len(codes),), (len(codes), 1)):
            wide = np.repeat(scale.reshape(-1, 1), codes.shape[1], 1)
        else:
            wide = np.repeat(np.repeat(scale, block[0], 0)[: len(codes)], block[1], 1)[:, : codes.shape[1]]
    return (codes * wide).astype(np.float32), data


def numbers(tensor):
    """What a `QuantizedTensor` means, in NumPy: there is nothing to compile."""
    data, scale = np.asarray(tensor.data), np.asarray(tensor.scale)
    rows, columns = tensor.shape[-2:]
    high, wide = tensor.block[0] or rows, tensor.block[1] or columns
    grid = (*tensor.shape[:-2], -(-rows // high), -(-columns // wide))
    if tensor.container == "mxfp4":
        code, scale = nibbles(data), np.ldexp(np.float32(1), scale.astype(int) - 127)
        codes = np.where(code & 8, -E2M1[code & 7], E2M1[code & 7])
    elif tensor.container == "int4_group":
        codes = nibbles(data).astype(np.float32) - np.float32(8)
    else:
        codes = data.astype(np.float32)
    spread = np.repeat(scale.astype(np.float32).reshape(grid), high, -2)[..., :rows, :]
    return (codes * np.repeat(spread, wide, -1)[..., :columns]).astype(np.float32)


def infos(table):
    return jax.tree.leaves(table, is_leaf=lambda node: isinstance(node, ParamInfo))


@pytest.mark.parametrize("case", CASES)
def test_every_weight_of_every_golden(case):
    """The checkpoint's own codes, byte for byte, and its own values; together no more than the file holds."""
    model, config = mla_jax.load(GOLDENS / case, progress=False)
    block = json.loads(config.quantization).get("weight_block_size", (128, 128))
    tensors = stored_tensors(GOLDENS / case)
    is_tensor = lambda node: isinstance(node, QuantizedTensor)  # noqa: E731
    leaves = jax.tree.leaves(freeze(model).params, is_leaf=is_tensor)
    quantised = held = 0
    for info, leaf in zip(infos(parameter_table(config)), leaves, strict=True):
        if isinstance(leaf, QuantizedTensor):
            leaf = in_rows(leaf)
            data = np.asarray(leaf.data).view(np.uint8)
            values = numbers(leaf)
            held += leaf.nbytes
        for source in info.sources:
            found = meaning(tensors, source.name, block)
            assert (found is None) != isinstance(leaf, QuantizedTensor), source
            if found is None:
                continue
            quantised += 1
            rows = slice(None) if source.rows is None else slice(*source.rows)
            expected, codes = found
            np.testing.assert_array_equal(values[source.index][rows], expected, err_msg=source.name)
            got = data[source.index][rows]
            assert got.tobytes() == codes.tobytes(), source
    assert quantised >= 18
    ours = [
        name for name in tensors if not name.split("layers.")[-1].startswith("2.")
    ]  # the layer that is left out
    data_bytes = sum(
        tensors[n].nbytes
        for n in ours
        if tensors[n].dtype in (np.uint8, np.int32, FP8) and not n.endswith(("_scale", "_shape"))
    )
    assert held > data_bytes
    if not case.startswith("fp8"):  # there scales are widened: e8m0, one a row where blocks do not fit
        scale_bytes = sum(
            tensors[name].nbytes
            for name in ours
            if name.endswith("weight_scale") and name.startswith(config.tensor_prefix)
        )
        assert held == data_bytes + scale_bytes


# Checkpoints of one parameter --------------------------------------------------------------------------


def fp8(rng, rows, columns):
    return rng.normal(size=(rows, columns)).astype(FP8)


def scales(rng, *shape):
    return rng.uniform(0.5, 2, shape).astype(np.float32)


def weight(shape=(8, 64), names=("a.weight",), **more):
    sources = tuple(map(Source, names))
    return ParamInfo(shape, ("mlp", "embed"), sources, **{"quantizable": True, **more})


def stacked(width, hidden, experts=1):
    """Gate above up, experts in front, as the model has them."""
    sources = []
    for e in range(experts):
        sources += [
            Source(f"{e}.gate.weight", (e,), (0, width)),
            Source(f"{e}.up.weight", (e,), (width, 2 * width)),
        ]
    shape = (experts, 2 * width, hidden)
    return ParamInfo(shape, ("expert", "mlp", "embed"), tuple(sources), quantizable=True)


def read(folder, info, tensors, settings=None, dtype="float32"):
    write_safetensors(folder / SINGLE_FILE, tensors)
    quantization = parse_quantization(None if settings is None else json.dumps(settings))
    with TensorIndex(folder) as index:
        (one,) = plan([info], dtype, index, quantization)
        # What is beside the arrays that are read may be there.
        arrays = stream(index, one.targets, ignore=lambda name: "beside", progress=False)
        return one.assemble(arrays)


def refused(folder, info, tensors, *parts, settings=None):
    with pytest.raises(CheckpointError) as caught:
        read(folder, info, tensors, settings)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def blocks(*size):
    return {"quant_method": "fp8", "weight_block_size": list(size)}


@pytest.mark.parametrize(
    ("width", "block", "expected"),
    [
        (32, (16, 32), (16, 32)),  # whole blocks: as they are
        (24, (16, 32), (1, 32)),  # up begins inside a block
        (40, (16, 32), (1, 32)),
        (5, (16, 32), (1, 32)),  # one ragged block each
        (32, (32, 16), (32, 16)),
        (7, (1, 32), (1, 32)),
    ],
)
def test_blocks_that_meet_in_one_parameter(tmp_path, rng, width, block, expected):
    info = stacked(width, 40, experts=2)
    tensors = {}
    for source in info.sources:
        tensors[source.name] = fp8(rng, width, 40)
        tensors[source.name + "_scale_inv"] = scales(rng, -(-width // block[0]), -(-40 // block[1]))
    got = read(tmp_path, info, tensors, blocks(*block))
    assert (got.container, got.block) == ("fp8_block", expected)
    assert expected_storage(info, parse_quantization(json.dumps(blocks(*block)))).block == expected
    values = numbers(got)
    for source in info.sources:
        wanted, _ = meaning(tensors, source.name, block)
        np.testing.assert_array_equal(values[source.index][slice(*source.rows)], wanted)


@pytest.mark.parametrize("block", [(128, 128), (3, 5), (64, 7)])
def test_ragged_blocks(tmp_path, rng, block):
    """R1's kv_a_proj_with_mqa in small: blocks as the configuration says, not the shape divided evenly."""
    tensors = {
        "a.weight": fp8(rng, 10, 64),
        "a.weight_scale_inv": scales(rng, -(-10 // block[0]), -(-64 // block[1])),
    }
    if block == (128, 128):  # one scale: of the tensor
        with_config = read(tmp_path, weight((10, 64)), tensors)
        assert with_config.container == "fp8_block"
    got = read(tmp_path, weight((10, 64)), tensors, blocks(*block))
    assert got.block == block
    np.testing.assert_array_equal(numbers(got), meaning(tensors, "a.weight", block)[0])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_a_tensor(tmp_path, rng, shape):
    tensors = {"a.weight": fp8(rng, 8, 64), "a.weight_scale": scales(rng, *shape)}
    got = read(tmp_path, weight(), tensors)
    assert (got.container, got.block, got.scale.shape) == ("fp8_tensor", (0, 0), ())
    np.testing.assert_array_equal(numbers(got), meaning(tensors, "a.weight", None)[0])


def test_scales_of_tensors_become_scales_of_rows(tmp_path, rng):
    info = stacked(6, 64, experts=2)
    tensors = {}
    for i, source in enumerate(info.sources):
        tensors[source.name] = fp8(rng, 6, 64)
        tensors[source.name + "_scale"] = scales(rng, *[(), (1,)][i % 2])
    got = read(tmp_path, info, tensors)
    assert (got.container, got.block, got.scale.shape) == ("fp8_channel", (1, 0), (2, 12))
    for source in info.sources:
        wanted, _ = meaning(tensors, source.name, None)
        np.testing.assert_array_equal(numbers(got)[source.index][slice(*source.rows)], wanted)
    # A stack without rows in common, such as down_proj: one scale an expert.
    down = replace(info, shape=(2, 6, 64), sources=(Source("0.up.weight", (0,)), Source("1.up.weight", (1,))))
    got = read(tmp_path, down, tensors)
    assert (got.container, got.scale.shape) == ("fp8_tensor", (2,))
    for e in range(2):
        np.testing.assert_array_equal(numbers(got)[e], meaning(tensors, f"{e}.up.weight", None)[0])


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
@pytest.mark.parametrize("end", ["weight_scale", "weight_scale_inv", "scale"])
def test_one_scale_a_row(tmp_path, rng, shape, end):
    tensors = {"a.weight": fp8(rng, 8, 64), f"a.{end}": scales(rng, *shape)}
    got = read(tmp_path, weight(), tensors)
    assert (got.container, got.block, got.scale.shape) == ("fp8_channel", (1, 0), (8,))
    codes = tensors["a.weight"].astype(np.float32)
    np.testing.assert_array_equal(numbers(got), codes * tensors[f"a.{end}"].reshape(8, 1))


def test_the_scale_that_is_a_multiplier_comes_first(tmp_path, rng):
    """Several names at once: DeepSeek's own, then Quark's."""
    tensors = {
        "a.weight": fp8(rng, 8, 64),
        "a.weight_scale_inv": scales(rng, 8),
        "a.weight_scale": scales(rng, 8),
        "a.scale": scales(rng, 8),
    }
    np.testing.assert_array_equal(read(tmp_path, weight(), tensors).scale, tensors["a.weight_scale_inv"])
    del tensors["a.weight_scale_inv"]
    np.testing.assert_array_equal(read(tmp_path, weight(), tensors).scale, tensors["a.weight_scale"])


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16, np.uint8, E8M0])
def test_dtypes_of_fp8_scales(tmp_path, rng, kind):
    exponents = rng.integers(100, 140, (2, 2)).astype(np.uint8)
    powers = np.ldexp(np.float32(1), exponents.astype(int) - 127)
    stored = exponents.view(kind) if np.dtype(kind).itemsize == 1 else powers.astype(kind)
    tensors = {"a.weight": fp8(rng, 8, 64), "a.weight_scale_inv": stored}
    got = read(tmp_path, weight(), tensors, blocks(4, 32))
    assert got.scale.dtype == np.float32
    expected = powers if kind is np.uint8 else powers.astype(kind).astype(np.float32)
    np.testing.assert_array_equal(got.scale, expected)


@pytest.mark.parametrize("kind", [np.uint8, E8M0])
@pytest.mark.parametrize("data", [np.uint8, np.int8])
@pytest.mark.parametrize(
    "names", [("weight", "weight_scale"), ("weight", "scale"), ("weight_packed", "weight_scale")]
)
def test_mxfp4(tmp_path, rng, names, data, kind):
    packed = rng.integers(0, 256, (8, 32)).astype(np.uint8)
    exponents = rng.integers(0, 255, (8, 2)).astype(np.uint8)
    tensors = {f"a.{names[0]}": packed.view(data), f"a.{names[1]}": exponents.view(kind)}
    if names[0] == "weight_packed" and data is np.int8:
        # compressed-tensors has uint8 only; anything else there is taken for words of int4.
        with pytest.raises(CheckpointError):
            read(tmp_path, weight(), tensors)
        return
    got = read(tmp_path, weight(), tensors)
    assert (got.container, got.block, got.rounding) == ("mxfp4", (1, 32), "even")
    assert got.data.dtype == got.scale.dtype == np.uint8
    np.testing.assert_array_equal(got.data, packed)
    np.testing.assert_array_equal(got.scale, exponents)


@pytest.mark.parametrize("group", [32, 16, 64])
@pytest.mark.parametrize("shape_kind", [np.int32, np.int64, None])
def test_int4(tmp_path, rng, shape_kind, group):
    words = rng.integers(-(2**31), 2**31, (8, 8)).astype(np.int32)
    tensors = {
        "a.weight_packed": words,
        "a.weight_scale": scales(rng, 8, 64 // group).astype(ml_dtypes.bfloat16),
    }
    if shape_kind is not None:
        tensors["a.weight_shape"] = np.array([8, 64], shape_kind)
    got = read(tmp_path, weight(), tensors)
    assert (got.container, got.block, got.scale.dtype) == ("int4_group", (1, group), ml_dtypes.bfloat16)
    np.testing.assert_array_equal(numbers(got), meaning(tensors, "a.weight", None)[0])
    for kind in (np.float32, np.float16):
        tensors["a.weight_scale"] = tensors["a.weight_scale"].astype(kind)
        wide = read(tmp_path, weight(), tensors)
        assert wide.scale.dtype == np.float32
        np.testing.assert_array_equal(numbers(wide), numbers(got))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"a.weight_shape": np.array([8, 32], np.int32)},
            "expected (8, 64) as the configuration says, got (8, 32)",
        ),
        (
            {"a.weight_shape": np.array([64, 8], np.int64)},
            "expected (8, 64) as the configuration says, got (64, 8)",
        ),
        (
            {"a.weight_shape": np.array([8, 64, 1], np.int32)},
            "expected two I32 or I64, got I32 of shape (3,)",
        ),
        ({"a.weight_shape": np.array([8, 64], np.float32)}, "expected two I32 or I64, got F32 of shape (2,)"),
        ({"a.weight_scale": None}, "'a.weight_packed': has no 'a.weight_scale'"),
        (
            {"a.weight_scale": np.ones((8, 3), np.float32)},
            "one scale a row and even group of (8, 64), got (8, 3)",
        ),
        (
            {"a.weight_scale": np.ones((8, 64), np.float32)},
            "one scale a row and even group of (8, 64), got (8, 64)",
        ),
        (
            {"a.weight_scale": np.ones((4, 2), np.float32)},
            "one scale a row and even group of (8, 64), got (4, 2)",
        ),
        ({"a.weight_scale": np.ones(8, np.float32)}, "one scale a row and even group of (8, 64), got (8,)"),
        (
            {"a.weight_scale": np.ones((8, 0), np.float32)},
            "one scale a row and even group of (8, 64), got (8, 0)",
        ),
        (
            {"a.weight_scale": np.ones((8, 2), np.uint8)},
            "'a.weight_scale': expected F32 or BF16 or F16 of shape (8, 2)",
        ),
        ({"a.weight_packed": np.zeros((8, 16), np.int32)}, "a.weight_packed: expected (8, 8), got (8, 16)"),
        ({"a.weight_packed": np.zeros((8, 8), np.int64)}, "a.weight_packed: expected I32, got I64"),
        ({"a.weight_packed": np.zeros((8, 32), np.uint8)}, "expected U8 or F8_E8M0 of shape (8, 2), got F32"),
    ],
)
def test_packed_weights_that_contradict_themselves(tmp_path, change, part):
    tensors = {"a.weight_packed": np.zeros((8, 8), np.int32), "a.weight_scale": np.ones((8, 2), np.float32)}
    tensors = {name: array for name, array in {**tensors, **change}.items() if array is not None}
    refused(tmp_path, weight(), tensors, part)


@pytest.mark.parametrize(
    ("data", "scale", "part"),
    [
        (
            (FP8, (8, 64)),
            None,
            "'a.weight': is F8_E4M3 but has no scales (weight_scale_inv, weight_scale, scale)",
        ),
        ((np.uint8, (8, 32)), None, "'a.weight': is U8 but has no scales"),
        ((FP8, (8, 64)), (np.float32, (3, 2)), "expected shape (2, 2) for (8, 64) in blocks of (4, 32)"),
        ((FP8, (8, 64)), (np.float32, (2, 3)), "or one scale a row, or one, got (2, 3)"),
        ((FP8, (8, 64)), (np.float32, (64,)), "got (64,)"),
        ((FP8, (8, 64)), (np.float32, (1, 1)), "got (1, 1)"),
        (
            (FP8, (8, 64)),
            (np.float64, (2, 2)),
            "expected F32 or BF16 or F16 or U8 or F8_E8M0 of shape (2, 2)",
        ),
        ((FP8, (8, 32)), (np.float32, (8,)), "a.weight: expected (8, 64), got (8, 32)"),
        (
            (np.uint8, (8, 32)),
            (np.float32, (8, 2)),
            "expected U8 or F8_E8M0 of shape (8, 2), got F32 of shape (8, 2)",
        ),
        (
            (np.uint8, (8, 32)),
            (np.uint8, (8, 1)),
            "expected U8 or F8_E8M0 of shape (8, 2), got U8 of shape (8, 1)",
        ),
        ((np.uint8, (8, 64)), (np.uint8, (8, 2)), "a.weight: expected (8, 32), got (8, 64)"),
    ],
)
def test_scales_that_do_not_fit(tmp_path, data, scale, part):
    tensors = {"a.weight": np.zeros(data[1], data[0])}
    if scale is not None:
        tensors["a.weight_scale"] = np.ones(scale[1], scale[0])
    refused(tmp_path, weight(), tensors, part, settings=blocks(4, 32))


def test_a_mixed_stack_is_refused_with_both_names(tmp_path, rng):
    info = stacked(32, 64)
    mxfp4 = {
        "0.gate.weight": np.zeros((32, 32), np.uint8),
        "0.gate.weight_scale": np.zeros((32, 2), np.uint8),
    }
    plain = {"0.up.weight": np.zeros((32, 64), np.float32)}
    other = {"0.up.weight": fp8(rng, 32, 64), "0.up.weight_scale": scales(rng, 32)}
    refused(
        tmp_path,
        info,
        mxfp4 | plain,
        "'0.gate.weight' is stored as mxfp4 in blocks of (1, 32) and '0.up.weight' as plain numbers",
    )
    refused(
        tmp_path, info, mxfp4 | other, "'0.gate.weight'", "'0.up.weight' as fp8_channel in blocks of (1, 0)"
    )
    swapped = {
        n.replace("gate", "x").replace("up", "gate").replace("x", "up"): a for n, a in (mxfp4 | plain).items()
    }
    refused(tmp_path, info, swapped, "'0.gate.weight' is stored as plain numbers and '0.up.weight' as mxfp4")


def test_a_weight_that_is_only_read_as_plain_numbers(tmp_path):
    tensors = {"a.weight": np.zeros((8, 32), np.uint8), "a.weight_scale": np.zeros((8, 2), np.uint8)}
    refused(
        tmp_path,
        weight(quantizable=False),
        tensors,
        "'a.weight': is stored as mxfp4 in blocks of (1, 32), but this weight is only read as plain numbers",
    )


def test_the_tensors_decide_and_not_the_configuration(tmp_path, rng):
    """Excluded but quantised, and the other way round."""
    settings = {
        "quant_method": "quark",
        "global_quant_config": {"weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}},
        "exclude": ["a"],
    }
    tensors = {"a.weight": fp8(rng, 8, 64), "a.weight_scale": scales(rng, 8)}
    assert read(tmp_path, weight(), tensors, settings).container == "fp8_channel"
    values = rng.normal(size=(8, 64)).astype(np.float32)
    plain = read(tmp_path, weight(), {"a.weight": values}, {**settings, "exclude": []}, dtype="bfloat16")
    assert plain.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(plain, values.astype(ml_dtypes.bfloat16))


def test_what_is_no_matrix_is_never_quantised(tmp_path):
    bias = ParamInfo((8,), ("mlp",), (Source("a.bias"),), dtype="float32")
    write_safetensors(tmp_path / SINGLE_FILE, {"a.bias": np.arange(8, dtype=np.float16)})
    with TensorIndex(tmp_path) as index:
        (one,) = plan([bias], "bfloat16", index, None)
    assert one.info is bias
    assert [target.dtype for target in one.targets] == ["float32"]
    # Nor is a missing tensor: the comparison with the whole checkpoint names it.
    with TensorIndex(tmp_path) as index:
        (one,) = plan([weight()], "bfloat16", index, None)
        assert one.info.storage is None
        with pytest.raises(CheckpointError, match="1 tensors are missing: a.weight"):
            list(stream(index, one.targets, ignore=lambda name: "beside"))


@pytest.mark.parametrize("kind", [FP8, np.uint8])
def test_a_quantised_norm_is_refused(tmp_path, kind):
    norm = ParamInfo((8,), ("norm",), (Source("n.weight"),), "ones")
    tensors = {"n.weight": np.zeros(8, kind), "n.weight_scale": np.ones((), np.float32)}
    refused(tmp_path, norm, tensors, "n.weight: expected F32, F16, BF16, got ")


def test_the_plan_says_the_storage(tmp_path):
    tensors = {"a.weight": np.zeros((8, 32), np.uint8), "a.weight_scale": np.zeros((8, 2), np.uint8)}
    write_safetensors(tmp_path / SINGLE_FILE, tensors)
    with TensorIndex(tmp_path) as index:
        (one,) = plan([weight()], "float32", index, None)
    assert one.info.storage == MXFP4
    assert [(t.shape, t.dtype, t.raw) for t in one.targets] == [
        ((8, 32), "uint8", True),
        ((8, 2), "uint8", True),
    ]


def test_expected_storage_of_excluded_and_stacked_parameters():
    quantization = parse_quantization(json.dumps({"quant_method": "fp8", "ignored_layers": ["a"]}))
    assert expected_storage(weight(), quantization) is None
    assert expected_storage(weight(names=("b.weight",)), quantization) == Storage("fp8_tensor", (0, 0))
    assert expected_storage(stacked(8, 64), quantization) == Storage("fp8_channel", (1, 0))
    config = ModelConfig.from_file(GOLDENS / "fp8_block")
    found = {
        info.sources[0].name: expected_storage(info, parse_quantization(config.quantization))
        for info in infos(parameter_table(config))
        if info.quantizable
    }
    assert found["model.layers.1.mlp.experts.0.gate_proj.weight"].block == (1, 32)
    assert found["model.layers.1.mlp.experts.0.down_proj.weight"].block == (32, 32)
    assert found["lm_head.weight"] is None
