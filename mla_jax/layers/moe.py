"""Sparse layers: the router, which chooses experts, and the experts themselves."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from custom_calls.expert_mlp import expert_mlp
from custom_calls.linear import linear
from custom_calls.registry import Kernels
from mla_jax.config import ModelConfig, RouterConfig
from mla_jax.layers.mlp import MLP


def route(
    scores_in: Float[Array, "tokens experts"],
    bias: Float[Array, " experts"] | None,
    router: RouterConfig,
    experts_per_token: int,
) -> tuple[Int[Array, "tokens k"], Float[Array, "tokens k"]]:
    """Chooses experts and their weights from float32 router logits.

    scores = sigmoid or softmax of the logits. The choice is made on scores + bias, inside the
    `topk_group` best of `n_group` groups (a group's score: its best expert for group_limited_greedy,
    the sum of its two best for noaux_tc; experts of other groups are -inf). The weights are the
    unbiased scores of the chosen, normalised to sum 1 where `norm_topk_prob`, times
    `routed_scaling_factor`.

    Returns:
      (ids int32, weights float32), both (tokens, experts_per_token).
    """
    logits = scores_in.astype(jnp.float32)
    scores = jax.nn.sigmoid(logits) if router.scoring_func == "sigmoid" else jax.nn.softmax(logits, axis=-1)
    choice = scores if bias is None else scores + bias.astype(jnp.float32)[None, :]
    if router.topk_method != "greedy" and router.n_group > 1:
        choice = _limit_to_groups(choice, router)
    _, ids = jax.lax.top_k(choice, experts_per_token)
    weights = jnp.take_along_axis(scores, ids, axis=-1)
    if router.norm_topk_prob:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + np.float32(1e-20))
    return ids.astype(jnp.int32), weights * np.float32(router.routed_scaling_factor)


def _limit_to_groups(choice: jax.Array, router: RouterConfig) -> jax.Array:
    tokens, experts = choice.shape
    grouped = choice.reshape(tokens, router.n_group, experts // router.n_group)
    best_of = 2 if router.topk_method == "noaux_tc" else 1
    group_scores = jnp.sum(jax.lax.top_k(grouped, best_of)[0], axis=-1)
    _, kept = jax.lax.top_k(group_scores, router.topk_group)
    groups = jnp.arange(router.n_group, dtype=kept.dtype)
    is_kept = jnp.any(kept[:, :, None] == groups[None, None, :], axis=1)
    return jnp.where(is_kept[:, :, None], grouped, -jnp.inf).reshape(tokens, experts)


class Router(nnx.Module):
    """Router logits in float32 and the choice of experts."""

    def __init__(self, config: ModelConfig, params: Mapping[str, Any], *, kernels: Kernels = "auto") -> None:
        assert config.router is not None, "a sparse layer has a router: ModelConfig checks it"
        self.weight = nnx.Param(params["weight"])
        has_bias = "e_score_correction_bias" in params
        self.e_score_correction_bias = nnx.Param(params["e_score_correction_bias"]) if has_bias else None
        self.router = config.router
        self.experts_per_token = config.num_experts_per_tok
        self.kernels = kernels

    def __call__(
        self, x: Float[Array, "tokens hidden"]
    ) -> tuple[Int[Array, "tokens k"], Float[Array, "tokens k"]]:
        logits = linear(x, self.weight[...], out_dtype="float32", kernels=self.kernels)
        bias = None if self.e_score_correction_bias is None else self.e_score_correction_bias[...]
        return route(logits, bias, self.router, self.experts_per_token)


class Experts(nnx.Module):
    """Stacked expert weights: gate_up_proj (experts, 2 width, hidden), down_proj (experts, hidden, width).

    Both arrays, or both `QuantizedTensor`s.
    """

    def __init__(self, params: Mapping[str, Any], *, kernels: Kernels = "auto") -> None:
        self.gate_up_proj = nnx.Param(params["gate_up_proj"])
        self.down_proj = nnx.Param(params["down_proj"])
        self.kernels = kernels

    def __call__(
        self,
        x: Float[Array, "tokens hidden"],
        ids: Int[Array, "tokens k"],
        weights: Float[Array, "tokens k"],
    ) -> Float[Array, "tokens hidden"]:
        gate_up, down = self.gate_up_proj.get_value(), self.down_proj.get_value()
        return expert_mlp(x, gate_up, down, ids, weights, kernels=self.kernels)


class MoE(nnx.Module):
    """Routed experts plus shared experts."""

    def __init__(self, config: ModelConfig, params: Mapping[str, Any], *, kernels: Kernels = "auto") -> None:
        self.gate = Router(config, params["gate"], kernels=kernels)
        self.experts = Experts(params["experts"], kernels=kernels)
        has_shared = "shared_experts" in params
        self.shared_experts = MLP(params["shared_experts"], kernels=kernels) if has_shared else None
        self.num_experts = config.n_routed_experts

    def __call__(
        self, x: Float[Array, "tokens hidden"], live: Bool[Array, " tokens"] | None = None
    ) -> Float[Array, "tokens hidden"]:
        """`live` rows choose experts; padded rows choose none, so that no expert is read for them."""
        with jax.named_scope("moe"):
            ids, weights = self.gate(x)
            if live is not None:
                ids = jnp.where(live[:, None], ids, jnp.int32(self.num_experts))
            y = self.experts(x, ids, weights)
            return y if self.shared_experts is None else y + self.shared_experts(x)
