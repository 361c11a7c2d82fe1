"""make verify-all: every program once, failures by name, and the exit code."""

from dataclasses import replace

import pytest
from scripts import ROOT, tool

from mla_jax.verify import VerificationError, product


@pytest.fixture(scope="module", name="verify_all")
def verify_all_tool():
    return tool("verify_all")


ONE = product.Configuration("gfx950", "decode", "mxfp4", "float32", 1, "half", "auto", "some")
REFUSED = replace(ONE, kernels="native")
SAME = replace(ONE, architecture="gfx942")


def test_real_configurations(verify_all, capsys):
    assert verify_all.run([ONE, REFUSED, SAME], 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 configurations, 2 distinct programs"
    assert lines[1].startswith("1 lowered and proven, 1 refused as they must be, 0 failed, in ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    "error", [VerificationError("one: queries are rotated twice"), ValueError("no rule")]
)
def test_failures_are_named(verify_all, monkeypatch, capsys, error):
    def prove(one):
        if one.kernels == "auto":
            raise error
        return product.Proven((), frozenset(), frozenset(), "refused")

    monkeypatch.setattr(verify_all, "prove", prove)
    assert verify_all.run([ONE, REFUSED], 1) == 1
    lines = capsys.readouterr().out.splitlines()
    own = isinstance(error, VerificationError)
    assert lines[1] == f"FAILED {error}" if own else f"FAILED {product.canonical(ONE)}: ValueError: no rule"
    assert lines[2].startswith("0 lowered and proven, 1 refused as they must be, 1 failed, in ")


def test_two_processes(verify_all, capsys, monkeypatch):
    # What a worker is told to run must be importable there: the tool is no module of a package.
    monkeypatch.syspath_prepend(ROOT / "tools")
    import verify_all as importable

    assert importable.run([ONE, replace(ONE, kernels="reference")], 2) == 0
    assert "2 lowered and proven, 0 refused as they must be, 0 failed" in capsys.readouterr().out


def test_groups_share_a_trace_and_lose_nothing(verify_all):
    chosen = [one for one in product.configurations() if one.weights == "fp8_block" and one.page_size == 1]
    groups = list(verify_all.groups(chosen))
    assert sorted(map(str, chosen)) == sorted(str(one) for group in groups for one in group)
    for group in groups:
        traced = {
            (one.phase, one.weights, one.codes, one.cache_dtype, one.rope, one.kernels) for one in group
        }
        assert len(traced) == 1
    assert len(groups) == 5 * 2 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("arguments", "count", "jobs"),
    [(["--pairwise", "--jobs", "1"], "covering", 1), (["--jobs", "3"], "all", 3)],
)
def test_options(verify_all, monkeypatch, arguments, count, jobs):
    ran = []
    monkeypatch.setattr(verify_all, "run", lambda chosen, jobs: ran.append((len(chosen), jobs)) or 7)
    monkeypatch.setattr("sys.argv", ["verify_all.py", *arguments])
    assert verify_all.main() == 7
    expected = len(product.covering()) if count == "covering" else 37800
    assert ran == [(expected, jobs)]


def test_no_process_is_refused(verify_all, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["verify_all.py", "--jobs", "0"])
    with pytest.raises(SystemExit) as raised:
        verify_all.main()
    assert raised.value.code == 2
    assert "argument --jobs: expected an integer >= 1, got 0" in capsys.readouterr().err
