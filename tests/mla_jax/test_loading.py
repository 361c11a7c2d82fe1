"""`load`: every golden checkpoint, tensor by tensor, what may be left over, and how much memory it takes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import mla_jax
from mla_jax import loading
from mla_jax.checkpoints import streaming
from mla_jax.checkpoints.index import SINGLE_FILE
from mla_jax.checkpoints.quantization import parse_quantization
from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.config import ModelConfig
from mla_jax.errors import (
    CheckpointError,
    ConfigError,
    KernelUnavailableError,
    MlaJaxError,
    UnsupportedModelError,
)
from mla_jax.models.frozen import freeze

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
CASES = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))
STORED = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}


def stored_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The files' tensors by a reader that shares nothing with the library's."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            data = np.frombuffer(blob[begin:end], STORED[entry["dtype"]])
            tensors[name] = data.reshape(entry["shape"])
    return tensors


def leaves(model: Any) -> dict[str, Any]:
    """The model's arrays by the names that a checkpoint has for them, without the wrapper's prefix."""
    flat = jax.tree_util.tree_flatten_with_path(freeze(model).params)[0]
    return {
        ".".join(str(getattr(k, "key", getattr(k, "idx", ""))) for k in path): leaf for path, leaf in flat
    }


def expected_leaves(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Published names to the model's: the experts' matrices are stacked, gate rows before up rows."""
    found: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name, array in tensors.items():
        if not name.startswith(prefix):
            continue
        own = name.removeprefix(prefix)
        if ".mlp.experts." in own:
            layer, rest = own.split("experts.")
            number, kind, _ = rest.split(".")
            experts.setdefault(layer, {}).setdefault(int(number), {})[kind] = array
        else:
            found[own] = array
    for layer, numbered in experts.items():
        every = [numbered[i] for i in range(len(numbered))]
        joined = [np.concatenate([one["gate_proj"], one["up_proj"]]) for one in every]
        found[f"{layer}experts.gate_up_proj"] = np.stack(joined)
        found[f"{layer}experts.down_proj"] = np.stack([one["down_proj"] for one in every])
    return found


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


def copy_golden(case: str, target: Path) -> Path:
    folder = target / case
    shutil.copytree(GOLDENS / case, folder, ignore=shutil.ignore_patterns("*.npz"))
    return folder


@pytest.fixture
def v3(tmp_path: Path) -> Callable[..., Path]:
    """v3(change): a copy of the deepseek_v3 golden whose tensors `change` has edited in place."""

    def make(
        change: Callable[[dict[str, np.ndarray]], object] | None = None, case: str = "deepseek_v3"
    ) -> Path:
        folder = copy_golden(case, tmp_path)
        tensors = stored_tensors(folder)
        if change is not None:
            change(tensors)
            write_safetensors(folder / SINGLE_FILE, tensors)
        return folder

    return make


def load(folder: Path, **options: Any) -> tuple[Any, ModelConfig]:
    return mla_jax.load(folder, progress=False, **options)


