"""quantization_config: what is understood, what is refused and why, and which weights it promises to quantise."""

import json
import time
from pathlib import Path

import jax
import pytest

import mla_jax
from mla_jax.checkpoints.quantization import METHODS, parse_quantization
from mla_jax.errors import UnsupportedModelError
from mla_jax.models import freeze
from mla_jax.parameters import ParamInfo, Source
from mla_jax.quant import FP8, MXFP4, Storage

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_quantized"
CASES = sorted(path.name for path in GOLDENS.iterdir())

FP4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
CHANNEL, TENSOR = Storage("fp8_channel", (1, 0)), Storage("fp8_tensor", (0, 0))
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}


def parse(**settings):
    return parse_quantization(json.dumps(settings))


def quark(weight, **more):
    return {"quant_method": "quark", "global_quant_config": {"weight": weight}, **more}


def compressed(weights, **more):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


def info(*names):
    return ParamInfo((32, 32), ("mlp", "embed"), tuple(map(Source, names)), quantizable=True)


def test_none():
    assert parse_quantization(None) is None


@pytest.mark.parametrize(
    ("settings", "storage"),
    [
        ({"quant_method": "fp8"}, TENSOR),
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, FP8),
        ({"quant_method": "fp8", "weight_block_size": [1, 32]}, Storage("fp8_block", (1, 32))),
        ({"quant_method": "fp8", "weight_block_size": [16, 64]}, Storage("fp8_block", (16, 64))),
        ({"quant_method": "mxfp4"}, MXFP4),
        (quark(FP4), MXFP4),
        (quark([FP4]), MXFP4),
        (quark({key: FP4[key] for key in ("dtype", "qscheme", "group_size")}), MXFP4),
        (quark({"dtype": "fp8_e4m3", "qscheme": "per_channel"}), CHANNEL),
        (quark({"dtype": "fp8_e4m3", "qscheme": "per_tensor"}), TENSOR),
        (compressed(INT4), Storage("int4_group", (1, 32), "bfloat16")),
        (compressed({**INT4, "group_size": 128}), Storage("int4_group", (1, 128), "bfloat16")),
        (compressed({"num_bits": 4, "type": "float", "group_size": 32}), MXFP4),
        (compressed({"num_bits": 8, "type": "float", "strategy": "channel"}), CHANNEL),
        (compressed({"num_bits": 8, "type": "float", "strategy": "tensor"}), TENSOR),
        (
            compressed({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 32]}),
            Storage("fp8_block", (64, 32)),
        ),
    ],
)
def test_storages(settings, storage):
    found = parse(**settings)
    assert found.method == settings["quant_method"]
    assert found.storage == storage
    assert found.block == (storage.block if storage.container == "fp8_block" else (128, 128))
    assert (found.excluded, found.layers) == ((), ())
    assert found.expected(info("model.layers.0.self_attn.o_proj.weight")) == storage
    # No published checkpoint quantises the output head, listed or not.
    assert found.expected(info("lm_head.weight")) is None
    assert found.expected(info("language_model.lm_head.weight")) is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "quant_method: expected one of fp8, quark, compressed-tensors, mxfp4, got None"),
        ({"quant_method": "awq"}, "quant_method: expected one of .*, got 'awq'"),
        ({"quant_method": ["fp8"]}, r"quant_method: expected one of .*, got \['fp8'\]"),
        ({"quant_method": {"a": 1}}, "quant_method: expected one of .*, got {'a': 1}"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt: expected 'e4m3', got 'e5m2'"),
        (
            {"quant_method": "fp8", "weight_block_size": 128},
            "weight_block_size: expected two positive integers, got 128",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"two positive integers, got \[128\]"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, r"two positive integers, got \[128, 0\]"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128.0]}, r"got \[128, 128.0\]"),
        ({"quant_method": "fp8", "weight_block_size": [True, 128]}, r"got \[True, 128\]"),
        ({"quant_method": "fp8", "weight_block_size": [1, 2, 3]}, r"got \[1, 2, 3\]"),
        ({"quant_method": "quark"}, "global_quant_config.weight: expected an object, got None"),
        ({"quant_method": "quark", "global_quant_config": 7}, "weight: expected an object, got None"),
        (quark([FP4, FP4]), "global_quant_config.weight: expected an object, got "),
        (quark({**FP4, "dtype": "int8"}), "weight.dtype: expected 'fp4' or 'fp8_e4m3', got 'int8'"),
        (quark({**FP4, "qscheme": "per_tensor"}), "weight.qscheme: expected 'per_group', got 'per_tensor'"),
        (quark({**FP4, "group_size": 16}), "weight.group_size: expected 32, got 16"),
        (quark({**FP4, "group_size": 32.0}), "weight.group_size: expected 32, got 32.0"),
        (quark({"dtype": "fp4", "qscheme": "per_group"}), "weight.group_size: expected 32, got None"),
        (quark({**FP4, "scale_format": "float32"}), "weight.scale_format: expected 'e8m0', got 'float32'"),
        (
            quark({"dtype": "fp8_e4m3", "qscheme": "per_group"}),
            "weight.qscheme: expected 'per_channel' or 'per_tensor', got 'per_group'",
        ),
        (quark(FP4, layer_quant_config=[1]), r"layer_quant_config: expected an object, got \[1\]"),
        ({"quant_method": "compressed-tensors"}, "config_groups: expected an object, got None"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "config_groups: expected an object"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": 1}},
            "config_groups.g.weights: expected an object, got None",
        ),
        (compressed(None), "config_groups.group_0.weights: expected an object, got None"),
        (compressed({**INT4, "num_bits": 8}), "group_0.weights.num_bits: expected 4, got 8"),
        (compressed({**INT4, "strategy": "channel"}), "weights.strategy: expected 'group', got 'channel'"),
        (compressed({**INT4, "symmetric": False}), "weights.symmetric: expected True, got False"),
        (compressed({**INT4, "symmetric": 1}), "weights.symmetric: expected True, got 1"),
        (
            compressed({**INT4, "group_size": 33}),
            "weights.group_size: expected a positive even number, got 33",
        ),
        (compressed({**INT4, "group_size": 0}), "group_size: expected a positive even number, got 0"),
        (compressed({**INT4, "group_size": -1}), "group_size: expected a positive even number, got -1"),
        (compressed({**INT4, "group_size": None}), "group_size: expected a positive even number, got None"),
        (compressed({**INT4, "type": "uint"}), "weights.type: expected 'int' or 'float', got 'uint'"),
        (
            compressed({"num_bits": 4, "type": "float", "group_size": 16}),
            "weights.group_size: expected 32, got 16",
        ),
        (compressed({"num_bits": 6, "type": "float"}), "weights.num_bits: expected 4 or 8, got 6"),
        (
            compressed({"num_bits": 8, "type": "float", "strategy": "token"}),
            "weights.strategy: expected 'channel' or 'tensor' or 'block', got 'token'",
        ),
        (
            compressed({"num_bits": 8, "type": "float", "strategy": "block"}),
            "weights.block_structure: expected two positive integers, got None",
        ),
        (
            compressed({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, -1]}),
            r"weights.block_structure: expected two positive integers, got \[128, -1\]",
        ),
        (quark(FP4, exclude="lm_head"), "exclude: expected a list of names, got 'lm_head'"),
        (quark(FP4, exclude=["lm_head", 3]), r"exclude: expected a list of names, got \['lm_head', 3\]"),
        (compressed(INT4, ignore={}), "ignore: expected a list of names, got {}"),
    ],
)
def test_refused(settings, sentence):
    with pytest.raises(UnsupportedModelError, match=sentence) as caught:
        parse(**settings)
    assert str(caught.value).startswith("quantization_config.")
    assert "\n" not in str(caught.value)


