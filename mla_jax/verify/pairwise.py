"""A covering array: few rows in which every two values of different axes meet at least once."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from mla_jax.errors import ShapeError


def pairwise(axes: Mapping[str, Sequence[Hashable]]) -> list[dict[str, Any]]:
    """Rows of one value an axis that cover every pair of values of two axes; the same rows every time.

    Greedy: a row starts from the first pair that is missing and takes, axis by axis, the value that adds most
    missing pairs; of equals the one that most pairs are missing of at all, then the first.

    Args:
      axes: the values of each axis, distinct.

    Raises:
      ShapeError: an axis without values, or with one value twice.
    """
    for name, values in axes.items():
        if not values or len(set(values)) != len(values):
            raise ShapeError(
                f"pairwise: argument 'axes': expected distinct values of {name!r}, got {values!r}"
            )
    if len(axes) < 2:
        return [{name: value} for name, values in axes.items() for value in values]
    # A dict keeps the order, which a set does not.
    missing = {
        frozenset(pair): pair
        for one, other in combinations(axes, 2)
        for pair in product(((one, value) for value in axes[one]), ((other, value) for value in axes[other]))
    }
    rows = []
    while missing:
        row: dict[str, Any] = dict(next(iter(missing.values())))
        for name in (name for name in axes if name not in row):

            def gained(value: Hashable, name: str = name, row: dict[str, Any] = row) -> tuple[int, int]:
                added = sum(frozenset([(name, value), fixed]) in missing for fixed in row.items())
                return added, sum((name, value) in pair for pair in missing)

            row[name] = max(axes[name], key=gained)
        for pair in combinations(row.items(), 2):
            missing.pop(frozenset(pair), None)
        rows.append({name: row[name] for name in axes})
    return rows
