"""Kimi's tokenizer: a tiktoken.model file (byte sequences and ranks) with what its checkpoints leave to code.

The checkpoints bring a Python file with the pattern that cuts a text before merging and the number of reserved
special tokens. That file is never run; the two facts are written down here.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers

from mla_jax.errors import TokenizerError, shown

MAX_MODEL_BYTES = 50_000_000
"""Kimi-K2's file has 2.8 MB."""

RESERVED_TOKENS = 256
"""Special tokens follow the ranks: those that tokenizer_config.json names, and placeholders."""

_ELISION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ELISION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ELISION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Runs of Han characters, words of other scripts, up to three digits, punctuation, white space."""

# tiktoken's time grows with the square of an unbroken run, so those are cut, as Kimi's own code cuts them.
_LONGEST_TEXT = 400_000
_LONGEST_RUN = 25_000


@dataclass(frozen=True)
class Encoded:
    """The part of `tokenizers.Encoding` that is used."""

    ids: list[int]


class TiktokenBackend:
    """A tiktoken encoding behind the methods of `tokenizers.Tokenizer` that `Tokenizer` uses.

    Args:
      path: of tiktoken.model.
      flags: token id -> (text, whether it is special), from `added_tokens_decoder`.

    Raises:
      TokenizerError: the file is malformed or too large, or a named token is out of the reserved range.
    """

    decoder = None

    def __init__(self, path: Path, flags: Mapping[int, tuple[str, bool]]) -> None:
        import tiktoken

        ranks = _read_ranks(path)
        special = {}
        for token_id in range(len(ranks), len(ranks) + RESERVED_TOKENS):
            text, _ = flags.get(token_id, (f"<|reserved_token_{token_id}|>", True))
            if text in special:
                raise TokenizerError(f"{path}: two special tokens are called {shown(text)}")
            special[text] = token_id
        for token_id, (text, _) in flags.items():
            if special.get(text) != token_id:
                raise TokenizerError(
                    f"{path}: special token {shown(text)}: expected an id in [{len(ranks)}, "
                    f"{len(ranks) + RESERVED_TOKENS}), got {token_id}"
                )
        self._ranks, self._special = ranks, special
        self._named = {token_id: flags[token_id] for token_id in flags}
        self._encoding = tiktoken.Encoding(
            name=path.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str, add_special_tokens: bool = False) -> Encoded:
        """The ids of `text`; special tokens are recognised anywhere in it, and none is added."""
        del add_special_tokens
        ids: list[int] = []
        try:
            text.encode()
        except UnicodeEncodeError as failure:  # tiktoken would replace it in silence
            raise TypeError("a lone surrogate") from failure
        for part in _bounded_parts(text):
            ids += self._encoding.encode(part, allowed_special="all", disallowed_special=())
        return Encoded(ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids of this vocabulary; U+FFFD stands for bytes that are not UTF-8."""
        del skip_special_tokens
        return str(self._encoding.decode(list(ids), errors="replace"))

    def token_to_id(self, text: str) -> int | None:
        """The id of a token by its text."""
        if text in self._special:
            return self._special[text]
        try:
            return self._ranks.get(text.encode())
        except UnicodeEncodeError:
            return None

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Token -> id; the bytes of ordinary tokens stand as Latin-1, which has a character for each."""
        vocabulary = {token.decode("latin-1"): rank for token, rank in self._ranks.items()}
        return vocabulary | self._special if with_added_tokens else vocabulary

    def get_added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """Id -> special token; the reserved ones are special as well."""
        return {
            token_id: tokenizers.AddedToken(text, special=self._named.get(token_id, (text, True))[1])
            for text, token_id in self._special.items()
        }

    def add_tokens(self, tokens: Sequence[tokenizers.AddedToken]) -> int:
        """Adds nothing: the vocabulary is what the file and the reserved range say."""
        del tokens
        return 0

    add_special_tokens = add_tokens

    def no_padding(self) -> None:
        """There is none."""

    def no_truncation(self) -> None:
        """There is none."""


def _bounded_parts(text: str) -> list[str]:
    """`text` in parts without white space or its absence for more than `_LONGEST_RUN` characters."""
    parts = []
    for start in range(0, len(text), _LONGEST_TEXT):
        chunk = text[start : start + _LONGEST_TEXT]
        begin, at = 0, 0
        for _, run in groupby(chunk, key=str.isspace):
            length = sum(1 for _ in run)
            for cut in range(at + _LONGEST_RUN, at + length, _LONGEST_RUN):
                parts.append(chunk[begin:cut])
                begin = cut
            at += length
        parts.append(chunk[begin:])
    return parts


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise TokenizerError(f"{path}: has more than {MAX_MODEL_BYTES} bytes")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        parts: list[Any] = line.split()
        try:
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
            well_formed = len(parts) == 2
        except (binascii.Error, ValueError, IndexError):
            well_formed = False
        if not well_formed:
            raise TokenizerError(
                f"{path}: line {number}: expected a token in base64 and its rank, got {shown(line)}"
            )
        if rank != len(ranks) or token in ranks or not token:
            raise TokenizerError(
                f"{path}: line {number}: expected a new token of rank {len(ranks)}, got {shown(token)} of rank {rank}"
            )
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{path}: {len(missing)} single bytes have no token, the first is {missing[0]:#04x}"
        )
    return ranks