def refused(folder: Path, *parts: str, kind: type[MlaJaxError] = CheckpointError, **options: Any) -> None:
    with pytest.raises(MlaJaxError) as caught:
        load(folder, **options)
    assert type(caught.value) is kind, repr(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_eleven_goldens():
    assert len(CASES) == 11


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_every_golden(case, dtype):
    folder = GOLDENS / case
    model, config = load(folder, dtype=dtype)
    compute = ("bfloat16" if case.endswith("bf16") else "float32") if dtype == "auto" else dtype
    assert config == replace(ModelConfig.from_file(folder), dtype=compute)
    assert model.config is config
    expected = expected_leaves(stored_tensors(folder), config.tensor_prefix)
    left_over = set(expected)
    for name, leaf in leaves(model).items():
        left_over.discard(name)
        wanted = expected[name]
        kind = jnp.dtype("float32" if name.endswith("e_score_correction_bias") else compute)
        assert leaf.dtype == kind, name
        assert leaf.shape == wanted.shape, name
        np.testing.assert_array_equal(np.asarray(leaf), wanted.astype(kind), err_msg=name)
    assert all(loading.ignored_because(config.tensor_prefix + name, config) for name in left_over), left_over
    table = model.rope.get_value()
    assert table.cos.shape == (config.max_position_embeddings, config.qk_rope_head_dim // 2)
    assert table.layout == config.rope.layout


@pytest.mark.parametrize("case", CASES)
def test_abstract_reads_no_weights(case, tmp_path):
    """A folder with nothing but config.json is enough, and it has the shapes of the real thing."""
    shutil.copy(GOLDENS / case / "config.json", tmp_path)
    for dtype in ("auto", "bfloat16"):
        abstract, config = load(tmp_path, dtype=dtype, abstract=True)
        model, same = load(GOLDENS / case, dtype=dtype)
        assert config == same
        shapes, arrays = leaves(abstract), leaves(model)
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values())
        assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == {
            name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()
        }
    refused(tmp_path, "expected model.safetensors or model.safetensors.index.json, got neither")


def test_abstract_ignores_damaged_weights(v3):
    folder = v3()
    (folder / SINGLE_FILE).write_bytes(b"damaged")
    load(folder, abstract=True)
    refused(folder, f"{SINGLE_FILE}: file is truncated")


def test_float16_is_computed_in_float32(v3):
    halves: dict[str, np.ndarray] = {}

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            tensors[name] = halves[name] = tensors[name].astype(np.float16)

    folder = v3(change)
    edit_config(folder, torch_dtype="float16")
    model, config = load(folder)
    assert config.dtype == "float32"
    for name, leaf in leaves(model).items():
        if name in halves:
            np.testing.assert_array_equal(np.asarray(leaf), halves[name].astype(np.float32))
    assert load(folder, dtype="bfloat16")[1].dtype == "bfloat16"
    assert load(folder, abstract=True)[1].dtype == "float32"


def test_files_may_hold_another_dtype_than_the_config_says(v3):
    def change(tensors: dict[str, np.ndarray]) -> None:
        for i, name in enumerate(tensors):
            kind = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))[i % 3]
            tensors[name] = tensors[name].astype(kind)

    model, config = load(v3(change))
    assert config.dtype == "float32"
    names = [name for name in leaves(model) if not name.endswith("bias")]
    assert {leaves(model)[name].dtype for name in names} == {np.dtype(np.float32)}


def test_string_path_and_positional_argument():
    model, _ = mla_jax.load(str(GOLDENS / "youtu"))
    assert model.lm_head is None


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", "bf16", "", None, "AUTO", jnp.float16, float, 32, ["auto"], np.ones(3)]
)
def test_bad_dtype(dtype):
    refused(GOLDENS / "youtu", "dtype: expected one of", kind=ConfigError, dtype=dtype)
    refused(Path("/none"), "dtype: expected one of", kind=ConfigError, dtype=dtype)  # before any file


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16), jnp.dtype("bfloat16")]
)
def test_dtypes_are_as_good_as_their_names(dtype):
    assert load(GOLDENS / "youtu", dtype=dtype, abstract=True)[1].dtype == "bfloat16"
    config = load(GOLDENS / "youtu", dtype=np.float32, abstract=True)[1]
    assert (config.dtype, type(config.dtype)) == ("float32", str)


@pytest.mark.parametrize("kernels", ["cuda", "", None, "NATIVE", 1, ["auto"], np.array(["auto"] * 2)])
def test_bad_kernels(kernels):
    message = "kernels: expected one of auto, native, reference, got "
    refused(GOLDENS / "youtu", message, kind=KernelUnavailableError, kernels=kernels)
    refused(GOLDENS / "youtu", message, kind=KernelUnavailableError, kernels=kernels, abstract=True)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_kernels_reach_the_model(kernels):
    assert load(GOLDENS / "youtu", kernels=kernels)[0].kernels == kernels
    assert load(GOLDENS / "youtu", kernels=kernels, abstract=True)[0].kernels == kernels


def test_the_environment_matters_only_where_native_kernels_may_run(monkeypatch):
    def refuse() -> None:
        raise KernelUnavailableError("no such instruction set")

    monkeypatch.setattr(loading, "check_environment", refuse)
    load(GOLDENS / "youtu", kernels="reference", abstract=True)
    for kernels in ("auto", "native"):
        refused(GOLDENS / "youtu", "no such", kind=KernelUnavailableError, kernels=kernels, abstract=True)


