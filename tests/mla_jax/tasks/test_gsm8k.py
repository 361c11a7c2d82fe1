"""The GSM8K prompt, and reading a user's copy of the data."""

import json
import re

import pytest

from mla_jax.errors import RequestError
from mla_jax.tasks.arithmetic import final_answer
from mla_jax.tasks.gsm8k import EXAMPLES, STOP, WordProblem, prompt, read_problems


def line(question="How many?", answer="2 + 2 = 4\n#### 4"):
    return json.dumps({"question": question, "answer": answer})


def test_eight_examples_whose_arithmetic_holds():
    assert len(EXAMPLES) == 8
    assert len({example.question for example in EXAMPLES}) == 8
    for example in EXAMPLES:
        equations = re.findall(r"(\d+)((?: [-+*/] \d+)+) = \$?(\d+)", example.answer)
        assert equations
        for first, rest, result in equations:
            value = int(first)
            for operator, number in re.findall(r"([-+*/]) (\d+)", rest):
                value = {"+": value + int(number), "-": value - int(number), "*": value * int(number)}.get(
                    operator, value / int(number)
                )
            assert value == int(result), example
        assert example.answer.count("####") == 1
        # The last result is the answer.
        assert equations[-1][2] == final_answer(example.answer)


def test_the_prompt():
    text = prompt("How far is it?")
    assert text.endswith("\n\nQuestion: How far is it?\nAnswer:")
    assert text.count("Question:") == text.count("Answer:") == 9
    assert text.count("#### ") == 8
    shots = text.split("\n\n")
    assert len(shots) == 9
    for shot, example in zip(shots, EXAMPLES, strict=False):
        assert shot == f"Question: {example.question}\nAnswer: {example.answer}"
        # An answer in this format is not cut short by what ends one.
        assert not any(stop in example.answer for stop in STOP)


def test_problems_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    second = json.dumps({"question": "Größe?", "answer": "x\n#### 1,000"}, ensure_ascii=False)
    path.write_bytes(f"{line()}\n\n{second}\r\n".encode())
    assert read_problems(path) == [
        WordProblem("How many?", "2 + 2 = 4\n#### 4"),
        WordProblem("Größe?", "x\n#### 1,000"),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "data.jsonl: expected a problem a line, got none"),
        ("\n \n", "data.jsonl: expected a problem a line, got none"),
        (f"{line()}\n{{", "data.jsonl: line 2: is not valid JSON"),
        ("[1]", "data.jsonl: line 1: expected a JSON object, got [1]"),
        ('{"question": "x"}', "data.jsonl: line 1: expected the strings"),
        ('{"question": 1, "answer": "#### 1"}', "data.jsonl: line 1: expected the strings"),
        (
            line(answer="four"),
            "data.jsonl: line 1: expected an answer that ends in #### and a number, got 'four'",
        ),
        (b"\xff\xfe", "data.jsonl: line 1: is not UTF-8"),
    ],
)
def test_bad_data(tmp_path, content, sentence):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError) as caught:
        read_problems(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(RequestError, match="there is no such file"):
            read_problems(path)
