"""A file that is cut short is found before the system's loader maps it."""

import importlib.util
from pathlib import Path

import pytest

from custom_calls.shared_object import import_library, missing_bytes

LIBRARY = Path(str(importlib.util.find_spec("custom_calls._cpu").origin))  # type: ignore[union-attr]


def test_a_whole_library() -> None:
    assert missing_bytes(LIBRARY) == 0
    assert import_library("custom_calls._cpu").abi()["platform"] == "cpu"


@pytest.mark.skipif(
    LIBRARY.read_bytes()[:6] != b"\x7fELF\x02\x01", reason="libraries here are no 64-bit ELF files"
)
@pytest.mark.parametrize("kept", [6, 63, 64, 4096, -1])
def test_a_part_of_it(kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LIBRARY.read_bytes()
    path = tmp_path / LIBRARY.name.replace("_cpu", "cut_short")
    path.write_bytes(whole[:kept])
    size = len(whole[:kept])
    # Linkers end the file with the section table.
    assert missing_bytes(path) == (64 - size if size < 64 else len(whole) - size)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ImportError, match=rf"cut_short.* is cut short: {missing_bytes(path)} bytes are missing"
    ):
        import_library("cut_short")


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"MZ" + bytes(100), bytes(64)])
def test_other_formats_are_the_loaders_own_business(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    assert missing_bytes(path) == 0


def test_more_than_a_library(tmp_path: Path) -> None:
    path = tmp_path / "signed.so"
    path.write_bytes(LIBRARY.read_bytes() + b"signature")
    assert missing_bytes(path) == 0


def test_no_such_module() -> None:
    with pytest.raises(ModuleNotFoundError) as raised:
        import_library("custom_calls._not_there")
    assert raised.value.name == "custom_calls._not_there"
