"""Every example runs as a newcomer runs it, in order, against the checkpoint that the first script writes."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import mla_jax

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MAX_LINES = 40
TIME_LIMIT = 180


@functools.cache
def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr
    return done


def make_demo():
    spec = importlib.util.spec_from_file_location("make_demo", EXAMPLES / "make_demo_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "new" / "checkpoint"
    assert "wrote a random DeepSeek-V3 checkpoint" in run("make_demo_checkpoint.py", path).stderr
    return path


def test_the_table_in_the_readme_lists_them_all():
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    numbered = sorted(path.name for path in EXAMPLES.glob("[0-9]*.py"))
    assert len(numbered) >= 4
    assert re.findall(r"\(examples/([0-9]\w+\.py)\)", readme) == numbered


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[0-9]*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    code = [line for line in text.splitlines() if line.strip()]
    assert len(code) <= MAX_LINES
    assert f"Usage: python examples/{path.name} MODEL" in text
    assert f"{path.name}" in {script for script, _ in RUNS}, "it has no test"


def check_generate(out):
    lines = out.splitlines()
    for line in lines[:2]:
        found = re.fullmatch(r".* (length|stop) Usage\(prompt_tokens=\d+, completion_tokens=(\d+)\)", line)
        assert found is not None
        assert found[1] == "stop" or int(found[2]) == 24
    assert re.fullmatch(r"\d+\.\d tokens/s", lines[-1])
    assert float(lines[-1].split()[0]) > 0


def check_decode_loop(out):
    rows = [[int(i) for i in row.split()] for row in re.findall(r"\[([\d\s]+)\]", out)]
    assert [len(row) for row in rows] == [33, 33]
    assert all(0 <= token < 2048 for row in rows for token in row)


def check_gradient(out):
    lines = out.splitlines()
    assert lines[0] == "output (20, 256) float32"
    norms = {line.split()[0]: float(line.split()[-1]) for line in lines[1:]}
    assert {"kv_a_proj_with_mqa.weight", "o_proj.weight", "q_a_layernorm.weight"} <= set(norms)
    assert all(0 < norm < np.inf for norm in norms.values())


def check_lowering(out):
    found = re.search(r"lowered for rocm: (\d+) lines of StableHLO, (\d+) custom calls", out)
    assert found is not None
    assert int(found[1]) > 500


RUNS = [
    ("01_generate.py", check_generate),
    ("02_decode_loop.py", check_decode_loop),
    ("03_layer_gradient.py", check_gradient),
    ("04_lower_for_rocm.py", check_lowering),
]


@pytest.mark.parametrize(("script", "check"), RUNS, ids=[script for script, _ in RUNS])
def test_an_example_runs(folder, script, check):
    done = run(script, folder)
    check(done.stdout)
    assert "Traceback" not in done.stderr


def test_the_decode_loop_agrees_with_forward(folder):
    out = run("02_decode_loop.py", folder).stdout
    rows = [[int(i) for i in row.split()] for row in re.findall(r"\[([\d\s]+)\]", out)]
    llm = mla_jax.LLM(folder, max_model_len=64)
    for prompt, answer in zip(([5, 17, 300], [42, 8, 9, 10, 11]), rows, strict=True):
        logits = llm.logits([prompt + answer])[0][len(prompt) - 1 : -1]
        # Not all: bfloat16 rounds differently, and where two tokens are as likely, either may be taken.
        assert (logits.argmax(-1) == answer).mean() > 0.8


def test_the_demo_checkpoint_is_written_once(folder):
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    run.cache_clear()
    assert run("make_demo_checkpoint.py", folder).stderr == ""
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before


def test_the_demo_checkpoint_is_reproducible(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        make_demo().main(path)
    assert sorted(path.name for path in one.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_a_half_written_demo_checkpoint_is_written_again(tmp_path):
    demo = make_demo()
    demo.CONFIG |= {"num_hidden_layers": 1}
    (tmp_path / "model.safetensors").write_bytes(b"half")
    demo.main(tmp_path)
    assert (tmp_path / "config.json").exists()
    assert (tmp_path / "model.safetensors").stat().st_size > 1_000_000


def test_the_demo_configuration_is_what_it_says(folder):
    config = mla_jax.ModelConfig.from_file(folder / "config.json")
    values = make_demo().CONFIG
    assert json.loads((folder / "config.json").read_text()) == values
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "q_lora_rank",
        "kv_lora_rank",
        "n_routed_experts",
    ):
        assert getattr(config, name) == values[name]
    assert (config.dtype, config.mlp_layer_types) == ("bfloat16", ("dense", *["sparse"] * 5))
    assert config.rope.scaling is not None
    assert config.rope.scaling.factor == 4.0
    assert config.eos_token_ids == (1,)


def test_the_demo_tokenizer_covers_the_vocabulary(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == make_demo().CONFIG["vocab_size"]
    text = "größer 文字 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_the_demo_script_says_how_to_call_it(arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "make_demo_checkpoint.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "usage: make_demo_checkpoint.py FOLDER\n"
