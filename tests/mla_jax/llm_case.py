"""What the tests of `LLM` and of the command line share: sizes, prompts, parameters, and how answers compare."""

from pathlib import Path

import numpy as np

from mla_jax import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "goldens" / "deepseek_v3"

MAX_MODEL_LEN = 64
SIZES = {"page_size": 4, "max_model_len": MAX_MODEL_LEN, "max_num_seqs": 4, "max_total_tokens": 160}
GOLDEN_SIZES = {"max_model_len": 80, "max_num_seqs": 2, "max_total_tokens": 160}
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
WARM = SamplingParams(max_tokens=24, temperature=1.5, seed=7, ignore_eos=True)

PROMPTS = [
    "def attention(",
    "The latent cache holds",
    "import",
    "a = b",
    "for row in rows:",
    "x",
    "RoPE is",
    "(",
    "B",
]


def collect(stream):
    """(text, ids, finish reason) of a stream; only its last piece may have a reason."""
    pieces = list(stream)
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    return "".join(p.text for p in pieces), [p.token_id for p in pieces], pieces[-1].finish_reason


def parts(completion):
    return completion.text, completion.token_ids, completion.finish_reason


def agrees(ids, expected, tokenizer):
    """Whether ids are what is expected, up to the first that only a model without this tokenizer may draw."""
    count = next((n for n, i in enumerate(ids) if i >= tokenizer.vocab_size), len(ids))
    return ids[:count] == expected[:count] != []


class Bytes:
    """A tokenizer of one's own: UTF-8 bytes, and an end token after them."""

    eos_token_id = 256
    vocab_size = 257

    def encode(self, text, *, add_special_tokens=True):
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, ids, *, skip_special_tokens=True):
        return bytes(i for i in ids if i < 256).decode(errors="replace")
