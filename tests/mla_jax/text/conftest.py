"""Small tokenizers, built here, and folders that look like a checkpoint's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from mla_jax.text import Tokenizer
from mla_jax.text.special_tokens import SpecialTokens

BOS, EOS, USER, ASSISTANT = "<｜begin｜>", "<｜end｜>", "<｜User｜>", "<｜Assistant｜>"

# Pieces of characters that a vocabulary may hold as one token: the end of one and the beginning of the next.
FRAGMENTS = (
    "b8ade4",
    "e4",
    "b8",
    "ad",
    "f09f",
    "9880",
    "9880f0",
    "61e4",
    "efbfbd",
    "efbf",
    "bd",
    "ff",
    "e4b8",
)
WORDS = ("hello", " hello", " world", "中", "文", " é", "😀", "ing", " ", "  ", "\n")


def byte_characters() -> dict[int, str]:
    """GPT-2's table: the character that stands for each byte in a byte-level vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in kept}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(kept))
    return table


def byte_level_backend() -> Backend:
    """A byte-level BPE without merges: text becomes bytes, and longer tokens occur only in generated ids."""
    table = byte_characters()
    pieces = [bytes([byte]) for byte in range(256)]
    pieces += [bytes.fromhex(fragment) for fragment in FRAGMENTS] + [word.encode() for word in WORDS]
    names = dict.fromkeys("".join(table[byte] for byte in piece) for piece in pieces)
    backend = Backend(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in (BOS, EOS)])
    backend.add_tokens([AddedToken(t, normalized=False) for t in (USER, ASSISTANT)])
    return backend


def byte_fallback_backend() -> Backend:
    """A BPE in the style of SentencePiece: words begin with ▁, what has no token is spelled in bytes."""
    words = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcdehlorw", "中", "▁a", "▁▁", "\ufffd", "lo"]
    backend = Backend(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[("▁", "a"), ("▁", "▁"), ("l", "o")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", BOS, EOS)])
    return backend


def surrounding(backend: Backend, before: tuple[str, ...], after: tuple[str, ...] = ()) -> Backend:
    """The backend with a post-processor that puts tokens around every text."""
    tokens = [(text, backend.token_to_id(text)) for text in dict.fromkeys((*before, *after))]
    template = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=tokens)
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return backend


SPECIAL = SpecialTokens(named={"bos_token": BOS, "eos_token": EOS})


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(byte_level_backend(), SPECIAL)


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    return Tokenizer(byte_fallback_backend(), SPECIAL)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder(config, before=..., after=..., backend=...)`: a checkpoint folder with a tokenizer."""

    def make(
        config: dict[str, Any] | None,
        *,
        before: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
        backend: Callable[[], Backend] = byte_level_backend,
    ) -> Path:
        built = backend()
        if before or after:
            built = surrounding(built, before, after)
        (tmp_path / "tokenizer.json").write_text(built.to_str(), encoding="utf-8")
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return tmp_path

    return make
