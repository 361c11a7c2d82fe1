"""The compiler is here, and what it makes is for the processor that was asked."""

import hip_toolchain
import pytest
from hip_toolchain import ARCHITECTURES, compile_hip


def test_the_toolchain_is_installed() -> None:
    absent = hip_toolchain.missing()
    if absent:
        message = f"{', '.join(absent)} not on PATH: run tools/install_rocm_toolchain.sh as root"
        (pytest.fail if hip_toolchain.required() else pytest.skip)(message)


needs_toolchain = pytest.mark.skipif(
    bool(hip_toolchain.missing()), reason="the test above says what is missing"
)


@needs_toolchain
def test_one_architecture_is_an_elf_file_and_two_are_a_bundle() -> None:
    empty = "__attribute__((global)) void nothing() {}"
    # The low byte of the ELF flags names the processor.
    for architecture, machine in zip(ARCHITECTURES, (0x4C, 0x4F), strict=True):
        image = compile_hip(empty, architecture)
        assert image.startswith(b"\x7fELF") and image[48] == machine
    assert compile_hip(empty, *ARCHITECTURES).startswith(b"__CLANG_OFFLOAD_BUNDLE__")


@needs_toolchain
def test_a_compile_error_is_shown() -> None:
    with pytest.raises(RuntimeError, match="unknown type name 'nonsense'"):
        compile_hip("nonsense x;", "gfx942")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("CI", "1", True), ("MLA_JAX_REQUIRE_ROCM", "1", True), ("MLA_JAX_REQUIRE_ROCM", "0", False)],
)
def test_where_the_toolchain_is_required(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: bool
) -> None:
    for name in ("CI", "MLA_JAX_REQUIRE_ROCM"):
        monkeypatch.delenv(name, raising=False)
    assert not hip_toolchain.required()
    monkeypatch.setenv(variable, value)
    assert hip_toolchain.required() is expected
