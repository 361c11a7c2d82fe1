"""The fuzzer: a slice of its cases on every run, and that it notices what it is there to notice."""

import sys

import pytest
from scripts import ROOT, tool

from mla_jax.errors import CheckpointError

FOLDERS = [ROOT / "tests/goldens/deepseek_v3", *sorted((ROOT / "tests/goldens_quantized").iterdir())]


@pytest.fixture(scope="module")
def fuzzer():
    return tool("fuzz_checkpoints")


def test_damaged_checkpoints_load_or_are_refused(fuzzer, tmp_path):
    found = [fuzzer.run_case(FOLDERS, seed, tmp_path) for seed in range(1_000_000, 1_000_500)]
    assert 20 < found.count("loaded") < 200
    assert found.count("loaded") + found.count("refused") == 500


def test_undamaged_checkpoints_load(fuzzer, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzer, "DAMAGES", (lambda rng, blob: blob,))
    monkeypatch.setattr(fuzzer, "in_header", lambda damage: damage)
    assert {fuzzer.run_case(FOLDERS, seed, tmp_path) for seed in range(40)} == {"loaded"}


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), CheckpointError("two\nlines"), CheckpointError("")]
)
def test_whatever_else_comes_out_is_a_failure(fuzzer, monkeypatch, capsys, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(fuzzer, "load", load)
    monkeypatch.setattr(fuzzer.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["fuzz_checkpoints.py", str(FOLDERS[0]), "--cases", "2", "--seed", "7"])
    assert fuzzer.main() == 1
    shown = capsys.readouterr().out
    assert "seed 7: " in shown and "seed 8: " in shown and "2 failed" in shown


@pytest.mark.parametrize("damage", ["flip_bytes", "cut_or_repeat", "change_json"])
def test_damage_is_damage_and_repeatable(fuzzer, damage):
    import numpy as np

    blob = (FOLDERS[0] / "config.json").read_bytes()
    made = [getattr(fuzzer, damage)(np.random.default_rng(seed), blob) for seed in range(50)]
    assert sum(one != blob for one in made) > 45
    assert made == [getattr(fuzzer, damage)(np.random.default_rng(seed), blob) for seed in range(50)]
