"""The record of a build: that of this installation, and files that are none."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from custom_calls import build_record as module
from custom_calls import registry
from custom_calls.architectures import ARCHITECTURES, PLATFORMS
from custom_calls.build_record import FILE, PlatformBuild, build_record

BUILT = {
    "compiler": "hipcc (clang 22.1.8)",
    "architectures": ["gfx942"],
    "reason": None,
    "refused": ["a", "b"],
}
NOT_BUILT = {"compiler": None, "architectures": [], "reason": "none was found", "refused": []}
AGAIN = "; a new installation of mla_jax writes it"


def test_this_installation() -> None:
    found, problem = build_record()
    assert problem is None
    assert set(found) == set(PLATFORMS)
    for platform, one in found.items():
        library = registry.library(platform)
        assert (one.compiler is None) == (library.module is None), (one, library)
        sentences = " ".join([one.compiler or "", one.reason or "", *one.refused])
        assert not re.search(r"(^|[\s'\"(])/", sentences), "a folder of the machine that built it"
        if platform != "cpu":
            assert all(ARCHITECTURES[name].platform == platform for name in one.architectures)
        if library.targets:
            built = library.abi["isa_built"] if platform == "cpu" else library.abi["architectures"]
            assert list(one.architectures) == list(built)


def test_a_record(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"cuda": NOT_BUILT, "rocm": BUILT}))
    assert build_record(tmp_path) == (
        {
            "cuda": PlatformBuild(None, (), "none was found", ()),
            "rocm": PlatformBuild("hipcc (clang 22.1.8)", ("gfx942",), None, ("a", "b")),
        },
        None,
    )


def test_an_older_build_left_none(tmp_path: Path) -> None:
    assert build_record(tmp_path) == ({}, f"there is no {FILE} beside the native libraries{AGAIN}")


def test_without_any_library_it_is_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert module._installed() == Path(module.__file__).parent


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", f"{FILE} cannot be read: JSONDecodeError: Expecting value"),
        (b"\xff", f"{FILE} cannot be read: UnicodeDecodeError: "),
        ("[]", f"{FILE} is no record of a build: AttributeError: "),
        ({"rocm": {}}, f"{FILE} is no record of a build: KeyError: 'compiler'"),
        ({"rocm": None}, f"{FILE} is no record of a build: TypeError: "),
        (
            {"rocm": {**BUILT, "compiler": 1}},
            f"{FILE} is no record of a build: TypeError: expected a text, got 1",
        ),
        ({"rocm": {**BUILT, "architectures": 1}}, f"{FILE} is no record of a build: TypeError: "),
        (
            {"rocm": {**BUILT, "refused": [None]}},
            f"{FILE} is no record of a build: TypeError: expected a text",
        ),
        ({"rocm": {**BUILT, "compiler": None}}, "expected a compiler or a reason, got None and None"),
        (
            {"rocm": {**BUILT, "reason": "x"}},
            "expected a compiler or a reason, got 'hipcc (clang 22.1.8)' and 'x'",
        ),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: Any, sentence: str) -> None:
    content = text if isinstance(text, str | bytes) else json.dumps(text)
    (tmp_path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    found, problem = build_record(tmp_path)
    assert found == {}
    assert problem is not None and sentence in problem and problem.endswith(AGAIN)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    _, problem = build_record(tmp_path)
    assert problem is not None and problem.startswith(f"{FILE} cannot be read: IsADirectoryError: ")
