"""Real shared objects in the place of the CPU's: old, new, broken, missing. Each costs what it must and no more."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from native_libraries import build, needs_compiler, run_python

from custom_calls.abi import PROJECT_ABI, runtime_ffi_version
from custom_calls.op import OPS

TESTS = Path(__file__).resolve().parents[1]
MODEL = TESTS / "goldens" / "deepseek_v3"
FFI = ".".join(map(str, runtime_ffi_version()))
MAJOR, MINOR = runtime_ffi_version()

# Handlers of the installed library under a record of one's own: what is announced and held, really runs.
BORROWED = """
import custom_calls._cpu as real
record = dict(real.abi())
handlers = dict(real.registrations())
{change}
def abi(): return record
def registrations(): return handlers
"""

CONTRACTS = """
record["ops"].update({"mla_jax.linear": 7, "mla_jax.rmsnorm": 0})
handlers["mla_jax.linear.v7"] = handlers.pop("mla_jax.linear.v1")
handlers["mla_jax.rmsnorm.v0"] = handlers.pop("mla_jax.rmsnorm.v1")
del handlers["mla_jax.rope_latent_rows.v1"]
del record["ops"]["mla_jax.mla_attention_expanded"]
"""


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a library, and the sentence about it behind the module's name; None: nothing is."""

    reason: str | None
    change: str = ""
    body: str = BORROWED
    defines: tuple[str, ...] = ()
    keep: int | None = None


LIBRARIES = {
    "good": Wrong(None),
    "truncated": Wrong("cannot be loaded: ImportError: ", keep=5000),
    "only-a-header": Wrong("cannot be loaded: ImportError: ", keep=70),
    "empty": Wrong("cannot be loaded: ImportError: ", keep=0),
    "undefined-symbol": Wrong("cannot be loaded: ImportError: ", defines=("UNDEFINED",)),
    "raises": Wrong(
        "cannot be loaded: OSError: no driver is loaded", body="raise OSError('no driver is loaded')"
    ),
    "no-record": Wrong("cannot be registered: AttributeError: ", body=BORROWED + "del abi"),
    "record-raises": Wrong(
        "cannot be registered: ZeroDivisionError: ", body="def abi(): return {'project_abi': 1 // 0}"
    ),
    "malformed-record": Wrong("has a malformed ABI record: 'ops': ", "record['ops'] = ['mla_jax.linear']"),
    "new-project": Wrong(
        f"speaks project ABI {PROJECT_ABI + 1}, this package speaks {PROJECT_ABI}; reinstall it",
        f"record['project_abi'] = {PROJECT_ABI + 1}",
    ),
    "old-project": Wrong(
        f"speaks project ABI {PROJECT_ABI - 1}, this package speaks {PROJECT_ABI}; reinstall it",
        f"record['project_abi'] = {PROJECT_ABI - 1}",
    ),
    "new-ffi": Wrong(
        f"was compiled against XLA FFI {MAJOR}.{MINOR + 1}, the installed jaxlib has {FFI}; rebuild it",
        f"record['ffi_api'] = ({MAJOR}, {MINOR + 1})",
    ),
    "another-platform": Wrong(
        "was built for platform 'rocm', expected 'cpu'", "record['platform'] = 'rocm'"
    ),
    "no-handlers": Wrong(
        "cannot be registered: TypeError: mla_jax.rmsnorm.v1: expected a capsule for execute, got builtin",
        "handlers = {target: print for target in handlers}",
    ),
}  # fmt: skip

ASK = """
import contextlib, io, json, warnings
from custom_calls import registry
registry.LIBRARIES["cpu"] = {module!r}
import jax, jax.numpy as jnp, numpy as np
import custom_calls, mla_jax
from custom_calls.errors import KernelFallbackWarning
from custom_calls.linear import linear
from custom_calls.op import OPS
from mla_jax.cli import main
from mla_jax.kernel_table import kernel_table
from mla_jax.models import freeze

with contextlib.redirect_stdout(io.StringIO()):
    model, config = mla_jax.load({model!r}, abstract=True)
tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)
x, weight = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(4, 3)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        y = linear(x, weight)
        text = jax.jit(mla_jax.forward).lower(freeze(model), tokens).as_text()
assert np.array_equal(y, np.asarray(x) @ np.asarray(weight).T)
assert {{one.category for one in seen}} <= {{KernelFallbackWarning}}
assert float(jax.jit(lambda x: x * 2)(jnp.ones(7)).sum()) == 14.0
with contextlib.redirect_stdout(io.StringIO()) as printed:
    code = main(["doctor"])
print(json.dumps({{
    "warned": sorted(str(one.message) for one in seen),
    "lowered": sorted(op for op in OPS if f"@{{op}}.v" in text),
    "auto": {{row.op: [row.implementation, row.reason] for row in kernel_table("auto")}},
    "native": {{row.op: [row.implementation, row.reason] for row in kernel_table("native")}},
    "reason": registry.library("cpu").reason,
    "doctor": printed.getvalue(),
    "code": code,
}}))
"""