@pytest.mark.parametrize("path", [None, 123, b"folder", ["folder"], {}])
def test_what_is_no_path_is_a_sentence(path):
    refused(path, f"checkpoint: expected a folder or a hub id, got {path!r}")


def test_no_such_folder(tmp_path):
    refused(tmp_path / "none", "there is no such folder")
    refused(tmp_path, "config.json: there is no such file", kind=ConfigError)
    refused(tmp_path, "a folder has none", revision="main")


def test_unsupported_model(v3):
    folder = v3()
    edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    refused(folder, "config.json: model_type 'llama'", kind=UnsupportedModelError)


@pytest.mark.parametrize("abstract", [False, True])
def test_a_quantisation_that_cannot_be_read(v3, abstract):
    folder = v3()
    edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    refused(
        folder,
        "quantization_config.quant_method: expected one of fp8, quark, compressed-tensors, mxfp4, got 'awq'",
        kind=UnsupportedModelError,
        abstract=abstract,
    )


@pytest.mark.parametrize("named", [False, True])
def test_one_quantised_expert_among_plain_ones(v3, named):
    """With and without a word in the configuration: it is the tensors that decide."""
    name = "model.layers.1.mlp.experts.3.up_proj.weight"

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[name + "_scale_inv"] = np.ones((1, 1), np.float32)

    folder = v3(change)
    if named:
        edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    first = "model.layers.1.mlp.experts.0.gate_proj.weight"
    refused(folder, f"'{first}' is stored as plain numbers and '{name}' as fp8_block in blocks of (128, 128)")


def test_a_quantised_weight_without_a_word_in_the_config(v3):
    name = "model.layers.1.self_attn.o_proj.weight"

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[name + "_scale_inv"] = np.full((1, 1), 2, np.float32)

    weight = load(v3(change))[0].model.layers[1].self_attn.o_proj.weight.get_value()
    assert (weight.container, weight.block) == ("fp8_block", (128, 128))
    assert weight.scale.tolist() == [[2.0]]


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"])
def test_a_weight_that_may_not_be_quantised(v3, name):
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[name + "_scale_inv"] = np.full((1, 1), 2, np.float32)

    refused(v3(change), f"tensor '{name}': is stored as fp8_block", "only read as plain numbers")


def test_scales_of_activations_and_caches_may_be_there(v3):
    ends = ("input_scale", "output_scale", "k_scale", "v_scale", "q_scale")
    extra = {f"model.layers.0.self_attn.o_proj.{end}": np.ones((), np.float32) for end in ends}
    load(v3(lambda tensors: tensors.update(extra)))
    scale = {"model.layers.0.self_attn.o_proj.weight_scale": np.ones((), np.float32)}
    refused(
        v3(lambda tensors: tensors.update(scale), "kimi_k2"),
        "not part of the model: model.layers.0.self_attn",
    )


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.mlp.experts.11.down_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
        "model.layers.0.self_attn.q_a_layernorm.weight",
    ],
)
def test_missing_tensor(v3, name):
    folder = v3(lambda tensors: tensors.pop(name))
    refused(folder, f"{folder}: ", f"1 tensors are missing: {name} (")


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.1.mlp.experts.0.gate_proj.weight", "model.norm.weight"]
)
def test_misshapen_tensor(v3, name):
    shapes = []

    def change(tensors: dict[str, np.ndarray]) -> None:
        shapes.append(tensors[name].shape)
        tensors[name] = np.zeros((*tensors[name].shape, 1), np.float32)

    folder = v3(change)
    refused(folder, f"1 tensors have another shape: {name}: expected {shapes[0]}, got {(*shapes[0], 1)}")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_a_proj.bias",
        "model.layers.1.mlp.experts.12.up_proj.weight",
        "model.layers.1.mlp.gate.bias",
        "model.layers.0.self_attn.indexer.wk.weight",
        "model.layers.3.input_layernorm.weight",  # layer 2 is the one multi-token-prediction layer
        "model.layers.02.input_layernorm.weight",
        "model.layers.x.input_layernorm.weight",
        "model.layers.-1.weight",
        "model.layers.2",
        "model.layers.٢.weight",
        "model.layers." + "9" * 5000 + ".weight",
        "model.rotary_emb.inv_freq.weight",
        "vision_tower.patch_embed.weight",
        "language_model.lm_head.weight",
        "Model.norm.weight",
        "lm_head.bias",
        "",
    ],
)
def test_unknown_tensor(v3, name):
    folder = v3(lambda tensors: tensors.update({name: np.zeros(1, np.float32)}))
    refused(folder, "1 tensors are not part of the model: ")


