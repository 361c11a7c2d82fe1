"""The table of architectures: what devices say of themselves, and which FP8 each one multiplies."""

from types import SimpleNamespace

import jax
import pytest

from custom_calls import registry
from custom_calls.architectures import (
    ARCHITECTURES,
    PLATFORMS,
    architecture_of,
    architectures_here,
    fp8_codes,
)


def test_the_table() -> None:
    assert {name: (one.platform, one.fp8) for name, one in ARCHITECTURES.items()} == {
        "x86-64": ("cpu", "e4m3fn"),
        "aarch64": ("cpu", "e4m3fn"),
        "sm_90": ("cuda", "e4m3fn"),
        "gfx942": ("rocm", "e4m3fnuz"),
        "gfx950": ("rocm", "e4m3fn"),
    }
    assert PLATFORMS == ("cpu", "cuda", "rocm")
    assert all(name == one.name for name, one in ARCHITECTURES.items())


def test_every_platform_has_a_library_and_every_library_an_architecture() -> None:
    assert tuple(registry.LIBRARIES) == PLATFORMS


@pytest.mark.parametrize(
    ("said", "expected", "codes"),
    [
        ("gfx942:sramecc+:xnack-", "gfx942", "e4m3fnuz"),
        ("gfx940:sramecc+:xnack-", "gfx940", "e4m3fn"),
        ("gfx941", "gfx941", "e4m3fn"),
        ("gfx950:sramecc+:xnack-", "gfx950", "e4m3fn"),
        ("gfx9420", "gfx9420", "e4m3fn"),
        ("9.0", "sm_90", "e4m3fn"),
        ("12.1", "sm_121", "e4m3fn"),
        ("9.0.1", "9.0.1", "e4m3fn"),
        ("", "", "e4m3fn"),
    ],
)
@pytest.mark.bug("sgl-project/sglang#27972", "test")
def test_what_a_device_says(said: str, expected: str, codes: str) -> None:
    name = architecture_of(SimpleNamespace(compute_capability=said))
    assert name == expected
    assert fp8_codes(name) == codes


def test_this_host() -> None:
    assert architecture_of(jax.devices("cpu")[0]) == ""
    assert architectures_here("cpu") == ()


@pytest.mark.parametrize("failure", [RuntimeError("Unknown backend rocm"), AssertionError()])
def test_a_host_without_gpus(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def devices(platform: str) -> list[object]:
        raise failure

    monkeypatch.setattr(jax, "devices", devices)
    assert architectures_here("rocm") == ()


def test_a_host_with_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["gfx942:xnack-", "gfx950", "gfx942"]
    monkeypatch.setattr(
        jax, "devices", lambda platform: [SimpleNamespace(compute_capability=s) for s in said]
    )
    assert architectures_here("rocm") == ("gfx942", "gfx950")
