"""Strict JSON: what is refused, with which message, and by which error class."""

import json
import os

import pytest

from mla_jax.checkpoints.json_files import parse_json_object, read_json_object
from mla_jax.errors import CheckpointError, ConfigError


def test_reads_an_object(tmp_path):
    value = {"a": [1, 2.5, None, True, "é😀"], "b": {"c": {}}, "1e400": 2**70, "": "\n"}
    path = tmp_path / "x.json"
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        path.write_text(text, encoding="utf-8")
        assert read_json_object(path, ConfigError) == value
        assert read_json_object(str(path), ConfigError) == value


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("key 'a' occurs twice in one object", b'{"a":1,"a":1}'),
        ("key 'a' occurs twice in one object", b'{"x":[{"a":1,"b":2,"a":3}]}'),
        ("NaN is not a JSON number", b'{"a":NaN}'),
        ("Infinity is not a JSON number", b'{"a":[Infinity]}'),
        ("-Infinity is not a JSON number", b'{"a":-Infinity}'),
        ("expected a JSON object, got \\[\\]", b"[]"),
        ("expected a JSON object, got None", b"null"),
        ("expected a JSON object, got 'a'", b'"a"'),
        ("expected a JSON object, got 1", b"1"),
        ("is not valid JSON", b""),
        ("is not valid JSON", b"{"),
        ("is not valid JSON", b"{}{}"),
        ("is not valid JSON", b'{"a":01}'),
        ("is not valid JSON", b'{"a":1,}'),
        ("is not valid JSON", b'{"a":"\n"}'),
        ("is not valid JSON", b'{"a":1} // note'),
        ("is not valid JSON", b'{"a":' + b"1" * 5000 + b"}"),
        ("is not valid JSON", b"\xef\xbb\xbf{}"),
        ("is not UTF-8: .* at byte 2", b'{"\xff":1}'),
        ("is not UTF-8", "{}".encode("utf-16")),
        ("is nested too deeply", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("is nested too deeply", b'{"a":' * 100_000),
        ("is not a Unicode string", b'{"a":"\\ud83d"}'),
        ("is not a Unicode string", b'{"\\ude00":1}'),
        ("is not a Unicode string", b'{"a":[{"b":"\\ude00\\ud83d"}]}'),
    ],
)
def test_refusals(message, text):
    with pytest.raises(CheckpointError, match=f"^where: .*{message}") as caught:
        parse_json_object(text, "where", CheckpointError)
    assert type(caught.value) is CheckpointError
    assert len(str(caught.value)) < 500


def test_a_whole_surrogate_pair_is_one_character():
    assert parse_json_object(b'{"a":"\\ud83d\\ude00"}', "where", ConfigError) == {"a": "😀"}


def test_files_that_cannot_be_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "none", tmp_path, pipe, tmp_path / ("x" * 300), f"{tmp_path}/a\0b"):
        with pytest.raises(ConfigError) as caught:
            read_json_object(path, ConfigError)
        assert str(caught.value) == f"{path}: there is no such file"


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("{}")

    def fail(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", fail)
    with pytest.raises(CheckpointError, match=r"x\.json: cannot be read: .*Permission denied"):
        read_json_object(path, CheckpointError)


def test_size_is_bounded(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a":1}')
    assert read_json_object(path, ConfigError, max_bytes=7) == {"a": 1}
    with pytest.raises(ConfigError, match="expected at most 6 bytes of JSON, got more"):
        read_json_object(path, ConfigError, max_bytes=6)
