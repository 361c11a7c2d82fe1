"""Conversion: every container from every other, the published layouts byte for byte, honest error figures."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import mla_jax
from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax.checkpoints.index import TensorIndex
from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.convert import convert
from mla_jax.errors import CheckpointError
from mla_jax.models import freeze

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
TOKENS = np.arange(24, dtype=np.int32)[None]


def tensors(folder):
    with TensorIndex(folder) as index:
        return {name: index.file(name).read(name) for name in index.names()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """deepseek_v2 (three shards), its expert width padded to 32 so that experts can be MXFP4."""
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    shutil.copytree(GOLDENS / "deepseek_v2", folder)
    config = json.loads((folder / "config.json").read_text())
    config["moe_intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text("{}")
    rng = np.random.default_rng(0)
    for file in folder.glob("*.safetensors"):
        with TensorIndex(folder) as index:
            names = [name for name in index.names() if index.file(name).path == file]
            held = {name: index.file(name).read(name) for name in names}
        for name, array in held.items():
            if ".experts." in name:
                width = 32
                shape = (array.shape[0], width) if "down" in name else (width, array.shape[1])
                held[name] = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
            elif ".shared_experts." in name:
                width = 32 * config["n_shared_experts"]
                shape = (array.shape[0], width) if "down" in name else (width, array.shape[1])
                held[name] = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        write_safetensors(file, held, {"format": "pt"})
    return folder


def logits(folder):
    model, _ = mla_jax.load(folder, dtype="float32", progress=False)
    return np.asarray(jax.jit(mla_jax.forward)(freeze(model), jnp.asarray(TOKENS)))


@pytest.fixture(scope="module")
def converted(tmp_path_factory, source):
    out = tmp_path_factory.mktemp("converted")
    return {
        weights: (out / weights, convert(source, out / weights, weights=weights, progress=False))
        for weights in ("mxfp4", "fp8", "bf16")
    }


def test_what_is_quantised_follows_the_published_recipes(source, converted):
    before = tensors(source)
    for weights in ("mxfp4", "fp8"):
        folder, numerics = converted[weights]
        after = tensors(folder)
        quantised = set(numerics.tensors)
        assert quantised
        for name, array in before.items():
            if name in quantised:
                continue
            assert np.array_equal(after[name], array), name
        plain = {name for name in before if name.endswith("_proj.weight")} - quantised
        if weights == "mxfp4":
            assert all(".self_attn." in name or before[name].shape[1] % 32 for name in plain)
            assert not any(".self_attn." in name for name in quantised)
        else:
            assert plain == set()
        assert not any(name in quantised for name in ("lm_head.weight", "model.embed_tokens.weight"))
        assert not any(".mlp.gate." in name for name in quantised)


def test_mxfp4_bytes(source, converted):
    name = "model.layers.1.mlp.experts.3.down_proj"
    values = tensors(source)[f"{name}.weight"]
    after = tensors(converted["mxfp4"][0])
    data, scale = after[f"{name}.weight"], after[f"{name}.weight_scale"]
    assert data.dtype == scale.dtype == np.uint8
    assert data.shape == (values.shape[0], 16) and scale.shape == (values.shape[0], 1)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = np.stack([data & 15, data >> 4], axis=-1).reshape(values.shape)
    decoded = table[codes] * 2.0 ** (scale.astype(np.float64) - 127)
    step = 2.0 ** (scale.astype(np.float64) - 127)
    # Half of the widest distance between codes; beyond 6 rule "even" may saturate by one more.
    assert (np.abs(decoded - values) <= step).all()
    assert np.abs(decoded - values).max() > 0


def test_fp8_blocks(source, converted):
    name = "model.layers.0.self_attn.o_proj"
    values = tensors(source)[f"{name}.weight"]
    after = tensors(converted["fp8"][0])
    data, scale = after[f"{name}.weight"], after[f"{name}.weight_scale_inv"]
    assert data.dtype == ml_dtypes.float8_e4m3fn and scale.dtype == np.float32
    assert scale.shape == (1, 1) and scale[0, 0] == np.abs(values).max() / np.float32(448)
    np.testing.assert_allclose(data.astype(np.float32) * scale, values, rtol=2**-4, atol=scale[0, 0] * 2**-9)


def decoded(folder):
    """The checkpoint's tensors with every quantised weight as float32, decoded by its published layout."""
    plain, stored = {}, tensors(folder)
    for name, array in stored.items():
        module = name.removesuffix(".weight")
        if array.dtype == np.uint8 and name.endswith(".weight"):
            table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
            codes = table[np.stack([array & 15, array >> 4], axis=-1)].reshape(array.shape[0], -1)
            scale = 2.0 ** (stored[f"{module}.weight_scale"].astype(np.float64) - 127)
            plain[name] = (codes * np.repeat(scale, 32, axis=1)).astype(np.float32)
        elif array.dtype == ml_dtypes.float8_e4m3fn:
            scale = np.repeat(np.repeat(stored[f"{module}.weight_scale_inv"], 128, 0), 128, 1)
            plain[name] = array.astype(np.float32) * scale[: array.shape[0], : array.shape[1]]
        elif not name.endswith(("weight_scale", "weight_scale_inv")):
            plain[name] = array
    return plain


