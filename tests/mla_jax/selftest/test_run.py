"""The self-test on this machine, and kernels that are wrong on purpose, which it must name."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from custom_calls import registry
from custom_calls.errors import KernelUnavailableError
from mla_jax import machine
from mla_jax.cli import main
from mla_jax.errors import RequestError
from mla_jax.selftest import run
from mla_jax.selftest.cases import Case, cases

ONES = jnp.ones((4, 8), jnp.float32)


@pytest.fixture(autouse=True)
def little_to_do(monkeypatch):
    monkeypatch.setattr(run, "_TIMES", {"native": 1, "reference": 1})
    monkeypatch.setattr(machine, "_HOST_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_HOST_PRODUCT", (48, 64, 64))


def differing(error, **settings):
    """A case whose native form is off by `error` in its last element."""

    def call(a, kernels):
        return (a["x"].at[-1, -1].add(error if kernels == "native" else 0),)

    return Case("mla_jax.rmsnorm", "planted", call, {"x": ONES}, **settings)


def test_all_of_it(monkeypatch, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["selftest", "--platform", "cpu", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "all native kernels agree with their references" in text
    assert "DIFFERS" not in text and "FAILED" not in text
    found = json.loads(out.read_text())
    assert found["agrees"] and found["doctor"]["backend"] == "cpu"
    assert found["read_gb_per_s"] > 0 and found["product_gflop_per_s"] > 0
    assert len(found["cases"]) == len(cases())
    for row in found["cases"]:
        assert row["implementation"] == "native" and row["agrees"] and row["error"] is None
        assert row["microseconds"] > 0 and row["reference_microseconds"] > 0
        assert 0 <= row["max_error"] <= row["bound"]
        assert row["op"].removeprefix("mla_jax.") in text


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (1e-5, 0), (1e-4, 1), (math.nan, 1), (math.inf, 1)])
def test_a_difference_is_found(monkeypatch, capsys, error, code):
    monkeypatch.setattr(run, "cases", lambda: [differing(error)])
    assert main(["selftest", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["cases"][0]["agrees"] is (code == 0)
    assert ("DIFFERS" in run.format_report(found)) == (code == 1)
    assert ("1 cases differ or fail" in run.format_report(found)) == (code == 1)


@pytest.mark.parametrize(
    ("form", "error", "agrees"),
    [
        ("exact", 0.0, True),
        ("exact", 1e-7, False),
        ("float8_e4m3fn", 0.125, True),
        ("float8_e4m3fn", 0.2, False),
        ("mxfp4", 0.3, True),
        ("mxfp4", 0.4, False),
    ],
)
def test_codes_have_bounds_of_their_own(form, error, agrees):
    case = differing(0.0, coded={0: form})
    want = np.ones((40, 8), np.float32)
    got = want.copy()
    got[3, 3] += np.float32(error)
    assert run.compare(case, [got], [want])[0] is agrees
    got[:2] += np.float32(error)  # 5 % of the values: a border between codes does not explain that
    assert run.compare(case, [got], [want])[0] is (error == 0.0)


def test_bfloat16_may_differ_by_two_units_each():
    case = differing(0.0)
    want = np.full((2, 3), 100, jnp.bfloat16)  # one unit in the last place of 100 is 0.5
    for units, agrees in ((4, True), (5, False)):
        got = want.copy()
        got[0, 0] = 100 + units / 2
        assert run.compare(case, [got], [want])[0] is agrees


def test_the_result_closest_to_its_bound_is_shown():
    case = differing(0.0, coded={1: "fp8"})
    one = np.ones(200, np.float32)
    first, second = one.copy(), one.copy()
    first[0], second[0] = 1 + 1e-5, 1.1
    _, error, bound = run.compare(case, [first, second], [one, one])
    assert error == pytest.approx(0.1, rel=1e-5) and bound == 0.125
    # Infinities that are the same are no difference.
    assert run.compare(case, [np.array([-np.inf, 1.0])], [np.array([-np.inf, 1.0])]) == (
        True,
        0.0,
        run.FLOAT32,
    )


def test_a_kernel_that_fails_is_a_sentence(monkeypatch, capsys):
    def call(a, kernels):
        if kernels == "native":
            raise run.jax.errors.JaxRuntimeError("the kernel\n broke")
        return (a["x"],)

    monkeypatch.setattr(run, "cases", lambda: [Case("mla_jax.rmsnorm", "planted", call, {"x": ONES})])
    assert main(["selftest"]) == 1
    assert "FAILED: the kernel broke" in capsys.readouterr().out


def test_what_is_updated_in_place_is_passed_on():
    """Every timed call gets the pool that the one before gave back."""
    seen = []

    def call(a, kernels):
        run.jax.debug.callback(lambda pool: seen.append(float(pool[0])), a["pool"])
        return a["x"] * 2, a["pool"] + 1

    arguments = {"x": jnp.ones(2), "pool": jnp.zeros(2)}
    (first, pool), _ = run._results(Case("op", "", call, arguments, {"pool": 1}), "native")
    run.jax.effects_barrier()
    assert first.tolist() == [2, 2] and pool.tolist() == [1, 1]
    assert seen == [0, 1, 2]
    assert arguments["pool"].tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore::custom_calls.errors.KernelFallbackWarning")
def test_an_op_without_a_kernel_is_only_timed(monkeypatch):
    monkeypatch.setattr(run, "cases", lambda: [differing(1.0)])
    without = registry.Library("cpu", "a module", frozenset({"another_target"}), "it has none", {})
    with registry.declared(without):
        found = run.selftest()
    (row,) = found["cases"]
    assert found["agrees"] and row["agrees"] is None and row["microseconds"] is None
    assert row["implementation"] == "reference" and "mla_jax.rmsnorm" in row["reason"]
    assert row["reference_microseconds"] > 0
    assert "without a native kernel here: mla_jax.rmsnorm" in run.format_report(found)


@pytest.mark.filterwarnings("ignore::custom_calls.errors.KernelFallbackWarning")
def test_without_a_library_nothing_agrees(monkeypatch, capsys):
    monkeypatch.setattr(run, "cases", lambda: [differing(0.0)])
    with registry.declared(registry.Library("cpu", None, frozenset(), "none is built", {})):
        assert main(["selftest", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problem"] == "none is built" and found["cases"][0]["agrees"] is None
    text = run.format_report(found)
    assert "no native library was checked: none is built" in text and "all native kernels agree" not in text


def test_refusals(monkeypatch, tmp_path, capsys):
    with pytest.raises(RequestError, match="platform: expected one of cpu, cuda, rocm, got 'tpu'"):
        run.selftest("tpu")
    with pytest.raises(SystemExit):
        main(["selftest", "--platform", "tpu"])
    assert main(["selftest", "--out", str(tmp_path / "none" / "report.json")]) == 2
    assert "none/report.json" in capsys.readouterr().err
    monkeypatch.setattr(run.jax.config, "update", lambda *_: None)
    with pytest.raises(KernelUnavailableError, match="platform: expected rocm, but JAX runs on cpu"):
        run.selftest("rocm")
