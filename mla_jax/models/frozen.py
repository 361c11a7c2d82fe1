"""`FrozenModel`: a model's weights as a plain pytree, for the hot path.

Handing an NNX module to `jax.jit` costs milliseconds of Python a call at 61 layers, because its nodes
are flattened one by one; nested dicts are flattened by C++. The modules are built again around the
traced leaves, once per compilation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx

from custom_calls.registry import Kernels
from mla_jax.config import ModelConfig
from mla_jax.models.causal_lm import MLAForCausalLM
from mla_jax.rope import RopeTable


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "rope_cos", "rope_sin"],
    meta_fields=["config", "kernels"],
)
@dataclass(frozen=True)
class FrozenModel:
    """Weights nested as `parameter_table(config)`, the RoPE table's arrays, and static settings."""

    params: Mapping[str, Any]
    rope_cos: jax.Array
    rope_sin: jax.Array
    config: ModelConfig
    kernels: Kernels

    def thaw(self) -> MLAForCausalLM:
        """The NNX model around the same arrays."""
        rope = RopeTable(self.rope_cos, self.rope_sin, self.config.rope.layout)
        return MLAForCausalLM(self.config, self.params, rope, kernels=self.kernels)


Model = MLAForCausalLM | FrozenModel


def freeze(model: Model) -> FrozenModel:
    """The weights of an NNX model as a plain pytree; shares the arrays."""
    if isinstance(model, FrozenModel):
        return model
    params = {"model": _plain(model.model)}
    if model.lm_head is not None:
        params["lm_head"] = _plain(model.lm_head)
    table = model.rope.get_value()
    return FrozenModel(params, table.cos, table.sin, model.config, model.kernels)


def _plain(node: Any) -> Any:
    if isinstance(node, nnx.Param):
        return node.get_value()
    if isinstance(node, nnx.List):
        return [_plain(child) for child in node]
    children = {
        name: _plain(child)
        for name, child in vars(node).items()
        if isinstance(child, nnx.Module | nnx.Param | nnx.List)
    }
    return children