@pytest.mark.parametrize("weights", ["mxfp4", "fp8", "bf16"])
def test_the_result_loads_and_answers_what_its_values_answer(tmp_path, source, converted, weights):
    folder, numerics = converted[weights]
    write_safetensors(tmp_path / "model.safetensors", decoded(folder))
    shutil.copy(source / "config.json", tmp_path)
    np.testing.assert_allclose(logits(folder), logits(tmp_path), rtol=0, atol=1e-4)
    if weights == "bf16":
        assert numerics.tensors == {}
        np.testing.assert_array_equal(logits(folder), logits(source))
    model, _ = mla_jax.load(folder, progress=False)
    kinds = {
        leaf.container
        for leaf in jax.tree.leaves(freeze(model), is_leaf=lambda node: isinstance(node, QuantizedTensor))
        if isinstance(leaf, QuantizedTensor)
    }
    assert kinds == {"mxfp4": {"mxfp4"}, "fp8": {"fp8_block"}, "bf16": set()}[weights]


def test_abstract_and_loaded_agree(converted):
    for weights, (folder, _) in converted.items():
        described, _ = mla_jax.load(folder, abstract=True)
        model, _ = mla_jax.load(folder, progress=False)
        want, got = freeze(described).params, freeze(model).params
        assert jax.tree.structure(want) == jax.tree.structure(got), weights
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (want, got)]
        assert shapes[0] == shapes[1], weights


def test_quantised_checkpoints_are_converted_again(tmp_path, source, converted):
    convert(converted["mxfp4"][0], tmp_path / "plain", weights="bf16", progress=False)
    np.testing.assert_allclose(logits(tmp_path / "plain"), logits(converted["mxfp4"][0]), rtol=0, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    stored = tensors(tmp_path / "plain")["model.layers.1.mlp.experts.0.up_proj.weight"]
    assert stored.dtype == ml_dtypes.bfloat16
    again = convert(converted["mxfp4"][0], tmp_path / "again", weights="mxfp4", progress=False)
    # What is MXFP4 already is so exactly; the bytes of codes and scales may only differ where they mean the same.
    assert max(one.error for one in again.tensors.values()) == 0
    convert(converted["fp8"][0], tmp_path / "from-fp8", weights="mxfp4", progress=False)
    assert np.isfinite(logits(tmp_path / "from-fp8")).all()


def test_settings_travel_and_the_config_says_what_is_there(source, converted):
    for weights, (folder, _) in converted.items():
        assert (folder / "tokenizer_config.json").read_text() == "{}"
        config = json.loads((folder / "config.json").read_text())
        before = json.loads((source / "config.json").read_text())
        quantization = config.pop("quantization_config", None)
        assert config == before
        if weights == "fp8":
            assert quantization == {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
            }
        if weights == "mxfp4":
            weight = quantization["global_quant_config"]["weight"]
            assert (weight["dtype"], weight["qscheme"], weight["group_size"]) == ("fp4", "per_group", 32)
            assert weight["scale_format"] == "e8m0" and weight["scale_calculation_mode"] == "even"
            assert quantization["exclude"][:3] == ["lm_head", "*self_attn*", "*mlp.gate"]
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(tensors(folder))
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors(folder).values())


def test_numerics_are_those_of_the_files(source, converted):
    before = tensors(source)
    folder, numerics = converted["fp8"]
    after = tensors(folder)
    for name, distance in numerics.tensors.items():
        values = before[name].astype(np.float64)
        scale = after[name.removesuffix("weight") + "weight_scale_inv"].astype(np.float64)
        full = np.repeat(np.repeat(scale, 128, 0), 128, 1)[: values.shape[0], : values.shape[1]]
        decoded = after[name].astype(np.float64) * full
        expected = 1 - np.vdot(decoded, values) / np.linalg.norm(decoded) / np.linalg.norm(values)
        np.testing.assert_allclose(distance.cosine, expected, rtol=1e-4, atol=1e-12)
        error = np.abs(decoded - values).max() / np.abs(values).max()
        np.testing.assert_allclose(distance.error, error, rtol=1e-4)


def test_every_layers_kv_b_proj_is_priced(source, converted):
    names = {name for name in tensors(source) if name.endswith("kv_b_proj.weight")}
    for _, numerics in converted.values():
        for found in numerics.absorbed.values():
            assert {name for name, *_ in found} == names


def test_refusals(tmp_path, source):
    with pytest.raises(CheckpointError, match="weights: expected one of mxfp4, fp8, bf16, got 'int3'"):
        convert(source, tmp_path / "a", weights="int3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        convert(source, tmp_path / "full", weights="bf16")
    with pytest.raises(CheckpointError, match="cannot be made"):
        convert(source, tmp_path / "full" / "file", weights="bf16")
    with pytest.raises(CheckpointError, match="no such folder"):
        convert(tmp_path / "nowhere" / "at" / "all", tmp_path / "b", weights="bf16")
