"""Batches: what they hold, and that they depend on seed and index alone."""

from itertools import islice

import numpy as np
import pytest
from batches import Batch, Encoder, Workers, make_batch
from vocabulary import ASSISTANT, BOS, EOS, USER

from mla_jax.tasks.arithmetic import problems
from mla_jax.tasks.problem import SPLITS

ROWS, LENGTH = 8, 152


@pytest.mark.parametrize("split", SPLITS)
def test_the_encoder_is_the_tokenizer(tokenizer, split):
    encoder = Encoder(tokenizer)
    for problem in islice(problems(split), 200):
        for text in (problem.question, problem.solution):
            assert encoder.text(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_batch_holds_training_problems(tokenizer):
    batch = make_batch(Encoder(tokenizer), 3, 5, ROWS, LENGTH)
    assert (batch.tokens.shape, batch.tokens.dtype) == ((ROWS, LENGTH + 1), np.uint16)
    stream = problems("train", "3 5")
    for row in range(ROWS):
        problem = next(stream)
        ids = batch.tokens[row].tolist()
        prompt, used = int(batch.prompt[row]), int(batch.used[row])
        assert ids[:2] == [BOS, USER]
        assert ids[prompt - 1] == ASSISTANT
        assert tokenizer.decode(ids[2 : prompt - 1]) == problem.question
        assert tokenizer.decode(ids[prompt : used - 1]) == problem.solution
        assert set(ids[used - 1 :]) == {EOS}


def test_batches_differ_by_seed_and_index(tokenizer):
    encoder = Encoder(tokenizer)
    made = [
        make_batch(encoder, seed, index, ROWS, LENGTH).to_bytes() for seed in (0, 1) for index in (0, 1, 10)
    ]
    assert len(set(made)) == len(made)
    assert make_batch(Encoder(tokenizer), 1, 0, ROWS, LENGTH).to_bytes() == made[3]


def test_bytes_come_back(tokenizer):
    batch = make_batch(Encoder(tokenizer), 0, 0, ROWS, LENGTH)
    for one, two in zip(batch, Batch.from_bytes(batch.to_bytes(), ROWS, LENGTH), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_length_that_most_problems_exceed(tokenizer):
    with pytest.raises(ValueError, match="length 60 is too short for one problem in twenty"):
        make_batch(Encoder(tokenizer), 0, 0, ROWS, 60)


def test_workers_make_the_same_batches_in_order(tokenizer, shipped):
    with Workers(shipped / "tokenizer.json", 4, ROWS, LENGTH, first=3, count=2) as workers:
        made = list(islice(workers, 5))
    encoder = Encoder(tokenizer)
    for index, batch in enumerate(made, 3):
        assert batch.to_bytes() == make_batch(encoder, 4, index, ROWS, LENGTH).to_bytes()


def test_a_worker_that_ends_is_noticed(tmp_path, capfd):
    with (
        Workers(tmp_path / "absent.json", 0, ROWS, LENGTH, 0, 1) as workers,
        pytest.raises(RuntimeError, match="a process that makes training problems ended"),
    ):
        next(iter(workers))
    assert "Traceback" in capfd.readouterr().err
