"""The shipped checkpoint: its size, what stands beside it, and that it answers."""

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

import mla_jax
from mla_jax.tasks.arithmetic import final_answer, problems

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "arithmetic"
MOST_BYTES = 12_000_000


def test_it_is_small():
    files = list(FOLDER.iterdir())
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {path.suffix for path in files} <= {".json", ".md", ".png", ".safetensors"}


def test_the_model_card_says_what_the_record_says():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    record = json.loads((FOLDER / "training.json").read_text())
    assert record["command"] in card
    for number in (record["parameters"], record["steps"], record["problems"]):
        assert f"{number:,}" in card
    assert record["hardware"].split(" (")[0] in card
    for accuracy in record["accuracy"].values():
        assert f"| {accuracy:.3f} |" in card
    assert "Apache-2.0" in card
    assert not re.search(r"/(root|home|tmp)/", json.dumps(record) + card)


@pytest.fixture(scope="module")
def llm():
    return mla_jax.LLM(FOLDER, kernels="native", max_model_len=192, max_num_seqs=8)


def test_it_answers_held_out_problems(llm):
    asked = list(islice(problems("test", "shipped"), 24))
    prompts = [llm.encode_chat([{"role": "user", "content": problem.question}]) for problem in asked]
    answers = llm.generate(prompts, mla_jax.SamplingParams(max_tokens=128), progress=False)
    right = sum(
        final_answer(answer.text) == str(problem.answer)
        for problem, answer in zip(asked, answers, strict=True)
    )
    # Of 1,000 it answers 998: three wrong ones among 24 have a probability of 2e-5.
    assert right >= 22
    assert all(answer.finish_reason == "stop" for answer in answers)


def test_the_demo():
    done = subprocess.run(
        [sys.executable, FOLDER.parent / "demo.py"], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    marks = [re.fullmatch(r"#### (\d+)   \[(right|wrong: it is \d+)\]", line) for line in shown]
    marks = [mark[2] for mark in marks if mark]
    found = re.fullmatch(r"(\d) of 5 right, (\d+) tokens/s", shown[-1])
    assert found is not None
    assert len(marks) == 5
    assert marks.count("right") == int(found[1]) >= 4
    assert int(found[2]) > 0
    asked = list(islice(problems("test", "demo"), 5))
    assert [line for line in shown if line in {problem.question for problem in asked}] == [
        problem.question for problem in asked
    ]


def test_the_demo_says_how_to_call_it():
    done = subprocess.run(
        [sys.executable, FOLDER.parent / "demo.py", "a", "b"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "usage: demo.py [MODEL]\n")