IN_FORWARD = (
    "linear", "mla_attention_expanded", "rmsnorm", "rmsnorm_residual", "rope_latent_rows", "expert_mlp",
)  # fmt: skip


def ask(folder: Path, module: str) -> dict[str, Any]:
    """What a process finds whose library for the CPU is `module`."""
    return json.loads(run_python(ASK.format(module=module, model=str(MODEL)), folder))


def make(folder: Path, wrong: Wrong) -> str:
    body = wrong.body.replace("{change}", wrong.change)
    define = f"BODY={json.dumps(body)}"
    path = build(
        folder,
        "any_library",
        Path(__file__).parent / "native" / "any_library.c",
        defines=(define, *wrong.defines),
    )
    if wrong.keep is not None:
        path.write_bytes(path.read_bytes()[: wrong.keep])
    return "any_library"


def falls_back(op: str, reason: str) -> str:
    return f"mla_jax.{op} falls back to its pure-JAX reference on platform 'cpu': {reason}"


@needs_compiler
@pytest.mark.parametrize("case", list(LIBRARIES))
@pytest.mark.bug("sgl-project/sglang#24799", "test")
def test_a_library_costs_its_own_ops_and_nothing_else(case: str, tmp_path: Path) -> None:
    wrong = LIBRARIES[case]
    module = make(tmp_path, wrong)
    found = ask(tmp_path, module)
    assert set(found["auto"]) == set(OPS)
    if wrong.reason is None:
        assert found["warned"] == [] and found["code"] == 0
        assert found["lowered"] == sorted(f"mla_jax.{op}" for op in IN_FORWARD)
        assert {row[0] for row in found["native"].values()} == {"native"}
        return
    reason = found["reason"]
    assert reason.startswith(f"{module} {wrong.reason}"), reason
    assert found["lowered"] == []
    assert found["warned"] == sorted(falls_back(op, reason) for op in IN_FORWARD)
    for op in OPS:
        assert found["auto"][op] == ["reference", reason]
        assert found["native"][op] == ["refused", f"{op} has no native kernel on platform 'cpu': {reason}"]
    assert found["code"] == 2
    assert "  cpu   none" in found["doctor"] and f": {reason}\n" in found["doctor"]
    assert found["doctor"].endswith(f"problem: the native library is of no use: {reason}\n")


@pytest.mark.bug("sgl-project/sglang#24799", "test")
def test_a_missing_library(tmp_path: Path) -> None:
    found = ask(tmp_path, "custom_calls._not_there")
    reason = (
        "custom_calls._not_there cannot be loaded: ModuleNotFoundError: "
        "No module named 'custom_calls._not_there'"
    )
    assert found["reason"] == reason
    assert found["warned"] == sorted(falls_back(op, reason) for op in IN_FORWARD)
    assert {tuple(row) for row in found["auto"].values()} == {("reference", reason)}
    assert found["code"] == 2


@needs_compiler
@pytest.mark.bug("sgl-project/sglang#14497", "test")
@pytest.mark.bug("sgl-project/sglang#24799", "test")
def test_contracts_cost_only_their_own_ops(tmp_path: Path) -> None:
    module = make(tmp_path, Wrong(None, CONTRACTS))
    found = ask(tmp_path, module)
    lost = {
        "linear": "offers contract 7 of mla_jax.linear, this package speaks 1",
        "rmsnorm": "offers contract 0 of mla_jax.rmsnorm, this package speaks 1",
        "rope_latent_rows": "announces mla_jax.rope_latent_rows.v1 and does not hold it",
        "mla_attention_expanded": "has no target mla_jax.mla_attention_expanded.v1",
    }
    assert found["warned"] == sorted(falls_back(op, f"{module} {why}") for op, why in lost.items())
    assert found["lowered"] == sorted(f"mla_jax.{op}" for op in IN_FORWARD if op not in lost)
    for op in OPS:
        why = lost.get(op.removeprefix("mla_jax."))
        assert found["auto"][op][0] == ("native" if why is None else "reference")
        if why is not None:
            reason = f"{module} {why}"
            assert found["auto"][op][1] == reason
            assert found["native"][op][1] == f"{op} has no native kernel on platform 'cpu': {reason}"
            assert f"{op:<30}  reference  {reason}\n" in found["doctor"]
    assert found["code"] == 0
