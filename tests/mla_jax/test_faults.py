"""Each forbidden mistake, made on purpose on the shipped checkpoint, costs answers: the gate would see it."""

import pytest
from faults import CHECKPOINT, FAULTS, checkpoint, fault, score

from mla_jax.layers import attention
from mla_jax.verify import VerificationError
from mla_jax.verify.model import check_model

PROBLEMS = 12


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("name", [name for name, one in FAULTS.items() if not one.refused])
def test_without_a_mistake_the_answers_are_right(scratch, name):
    assert score(name, checkpoint(FAULTS[name].weights, scratch), PROBLEMS).exact_match >= 11 / 12


# Leaving out mscale sharpens or flattens attention; on problems this short the answers survive it, and parity
# with transformers is what notices.
@pytest.mark.parametrize(
    "name", [name for name, one in FAULTS.items() if one.refused and name != "no_mscale"]
)
def test_mistakes_cost_answers(scratch, name):
    assert score(name, checkpoint(FAULTS[name].weights, scratch), PROBLEMS).exact_match <= 4 / 12


@pytest.mark.parametrize("name", ["rope_twice", "stored_twice"])
def test_the_verifier_refuses_what_goes_around_the_types(name):
    check_model(CHECKPOINT)
    with fault(name), pytest.raises(VerificationError):
        check_model(CHECKPOINT)


def test_mistakes_end_with_their_context():
    before = attention.rope_append_latent, attention.softmax_scale
    for name in FAULTS:
        with fault(name):
            pass
    assert (attention.rope_append_latent, attention.softmax_scale) == before
