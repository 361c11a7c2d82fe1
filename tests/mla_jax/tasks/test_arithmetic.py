"""Streams of problems, and the scoring of answers."""

import hashlib
from itertools import islice

import pytest

from mla_jax.tasks.arithmetic import final_answer, problems
from mla_jax.tasks.problem import SPLITS

# The first 200 problems of each split: what the shipped model was trained and is measured on.
DIGESTS = {
    "train": "442d36bc264278abcef577a928e94cd34cfbffe5eab28046b9c3ce59387acba1",
    "test": "f8a4d0055accf0fb8ef9b5fd0fffc216f65395fe2e983b39978036a31cbe09e2",
    "unseen": "87d4b63f246b7b7b12339edba48c5c0993aefce7dcfc52a608ef7f36fc3379ef",
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_problems_are_the_same_everywhere(split):
    text = repr(list(islice(problems(split), 200)))
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[split]


def test_seeds_and_splits_have_streams_of_their_own():
    streams = [list(islice(problems(split, seed), 20)) for split in SPLITS for seed in (0, 1, "a", "b")]
    assert len({repr(stream) for stream in streams}) == len(streams)
    assert list(islice(problems("train", 1), 20)) == streams[1]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 12", "12"),
        ("so 3 + 4 = 7.\n#### 7", "7"),
        ("####12", "12"),
        ("#### $1,234", "1234"),
        ("#### $ 1,234,567.", "1234567"),
        ("#### -5", "-5"),
        ("#### 2.50", "2.50"),
        ("#### 12.", "12"),
        ("#### 12,", "12"),
        ("#### 1\n\nQuestion: more\n#### 2", "1"),
        ("#### nothing\n#### 3", "3"),
        ("", None),
        ("the answer is 12", None),
        ("### 12", None),
        ("####", None),
        ("#### ,", None),
        ("#### ٣", None),
    ],
)
def test_the_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize("split", SPLITS)
def test_a_solution_ends_in_its_answer(split):
    for problem in islice(problems(split), 100):
        assert final_answer(problem.solution) == str(problem.answer)
        assert final_answer(problem.question) is None
