"""Makes the goldens of quantised checkpoints, in ../goldens_quantized; make_goldens.py makes the plain ones.

A case is a tiny random model whose weights are quantised here, by torch and NumPy alone, and written as the
published checkpoints have them: names, dtypes, shapes and quantization_config. What transformers then computes
in float32 from the dequantised weights is golden.npz, as make_goldens.py describes it (without `hidden`).

    python make_quantized_goldens.py                # every case; same packages as make_goldens.py
    python make_quantized_goldens.py ct_int4        # some cases
    python make_quantized_goldens.py --search       # look for new seeds (after a change to a case)

Checked on every run: the margins of make_goldens.py, and that each planted misreading of the container
(nibbles swapped, scales of the neighbour, blocks divided evenly, ...) moves some prompt logit by more than 0.1.
Rows and columns are scaled by random factors up to 4, so that neighbouring scales really differ.
"""

import argparse
import copy
import fnmatch
import functools
import pathlib
import re
import shutil
import tempfile

import make_goldens as plain
import numpy as np
import torch  # noqa: TID251
import transformers

HERE = pathlib.Path(__file__).resolve().parent


# --------------------------------------------------------------------------------------------------------
# Containers. Each takes values (N, K) and gives (tensors by name ending, dequantised, {misreading: values}).


def values_of(codes, scale, block):
    """codes[n, k] * scale[n // rows, k // columns], ragged last blocks."""
    rows, columns = codes.shape
    wide = np.repeat(np.repeat(scale, block[0], 0)[:rows], block[1], 1)[:, :columns]
    return (codes * wide).astype(np.float32)


def e4m3(scaled):
    codes = torch.from_numpy(scaled).to(torch.float8_e4m3fn)
    return codes, codes.float().numpy()