def test_tensors_that_may_be_left_over(v3):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
        "model.layers.2.eh_proj.weight": np.zeros((3, 5), np.float32),
        "model.layers.2.shared_head.head.weight": np.zeros(1, np.int8),
    }
    folder = v3(lambda tensors: tensors.update(extra))
    load(folder)
    edit_config(folder, num_nextn_predict_layers=0)
    refused(folder, "tensors are not part of the model: model.layers.2.")


def test_multi_token_prediction_layers():
    tensors = stored_tensors(GOLDENS / "deepseek_v3")
    assert any(name.startswith("model.layers.2.") for name in tensors)
    assert not any("layers.2." in name for name in leaves(load(GOLDENS / "deepseek_v3")[0]))


def test_junk_frequencies():
    assert any(name.endswith("inv_freq") for name in stored_tensors(GOLDENS / "kimi_k2"))


def test_vision_tensors(v3):
    config = ModelConfig.from_file(GOLDENS / "kimi_k25")
    names = stored_tensors(GOLDENS / "kimi_k25")
    assert any(not name.startswith(config.tensor_prefix) for name in names)
    unknown = {"language_model.model.layers.0.extra": np.zeros(1, np.float32)}
    folder = v3(lambda tensors: tensors.update(unknown), "kimi_k25")
    refused(folder, "1 tensors are not part of the model: language_model.model.layers.0.extra")


def test_indexer_tensors(v3):
    assert any(".indexer." in name for name in stored_tensors(GOLDENS / "deepseek_v32"))
    unknown = {"model.layers.0.indexer.wk.weight": np.zeros(1, np.float32)}
    refused(v3(lambda tensors: tensors.update(unknown), "deepseek_v32"), "model.layers.0.indexer.wk.weight")


