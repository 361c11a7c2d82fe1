"""Writes a small DeepSeek-V3 checkpoint with random weights in Hugging Face format (no torch needed).

Usage: python examples/make_demo_checkpoint.py FOLDER

The architecture is the real one in small: low-rank queries, latent cache, interleaved RoPE with YaRN,
sigmoid router with groups, a shared expert, one dense layer. The text that it generates is noise.
"""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.config import ModelConfig
from mla_jax.parameters import parameter_table

BOS, EOS, USER, ASSISTANT = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
)

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "max_position_embeddings": 4096,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<｜Assistant｜>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def write_weights(folder: Path, config: ModelConfig, seed: int) -> None:
    """model.safetensors in bfloat16 with the names that the parameter table asks for."""
    import jax  # only its tree functions

    generator = np.random.default_rng(seed)
    tensors = {}
    for info in jax.tree.leaves(parameter_table(config), is_leaf=lambda leaf: hasattr(leaf, "sources")):
        for source in info.sources:
            shape = info.source_shape(source)
            kind = np.dtype(info.dtype or ml_dtypes.bfloat16)
            if info.init == "ones":
                tensors[source.name] = np.ones(shape, kind)
            else:
                values = generator.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[-1]))
                tensors[source.name] = values.astype(kind)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE trained on this repository's own words, and DeepSeek-style special tokens."""
    root = Path(__file__).resolve().parent.parent
    text = [path.read_text(encoding="utf-8") for path in sorted(root.glob("mla_jax/**/*.py"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, USER, ASSISTANT)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1))


def main(folder: Path) -> None:
    """Writes the checkpoint, once."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, ModelConfig.from_hf(CONFIG), seed=0)
    write_tokenizer(folder, CONFIG["vocab_size"])
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    # Last, so that a folder with a config is a complete checkpoint.
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    print(f"wrote a random DeepSeek-V3 checkpoint in small to {folder}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_demo_checkpoint.py FOLDER")
    main(Path(sys.argv[1]))