def block_scale(values, block):
    """Largest magnitude of each block / 448; a last block is what is left."""
    grid = [-(-n // b) for n, b in zip(values.shape, block, strict=True)]
    scale = np.empty(grid, np.float32)
    for i, j in np.ndindex(*grid):
        part = values[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
        scale[i, j] = np.float32(np.abs(part).max()) / np.float32(448)
    return scale


def fp8_block(values, block=(32, 32), ue8m0=False):
    scale = block_scale(values, block)
    if ue8m0:  # up to a power of two
        scale = np.exp2(np.ceil(np.log2(scale.astype(np.float64)))).astype(np.float32)
    codes, read = e4m3(values / values_of(np.ones_like(values), scale, block))
    stored = torch.from_numpy(scale)
    if ue8m0:
        exponents = (scale.view(np.uint32) >> 23).astype(np.uint8)
        assert (np.ldexp(1.0, exponents.astype(int) - 127) == scale).all()
        stored = torch.from_numpy(exponents).view(torch.float8_e8m0fnu)
    even = [-(-n // s) for n, s in zip(values.shape, scale.shape, strict=True)]
    wrong = {
        "blocks divided evenly": values_of(read, scale, even),
        "scales of the neighbour": values_of(read, np.roll(scale, 1, 0), block),
        "one scale": read * scale[0, 0],
        "divided by the scale": read / values_of(np.ones_like(values), scale, block),
    }
    tensors = {"weight": codes, "weight_scale_inv": stored}
    return tensors, values_of(read, scale, block), wrong


def fp8_channel(values):
    scale = np.abs(values).max(1) / np.float32(448)
    codes, read = e4m3(values / scale[:, None])
    wrong = {"scales of the neighbour": read * np.roll(scale, 1)[:, None], "one scale": read * scale[0]}
    tensors = {"weight": codes, "weight_scale": torch.from_numpy(scale)}
    return tensors, read * scale[:, None], wrong


def fp8_tensor(values, shape=(), static=False):
    scale = np.float32(np.abs(values).max()) / np.float32(448)
    codes, read = e4m3(values / scale)
    tensors = {"weight": codes, "weight_scale": torch.full(shape, float(scale))}
    if static:  # of activations; weight-only readers leave it alone
        tensors["input_scale"] = torch.full(shape, 0.037)
    return tensors, read * scale, {"divided by the scale": read / scale, "no scale": read}


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1_SIGNED = np.concatenate([E2M1, -E2M1])


def mxfp4_codes(values):
    """Codes 0 to 15 and e8m0 bytes by the rule "even": exponent of the bits of A + 0x200000, less 2."""
    groups = values.reshape(len(values), -1, 32)
    largest = np.abs(groups).max(-1)
    exponent = ((largest.view(np.uint32) + np.uint32(0x200000)) >> 23).astype(int) - 127 - 2
    scaled = np.abs(np.ldexp(groups.astype(np.float64), -exponent[..., None]))
    code = np.zeros(groups.shape, np.uint8)
    for low in range(7):  # halfway goes to the even code
        middle = (float(E2M1[low]) + float(E2M1[low + 1])) / 2
        code += (scaled > middle) | ((scaled == middle) & (low % 2 == 1))
    code |= np.where(np.signbit(groups), 8, 0).astype(np.uint8)
    return code.reshape(values.shape), (exponent + 127).astype(np.uint8)


def mxfp4(values, data="weight"):
    code, byte = mxfp4_codes(values)
    packed = code[:, 0::2] | (code[:, 1::2] << 4)

    def read(code, byte):
        return values_of(E2M1_SIGNED[code], np.ldexp(np.float32(1), byte.astype(int) - 127), (1, 32))

    swapped = code.reshape(len(code), -1, 2)[..., ::-1].reshape(code.shape)
    halves = np.concatenate([code[:, 0::2], code[:, 1::2]], 1)
    wrong = {
        "nibbles swapped": read(swapped, byte),
        "low nibbles first, then high ones": read(halves, byte),
        "scales of the neighbour": read(code, np.roll(byte, 1, 0)),
        "no sign": read(code & 7, byte),
    }
    tensors = {data: torch.from_numpy(packed), "weight_scale": torch.from_numpy(byte)}
    return tensors, read(code, byte), wrong


def int4(values, group=32):
    groups = values.reshape(len(values), -1, group)
    scale = torch.from_numpy(np.abs(groups).max(-1) / np.float32(7)).bfloat16()
    code = (
        np.clip(np.rint(groups / scale.float().numpy()[..., None]), -8, 7).astype(int).reshape(values.shape)
    )
    words = np.zeros((len(values), values.shape[1] // 8), np.uint32)
    for i in range(8):  # the first column in the lowest bits, value + 8
        words |= (code[:, i::8] + 8).astype(np.uint32) << np.uint32(4 * i)

    def read(code):
        return values_of(code.astype(np.float32), scale.float().numpy(), (1, group))

    complement = np.where(code >= 0, code - 8, code + 8)
    swapped = code.reshape(len(code), -1, 2)[..., ::-1].reshape(code.shape)
    backwards = code.reshape(len(code), -1, 8)[..., ::-1].reshape(code.shape)
    wrong = {
        "two's complement": read(complement),
        "nibbles swapped": read(swapped),
        "words backwards": read(backwards),
        "offset 7": read(code + 1),
    }
    tensors = {
        "weight_packed": torch.from_numpy(words.view(np.int32)),
        "weight_scale": scale,
        "weight_shape": torch.tensor(values.shape, dtype=torch.int32),
    }
    return tensors, read(code), wrong


# --------------------------------------------------------------------------------------------------------
# Cases: pairs of a module pattern and its container, the first that fits; modules without one stay plain.

PROJECTIONS = ("*_proj", "*_proj_with_mqa")
MLPS = "*.mlp.*_proj"  # dense, experts and shared experts
EXPERTS = "*.mlp.experts.*"
ATTENTION = "*.self_attn.*"


def sized(**over):
    """Every width that MXFP4 meets as K is a multiple of 32."""
    widths = dict(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=80,
        kv_lora_rank=32,
        moe_intermediate_size=32,
        n_routed_experts=6,
        q_lora_rank=32,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=16,
        torch_dtype="bfloat16",
    )
    return plain.hub_config(**{**widths, **over})


def fp8_config(**more):
    return dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", **more)


def quark_config(exclude, **more):
    fp4 = dict(
        ch_axis=-1,
        dtype="fp4",
        group_size=32,
        is_dynamic=False,
        observer_cls="PerBlockMXObserver",
        qscheme="per_group",
        round_method="half_even",
        scale_calculation_mode="even",
        scale_format="e8m0",
        scale_type="float",
        symmetric=None,
    )
    whole = dict(bias=None, input_tensors={**fp4, "is_dynamic": True}, output_tensors=None, weight=fp4)
    export = dict(
        kv_cache_group=[],
        min_kv_scale=0.0,
        pack_method="reorder",
        weight_format="real_quantized",
        weight_merge_groups=None,
    )
    config = dict(
        algo_config=None,
        exclude=exclude,
        export=export,
        global_quant_config=whole,
        layer_quant_config={},
        layer_type_quant_config={},
        quant_method="quark",
        quant_mode="eager_mode",
        softmax_quant_spec=None,
        version="0.11rc1",
    )
    return {**config, **more}


def compressed_config(form, ignore, **weights):
    group = dict(
        actorder=None,
        block_structure=None,
        dynamic=False,
        group_size=32,
        num_bits=4,
        strategy="group",
        **weights,
    )
    return dict(
        config_groups={
            "group_0": dict(
                input_activations=None, output_activations=None, targets=["Linear"], weights=group
            )
        },
        format=form,
        ignore=ignore,
        kv_cache_scheme=None,
        quant_method="compressed-tensors",
        quantization_status="compressed",
    )


KIMI_IGNORE = [
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
]
CHANNEL = dict(
    bias=None,
    input_tensors=dict(dtype="fp8_e4m3", is_dynamic=True, qscheme="per_channel"),
    output_tensors=None,
    weight=dict(ch_axis=0, dtype="fp8_e4m3", is_dynamic=False, qscheme="per_channel", symmetric=True),
)
KIMI = {**plain.CASES["kimi_k25"]["config"], "media_placeholder_token_id": 70}

CASES = {
    # Nothing is a whole number of blocks; up_proj's blocks begin inside gate_proj's last one. Weights and
    # scales lie in different shards, the multi-token-prediction layer is quantised too.
    "fp8_block": dict(
        seed=4,
        shards=2,
        containers=[(name, fp8_block) for name in PROJECTIONS],
        config=sized(
            hidden_size=40,
            intermediate_size=72,
            kv_lora_rank=40,
            moe_intermediate_size=24,
            num_nextn_predict_layers=1,
            q_lora_rank=40,
            v_head_dim=20,
            n_group=3,
            topk_group=2,
            quantization_config=fp8_config(weight_block_size=[32, 32]),
        ),
    ),
    # Blocks that are no squares; gate and up are whole blocks.
    "fp8_ue8m0": dict(
        seed=1,
        containers=[(name, functools.partial(fp8_block, block=(16, 32), ue8m0=True)) for name in PROJECTIONS],
        config=sized(quantization_config=fp8_config(weight_block_size=[16, 32], scale_fmt="ue8m0")),
    ),
    "fp8_tensor": dict(
        seed=0,
        containers=[
            (ATTENTION, functools.partial(fp8_tensor, static=True)),
            ("*.gate_proj", functools.partial(fp8_tensor, shape=(1,))),
            (MLPS, fp8_tensor),
        ],
        config=sized(
            torch_dtype="float32",
            quantization_config={**fp8_config(ignored_layers=["lm_head"]), "activation_scheme": "static"},
        ),
    ),
    "quark_mxfp4": dict(
        seed=1,
        containers=[(MLPS, mxfp4)],
        config=sized(
            quantization_config=quark_config(
                ["lm_head", "re:.*mlp.gate$", "re:model.layers.61.*", "*self_attn*"]
            ),
        ),
    ),
    "quark_mxfp4_attention": dict(
        seed=2,
        containers=[(name, mxfp4) for name in PROJECTIONS],
        config=sized(quantization_config=quark_config(["*lm_head", "*mlp.gate"])),
    ),
    "quark_mixed": dict(
        seed=0,
        containers=[(ATTENTION, fp8_channel), (MLPS, mxfp4)],
        config=sized(
            q_lora_rank=None,
            quantization_config=quark_config(
                ["lm_head", "*mlp.gate"], layer_quant_config={"*self_attn*": CHANNEL}
            ),
        ),
    ),
    "ct_int4": dict(
        seed=0,
        text_prefix="language_model.",
        containers=[(EXPERTS, int4)],
        config=dict(
            KIMI,
            dtype="bfloat16",
            text_config=sized(
                **plain.KIMI_KEYS | dict(torch_dtype=..., dtype="bfloat16", intermediate_size=64),
                quantization_config=compressed_config(
                    "pack-quantized", KIMI_IGNORE, observer="minmax", symmetric=True, type="int"
                ),
            ),
        ),
    ),
    "ct_mxfp4": dict(
        seed=1,
        containers=[(EXPERTS, functools.partial(mxfp4, data="weight_packed"))],
        config=sized(
            quantization_config=compressed_config(
                "mxfp4-pack-quantized", KIMI_IGNORE, symmetric=True, type="float"
            )
        ),
    ),
}


def text_of(config):
    return config.get("text_config", config)


# --------------------------------------------------------------------------------------------------------


def spread(values, rng):
    """Rows and columns times 2^-1 to 2^1, at the same root mean square."""
    factors = [np.exp2(rng.uniform(-1, 1, n)) for n in values.shape]
    wide = values * np.outer(*factors)
    return (wide * np.sqrt(np.mean(values**2) / np.mean(wide**2))).astype(np.float32)


def quantise(case, state, rng):
    """(stored tensors, the values that they mean, {misreading: values}), all by name."""
    low = text_of(case["config"]).get("torch_dtype", "bfloat16") == "bfloat16"
    quantization = text_of(case["config"])["quantization_config"]
    excluded = quantization.get("exclude", quantization.get("ignore", quantization.get("ignored_layers", [])))
    stored, meant, misread = {}, {}, {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        container = next((c for p, c in case["containers"] if fnmatch.fnmatchcase(module, p)), None)
        listed = any(
            re.match(e[3:], module) if e.startswith("re:") else fnmatch.fnmatchcase(module, e)
            for e in excluded
        )
        linear = name.endswith(("_proj.weight", "_proj_with_mqa.weight"))
        if container is None or not linear or listed:
            keep = low and not name.endswith("e_score_correction_bias")
            stored[name] = tensor.bfloat16() if keep else tensor
            meant[name] = stored[name].float()
            continue
        parts, values, wrong = container(spread(tensor.numpy(), rng))
        stored.update({f"{module}.{end}": part for end, part in parts.items()})
        meant[name] = torch.from_numpy(values)
        for what, other in wrong.items():
            misread.setdefault(what, {})[name] = torch.from_numpy(np.ascontiguousarray(other, np.float32))
    return stored, meant, misread


def without_quantization(case):
    """The same case as plain float32 in one file."""
    config = copy.deepcopy(case["config"])
    text_of(config).pop("quantization_config")
    return {**{k: v for k, v in case.items() if k != "shards"}, "config": config}


def make(name, case, seed, out):
    """Writes the case; returns the lines of the report. AssertionError: bad seed."""
    rng = np.random.RandomState([seed, *name.encode()])
    prompts = [
        rng.randint(0, text_of(case["config"])["vocab_size"], n).astype(np.int32) for n in plain.PROMPTS
    ]
    state, core = plain.draw_weights(case, rng)
    stored, meant, misread = quantise(case, state, rng)
    bare = without_quantization(case)

    def load(folder, values):
        plain.write_checkpoint(folder, bare, values)
        return plain.load_model(folder, bare["config"], case.get("text_prefix"), set(state) - core)

    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp) / "plain"
        golden, stats = plain.run(load(folder, meant), prompts)
        assert golden["argmax_margin"] > plain.ARGMAX_MARGIN, ("argmax", golden["argmax_margin"])
        assert golden["routing_margin"] > plain.ROUTING_MARGIN, ("routing", golden["routing_margin"])
        assert min(len(set(t)) for t in golden["tokens"].tolist()) >= 5, "dull continuation"
        moves = {}
        for what, values in misread.items():
            model = load(folder, {**meant, **values})
            with torch.no_grad():
                logits = [model(torch.from_numpy(p).long()[None]).logits[0].numpy() for p in prompts]
            moves[what] = max(float(np.abs(a - golden[f"logits_{i}"]).max()) for i, a in enumerate(logits))
            assert not moves[what] <= plain.MOVEMENT, (what, moves[what])
    del golden["hidden"]
    golden["seed"] = np.int64(seed)
    folder = out / name
    plain.write_checkpoint(folder, case, stored)
    np.savez_compressed(folder / "golden.npz", **golden)
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size < 200_000, size
    return [
        f"{name}: seed {seed}, {size / 1024:.0f} KiB; argmax {golden['argmax_margin']:.4f}, "
        f"routing {golden['routing_margin']:.2e}; {stats['tokens']} choices, {stats['bias']} changed by the bias",
        "  misread: " + ", ".join(f"{k} {v:.2g}" for k, v in moves.items()),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "goldens_quantized")
    parser.add_argument("--search", action="store_true", help="report the first good seed from 0 on")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in args.cases or CASES:
        case = CASES[name]
        for seed in range(200) if args.search else (case["seed"],):
            try:
                print("\n".join(make(name, case, seed, args.out)), flush=True)
                break
            except AssertionError as error:
                shutil.rmtree(args.out / name, ignore_errors=True)
                if not args.search:
                    raise
                print(f"{name}: seed {seed} rejected: {str(error)[:200]}", flush=True)


if __name__ == "__main__":
    main()
