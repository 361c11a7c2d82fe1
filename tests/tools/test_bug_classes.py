"""docs/bug-classes.md is what the tests say, the five bugs that the project began with are in it, and it notices."""

import sys

import pytest
import scripts
from scripts import ROOT

SEEDS = ("sglang#24148", "sglang#24799", "sglang#25463", "sglang#21315", "sglang#25556")


@pytest.fixture(scope="module", name="tool")
def bug_classes():
    return scripts.tool("bug_classes")


def test_the_document_is_what_the_tests_say(tool):
    text = tool.document(list(tool.marked_tests(ROOT / "tests")))
    assert (ROOT / "docs/bug-classes.md").read_text() == text, "run python tools/bug_classes.py"


def test_seeds_and_fifteen_more_are_covered(tool):
    covered = {one.bug for one in tool.marked_tests(ROOT / "tests")}
    assert {bug.partition("/")[2] for bug in covered} >= set(SEEDS)
    assert len(covered) >= len(SEEDS) + 15


def test_markers_that_pytest_sees_are_those_that_are_read(tool, tmp_path):
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "@pytest.mark.bug('ROCm/aiter#2996', 'test')\n"
        "@pytest.mark.parametrize('x', [1])\n"
        "def test_a(x): pass\n"
        "@pytest.mark.bug('ROCm/aiter#2768', 'type')\n"
        "class TestB: pass\n"
        "@pytest.mark.bug('ROCm/aiter#2768', 'type')\n"
        "def helper(): pass\n"
    )
    tool.ROOT = tmp_path
    try:
        found = list(tool.marked_tests(tmp_path))
    finally:
        tool.ROOT = ROOT
    assert [(one.bug, one.mechanism, one.test) for one in found] == [
        ("ROCm/aiter#2996", "test", "test_one.py::test_a"),
        ("ROCm/aiter#2768", "type", "test_one.py::TestB"),
    ]


@pytest.mark.parametrize(("bug", "mechanism"), [("ROCm/aiter#1", "test"), ("ROCm/aiter#2996", "hope")])
def test_unknown_bugs_and_mechanisms_are_refused(tool, bug, mechanism):
    with pytest.raises(SystemExit, match="unknown bug or mechanism"):
        tool.document([tool.Marked(bug, mechanism, "a test")])


def test_a_vanished_test_is_noticed(tool, monkeypatch, capsys):
    every = list(tool.marked_tests(ROOT / "tests"))
    monkeypatch.setattr(tool, "marked_tests", lambda _: iter(every[1:]))
    monkeypatch.setattr(sys, "argv", ["bug_classes.py", "--check"])
    assert tool.main() == 1
    assert "not what the tests say" in capsys.readouterr().err
    monkeypatch.setattr(tool, "marked_tests", lambda _: iter(every))
    assert tool.main() == 0
