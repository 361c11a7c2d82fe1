"""`mla-jax eval`: tasks, scoring, the interval, and the command."""

import json
import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

import mla_jax
from mla_jax import SamplingParams
from mla_jax.cli import main
from mla_jax.errors import RequestError
from mla_jax.evaluation import Score, Task, evaluate, format_report, make_task, wilson_interval
from mla_jax.tasks import gsm8k
from mla_jax.tasks.arithmetic import problems

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "arithmetic"
DATA = [
    {"question": "Lena has 3 bags of 4 nuts. How many nuts has she?", "answer": "3 * 4 = 12\n#### 12"},
    {"question": "A book has 1,500 pages. Half are read. How many?", "answer": "1500 / 2 = 750\n#### 750"},
    {"question": "What is 1000 + 234?", "answer": "1000 + 234 = 1,234\n#### 1,234"},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in DATA))
    return path


class Parrot:
    """An LLM that says what it was told to, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = texts, None

    def encode_chat(self, messages):
        assert [message["role"] for message in messages] == ["user"]
        return [len(messages[0]["content"])]

    def generate(self, prompts, params, *, progress):
        self.asked = (prompts, params, progress)
        return [SimpleNamespace(text=text) for text in self.texts]


# Tasks


def test_arithmetic_is_the_held_out_problems():
    task = make_task("arithmetic", n=7)
    drawn = list(islice(problems("test"), 7))
    assert task.prompts == tuple(problem.question for problem in drawn)
    assert task.answers == tuple(str(problem.answer) for problem in drawn)
    assert task.chat
    assert (task.params.max_tokens, task.params.temperature) == (128, 0.0)
    assert len(make_task("arithmetic").prompts) == 100


def test_gsm8k_is_the_file(data):
    task = make_task("gsm8k", data=data)
    assert task.prompts == tuple(gsm8k.prompt(one["question"]) for one in DATA)
    assert task.answers == ("12", "750", "1234")
    assert not task.chat
    assert (task.params.temperature, task.params.stop) == (0.0, gsm8k.STOP)
    assert make_task("gsm8k", data=str(data), n=2).prompts == task.prompts[:2]
    assert make_task("gsm8k", data=data, n=3) == task


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("algebra",), "task: expected 'arithmetic' or 'gsm8k', got 'algebra'"),
        (("gsm8k",), "data: gsm8k needs the public jsonl file"),
    ],
)
def test_bad_tasks(arguments, sentence):
    with pytest.raises(RequestError, match=sentence):
        make_task(*arguments)


def test_bad_numbers(data):
    for n in (0, -1, 1.5, True, "3"):
        with pytest.raises(RequestError, match="n: expected an integer >= 1, got"):
            make_task("arithmetic", n=n)
    with pytest.raises(RequestError, match=r"n: expected at most 3, the problems of .*test\.jsonl, got 4"):
        make_task("gsm8k", data=data, n=4)
    with pytest.raises(RequestError, match="data: expected none, arithmetic makes its own problems"):
        make_task("arithmetic", data=data)


# Scores


def test_exact_match_is_of_the_number_alone():
    params = SamplingParams(max_tokens=1)
    task = Task(("a", "b", "c", "d", "e"), ("12", "12", "12", "12", "1234"), chat=False, params=params)
    llm = Parrot("so\n#### 12", "#### 13", "12", "#### 120", "#### $1,234. Question: #### 7")
    score = evaluate(llm, task, progress=False)
    assert llm.asked == (["a", "b", "c", "d", "e"], params, False)
    assert (score.exact_match, score.n) == (0.4, 5)
    assert (score.low, score.high) == wilson_interval(2, 5)
    assert score.seconds >= 0


def test_a_chat_task_goes_through_the_template():
    task = Task(("abc", "de"), ("1", "2"), chat=True, params=SamplingParams(max_tokens=1))
    llm = Parrot("#### 1", "#### 2")
    assert evaluate(llm, task).exact_match == 1.0
    assert llm.asked[0] == [[3], [2]]
    assert llm.asked[2] is True


@pytest.mark.parametrize(
    ("right", "n"), [(0, 1), (1, 1), (0, 100), (100, 100), (998, 1000), (3, 7), (50, 100)]
)
def test_the_interval(right, n):
    """Its ends are the proportions of which what was seen lies 1.96 standard deviations away."""
    low, high = wilson_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1
    for end in (low, high):
        if end in (0.0, 1.0):
            assert end == right / n
        else:
            distance = abs(right / n - end) / math.sqrt(end * (1 - end) / n)
            assert distance == pytest.approx(1.959964, abs=1e-5)
    mirrored = wilson_interval(n - right, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Exactly, over all outcomes of 50 throws. For one proportion the coverage swings around 95 %; its mean over
    all of them is within half a percent (Brown, Cai and DasGupta 2001, figure 5)."""
    intervals = [wilson_interval(k, 50) for k in range(51)]
    shares = [i / 1000 for i in range(1, 1000)]
    covered = [
        sum(
            math.comb(50, k) * p**k * (1 - p) ** (50 - k)
            for k, (low, high) in enumerate(intervals)
            if low <= p <= high
        )
        for p in shares
    ]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.005)


