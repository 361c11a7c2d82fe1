"""The layer-by-layer comparison finds nothing where nothing is, and names the layer where something is."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from mla_jax import compare as compare_module
from mla_jax.cli import main
from mla_jax.compare import compare, format_report
from mla_jax.errors import RequestError

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"


@pytest.mark.parametrize("case", ["deepseek_v3", "deepseek_v2_lite_bf16"])
def test_native_and_reference_agree(case):
    found = compare(GOLDENS / case, num_tokens=17)
    layers = len(found) - 1
    assert [one.name for one in found] == [*(f"layer {i}" for i in range(layers)), "logits"]
    assert not any(one.diverges for one in found)
    assert all(one.scale > 0 and one.cosine < 1e-3 for one in found)
    # Two implementations: a difference of exactly zero everywhere would be one compared with itself.
    assert any(one.max_error > 0 for one in found)
    assert format_report(found).endswith("native and reference agree")


def test_the_first_layer_that_diverges_is_named(monkeypatch, capsys):
    honest = compare_module._layer

    def one_is_wrong(module, layer):
        run = honest(module, layer)
        return (lambda x, meta: run(x, meta) * 1.01) if layer == 1 and module.kernels == "native" else run

    monkeypatch.setattr(compare_module, "_layer", one_is_wrong)
    assert main(["compare", str(GOLDENS / "deepseek_v2"), "--tokens", "9"]) == 1
    out = capsys.readouterr().out
    assert "the first to diverge is layer 1" in out
    assert next(line.split()[:2] for line in out.splitlines() if "diverges" in line) == ["layer", "1"]
    # Later layers start from the reference's stream again.
    assert sum("diverges" in line for line in out.splitlines()) == 1


def test_not_a_number_diverges():
    a = jnp.ones((2, 3))
    for dtype in ("float32", "bfloat16"):
        assert compare_module._difference("x", a.at[0, 0].set(jnp.nan), a, dtype).diverges
        assert not compare_module._difference("x", a, a, dtype).diverges


def test_one_row_in_twenty_may_be_a_tie_in_bfloat16_only():
    a = jnp.ones((40, 3))
    for rows, float32, bfloat16 in ((0, False, False), (1, True, False), (2, True, False), (3, True, True)):
        b = a.at[:rows].set(1.5)
        for dtype, diverges in (("float32", float32), ("bfloat16", bfloat16)):
            found = compare_module._difference("x", b, a, dtype)
            assert (found.rows_beyond, found.diverges) == (rows, diverges)


def test_refusals():
    with pytest.raises(RequestError, match="against: expected 'reference', got 'torch'"):
        compare(GOLDENS / "deepseek_v2", against="torch")
    with pytest.raises(RequestError, match="num_tokens: expected at least 1, got 0"):
        compare(GOLDENS / "deepseek_v2", num_tokens=0)
    with pytest.raises(RequestError, match="compare: 100000 tokens"):
        compare(GOLDENS / "deepseek_v2", num_tokens=100000)
