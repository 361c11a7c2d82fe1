"""llama.cpp and ik_llama.cpp beside mla_jax, in turns: DeepSeek-V2-Lite cut to four layers, random weights.

    python benchmarks/cpu/peers.py FOLDER --llama-cpp BIN --ik-llama-cpp BIN

BIN is the folder of a build's programs: llama-bench and llama-batched-bench of both, llama-quantize of llama.cpp.
Needs the package `gguf`, and 9 GB in FOLDER for the models, which are made once. Two things have to be changed in the
sources before they are built. Both programs know a Lite model by its number of layers, 27 or 26 (`is_lite`): 4 has to
be added. ik_llama.cpp's llama-batched-bench feeds every sequence token 0, so that all choose the same experts: it has
to be `std::rand() % 32000`, as in llama.cpp.
"""

import argparse
import json
import os
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
from run import Bench

from mla_jax.bench import time_decode, time_prefill

MODEL = Bench.small_settings()
WIDTH, VOCABULARY, LAYERS = MODEL["hidden_size"], MODEL["vocab_size"], MODEL["num_hidden_layers"]
HEADS, LATENT, NOPE = MODEL["num_attention_heads"], MODEL["kv_lora_rank"], MODEL["qk_nope_head_dim"]
ROPE, VALUE = MODEL["qk_rope_head_dim"], MODEL["v_head_dim"]
DENSE, EXPERTS, EXPERT = MODEL["intermediate_size"], MODEL["n_routed_experts"], MODEL["moe_intermediate_size"]
SHARED, DENSE_LAYERS = MODEL["n_shared_experts"], MODEL["first_k_dense_replace"]
REPEATED = 1 << 22

# What llama-quantize is asked for, and how it is called in the table.
QUANTIZED: dict[str, tuple[str, ...]] = {
    "Q4_0": ("--pure", "Q4_0"),
    "MXFP4": (
        "--pure",
        "--output-tensor-type",
        "mxfp4",
        "--token-embedding-type",
        "mxfp4",
        "--tensor-type",
        ".*=mxfp4",
        "MXFP4_MOE",
    ),
    "MXFP4_MOE": ("MXFP4_MOE",),
}
OURS = {"mxfp4-all": "MXFP4", "mxfp4-experts": "MXFP4, rest FP8"}