def test_the_report():
    text = format_report(Score(0.998, 0.9927, 0.99945, 1000, 39.04))
    assert text == "0.998 exact match (95 % interval 0.993 to 0.999), 1000 problems in 39.0 s"


# The command


@pytest.fixture(scope="module")
def shipped():
    return mla_jax.LLM(SHIPPED, max_model_len=1536, max_num_seqs=4)


@pytest.fixture
def made(shipped, monkeypatch):
    """The options of the LLM that the command asks for; the shared one stands for it."""
    asked = {}

    def make(path, **options):
        asked.update(options, path=path)
        return shipped

    monkeypatch.setattr("mla_jax.llm.LLM", make)
    return asked


def test_json(made, capsys):
    flags = ["--task", "arithmetic", "--n", "8", "--json", "--max-num-seqs", "4", "--page-size", "64"]
    assert main(["eval", str(SHIPPED), *flags, "--kv-cache-dtype", "fp8", "--absorb-weights", "mxfp4"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert list(found) == ["exact_match", "low", "high", "n", "seconds"]
    assert found["n"] == 8
    assert found["exact_match"] >= 7 / 8
    assert (found["low"], found["high"]) == wilson_interval(round(8 * found["exact_match"]), 8)
    assert found["seconds"] > 0
    assert "[8/8]" in shown.err
    assert (made["max_num_seqs"], made["page_size"]) == (4, 64)
    assert (made["kv_cache_dtype"], made["absorb_weights"]) == ("fp8", "mxfp4")


def test_gsm8k(made, data, capsys):
    """The small model knows no such prompt: that it runs to the end is what is tested, and what it prints."""
    assert main(["eval", str(SHIPPED), "--task", "gsm8k", "--data", str(data), "--n", "1"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert "1 problems in" in text


def refused(capsys, *flags):
    try:
        code = main(["eval", str(SHIPPED), *map(str, flags)])
    except SystemExit as end:  # argparse's
        code = end.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    return shown.err.strip().splitlines()[-1]


def test_bad_input_is_a_sentence(monkeypatch, capsys, data, tmp_path):
    def unused(*_, **__):
        raise AssertionError("a model was read before the task was checked")

    monkeypatch.setattr("mla_jax.llm.LLM", unused)
    assert "required: --task" in refused(capsys)
    assert "invalid choice: 'algebra'" in refused(capsys, "--task", "algebra")
    assert refused(capsys, "--task", "gsm8k").startswith("mla-jax: data: gsm8k needs")
    assert "mla-jax: n: expected an integer >= 1, got 0" in refused(
        capsys, "--task", "arithmetic", "--n", "0"
    )
    assert "mla-jax: data: expected none" in refused(capsys, "--task", "arithmetic", "--data", data)
    absent = refused(capsys, "--task", "gsm8k", "--data", tmp_path / "absent")
    assert absent == f"mla-jax: {tmp_path / 'absent'}: there is no such file"
    data.write_text('{"question": "x"}\n')
    assert "line 1: expected the strings" in refused(capsys, "--task", "gsm8k", "--data", data)


def test_a_model_without_a_chat_template(made, shipped, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "tokenizer", None)
    assert refused(capsys, "--task", "arithmetic").startswith("mla-jax: chat: a checkpoint's own tokenizer")
