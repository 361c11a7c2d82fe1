"""The script from its command line to the folder that it writes, and its greedy answers."""

import json
import re

import jax
import numpy as np
import pytest
import train
from answers import exact_match

import mla_jax


@pytest.fixture(scope="module")
def folder(tiny, shipped, tmp_path_factory):
    """A run of two steps, with the shipped tokenizer: making one is the affair of another test."""
    from tokenizers import Tokenizer

    out = tmp_path_factory.mktemp("run") / "new" / "model"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(train, "CONFIG", tiny)
        patch.setattr(
            train, "train_tokenizer", lambda size: Tokenizer.from_file(str(shipped / "tokenizer.json"))
        )
        arguments = [
            "--steps",
            "2",
            "--batch",
            "4",
            "--workers",
            "1",
            "--eval-every",
            "0",
            "--log-every",
            "1",
        ]
        sizes = ["--final-problems", "2", "--eval-rows", "2", "--save", str(out.parent / "state.safetensors")]
        train.main(["--out", str(out), *arguments, *sizes])
    return out


def test_the_folder_is_a_checkpoint(folder, tiny):
    assert json.loads((folder / "config.json").read_text()) == tiny
    model, config = mla_jax.load(folder)
    assert config.dtype == "bfloat16"
    assert model is not None
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "loss.csv",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert (folder.parent / "state.safetensors").exists()


def test_the_record(folder):
    record = json.loads((folder / "training.json").read_text())
    assert (record["steps"], record["problems"], record["seed"]) == (2, 8, 0)
    assert set(record["accuracy"]) == {"test", "unseen", "test_mxfp4"}
    assert "(cpu)" in record["hardware"]
    lines = (folder / "loss.csv").read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
    assert all(re.fullmatch(r"\d,\d+\.\d{5},\d\.\d{3}e[-+]\d\d", line) for line in lines[1:])


def test_the_shipped_model_is_the_scripts(shipped):
    from architecture import CONFIG, GENERATION_CONFIG

    assert json.loads((shipped / "config.json").read_text()) == CONFIG
    assert json.loads((shipped / "generation_config.json").read_text()) == GENERATION_CONFIG


def test_greedy_answers(shipped, tokenizer):
    model = mla_jax.freeze(mla_jax.load(shipped)[0])
    right, wrong = exact_match(model, tokenizer, "test", 8, rows=8, length=160)
    assert right + len(wrong) == 8
    assert right >= 7
    # A right answer is a right answer of its own problem: another model has none.
    scrambled = jax.tree.map(lambda leaf: -leaf if leaf.ndim == 2 else leaf, model)
    right, wrong = exact_match(scrambled, tokenizer, "test", 8, rows=8, length=160)
    assert (right, len(wrong)) == (0, 8)
    assert all(re.search(r"^\[\w+\] .*\n-> (.|\n)*\n== ", text) for text in wrong)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", "x", "--steps", "2", "--minutes", "1"], "not allowed with argument"),
        (["--out", "x", "--batch", "many"], "invalid int value: 'many'"),
    ],
)
def test_bad_arguments(capsys, argv, sentence):
    with pytest.raises(SystemExit) as end:
        train.arguments(argv)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_clock_counts_steps():
    options = train.arguments(["--out", "x", "--steps", "8"])
    clock = train.Clock(options, 2, 10.0)
    assert clock.progress == 0.25
    clock.step = 8
    assert clock.progress == 1.0
    assert clock.remaining == 0.0
    assert clock.seconds >= 10.0


def test_the_clock_counts_minutes(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(train, "STARTED", now)
    monkeypatch.setattr(train.time, "monotonic", lambda: now)
    clock = train.Clock(train.arguments(["--out", "x", "--minutes", "4"]), 0, 0.0)
    assert (clock.progress, clock.remaining) == (0.0, np.inf)
    now += 60.0
    assert (clock.progress, clock.remaining) == (0.25, 180.0)
    now += 1000.0
    assert clock.progress == 1.0
    # --total-minutes bounds it, with a minute for the end.
    now = 1000.0
    clock = train.Clock(train.arguments(["--out", "x", "--minutes", "4", "--total-minutes", "3"]), 0, 0.0)
    now += 60.0
    assert clock.progress == 0.5
