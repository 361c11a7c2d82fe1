"""Covering arrays: every pair is there, few rows, the same ones every time."""

from itertools import combinations, product

import pytest

from mla_jax.errors import ShapeError
from mla_jax.verify.pairwise import pairwise

AXES = [
    {"a": (1, 2), "b": (3, 4)},
    {"a": (1,), "b": (2,), "c": (3,)},
    {"a": (0, 1), "b": (0, 1), "c": (0, 1)},
    {"a": range(7), "b": range(5), "c": range(3), "d": ("x", "y"), "e": (None, True)},
    {"few": (1, 2), "many": tuple(range(9)), "some": ("p", "q", "r")},
    {f"axis {i}": ("on", "off") for i in range(12)},
]


@pytest.mark.parametrize("axes", AXES)
def test_every_pair_is_covered(axes):
    rows = pairwise(axes)
    for one, other in combinations(axes, 2):
        assert {(row[one], row[other]) for row in rows} == set(product(axes[one], axes[other]))
    assert all(list(row) == list(axes) for row in rows)


@pytest.mark.parametrize("axes", AXES)
def test_rows_are_few_distinct_and_the_same_every_time(axes):
    rows = pairwise(axes)
    assert pairwise(axes) == rows
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    # The two longest axes alone need their product. No bound is known for what a greedy choice adds to it: a row
    # an axis is what it stays below here.
    longest, second = sorted(map(len, axes.values()), reverse=True)[:2]
    assert longest * second <= len(rows) < longest * second + len(axes)


def test_values_of_one_axis_may_be_those_of_another():
    rows = pairwise({"a": ("x", "y"), "b": ("x", "y"), "c": ("x", "y")})
    assert len(rows) == 4 and len({tuple(row.values()) for row in rows}) == 4


def test_less_than_two_axes():
    assert pairwise({}) == []
    assert pairwise({"a": (1, 2)}) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(("axes", "name"), [({"a": (1,), "b": ()}, "b"), ({"b": (1, 1), "a": (2,)}, "b")])
def test_bad_axes_are_named(axes, name):
    with pytest.raises(
        ShapeError, match=f"^pairwise: argument 'axes': expected distinct values of '{name}', got"
    ):
        pairwise(axes)