def write_model(path: Path) -> None:
    """The model in bfloat16, with the absorbed halves of kv_b_proj that both programs read."""
    out = gguf.GGUFWriter(str(path), "deepseek2")
    out.add_context_length(MODEL["max_position_embeddings"])
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(DENSE)
    out.add_head_count(HEADS)
    out.add_head_count_kv(1)
    out.add_rope_freq_base(MODEL["rope_theta"])
    out.add_layer_norm_rms_eps(MODEL["rms_norm_eps"])
    out.add_leading_dense_block_count(DENSE_LAYERS)
    out.add_vocab_size(VOCABULARY)
    out.add_kv_lora_rank(LATENT)
    out.add_key_length(LATENT + ROPE)
    out.add_value_length(LATENT)
    out.add_key_length_mla(NOPE + ROPE)
    out.add_value_length_mla(VALUE)
    out.add_expert_feed_forward_length(EXPERT)
    out.add_expert_count(EXPERTS)
    out.add_expert_used_count(MODEL["num_experts_per_tok"])
    out.add_expert_shared_count(SHARED)
    out.add_expert_weights_scale(1.0)
    out.add_expert_weights_norm(False)
    out.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    out.add_rope_dimension_count(ROPE)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - len(tokens))
    tokens += [f"\u2581t{number}" for number in range(len(tokens), VOCABULARY)]
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list([token.encode() for token in tokens])
    out.add_token_scores([float(-number) for number in range(VOCABULARY)])
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    rng = np.random.default_rng(0)

    def matrix(name: str, *shape: int) -> None:
        values = rng.standard_normal(min(int(np.prod(shape)), REPEATED), dtype=np.float32) * np.float32(0.03)
        bits = np.resize((values.view(np.uint32) >> 16).astype(np.uint16), shape)
        out.add_tensor(f"{name}.weight", bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def norm(name: str, width: int) -> None:
        out.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    matrix("token_embd", VOCABULARY, WIDTH)
    norm("output_norm", WIDTH)
    matrix("output", VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm", WIDTH)
        matrix(block + "attn_q", HEADS * (NOPE + ROPE), WIDTH)
        matrix(block + "attn_kv_a_mqa", LATENT + ROPE, WIDTH)
        norm(block + "attn_kv_a_norm", LATENT)
        matrix(block + "attn_k_b", HEADS, LATENT, NOPE)
        matrix(block + "attn_v_b", HEADS, VALUE, LATENT)
        matrix(block + "attn_output", WIDTH, HEADS * VALUE)
        norm(block + "ffn_norm", WIDTH)
        if layer < DENSE_LAYERS:
            sizes: tuple[tuple[str, tuple[int, ...], int], ...] = (("", (), DENSE),)
        else:
            router = rng.standard_normal((EXPERTS, WIDTH), dtype=np.float32) * np.float32(0.03)
            out.add_tensor(block + "ffn_gate_inp.weight", router)
            sizes = (("_exps", (EXPERTS,), EXPERT), ("_shexp", (), SHARED * EXPERT))
        for suffix, lead, width in sizes:
            matrix(f"{block}ffn_gate{suffix}", *lead, width, WIDTH)
            matrix(f"{block}ffn_up{suffix}", *lead, width, WIDTH)
            matrix(f"{block}ffn_down{suffix}", *lead, WIDTH, width)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def quantized(folder: Path, programs: Path) -> dict[str, Path]:
    """The models, made where they are not there yet."""
    source, unfinished = folder / "bf16.gguf", folder / "unfinished.gguf"
    if not source.exists():
        write_model(unfinished)
        unfinished.rename(source)
    models = {name: folder / f"{name}.gguf" for name in QUANTIZED}
    for name, path in models.items():
        if not path.exists():
            *options, kind = QUANTIZED[name]
            asked = [programs / "llama-quantize", *options, source, unfinished, kind]
            subprocess.run(asked, check=True, capture_output=True)
            unfinished.rename(path)
    return models


def output(command: list[Any], errors: int = subprocess.PIPE) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=errors, text=True).stdout


def llama_cpp(programs: Path, model: Path, threads: int) -> dict[str, float]:
    base = [programs / "llama-bench", "-m", model, "-t", threads, "-r", 1, "-o", "json"]
    prefill, decode = json.loads(output([*base, "-p", 512, "-n", 32]))
    (deep,) = json.loads(output([*base, "-p", 0, "-n", 32, "-d", 4096]))
    batch = [programs / "llama-batched-bench", "-m", model, "-t", threads, "-c", 2048, "-npp", 8, "-ntg", 32]
    batched = json.loads(output([*batch, "-npl", 8, "--output-format", "jsonl"]).strip().splitlines()[-1])
    return {
        "prefill": prefill["avg_ts"],
        "empty": decode["avg_ts"],
        "deep": deep["avg_ts"],
        "batch": batched["speed_tg"],
    }


def ik_llama_cpp(programs: Path, model: Path, threads: int) -> dict[str, float]:
    base = [programs / "llama-bench", "-m", model, "-t", threads, "-r", 1, "-rtr", 1, "-mla", 3, "-fa", 1]
    found = output([*base, "-p", 512, "-n", 32, "-gp", "4096,32", "-o", "json"])
    # What it says of the model as it loads it lies between the rows.
    rows = [line for line in found.splitlines() if not line.startswith(("=", "Computed"))]
    prefill, decode, deep = json.loads("\n".join(rows))
    # With -fa on it stops at an assertion here.
    batch = [programs / "llama-batched-bench", "-m", model, "-t", threads, "-c", 2048, "-npp", 8, "-ntg", 32]
    table = output([*batch, "-npl", 8, "-rtr", "-mla", 3, "-fa", "off"], subprocess.STDOUT)
    (row,) = [line for line in table.splitlines() if line.startswith("|     8 |")]
    return {
        "prefill": prefill["avg_ts"],
        "empty": decode["avg_ts"],
        "deep": deep["avg_ts"],
        "batch": float(row.split("|")[8]),
    }


def mla_jax(frozen: Any) -> dict[str, float]:
    prefill = statistics.median(time_prefill(frozen, 512, 1).seconds)
    empty, deep, batch = (
        statistics.median(time_decode(frozen, 32, *case).seconds) for case in ((1, 0), (1, 4096), (8, 0))
    )
    return {"prefill": 512 / prefill, "empty": 1 / empty, "deep": 1 / deep, "batch": 8 / batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--ik-llama-cpp", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error(f"compares CPUs, got the backend {jax.default_backend()!r}: set JAX_PLATFORMS=cpu")
    plain, tuned = arguments.llama_cpp.resolve(), arguments.ik_llama_cpp.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)  # ik_llama.cpp leaves a log where it is started.
    models = quantized(Path.cwd(), plain)
    threads = len(os.sched_getaffinity(0))
    ours = {weights: Bench.small_model(weights)[0] for weights in OURS}
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, path in models.items():
            rounds[f"llama.cpp, {name}"].append(llama_cpp(plain, path, threads))
            rounds[f"ik_llama.cpp, {name}"].append(ik_llama_cpp(tuned, path, threads))
        for weights, frozen in ours.items():
            rounds[f"mla_jax, {OURS[weights]}"].append(mla_jax(frozen))
    print(f"tokens a second, {threads} threads, median of {arguments.rounds} rounds in turns")
    print("| | prefill 512 | decode, empty | at depth 4096 | batch 8 |\n|---|---|---|---|---|")
    for name, found in rounds.items():
        columns = (
            statistics.median(row[key] for row in found) for key in ("prefill", "empty", "deep", "batch")
        )
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in columns) + " |")


if __name__ == "__main__":
    main()
