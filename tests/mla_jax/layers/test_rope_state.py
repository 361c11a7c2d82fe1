"""`RopeState` is shared, and no parameter."""

import jax
import jax.numpy as jnp
from flax import nnx

from mla_jax.layers import RopeState
from mla_jax.rope import RopeTable


class TwoLayers(nnx.Module):
    def __init__(self, rope):
        self.first, self.second = rope, rope
        self.weight = nnx.Param(jnp.ones(2))


def test_rope_state_is_shared_and_not_trained():
    table = RopeTable.identity(4, 3, "half")
    model = TwoLayers(RopeState(table))
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 1
    assert len(jax.tree.leaves(nnx.state(model, RopeState))) == 2  # cos and sin, once

    graph, params, rope = nnx.split(model, nnx.Param, RopeState)
    again = nnx.merge(graph, params, rope)
    assert again.first is again.second
    assert isinstance(again.first.get_value(), RopeTable)
    assert again.first.get_value().layout == "half"
    assert again.first.get_value().cos is table.cos
