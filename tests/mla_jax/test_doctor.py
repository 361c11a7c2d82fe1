"""`mla-jax doctor`: plain facts, in text and JSON, and a non-zero exit where something is of no use."""

import importlib.metadata
import json

import jax
import pytest

import mla_jax
from custom_calls import registry
from custom_calls.build_record import PlatformBuild
from custom_calls.op import OPS
from custom_calls.registry import Library
from mla_jax import doctor
from mla_jax.cli import main
from mla_jax.errors import KernelUnavailableError


def test_the_report(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == [
        "python",
        "machine",
        "packages",
        "ffi_api_runtime",
        "backend",
        "devices",
        "libraries",
        "build",
        "ops",
        "problem",
    ]
    assert facts["packages"]["jax"] == jax.__version__
    assert facts["packages"]["mla-jax"] == mla_jax.__version__
    assert facts["ffi_api_runtime"].startswith("0.")
    assert facts["backend"] == "cpu"
    assert len(facts["devices"]) == jax.device_count()
    assert list(facts["libraries"]) == ["cpu", "cuda", "rocm"]
    cpu = facts["libraries"]["cpu"]
    assert cpu["module"] == "custom_calls._cpu"
    assert len(cpu["targets"]) >= 9
    assert cpu["isa"] in ("baseline", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx")
    rocm = facts["libraries"]["rocm"]
    assert bool(rocm["targets"]) == (rocm["module"] is not None)
    assert facts["build"]["problem"] is None
    for name, one in facts["build"]["platforms"].items():
        assert (one["compiler"] is not None) == (facts["libraries"][name]["module"] is not None)
    assert [row["op"] for row in facts["ops"]] == list(OPS)
    assert all(list(row) == ["op", "implementation", "reason"] for row in facts["ops"])
    assert facts["problem"] is None


def test_the_text_says_the_same(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    facts = doctor.report()
    assert text == doctor.format_report(facts) + "\n"
    for package, version in facts["packages"].items():
        assert f"{package} {version}\n" in text
    assert "backend: cpu (" in text
    for row in facts["ops"]:
        assert row["op"] in text
    assert facts["libraries"]["rocm"]["reason"] in text
    assert "problem" not in text


def test_what_was_built_and_why_not(monkeypatch):
    def record():
        return {
            "cpu": PlatformBuild("c++ (GNU 12.2.0)", ("baseline", "avx2"), None, ()),
            "cuda": PlatformBuild(None, (), "MLA_JAX_BACKENDS=cpu,rocm does not name it", ()),
            "rocm": PlatformBuild(
                "clang++-22 (clang 22.1.8)", ("gfx942", "gfx950"), None, ("hipcc: no", "x: no")
            ),
        }, None

    monkeypatch.setattr(doctor, "build_record", record)
    facts = json.loads(json.dumps(doctor.report()))
    assert facts["build"]["platforms"]["rocm"] == {
        "compiler": "clang++-22 (clang 22.1.8)",
        "architectures": ["gfx942", "gfx950"],
        "reason": None,
        "refused": ["hipcc: no", "x: no"],
    }
    assert (
        "\nthe build:\n"
        "  cpu   built by c++ (GNU 12.2.0) for baseline, avx2\n"
        "  cuda  not built: MLA_JAX_BACKENDS=cpu,rocm does not name it\n"
        "  rocm  built by clang++-22 (clang 22.1.8) for gfx942, gfx950\n"
        "        hipcc: no\n"
        "        x: no\n"
    ) in doctor.format_report(facts)


def test_a_build_without_a_record_is_no_problem_of_the_kernels(monkeypatch):
    monkeypatch.setattr(doctor, "build_record", lambda: ({}, "there is no record"))
    facts = doctor.report()
    assert facts["build"] == {"platforms": {}, "problem": "there is no record"}
    assert facts["problem"] is None
    assert "\nwhat was built and why not is unknown: there is no record\n" in doctor.format_report(facts)


def test_a_missing_package_is_named(monkeypatch):
    def version(name):
        if name == "tokenizers":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = doctor.report()["packages"]
    assert packages["tokenizers"] == "not installed"
    assert packages["jax"] == "1"


def test_a_library_of_no_use_is_a_problem(monkeypatch, capsys):
    broken = registry.Library("cpu", "custom_calls._cpu", frozenset(), "custom_calls._cpu is too old", {})
    monkeypatch.setattr(registry, "library", lambda platform: broken)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().out.endswith(
        "problem: the native library is of no use: custom_calls._cpu is too old\n"
    )


@pytest.mark.parametrize("platform", ["rocm", "cuda", "tpu"])
def test_a_platform_without_a_library_is_no_problem(monkeypatch, platform):
    monkeypatch.setattr(doctor, "lowering_platform", lambda: platform)
    with registry.declared(registry.library("cpu")):
        facts = doctor.report()
    assert facts["problem"] is None
    gpu = Library(platform, None, frozenset(), "none", {})
    native = {name for name, op in OPS.items() if () in op.forms(gpu)}
    assert {row["op"] for row in facts["ops"] if row["implementation"] == "native"} == native


def test_no_backend_is_a_problem(monkeypatch, capsys):
    def fail():
        raise KernelUnavailableError("JAX cannot start a backend: none")

    monkeypatch.setattr(doctor, "lowering_platform", fail)
    assert main(["doctor"]) == 2
    text = capsys.readouterr().out
    assert "backend: none ()" in text
    assert text.endswith("problem: JAX cannot start a backend: none\n")
    assert main(["doctor", "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert (facts["backend"], facts["devices"], facts["ops"]) == (None, [], [])