def test_tied_output_head(v3):
    """Some converters write the tied matrix twice; untied models need it."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = np.zeros_like(tensors["model.embed_tokens.weight"])

    folder = v3(change, "youtu")
    assert load(folder)[0].lm_head is None
    edit_config(folder, tie_word_embeddings=False)
    assert load(folder)[0].lm_head is not None


def test_reasons():
    v3 = ModelConfig.from_file(GOLDENS / "deepseek_v3")
    v32 = ModelConfig.from_file(GOLDENS / "deepseek_v32")
    kimi = ModelConfig.from_file(GOLDENS / "kimi_k25")
    youtu = ModelConfig.from_file(GOLDENS / "youtu")
    because = loading.ignored_because
    assert "multi-token" in because("model.layers.2.enorm.weight", v3)
    assert "RoPE" in because("model.layers.0.self_attn.rotary_emb.inv_freq", v3)
    assert "index_topk" in because("model.layers.0.self_attn.indexer.wk.weight", v32)
    assert "language model" in because("vision_tower.x", kimi)
    assert "tied" in because("lm_head.weight", youtu)
    assert because("lm_head.weight", v3) is None
    for config in (v3, v32, kimi, youtu):
        for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.x.y"):
            assert because(config.tensor_prefix + name, config) is None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], list[dict[str, Any]]]:
    """hub(folder): every hub id is that folder from now on; returns the record of what was asked for."""
    monkeypatch.chdir(tmp_path)

    def serve(folder: Path) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def snapshot_download(name: str, **options: Any) -> str:
            calls.append({"name": name, **options})
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return serve


def wants_weights(call: dict[str, Any]) -> bool:
    patterns = call["allow_patterns"]
    return bool(list(huggingface_hub.utils.filter_repo_objects([SINGLE_FILE], allow_patterns=patterns)))


def test_hub_id(hub):
    calls = hub(GOLDENS / "youtu")
    model, _ = mla_jax.load("owner/name", revision="v1", progress=False)
    assert model.lm_head is None
    assert [call["name"] for call in calls] == ["owner/name"] * len(calls)
    assert {call["revision"] for call in calls} == {"v1"}  # a stand-in's folder is of no commit
    assert not wants_weights(calls[0])
    assert wants_weights(calls[-1])


def test_settings_and_weights_are_of_one_commit(hub, tmp_path):
    snapshot = tmp_path / "snapshots" / ("c0ffee" + "0" * 34)
    shutil.copytree(GOLDENS / "youtu", snapshot)
    calls = hub(snapshot)
    mla_jax.load("owner/name", revision="main", progress=False)
    assert [call["revision"] for call in calls] == ["main", snapshot.name]


def test_no_weights_are_fetched_for_what_cannot_be_run(hub, v3):
    folder = v3()
    calls = hub(folder)
    mla_jax.load("owner/name", abstract=True)
    edit_config(folder, quantization_config={"quant_method": "awq"})
    with pytest.raises(UnsupportedModelError, match="quant_method"):
        mla_jax.load("owner/name")
    edit_config(folder, model_type="llama")
    with pytest.raises(UnsupportedModelError, match="llama"):
        mla_jax.load("owner/name")
    assert len(calls) == 3
    assert not any(map(wants_weights, calls))


def test_shards_with_one_missing(tmp_path):
    folder = copy_golden("deepseek_v2", tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "1 of 3 shards are missing: 'model-00002-of-00003.safetensors'")


def test_files_are_closed_after_an_error(v3):
    folder = v3(lambda tensors: tensors.pop("lm_head.weight"))
    refused(folder, "missing")
    if os.path.isdir("/proc/self/fd"):
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        assert not any(str(folder) in os.readlink(link) for link in links if os.path.islink(link))


@pytest.mark.parametrize("asked", [True, False])
def test_progress_is_passed_on(monkeypatch, asked):
    seen = []
    original = streaming.ByteProgress.__init__

    def record(self: Any, what: str, total: int, *, enabled: bool) -> None:
        seen.append((what, enabled))
        original(self, what, total, enabled=False)

    monkeypatch.setattr(streaming.ByteProgress, "__init__", record)
    mla_jax.load(GOLDENS / "youtu", progress=asked)
    assert seen == [("loading", asked)]


def test_code_in_the_folder_is_not_run(v3, tmp_path):
    """Remote code is named by config.json and lies beside it; nothing here may import it."""
    folder, proof = v3(), tmp_path / "proof"
    edit_config(folder, auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"})
    for name in ("configuration_deepseek.py", "modeling_deepseek.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"open({str(proof)!r}, 'w').close()\n")
    load(folder)
    assert not proof.exists()


# Prints, in bytes: what loading took at its peak beyond what the process held before; all weights; the
# largest one. VmHWM is this process's own, while ru_maxrss would begin with that of the parent.
MEASURE = """
import sys
import jax
import mla_jax

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

