"""One decoder layer: norm, latent attention, norm, dense or sparse feed-forward."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from custom_calls.registry import Kernels
from mla_jax.cache import LatentCache
from mla_jax.config import ModelConfig
from mla_jax.layers.attention import MLAAttention
from mla_jax.layers.basic import RMSNorm
from mla_jax.layers.mlp import MLP
from mla_jax.layers.moe import MoE
from mla_jax.layers.rope_state import RopeState
from mla_jax.paging import AttentionMetadata


class DecoderLayer(nnx.Module):
    """Pre-norm residual block; `layer(x, cache, meta) -> (y, cache)`."""

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, Any],
        rope: RopeState,
        layer: int,
        *,
        kernels: Kernels = "auto",
    ) -> None:
        eps = config.rms_norm_eps
        self.input_layernorm = RMSNorm(params["input_layernorm"], eps=eps, kernels=kernels)
        self.self_attn = MLAAttention(config, params["self_attn"], rope, layer, kernels=kernels)
        self.post_attention_layernorm = RMSNorm(params["post_attention_layernorm"], eps=eps, kernels=kernels)
        self.mlp: MLP | MoE
        if config.mlp_layer_types[layer] == "sparse":
            self.mlp = MoE(config, params["mlp"], kernels=kernels)
        else:
            self.mlp = MLP(params["mlp"], kernels=kernels)

    def __call__(
        self, x: Float[Array, "tokens hidden"], cache: LatentCache | None, meta: AttentionMetadata
    ) -> tuple[Float[Array, "tokens hidden"], LatentCache | None]:
        attended, cache = self.self_attn(self.input_layernorm(x), cache, meta)
        normed, x = self.post_attention_layernorm.add(attended, x)
        if isinstance(self.mlp, MoE):
            live = None if meta.slot_mapping is None else meta.slot_mapping.stored
            return x + self.mlp(normed, live), cache
        return x + self.mlp(normed), cache