def test_every_group_has_to_be_readable():
    groups = {"a": {"weights": INT4}, "b": {"weights": {**INT4, "num_bits": 8}}}
    with pytest.raises(
        UnsupportedModelError, match=r"config_groups\.b\.weights\.num_bits: expected 4, got 8"
    ):
        parse(quant_method="compressed-tensors", config_groups=groups)


def test_methods_are_listed():
    assert METHODS == ("fp8", "quark", "compressed-tensors", "mxfp4")


@pytest.mark.parametrize("key", ["exclude", "ignore", "ignored_layers", "modules_to_not_convert"])
def test_lists_of_exclusions(key):
    for settings in (quark(FP4), compressed(INT4), {"quant_method": "fp8"}, {"quant_method": "mxfp4"}):
        assert parse(**{**settings, key: ["a", "b*"]}).excluded == ("a", "b*")
        assert parse(**{**settings, key: None}).excluded == ()


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("model.layers.1.mlp", ["model.layers.1.mlp"], ["model.layers.1.mlp.up_proj", "xmodel.layers.1.mlp"]),
        ("*self_attn*", ["model.layers.0.self_attn.o_proj"], ["model.layers.0.mlp.up_proj"]),
        ("*mlp.gate", ["model.layers.1.mlp.gate"], ["model.layers.1.mlp.gate_proj"]),
        ("model.layers.[01].*", ["model.layers.1.x"], ["model.layers.2.x", "Model.layers.1.x"]),
        # As re.match: from the beginning, not to the end.
        ("re:.*mlp.gate$", ["model.layers.1.mlp.gate"], ["model.layers.1.mlp.gate_proj"]),
        ("re:model.layers.6.*", ["model.layers.61.mlp"], ["language_model.model.layers.61.mlp"]),
        ("re:.*mlp\\.(gate|up|gate_up|down)_proj.*", ["a.mlp.up_proj"], ["a.mlp.experts.0.up_proj"]),
        ("re:lm_head", ["lm_head", "lm_head2"], ["a.lm_head"]),
    ],
)
def test_patterns(pattern, fits, does_not):
    found = parse(**quark(FP4, exclude=["never", pattern]))
    assert all(map(found.excludes, fits))
    assert not any(map(found.excludes, does_not))
    for name in fits:
        assert found.expected(info(f"{name}.weight")) is None
    for name in does_not:
        if not name.endswith("lm_head"):
            assert found.expected(info(f"{name}.weight")) == MXFP4


