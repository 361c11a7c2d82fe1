"""Which tokens a checkpoint calls special: tokenizer_config.json, then special_tokens_map.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mla_jax.errors import TokenizerError, shown

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The keys that name one special token each; chat templates see them under these names."""

LIST_NAMES = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class SpecialTokens:
    """What the two files say, before it is checked against the vocabulary.

    Attributes:
      named: key of `NAMES` -> text of the token; keys without a token are absent.
      others: texts of further special tokens.
      flags: token id -> (text, whether it is special), from `added_tokens_decoder`.
      add_bos_token, add_eos_token: None where the file is silent.
    """

    named: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    flags: dict[int, tuple[str, bool]] = field(default_factory=dict)
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None

    @classmethod
    def from_json(
        cls,
        config: Mapping[str, Any],
        config_path: str,
        fallback: Mapping[str, Any],
        fallback_path: str,
    ) -> "SpecialTokens":
        """Reads both objects; a key that is absent or null in `config` is taken from `fallback`.

        Raises:
          TokenizerError: a value of the wrong type; the message names the file and the key.
        """
        named: dict[str, str] = {}
        others: list[str] = []
        for values, path in ((fallback, fallback_path), (config, config_path)):
            for name in NAMES:
                text = token_text(values.get(name), path, name)
                if text is not None:
                    named[name] = text
            for name in LIST_NAMES:
                others += _token_texts(values.get(name), path, name)
        return cls(
            named=named,
            others=tuple(dict.fromkeys(others)),
            flags=_flags(config.get("added_tokens_decoder"), config_path),
            add_bos_token=_optional_bool(config.get("add_bos_token"), config_path, "add_bos_token"),
            add_eos_token=_optional_bool(config.get("add_eos_token"), config_path, "add_eos_token"),
        )


def token_text(value: Any, path: str, key: str) -> str | None:
    """A token is written as its text or as an object with the text under "content"; null is none."""
    if isinstance(value, Mapping):
        value = value.get("content", value)
    if value is None or (isinstance(value, str) and value):
        return value
    _fail(path, key, 'a non-empty string, an object with a string "content", or null', value)


def _token_texts(value: Any, path: str, key: str) -> list[str]:
    if isinstance(value, Mapping):  # extra_special_tokens maps a name to a token
        value = list(value.values())
    if value is None:
        return []
    if not isinstance(value, list):
        _fail(path, key, "a list of tokens", value)
    texts = [token_text(item, path, f"{key}[{i}]") for i, item in enumerate(value)]
    return [text for text in texts if text is not None]


def _flags(value: Any, path: str) -> dict[int, tuple[str, bool]]:
    key = "added_tokens_decoder"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _fail(path, key, "an object of token id -> token", value)
    flags = {}
    for token_id, token in value.items():
        where = f"{key}[{shown(token_id)}]"
        if not (token_id.isascii() and token_id.isdecimal() and len(token_id) <= 10):
            _fail(path, where, "a token id as key", token_id)
        text = token_text(token, path, where)
        if text is None:
            _fail(path, where, "a token", token)
        special = token.get("special", False) if isinstance(token, Mapping) else False
        if not isinstance(special, bool):
            _fail(path, f"{where}.special", "true or false", special)
        flags[int(token_id)] = (text, special)
    return flags


def _optional_bool(value: Any, path: str, key: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    _fail(path, key, "true, false or null", value)


def _fail(path: str, key: str, expected: str, got: object) -> NoReturn:
    raise TokenizerError(f"{path}: {key}: expected {expected}, got {shown(got)}")
