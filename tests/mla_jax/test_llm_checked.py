"""Checked mode of `LLM` and of the command line: the environment's word, read once; and life after an error."""

from dataclasses import replace

import pytest
from llm_case import GREEDY, PROMPTS, SIZES, parts

from mla_jax import LLM
from mla_jax.checking import VARIABLE
from mla_jax.cli import main
from mla_jax.errors import CheckError, ConfigError


@pytest.fixture(scope="module")
def checked_llm(folder):
    return LLM(folder, **SIZES, checks=True)


def test_checked_answers_are_the_answers(checked_llm, alone):
    (got,) = checked_llm.generate(PROMPTS[2], GREEDY, progress=False)
    assert parts(got) == parts(alone[2])
    assert checked_llm.checks
    assert checked_llm.engine.checks


def test_an_engine_that_found_something_is_replaced(checked_llm, alone):
    stream = checked_llm.stream(PROMPTS[2], GREEDY)
    next(stream)
    state = checked_llm.engine._state
    broken = replace(state.table, pages=state.table.pages.at[0, 1].set(-5))
    checked_llm.engine._state = replace(state, table=broken)
    with pytest.raises(
        CheckError, match=r"sequence 0: page -5 at entry 1: expected 0 <= page < 40, .* requests \d+\)$"
    ):
        next(stream)
    (got,) = checked_llm.generate(PROMPTS[2], GREEDY, progress=False)
    assert parts(got) == parts(alone[2])


def test_the_environment_is_read_once_when_an_llm_is_made(folder, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "1")
    made = LLM(folder, **SIZES)
    assert "checked mode: pages, slots, lengths and scales of every step" in capsys.readouterr().err
    assert LLM(folder, **SIZES, checks=False).checks is False
    monkeypatch.setenv(VARIABLE, "0")
    assert made.checks
    made._replace_engine()
    assert made.engine.checks
    capsys.readouterr()
    off = LLM(folder, **SIZES)
    assert not off.checks
    assert not off.engine.checks
    assert "checked mode" not in capsys.readouterr().err


def test_what_is_no_choice_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="checks: expected True or False, got 'yes'"):
        LLM(tmp_path / "missing", checks="yes")
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ConfigError, match="environment variable MLA_JAX_CHECK: expected 0 or 1, got 'yes'"):
        LLM(tmp_path / "missing")


def test_a_command_asks_the_environment(folder, monkeypatch, capsys):
    sizes = [f"--{name.replace('_', '-')}={size}" for name, size in SIZES.items()]
    command = ["generate", str(folder), "--prompt", PROMPTS[2], "--max-tokens", "2", *sizes]
    monkeypatch.setenv(VARIABLE, "2")
    assert main(command) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "mla-jax: environment variable MLA_JAX_CHECK: expected 0 or 1, got '2'\n"
    monkeypatch.setenv(VARIABLE, "1")
    assert main(command) == 0
    assert "checked mode" in capsys.readouterr().err
