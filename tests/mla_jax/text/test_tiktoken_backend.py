"""Kimi's tokenizer files: how text is cut, special tokens, refusals."""

import base64
import json

import pytest

from mla_jax.errors import RequestError, TokenizerError
from mla_jax.text import Tokenizer
from mla_jax.text import tiktoken_backend as backend_module

# Each merge joins two tokens before it; ranks are places in this list.
MERGES = [
    b"he",
    b"ll",
    b"hell",
    b"hello",
    b" w",
    b"or",
    b" wor",
    b"ld",
    b" world",
    "中".encode()[:2],
    "中".encode(),
]
MERGES += [
    b"12",
    b"123",
    b"  ",
    b"   ",
    b"'s",
    b"En",
    b"gl",
    "文".encode()[:2],
    "文".encode(),
    "中文".encode(),
]
SPECIAL = {"0": "[BOS]", "1": "[EOS]", "4": "<|im_end|>", "7": "<|plain|>"}


def write(folder, tokens=None, config=None):
    tokens = [bytes([i]) for i in range(256)] + MERGES if tokens is None else tokens
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    if config is None:
        config = {
            "bos_token": "[BOS]",
            "eos_token": "[EOS]",
            "added_tokens_decoder": {
                str(len(tokens) + int(i)): {"content": text, "special": text != "<|plain|>"}
                for i, text in SPECIAL.items()
            },
            "chat_template": "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


@pytest.fixture
def tokenizer(tmp_path):
    write(tmp_path)
    return Tokenizer.from_folder(tmp_path)


BASE = 256 + len(MERGES)


def pieces(tokenizer, text):
    return [tokenizer.decode([i], skip_special_tokens=False) for i in tokenizer.encode(text)]


def test_merges_and_round_trips(tokenizer):
    assert pieces(tokenizer, "hello world") == ["hello", " world"]
    for text in ["", "hello", " \n\n  x", "naïve 😀 中文", "tab\tend ", "a\r\nb", "İstanbul'S don't"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Han runs are cut from letters on both sides; only inside a run may bytes merge.
        ("中文English", ["中文", "En", "gl", "i", "s", "h"]),
        ("a中文", ["a", "中文"]),
        # Up to three digits.
        ("123123", ["123", "123"]),
        ("1231", ["123", "1"]),
        # The last blank of a run belongs to the word behind it.
        ("   world", ["  ", " world"]),
        ("   ", ["   "]),
        # An elision stays with its word.
        ("hello's", ["hello", "'s"]),
    ],
)
def test_how_text_is_cut(tokenizer, text, expected):
    assert pieces(tokenizer, text) == expected


def test_special_tokens(tokenizer):
    assert tokenizer.bos_token_id == BASE and tokenizer.eos_token_id == BASE + 1
    assert tokenizer.vocab_size == BASE + 256
    # No BOS by itself: nothing asks for one; written out, it is one token.
    assert tokenizer.encode("he") == [256]
    assert tokenizer.encode("[BOS]he<|im_end|>") == [BASE, 256, BASE + 4]
    assert tokenizer.encode("<|plain|>") == [BASE + 7]
    assert tokenizer.decode([BASE, 256, BASE + 4]) == "he"
    assert tokenizer.decode([BASE + 7, 256]) == "<|plain|>he"
    assert tokenizer.decode([BASE, 256], skip_special_tokens=False) == "[BOS]he"
    assert tokenizer.encode(f"<|reserved_token_{BASE + 9}|>") == [BASE + 9]
    assert tokenizer.decode([10**6, -1, 256]) == "he"
    assert tokenizer.encode_chat([{"role": "user", "content": "hello"}]) == [259, BASE + 4]


def test_bytes_that_are_no_text_are_replaced(tokenizer):
    assert tokenizer.decode([0xE4]) == "\ufffd"
    with pytest.raises(RequestError, match="expected Unicode text"):
        tokenizer.encode("\ud800")


def test_long_runs_are_cut_and_nothing_is_lost(tokenizer, monkeypatch):
    monkeypatch.setattr(backend_module, "_LONGEST_RUN", 5)
    monkeypatch.setattr(backend_module, "_LONGEST_TEXT", 23)
    for text in ["x" * 40, " " * 40, "ab  " * 13, "hello world, " * 9, "x" * 5, "x" * 6]:
        parts = backend_module._bounded_parts(text)
        assert "".join(parts) == text
        assert all(len(part) <= 23 for part in parts)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert backend_module._bounded_parts("x" * 12) == ["xxxxx", "xxxxx", "xx"]
    assert backend_module._bounded_parts("hello world") == ["hello world"]


def test_tokenizer_json_wins(tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"!!! 0\n", r"line 1: expected a token in base64 and its rank"),
        (b"YQ==\n", r"line 1: expected a token in base64 and its rank"),
        (b"YQ== zero\n", r"line 1: expected a token in base64 and its rank"),
        (b"YQ== 0 0\n", r"line 1: expected a token in base64 and its rank"),
        (b"YQ== 1\n", r"line 1: expected a new token of rank 0, got b'a' of rank 1"),
        (b"YQ== 0\nYQ== 1\n", r"line 2: expected a new token of rank 1"),
        (b"YQ== 0\n", r"255 single bytes have no token, the first is 0x00"),
        (b"", r"256 single bytes have no token"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    (tmp_path / "tiktoken.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_named_tokens_have_to_lie_in_the_reserved_range(tmp_path):
    count = write(tmp_path, config={"added_tokens_decoder": {"5": {"content": "<x>", "special": True}}})
    with pytest.raises(
        TokenizerError, match=rf"special token '<x>': expected an id in \[{count}, {count + 256}\), got 5"
    ):
        Tokenizer.from_folder(tmp_path)
    twice = {str(count + i): {"content": "<x>", "special": True} for i in (0, 1)}
    write(tmp_path, config={"added_tokens_decoder": twice})
    with pytest.raises(TokenizerError, match="two special tokens are called '<x>'"):
        Tokenizer.from_folder(tmp_path)


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(backend_module, "MAX_MODEL_BYTES", 100)
    with pytest.raises(TokenizerError, match="has more than 100 bytes"):
        Tokenizer.from_folder(tmp_path)
