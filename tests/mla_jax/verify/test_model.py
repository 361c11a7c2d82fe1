"""The verify command: every golden's steps are proven; what cannot be proven ends with a sentence."""

from pathlib import Path

import pytest

from mla_jax.cli import EXIT_DIVERGES, main
from mla_jax.verify import VerificationError, model

GOLDENS = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "case", ["goldens/deepseek_v3", "goldens/deepseek_v2_lite", "goldens_quantized/quark_mixed"]
)
def test_models(capsys, case):
    assert main(["verify", str(GOLDENS / case)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["decode", "prefill", "forward"]
    assert all("queries and keys rotated once" in line for line in lines)
    assert ["updated in place" in line for line in lines] == [True, True, False]


@pytest.mark.parametrize("error", [VerificationError("verify: layer 3"), AssertionError("the step copies")])
def test_what_is_not_proven(capsys, monkeypatch, error):
    def check(*_, **__):
        raise error

    monkeypatch.setattr(model, "check" if isinstance(error, VerificationError) else "assert_in_place", check)
    assert main(["verify", str(GOLDENS / "goldens/deepseek_v3")]) == EXIT_DIVERGES
    shown = capsys.readouterr()
    assert shown.err == f"mla-jax: {error}\n" and shown.out == ""


def test_no_model(capsys, tmp_path):
    assert main(["verify", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
