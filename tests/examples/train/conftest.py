"""The scripts of examples/train are plain modules beside each other; they go to the end of the path."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import mla_jax

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "examples" / "train"))

SHIPPED = ROOT / "examples" / "arithmetic"


@pytest.fixture(scope="session")
def shipped():
    return SHIPPED


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="session")
def tiny():
    """config.json's values for one dense and one sparse layer."""
    from architecture import CONFIG

    return CONFIG | {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
    }


@pytest.fixture(scope="session")
def config(tiny):
    return mla_jax.ModelConfig.from_hf(tiny)
