"""The ABI record: which records are refused, and the sentence that says what a library lacks."""

import datetime
from typing import Any

import pytest

from custom_calls import abi
from custom_calls.abi import (
    abi_mismatch,
    announced_targets,
    architecture_mismatch,
    check_handler,
    contract_of,
    runtime_ffi_version,
    target_of,
    why_lacking,
)

RECORD = {
    "project_abi": 1,
    "platform": "rocm",
    "ffi_api": (0, 3),
    "architectures": ("gfx942", "gfx950"),
    "ops": {"mla_jax.linear": 1, "mla_jax.fused_qk_rmsnorm": 2},
    "error": None,
}


def test_a_right_record_passes() -> None:
    assert abi_mismatch(RECORD, "rocm", (0, 3)) is None
    assert abi_mismatch(RECORD, "rocm", (0, 4)) is None
    assert abi_mismatch({**RECORD, "architectures": ["gfx942"]}, "rocm", (0, 3)) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ops", None),
        ("ops", ["mla_jax.linear"]),
        ("ops", {"mla_jax.linear": "1"}),
        ("ops", {"mla_jax.linear": True}),
        ("architectures", None),
        ("architectures", "gfx942"),
        ("architectures", (942,)),
    ],
)
def test_a_malformed_record_is_refused_with_the_field(field: str, value: Any) -> None:
    problem = abi_mismatch({**RECORD, field: value}, "rocm", (0, 3))
    assert problem is not None
    assert problem.startswith(f"has a malformed ABI record: '{field}': expected a ")
    assert problem.endswith(f", got {value!r}")
    record = {name: kept for name, kept in RECORD.items() if name != field}
    assert str(abi_mismatch(record, "rocm", (0, 3))).endswith("got None")


@pytest.mark.parametrize("value", [None, 0, -1, "256", 256.0, True])
def test_a_number_of_processors_is_one_or_is_not_said(value: Any) -> None:
    assert abi_mismatch({**RECORD, "processors": 256}, "rocm", (0, 3)) is None
    assert abi_mismatch({**RECORD, "processors": value}, "rocm", (0, 3)) == (
        f"has a malformed ABI record: 'processors': expected a positive number, got {value!r}"
    )


def test_the_versions_come_before_the_fields() -> None:
    assert "project ABI 9" in str(abi_mismatch({"project_abi": 9}, "rocm", (0, 3)))


@pytest.mark.bug("sgl-project/sglang#27972", "test")
def test_architectures() -> None:
    assert architecture_mismatch(RECORD, ()) is None
    assert architecture_mismatch(RECORD, ("gfx950",)) is None
    assert architecture_mismatch(RECORD, ("gfx950", "gfx942")) is None
    assert (
        architecture_mismatch({**RECORD, "architectures": ("gfx950",)}, ("gfx942", "gfx950", "gfx90a"))
        == "was built for gfx950, this machine has gfx942, gfx90a"
    )


def test_targets_and_contracts() -> None:
    assert target_of("mla_jax.linear", 12) == "mla_jax.linear.v12"
    assert contract_of("mla_jax.linear.v12") == ("mla_jax.linear", 12)
    assert announced_targets(RECORD) == {"mla_jax.linear.v1", "mla_jax.fused_qk_rmsnorm.v2"}


CAPSULE: Any = datetime.datetime_CAPI  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "handler",
    [CAPSULE, {"execute": CAPSULE}, {"initialize": CAPSULE, "execute": CAPSULE}],
    ids=["capsule", "execute", "initialize-execute"],
)
def test_right_handlers(handler: Any) -> None:
    check_handler("a.v1", handler)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (print, "expected a capsule for execute, got builtin_function_or_method"),
        (None, "expected a capsule for execute, got NoneType"),
        ({"execute": CAPSULE, "initialize": 3}, "expected a capsule for initialize, got int"),
        (
            {"initialize": CAPSULE},
            "expected stages of instantiate, prepare, initialize, execute, got 'initialize'",
        ),
        (
            {"execute": CAPSULE, "run": CAPSULE},
            "expected stages of instantiate, prepare, initialize, execute, got 'execute', 'run'",
        ),
    ],
)
def test_wrong_handlers(handler: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        check_handler("a.v1", handler)
    assert str(raised.value) == f"a.v1: {message}"


@pytest.mark.parametrize(
    ("wanted", "held", "reason"),
    [
        ([("a.v1",)], (), "has no target a.v1"),
        ([("a.v1", "b.v1")], ("a.v1",), "has no target b.v1"),
        ([("mla_jax.linear.v2",)], ("x",), "offers contract 1 of mla_jax.linear, this package speaks 2"),
        (
            [("mla_jax.linear.v3",), ("mla_jax.linear.v2",)],
            ("mla_jax.linear.v1",),
            "offers contract 1 of mla_jax.linear, this package speaks 2 and 3",
        ),
        ([("mla_jax.linear.v1",)], ("x",), "announces mla_jax.linear.v1 and does not hold it"),
        (
            [("mla_jax.linear.v7", "a.v1")],
            (),
            "has no target a.v1, offers contract 1 of mla_jax.linear, this package speaks 7",
        ),
    ],
)
def test_what_a_library_lacks(wanted: list[tuple[str, ...]], held: tuple[str, ...], reason: str) -> None:
    assert why_lacking(RECORD, wanted, frozenset(held)) == reason


def test_the_runtimes_own_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    major, minor = runtime_ffi_version()
    assert (major, minor) >= (0, 3)
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    monkeypatch.setattr(abi.jax.ffi, "include_dir", lambda: str(tmp_path))
    header.write_text("#define XLA_FFI_API_MAJOR 4\n#define XLA_FFI_API_MINOR 17\n")
    assert runtime_ffi_version() == (4, 17)
    header.write_text("#define XLA_FFI_API_MAJOR 4\n")
    with pytest.raises(RuntimeError, match="no XLA FFI version found"):
        runtime_ffi_version()
