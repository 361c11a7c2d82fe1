"""The pytree decorator: children, structure, key paths, and unflattening that never runs `__init__`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

from mla_jax.pytree import pytree


@pytree(data=("left", "right"), static=("unit",))
@dataclass(frozen=True)
class Pair:
    left: object
    right: object
    unit: str = "tokens"


@pytree(data=("value",))
@dataclass(frozen=True)
class Guarded:
    value: object

    def __post_init__(self) -> None:
        if isinstance(self.value, str):
            raise TypeError("strings are refused")


def test_data_are_children_and_static_fields_are_structure():
    leaves, structure = jax.tree.flatten(Pair(1, 2, "pages"))
    assert leaves == [1, 2]
    assert structure == jax.tree.structure(Pair(3, 4, "pages"))
    assert structure != jax.tree.structure(Pair(1, 2, "tokens"))


def test_round_trip_keeps_every_field():
    again = jax.tree.map(lambda leaf: leaf + 1, Pair(1, 2, "pages"))
    assert again == Pair(2, 3, "pages")


def test_key_paths_are_the_field_names():
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(Pair(1, Pair(2, 3)))
    ]
    assert paths == [".left", ".right.left", ".right.right"]


def test_a_none_field_is_a_child_without_leaves():
    assert jax.tree.leaves(Pair(None, 5)) == [5]
    assert jax.tree.structure(Pair(None, 5)) != jax.tree.structure(Pair(4, 5))


def test_unflattening_does_not_run_the_guard():
    with pytest.raises(TypeError, match="refused"):
        Guarded("placeholder")
    rebuilt = jax.tree.map(lambda _: "placeholder", Guarded(1))
    assert rebuilt.value == "placeholder"


def test_unflattening_with_the_wrong_number_of_children_is_refused():
    structure = jax.tree.structure(Pair(1, 2))
    with pytest.raises(ValueError):
        jax.tree.unflatten(structure, [1])


def test_static_fields_are_part_of_the_compilation_key():
    traces = []

    @jax.jit
    def total(pair: Pair) -> jax.Array:
        traces.append(pair.unit)
        return pair.left + pair.right

    for unit in ("tokens", "pages", "tokens"):
        assert int(total(Pair(jnp.int32(1), jnp.int32(2), unit))) == 3
    assert traces == ["tokens", "pages"]


def test_survives_scan_and_vmap():
    def body(pair, step):
        return Pair(pair.left + step, pair.right, pair.unit), pair.left

    out, seen = jax.lax.scan(body, Pair(jnp.int32(0), jnp.int32(7), "pages"), jnp.arange(4, dtype=jnp.int32))
    assert (int(out.left), int(out.right), out.unit) == (6, 7, "pages")
    assert seen.tolist() == [0, 0, 1, 3]
    batched = jax.vmap(lambda pair: pair.left * pair.right)(Pair(jnp.arange(3), jnp.arange(3)))
    assert batched.tolist() == [0, 1, 4]
