"""weight_layout: which weights are brought into tiles at load, where, and that the model answers the same."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mla_jax
from custom_calls.linear_vnni import LINEAR_VNNI
from custom_calls.quantized_tensor import QuantizedTensor, in_rows, shuffle, to_vnni
from custom_calls.registry import Library, declared
from mla_jax import weight_layout
from mla_jax.errors import ConfigError, ShapeError
from mla_jax.models import freeze
from mla_jax.parameters import parameter_table
from mla_jax.quant import MXFP4, random_tensor
from mla_jax.weight_layout import LEAST_SHUFFLED, in_weight_layout, resolve_weight_layout

GOLDENS = Path(__file__).resolve().parents[1] / "goldens_quantized"
TOKENS = jnp.arange(9, dtype=jnp.int32)[None]
CASES = ("quark_mxfp4", "quark_mixed", "ct_mxfp4")


def weights(model):
    is_weight = lambda node: isinstance(node, QuantizedTensor)  # noqa: E731
    return jax.tree_util.tree_flatten_with_path(model.params, is_leaf=is_weight)[0]


def cpu_library(isa, targets=LINEAR_VNNI.targets):
    return Library("cpu", "declared", frozenset(targets), "declared", {"isa": isa})


NO_LIBRARY = Library("cpu", None, frozenset(), "cannot be loaded", {})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("isa", ["avx512vnni", "amx"])
def test_auto_is_for_gpus_and_products_of_vnni_that_compute_in_bfloat16(platform, dtype, isa):
    device = SimpleNamespace(platform=platform)
    wanted = {"gpu": "auto", "cpu": "vnni"}.get(platform, "row_major") if dtype == "bfloat16" else "row_major"
    with declared(cpu_library(isa)):
        assert resolve_weight_layout("auto", dtype, device) == wanted
    for choice in ("row_major", "shuffled", "vnni"):
        assert resolve_weight_layout(choice, dtype, device) == choice


LIBRARIES = {
    **{str(isa): cpu_library(isa) for isa in ("baseline", "avx2", "avx512", "avx512bf16", None)},
    "older": cpu_library("amx", ["mla_jax.linear_quantized.v2"]),
    "half": cpu_library("amx", LINEAR_VNNI.targets[:1]),
    "missing": NO_LIBRARY,
}


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_auto_is_row_major_without_products_of_vnni_or_their_kernel(library):
    with declared(library):
        assert resolve_weight_layout("auto", "bfloat16", SimpleNamespace(platform="cpu")) == "row_major"


@pytest.mark.parametrize("case", CASES)
def test_a_cpu_with_amx_gets_vnni(case):
    with declared(cpu_library("amx")):
        given = freeze(mla_jax.load(GOLDENS / case, dtype="bfloat16", kernels="reference", progress=False)[0])
    asked = freeze(mla_jax.load(GOLDENS / case, dtype="bfloat16", weight_layout="vnni", progress=False)[0])
    assert jax.tree.structure(given.params) == jax.tree.structure(asked.params)


@pytest.mark.parametrize("choice", ["tiled", "", None, 3])
def test_other_choices_are_refused(choice):
    message = "weight_layout: expected one of auto, row_major, shuffled, vnni, got "
    with pytest.raises(ConfigError, match=message):
        resolve_weight_layout(choice, "bfloat16")
    with pytest.raises(ConfigError, match=message):
        mla_jax.load(GOLDENS / "quark_mxfp4", weight_layout=choice, progress=False)


@pytest.mark.parametrize("layout", ["shuffled", "vnni"])
@pytest.mark.parametrize("case", CASES)
def test_weights_of_linear_and_vnni_experts_are_in_tiles_and_others_are_not(case, layout):
    plain, made = (
        freeze(mla_jax.load(GOLDENS / case, weight_layout=choice, progress=False)[0])
        for choice in ("row_major", layout)
    )
    layouts = set()
    for (path, before), (_, after) in zip(weights(plain), weights(made), strict=True):
        if not isinstance(before, QuantizedTensor):
            continue
        name = jax.tree_util.keystr(path)
        wanted = before.container == "mxfp4" and "kv_b_proj" not in name
        wanted = wanted and (before.ndim == 2 or layout == "vnni")
        assert after.data_layout == (layout if wanted else "row_major"), name
        layouts.add((after.data_layout, after.ndim))
        back = in_rows(after)
        assert np.array_equal(back.data, before.data) and np.array_equal(back.scale, before.scale), name
    # ct_mxfp4 has only experts in MXFP4, of 32 and of 64 rows as all of them.
    assert ((layout, 2) in layouts) == (case != "ct_mxfp4")
    assert ((layout, 3) in layouts) == (layout == "vnni")


def info_of(*path):
    node = parameter_table(freeze(mla_jax.load(GOLDENS / "quark_mxfp4", progress=False)[0]).config)
    for key in ("model", "layers", *path):
        node = node[key]
    return node


def info_of_a_linear():
    return info_of(0, "self_attn", "o_proj", "weight")


def random_mxfp4(rng, shape):
    *lead, columns = shape
    data, scale = (jnp.asarray(rng.integers(0, 256, (*lead, columns // of), np.uint8)) for of in (2, 32))
    return QuantizedTensor(data, scale, "mxfp4", rounding="even")


# Rows and columns of no tile, of a part of one, of many pieces and of pieces that are one tile each; and stacks of
# experts, of none, of whole pieces each and of pieces that hold parts of several.
SHAPES = [
    (0, 64), (7, 0), (1, 32), (37, 160), (4099, 1056), (50, 1 << 18),
    (0, 32, 64), (3, 0, 64), (3, 32, 0), (5, 64, 96), (2, 3, 32, 64), (2, 64, 1 << 17), (7, 96, 1 << 15),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_the_host_makes_is_vnni(shape, rng):
    weight = random_mxfp4(rng, shape)
    data = weight.data
    made, want = in_weight_layout(weight, info_of_a_linear(), "vnni"), to_vnni(weight)
    assert isinstance(made.data, jax.Array) and made.data.devices() == data.devices()
    assert jax.tree.structure(made) == jax.tree.structure(want) and made.rounding == "even"
    assert np.array_equal(made.data, want.data) and np.array_equal(made.scale, want.scale)
    for other in (shuffle(weight), made):
        again = in_weight_layout(other, info_of_a_linear(), "vnni")
        assert np.array_equal(again.data, want.data) and again.data_layout == "vnni"


@pytest.mark.parametrize("rows", [16, 31, 32, 33, 48, 64, 96, 100])
def test_experts_of_whole_tiles_become_vnni_and_others_stay(rows, rng):
    weight = random_mxfp4(rng, (3, rows, 64))
    for name in ("gate_up_proj", "down_proj"):
        info = info_of(1, "mlp", "experts", name)
        made = in_weight_layout(weight, info, "vnni")
        if rows % 32:
            assert made is weight
        else:
            assert (made.data_layout, made.padding_rows) == ("vnni", 0)
            assert made.data.shape == (3, rows // 16, 2, 4, 64)
        for layout in ("auto", "shuffled", "row_major"):
            assert in_weight_layout(weight, info, layout) is weight


@pytest.mark.parametrize("rows", [64, 37])
def test_weights_of_absorb_stay_in_rows(rows, rng):
    weight, info = random_mxfp4(rng, (rows, 64)), info_of(0, "self_attn", "kv_b_proj", "weight")
    assert all(in_weight_layout(weight, info, layout) is weight for layout in ("vnni", "shuffled"))


def test_vnni_groups_are_whole():
    ragged = QuantizedTensor(jnp.zeros((4, 17), "uint8"), jnp.zeros((4, 2), "uint8"), "mxfp4")
    with pytest.raises(ShapeError, match="to_vnni: argument 'tensor': expected K to be a multiple of 32"):
        in_weight_layout(ragged, info_of_a_linear(), "vnni")


def test_auto_shuffles_large_weights_only(monkeypatch):
    info = info_of_a_linear()
    small = random_tensor(MXFP4, (7, 96), jax.random.key(0), 1.0)
    assert LEAST_SHUFFLED > 10944 * 2048 and LEAST_SHUFFLED < 18432 * 7168
    assert in_weight_layout(small, info, "auto") is small
    assert in_weight_layout(small, info, "shuffled").data_layout == "shuffled"
    for least, layout in ((7 * 96, "shuffled"), (7 * 96 + 1, "row_major")):
        monkeypatch.setattr(weight_layout, "LEAST_SHUFFLED", least)
        assert in_weight_layout(small, info, "auto").data_layout == layout
        assert in_weight_layout(small, info, "row_major") is small


@pytest.mark.parametrize("case", CASES)
def test_models_answer_the_same(case):
    plain, made = (
        freeze(mla_jax.load(GOLDENS / case, dtype="float32", weight_layout=layout, progress=False)[0])
        for layout in ("row_major", "shuffled")
    )
    wanted, got = (np.asarray(jax.jit(mla_jax.forward)(model, TOKENS)) for model in (plain, made))
    # The same kernel of the same rows.
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_models_in_vnni_answer_the_same(case, kernels):
    plain, made = (
        freeze(
            mla_jax.load(
                GOLDENS / case, dtype="float32", kernels=kernels, weight_layout=layout, progress=False
            )[0]
        )
        for layout in ("row_major", "vnni")
    )
    wanted, got = (np.asarray(jax.jit(mla_jax.forward)(model, TOKENS)) for model in (plain, made))
    if kernels == "reference":
        assert np.array_equal(got, wanted)
    # Another kernel's sums: in another order.
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("layout", ["row_major", "shuffled", "vnni"])
def test_described_and_loaded_models_agree(layout):
    described = freeze(mla_jax.load(GOLDENS / "quark_mixed", abstract=True, weight_layout=layout)[0]).params
    loaded = freeze(mla_jax.load(GOLDENS / "quark_mixed", progress=False, weight_layout=layout)[0]).params
    assert jax.tree.structure(described) == jax.tree.structure(loaded)
    for one, other in zip(jax.tree.leaves(described), jax.tree.leaves(loaded), strict=True):
        assert (one.shape, one.dtype) == (other.shape, jnp.dtype(other.dtype))
