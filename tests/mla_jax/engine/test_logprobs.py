"""Log-probabilities of one row: the model's own, whatever ties, masks and counts there are."""

import numpy as np
import pytest

from mla_jax.engine.logprobs import top_logprobs


def exact(logits):
    values = np.asarray(logits, np.longdouble)
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


@pytest.mark.parametrize("count", [0, 1, 3, 20])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_likeliest_in_order_and_the_chosen(rng, count, scale):
    logits = (rng.standard_normal(50) * scale).astype(np.float32)
    order = np.argsort(-logits)
    for token in (int(order[0]), int(order[5]), int(order[-1])):
        got = top_logprobs(logits, token, count)
        likely = order[:count].tolist()
        assert list(got) == likely + [token] * (token not in likely)
        for i, value in got.items():
            assert isinstance(i, int)
            assert value == pytest.approx(float(exact(logits)[i]), rel=1e-12, abs=1e-12)


def test_of_equal_tokens_the_lower_ids_are_reported():
    logits = np.array([1, 3, 2, 3, 3, 2], np.float32)
    assert list(top_logprobs(logits, 1, 2)) == [1, 3]
    assert list(top_logprobs(logits, 1, 4)) == [1, 3, 4, 2]
    many = np.tile(np.array([1, 0], np.float32), 1000)
    many[[501, 503, 1999, 1500]] = 5, 3, 4, 6
    assert list(top_logprobs(many, 0, 20)) == [1500, 501, 1999, 503, *range(0, 32, 2)]


def test_tokens_that_cannot_be_drawn_are_not_reported():
    logits = np.array([1, -np.inf, 2, -np.inf], np.float32)
    got = top_logprobs(logits, 0, 20)
    assert list(got) == [2, 0]
    assert sum(np.exp(list(got.values()))) == pytest.approx(1.0, rel=1e-12)
    assert top_logprobs(np.array([5, -np.inf], np.float32), 0, 1) == {0: 0.0}


def test_far_apart_logits_do_not_overflow():
    got = top_logprobs(np.array([3e38, -3e38], np.float32), 1, 1)
    assert got[0] == 0.0
    assert got[1] == pytest.approx(-6e38, rel=1e-6)
