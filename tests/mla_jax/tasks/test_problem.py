"""Draws, and what keeps training and test apart."""

import random
from itertools import islice
from types import SimpleNamespace

import pytest

from mla_jax.tasks import problem
from mla_jax.tasks.arithmetic import problems
from mla_jax.tasks.problem import SPLITS, TEST_NAMES, TRAIN_NAMES, Draw, is_held_out, product

NUMBER = 3000


@pytest.fixture(scope="module")
def drawn():
    return {split: list(islice(problems(split), NUMBER)) for split in SPLITS}


def test_names_are_disjoint(drawn):
    assert not set(TRAIN_NAMES) & set(TEST_NAMES)
    assert len(set(TRAIN_NAMES)) == len(TRAIN_NAMES)
    assert len(set(TEST_NAMES)) == len(TEST_NAMES)
    names = {split: {name for one in found for name in one.names} for split, found in drawn.items()}
    assert names["test"] | names["unseen"] == set(TEST_NAMES)
    assert not names["train"] & set(TEST_NAMES)
    assert set(TRAIN_NAMES) < names["train"], "composed names beside the listed ones"


def test_numbers_are_disjoint(drawn):
    numbers = {split: {tuple(sorted(one.numbers)) for one in found} for split, found in drawn.items()}
    assert not numbers["train"] & (numbers["test"] | numbers["unseen"])
    assert all(not is_held_out(one) for one in numbers["train"])
    assert all(is_held_out(one) for split in ("test", "unseen") for one in numbers[split])


def test_questions_are_disjoint(drawn):
    questions = {split: {one.question for one in found} for split, found in drawn.items()}
    assert not questions["train"] & (questions["test"] | questions["unseen"])


def test_templates_are_disjoint(drawn):
    templates = {split: {one.template for one in found} for split, found in drawn.items()}
    assert templates["train"] == templates["test"]
    assert not templates["train"] & templates["unseen"]


def test_what_was_drawn_is_what_is_shown(drawn):
    for one in drawn["train"][:500] + drawn["test"][:500]:
        text = one.question + one.solution
        assert all(name in text for name in one.names)
        assert len(set(one.names)) == len(one.names)


def test_held_out_is_one_multiset_in_eight():
    generator = random.Random(0)
    multisets = {tuple(sorted(generator.randrange(2, 100) for _ in range(4))) for _ in range(20_000)}
    share = sum(map(is_held_out, multisets)) / len(multisets)
    # Six standard deviations of a fair draw.
    assert abs(share - 1 / 8) < 6 * (1 / 8 * 7 / 8 / len(multisets)) ** 0.5


def test_held_out_does_not_depend_on_the_order():
    generator = random.Random(1)
    for _ in range(200):
        numbers = [generator.randrange(1000) for _ in range(5)]
        expected = is_held_out(numbers)
        generator.shuffle(numbers)
        assert is_held_out(numbers) == expected
    # How often a number is drawn counts as well.
    assert {is_held_out([4] * count) for count in range(1, 60)} == {True, False}


def test_a_number_lies_in_its_range():
    draw = Draw(random.Random(2), "train")
    assert {draw.number(3, 7) for _ in range(300)} == set(range(3, 8))
    assert {draw.number(5, 5) for _ in range(5)} == {5}
    assert {draw.tens(15, 60) for _ in range(300)} == {20, 30, 40, 50, 60}
    assert len(draw.numbers) == 605


def test_a_name_occurs_once():
    draw = Draw(random.Random(3), "test")
    assert sorted(draw.name() for _ in TEST_NAMES) == sorted(TEST_NAMES)
    assert len(draw.names) == len(TEST_NAMES)


def test_syllables_that_make_a_test_name_are_drawn_again():
    def place(items, item):
        return (items.index(item) + 0.5) / len(items)

    parts = (problem._ONSETS, problem._MIDDLES, problem._CODAS, problem._ENDS)
    drawn = [
        place(items, item)
        for word in ("K i r a", "K i r e")
        for items, item in zip(parts, word.split(), strict=True)
    ]
    assert "Kira" in TEST_NAMES
    generator = SimpleNamespace(random=iter([0.0, *drawn]).__next__)
    assert Draw(generator, "train").name() == "Kire"


def test_products():
    assert product(7, 26) == "7 * 26 = 182"
    assert product(26, 7) == "26 * 7 = 182"
    assert product(24, 30) == "24 * 30 = 720"
    assert product(24, 13) == "24 * 13 = 24 * 10 + 24 * 3 = 240 + 72 = 312"