def test_one_excluded_part_keeps_a_stack_plain():
    found = parse(**quark(FP4, exclude=["*experts.1.up_proj"]))
    names = [f"model.layers.1.mlp.experts.{e}.{kind}_proj.weight" for e in (0, 1) for kind in ("gate", "up")]
    assert found.expected(info(*names)) is None
    assert found.expected(info(*names[:2])) == MXFP4


@pytest.mark.parametrize(
    "pattern",
    [
        "re:(a+)+$",
        "re:(a|a)*$",
        "re:(a*)*b",
        "re:(x+x+){2}y",
        "re:(a)?b",
        "re:.*.*.*.*.*z",
        "re:a{1,9}b{1,9}c{1,9}d{1,9}e{1,9}",
        "re:(unclosed",
        "re:[z-a]",
        "re:*",
    ],
)
def test_dangerous_and_broken_expressions_are_refused(pattern):
    found = parse(**quark(FP4, exclude=[pattern]))
    begin = time.monotonic()
    with pytest.raises(UnsupportedModelError, match="quantization_config: 're:") as caught:
        found.excludes("a" * 200)
    assert time.monotonic() - begin < 1
    assert "expected at most 4 repetitions" in str(caught.value) or "no regular expr" in str(caught.value)


def test_the_worst_expression_that_is_allowed_is_quick():
    found = parse(**quark(FP4, exclude=["re:.*a.*a.*a.*z", "*a*a*a*a*a*a*z"]))
    begin = time.monotonic()
    assert not found.excludes("a" * 150)
    assert time.monotonic() - begin < 2


def test_layers_of_their_own():
    """The first pattern that fits; what is excluded is excluded; unreadable settings matter where they apply."""
    layers = {
        "*self_attn.o_proj": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
        "*self_attn*": {"weight": [{"dtype": "fp8_e4m3", "qscheme": "per_channel"}]},
        "*vision*": {"weight": {"dtype": "int8", "qscheme": "per_tensor"}},
        "*audio*": None,
    }
    found = parse(**quark(FP4, layer_quant_config=layers, exclude=["*.0.self_attn*"]))
    assert found.expected(info("model.layers.1.self_attn.o_proj.weight")) == TENSOR
    assert found.expected(info("model.layers.1.self_attn.q_a_proj.weight")) == CHANNEL
    assert found.expected(info("model.layers.0.self_attn.o_proj.weight")) is None
    assert found.expected(info("model.layers.1.mlp.up_proj.weight")) == MXFP4
    with pytest.raises(
        UnsupportedModelError, match=r"layer_quant_config\.'\*vision\*'\.weight\.dtype: expected"
    ):
        found.expected(info("vision.weight"))
    with pytest.raises(UnsupportedModelError, match=r"'\*audio\*'\.weight: expected an object, got None"):
        found.expected(info("audio.weight"))
    assert parse(**quark(FP4, layer_quant_config=None)).layers == ()


@pytest.mark.parametrize("case", CASES)
def test_abstract_models_are_the_loaded_ones(case):
    """Structure (with container, block and rule of every tensor), shapes and dtypes, from config.json alone."""
    abstract, config = mla_jax.load(GOLDENS / case, abstract=True)
    model, same = mla_jax.load(GOLDENS / case, progress=False)
    assert config == same
    promised, found = freeze(abstract), freeze(model)
    assert jax.tree.structure(promised) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(promised), jax.tree.leaves(found), strict=True):
        assert isinstance(a, jax.ShapeDtypeStruct)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


GROUPS = {
    "a": {
        "targets": ["re:.*self_attn.*", "model.layers.1.mlp.down_proj"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 96]},
    },
    "b": {
        "targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
    },
}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a"), ("a",)])
def test_groups_are_for_the_modules_that_they_name(order):
    found = parse(quant_method="compressed-tensors", config_groups={name: GROUPS[name] for name in order})
    block, group = Storage("fp8_block", (64, 96)), Storage("int4_group", (1, 32), "bfloat16")
    expected = {
        "model.layers.0.self_attn.o_proj": block,
        "model.layers.1.mlp.down_proj": block,
        "model.layers.2.mlp.down_proj": group if "b" in order else None,
        "lm_head": None,
    }
    for module, storage in expected.items():
        info = ParamInfo((64, 64), ("a", "b"), (Source(f"{module}.weight"),), quantizable=True)
        assert found.expected(info) == storage, module
    assert found.block == (64, 96)


@pytest.mark.parametrize("targets", ["Linear", [1], {"Linear": 1}])
def test_targets_are_names(targets):
    with pytest.raises(UnsupportedModelError, match="targets: expected a list of names"):
        parse(quant_method="compressed-tensors", config_groups={"b": {**GROUPS["b"], "targets": targets}})
