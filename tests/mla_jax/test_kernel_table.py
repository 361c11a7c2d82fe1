"""The table of ops: one row each, with the reason, and without side effects."""

from types import SimpleNamespace

import jax
import pytest

from custom_calls import registry
from custom_calls.op import OPS
from mla_jax.errors import KernelUnavailableError
from mla_jax.kernel_table import KernelRow, format_table, kernel_table, lowering_platform


@pytest.mark.parametrize("kernels", ["auto", "native", "reference"])
@pytest.mark.parametrize("platform", ["cpu", "rocm", "cuda", "tpu"])
def test_one_row_an_op_and_no_warning(kernels, platform):
    with registry.declared(registry.library("cpu")):
        rows = kernel_table(kernels, platform)
    assert [row.op for row in rows] == list(OPS)
    for row in rows:
        assert row.reason
        if kernels == "reference":
            assert row.implementation == "reference"
            assert row.reason == "kernels='reference' was asked for"
        elif platform == "cpu":
            assert row.implementation == "native"
            assert row.reason.startswith("custom_calls._cpu, built for cpu, running its ")
        elif platform != "tpu" and row.op in ("mla_jax.linear", "mla_jax.absorb"):
            assert row.implementation == "native"
            assert "XLA's own" in row.reason
        else:
            assert row.implementation == {"auto": "reference", "native": "refused"}[kernels]
            assert f"no native library is declared for platform '{platform}'" in row.reason


def test_an_op_that_hands_over_to_xla_says_when_and_why():
    for row in kernel_table("auto", "cpu"):
        kind = {
            "mla_jax.rmsnorm": "127 rows go to XLA's own fusion",
            "mla_jax.rmsnorm_residual": "127 rows go to XLA's own fusion",
        }
        assert ("; more than " in row.reason) == (row.op in kind), row
        assert f"; more than {kind.get(row.op, '')}" in row.reason or row.op not in kind
    with registry.declared(registry.library("cpu")):
        for row in kernel_table("auto", "rocm"):
            assert "more than" not in row.reason


def test_the_default_is_this_backend():
    assert lowering_platform() == jax.default_backend() == "cpu"
    assert kernel_table() == kernel_table("auto", "cpu")


@pytest.mark.parametrize(
    ("version", "platform"), [("rocm 70100", "rocm"), ("ROCm", "rocm"), ("cuda 13000", "cuda")]
)
def test_gpu_backends_are_told_apart(monkeypatch, version, platform):
    device = SimpleNamespace(client=SimpleNamespace(platform_version=f"PJRT C API\n{version}"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert lowering_platform() == platform


@pytest.mark.parametrize("failure", [RuntimeError("Unable to initialize backend 'x'"), AssertionError()])
def test_no_backend_is_a_sentence(monkeypatch, failure):
    def fail():
        raise failure

    monkeypatch.setattr(jax, "default_backend", fail)
    with pytest.raises(KernelUnavailableError, match=r"JAX cannot start a backend \(JAX_PLATFORMS=.*\): \w"):
        kernel_table()


def test_a_missing_target_costs_its_op_only(monkeypatch):
    name, op = next((name, op) for name, op in OPS.items() if op.targets)
    full = registry.library("cpu")
    less = registry.Library("cpu", "m", full.targets - set(op.targets), "m", {})
    monkeypatch.setattr(registry, "library", lambda platform: less)
    by_name = {row.op: row for row in kernel_table("auto", "cpu")}
    assert by_name[name] == KernelRow(name, "reference", f"m has no target {', '.join(op.targets)}")
    assert {row.implementation for row in by_name.values()} == {"native", "reference"}
    refused = [row for row in kernel_table("native", "cpu") if row.implementation == "refused"]
    assert all(
        f"{row.op} has no native kernel on platform 'cpu': m has no target" in row.reason for row in refused
    )
    assert name in {row.op for row in refused}


def test_the_text_is_aligned():
    rows = (KernelRow("short", "native", "why"), KernelRow("much.longer", "reference", "why not"))
    assert format_table(rows).splitlines() == [
        "short        native     why",
        "much.longer  reference  why not",
    ]
