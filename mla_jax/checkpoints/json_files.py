"""Reading a JSON object from an untrusted file: bounded, strict, and with one kind of error."""

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from mla_jax.errors import MlaJaxError, shown

MAX_JSON_BYTES = 100_000_000
"""As for a safetensors header; the largest index of a published model is about 10 MB."""


def read_json_object(
    path: str | os.PathLike[str], error: type[MlaJaxError], max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
      path: a regular file.
      error: raised for everything that is wrong with the file; the message starts with its path.
      max_bytes: larger files are refused unread.
    """
    return parse_json_object(read_json_text(path, error, max_bytes), str(path), error)


def read_json_text(path: str | os.PathLike[str], error: type[MlaJaxError], max_bytes: int) -> bytes:
    """The bytes of a JSON file, for those who have more than one parser for it; arguments as above."""
    path = Path(path)
    # Not Path.is_file: it raises for names that are too long. Anything but a file, a pipe say, may block.
    if not os.path.isfile(path):
        raise error(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure}") from failure
    if len(text) > max_bytes:
        raise error(f"{path}: expected at most {max_bytes} bytes of JSON, got more")
    return text


def parse_json_object(text: bytes, where: str, error: type[MlaJaxError]) -> dict[str, Any]:
    """The object in UTF-8 JSON text, stricter than Python's parser.

    Refused beside malformed text: a key that occurs twice in one object, NaN and Infinity (JSON has
    neither), numbers too long to convert, nesting deep enough to exhaust the parser, lone surrogates,
    and any top-level value that is not an object.

    Args:
      text: the whole document.
      where: prefix of every message.
      error: what is raised.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _Refused(f"key {shown(twice)} occurs twice in one object")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=_refuse_constant)
        if b"\\u" in text:
            _refuse_surrogates(value)
    except _Refused as refusal:
        raise error(f"{where}: {refusal}") from None
    except UnicodeDecodeError as failure:
        raise error(f"{where}: is not UTF-8: {failure.reason} at byte {failure.start}") from None
    except RecursionError:
        raise error(f"{where}: JSON is nested too deeply") from None
    except ValueError as failure:
        raise error(f"{where}: is not valid JSON: {failure}") from None
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, got {shown(value)}")
    return value


class _Refused(Exception):
    pass


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON number")


def _refuse_surrogates(value: object) -> None:
    # Half of an escaped surrogate pair makes a str that no file name, message or UTF-8 writer can take.
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _Refused(f"{shown(value)} is not a Unicode string") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_surrogates(key)
            _refuse_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)