tiny, folder, dtype = sys.argv[1:]
model, _ = mla_jax.load(tiny, dtype=dtype, kernels="reference")
jax.block_until_ready(jax.tree.leaves(model.model.embed_tokens.weight.get_value()))
del model
before = status("VmRSS")
model, _ = mla_jax.load(folder, dtype=dtype, kernels="reference")
from mla_jax.models.frozen import freeze
frozen = freeze(model)
sizes = [leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(frozen.params))]
print(status("VmHWM") - before, sum(sizes), max(sizes))
"""


QUANTISED = {
    "mxfp4": ("float32", {"quant_method": "mxfp4"}),
    "fp8": ("bfloat16", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    # Blocks that begin inside one another: scales are written out for every row.
    "fp8 ragged": ("bfloat16", {"quant_method": "fp8", "weight_block_size": [96, 128]}),
}


def large_checkpoint(folder: Path, stored: str) -> None:
    """A golden's configuration, widened to about 300 MB of float32, with two matrices of 128 MiB; quantised
    ones have about as many bytes in their experts."""
    folder.mkdir()
    shutil.copy(GOLDENS / "deepseek_v3" / "config.json", folder)
    kind, quantization = QUANTISED.get(stored, (stored, None))
    edit_config(folder, torch_dtype=kind, num_nextn_predict_layers=0, hidden_size=1024)
    if quantization is None:
        edit_config(folder, vocab_size=32_768, intermediate_size=1024, moe_intermediate_size=256)
    else:
        edit_config(folder, quantization_config=quantization, q_lora_rank=32, kv_lora_rank=32, v_head_dim=32)
        # 12 experts of three matrices: 36 Mi values a 1024 of width.
        edit_config(
            folder, intermediate_size=2048, moe_intermediate_size=12_288 if stored == "mxfp4" else 6144
        )
    config = ModelConfig.from_file(folder)
    settings = parse_quantization(config.quantization)
    table = jax.tree.leaves(
        loading.parameter_table(config), is_leaf=lambda node: isinstance(node, loading.ParamInfo)
    )
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, shape: tuple[int, ...], dtype: Any) -> None:
        tensors[name] = np.broadcast_to(np.ones((), dtype), shape)

    for info in table:
        for source in info.sources:
            (shape,) = streaming.Piece(source.name, source.index, source.rows).shapes_in(info.shape)
            storage = settings.expected(info) if settings is not None and info.quantizable else None
            if storage is None:
                add(source.name, shape, np.dtype(jnp.dtype(kind)))
            else:
                add(source.name, storage.data_shape(shape), np.dtype(jnp.dtype(storage.data_dtype)))
                add(source.name + "_scale", storage.scale_shape(shape), np.dtype(storage.scale_dtype))
    write_safetensors(folder / SINGLE_FILE, tensors)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
@pytest.mark.parametrize(
    ("stored", "compute"),
    [
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("mxfp4", "float32"),
        ("fp8", "bfloat16"),
        ("fp8 ragged", "bfloat16"),
    ],
)
def test_peak_memory(tmp_path, monkeypatch, stored, compute):
    """Weights, at most one more tensor, and 32 MiB for everything else."""
    folder = tmp_path / "large"
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # seconds, for a file that is deleted at once
    large_checkpoint(folder, stored)
    size = (folder / SINGLE_FILE).stat().st_size
    command = [sys.executable, "-c", MEASURE, str(GOLDENS / "deepseek_v3"), str(folder), compute]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    (folder / SINGLE_FILE).unlink()
    assert done.returncode == 0, done.stderr
    peak, weights, largest = map(int, done.stdout.split())
    if stored in QUANTISED:
        # As many bytes as in the file: nothing has been widened but the ragged blocks' scales.
        assert size * 0.98 <= weights <= size * (1.04 if stored == "fp8 ragged" else 1.01)
        assert weights > 200_000_000
    else:
        assert weights > (140 if compute == "bfloat16" else 290) * 1_000_000
        assert largest < weights / 2
    assert peak >= weights * 0.95, "the measurement is not of this load"
    # One of two arrays is most of a quantised checkpoint: the bound is tighter there.
    more = (16 << 20) if stored in QUANTISED else largest + (32 << 20)
    assert peak <= weights + more, f"{(peak - weights) / 2**20:.0f} MiB beyond the weights"


def test_fuzzed_checkpoints_load_or_are_refused(tmp_path, rng):
    """Damage anywhere in a whole folder: nothing but MlaJaxError."""
    folder = copy_golden("deepseek_v2", tmp_path)
    victims = sorted(folder.iterdir())
    contents = {path: path.read_bytes() for path in victims}
    loaded = 0
    for i in range(150):
        path = victims[int(rng.integers(len(victims)))]
        blob = bytearray(contents[path])
        # Mostly where the structure is: safetensors data may hold any bytes.
        span = min(len(blob), 2000) if rng.random() < 0.8 else len(blob)
        for at in rng.integers(0, span, int(rng.integers(1, 4))):
            blob[int(at)] ^= 1 << int(rng.integers(8))
        path.write_bytes(blob if rng.random() < 0.9 else blob[: int(rng.integers(len(blob)))])
        try:
            load(folder, kernels="reference")
            loaded += 1
        except MlaJaxError:
            pass
        except BaseException as error:
            raise AssertionError(f"case {i}: {path.name}") from error
        finally:
            path.write_bytes(contents[path])
    assert 0 < loaded < 120
