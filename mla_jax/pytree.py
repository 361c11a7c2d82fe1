"""Registration of the project's frozen dataclasses as pytrees."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax

T = TypeVar("T")


def pytree(*, data: Sequence[str], static: Sequence[str] = ()) -> Callable[[type[T]], type[T]]:
    """Class decorator: `data` fields are children, `static` fields belong to the tree's structure.

    Unflattening sets the fields directly, without running `__init__`: transformations put placeholders
    of any type into leaves, and a guarded constructor must stay guarded for callers only.
    """

    def register(cls: type[T]) -> type[T]:
        def flatten_with_keys(value: T) -> tuple[list[tuple[object, object]], tuple[object, ...]]:
            keyed = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in data]
            return keyed, tuple(getattr(value, name) for name in static)

        def flatten(value: T) -> tuple[list[object], tuple[object, ...]]:
            return [getattr(value, name) for name in data], tuple(getattr(value, name) for name in static)

        def unflatten(aux: tuple[object, ...], children: Iterable[object]) -> T:
            value = object.__new__(cls)
            for name, child in zip((*data, *static), (*children, *aux), strict=True):
                object.__setattr__(value, name, child)
            return value

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return register
