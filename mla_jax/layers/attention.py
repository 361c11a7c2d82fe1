"""Multi-head latent attention as a Flax layer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from custom_calls.absorb import absorb
from custom_calls.mla_attention import Keys
from custom_calls.quantized_tensor import QuantizedTensor
from custom_calls.registry import Kernels
from mla_jax.cache import LatentCache
from mla_jax.config import ModelConfig
from mla_jax.latent import (
    Appended,
    Unrotated,
    appended_rows,
    merge_attn_states,
    mla_attention,
    mla_attention_expanded,
    rope_append_latent,
)
from mla_jax.layers.basic import Linear, RMSNorm
from mla_jax.layers.rope_state import RopeState
from mla_jax.paging import AttentionMetadata
from mla_jax.parameters import attention_table, random_parameters
from mla_jax.rope import RopeTable, softmax_scale


def expanded_is_cheaper(config: ModelConfig, rows_per_sequence: int) -> bool:
    """Whether a step with this many new tokens a sequence attends in the expanded form.

    Per head, a query-key pair costs 2 (2 R + P) FLOP absorbed and 2 (nope + P + v) expanded, and a new
    token meets n / 2 new keys on average. Expanding the new rows costs what absorbing their queries and
    outputs would, 2 R (nope + v) a token; but where sequences have tokens from before this step, those
    are attended absorbed as well, and that price is paid twice. Expanded is chosen where it wins even
    then: n / 2 * 2 (2 R + P - nope - P - v) >= 2 R (nope + v).
    """
    rank, nope, v = config.kv_lora_rank, config.qk_nope_head_dim, config.v_head_dim
    saved = rows_per_sequence * (2 * rank - nope - v)
    return saved >= 2 * rank * (nope + v)


class MLAAttention(nnx.Module):
    """Projections, `rope_append_latent`, absorbed or expanded attention, output projection.

    Weight names and (out, in) shapes are the checkpoint's. Pure: `layer(x, cache, meta) -> (y, cache)`.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, Any],
        rope: RopeState,
        layer: int = 0,
        *,
        kernels: Kernels = "auto",
    ) -> None:
        if config.q_lora_rank is None:
            self.q_proj = Linear(params["q_proj"], kernels=kernels)
        else:
            self.q_a_proj = Linear(params["q_a_proj"], kernels=kernels)
            self.q_a_layernorm = RMSNorm(params["q_a_layernorm"], eps=config.latent_norm_eps, kernels=kernels)
            self.q_b_proj = Linear(params["q_b_proj"], kernels=kernels)
        self.kv_a_proj_with_mqa = Linear(params["kv_a_proj_with_mqa"], kernels=kernels)
        self.kv_a_layernorm = RMSNorm(params["kv_a_layernorm"], eps=config.latent_norm_eps, kernels=kernels)
        self.kv_b_proj = Linear(params["kv_b_proj"], kernels=kernels)
        self.o_proj = Linear(params["o_proj"], kernels=kernels)
        self.rope = rope
        self.config = config
        self.layer = layer
        self.kernels = kernels

    @staticmethod
    def init(
        config: ModelConfig, key: jax.Array, *, max_positions: int | None = None, kernels: Kernels = "auto"
    ) -> "MLAAttention":
        """One layer with random weights of `config`'s dtype."""
        params = random_parameters(attention_table(config), key, config.dtype)
        table = RopeTable.from_config(config.rope, max_positions or config.max_position_embeddings)
        return MLAAttention(config, params, RopeState(table), kernels=kernels)

    def __call__(
        self, x: Float[Array, "tokens hidden"], cache: LatentCache | None, meta: AttentionMetadata
    ) -> tuple[Float[Array, "tokens hidden"], LatentCache | None]:
        """Attention of this step's tokens to their sequences.

        Args:
          x: (T, hidden), normed.
          cache: the pool, or None for whole sequences without one.
          meta: positions, slots and pages of this step; `AttentionMetadata.dense` without a pool.

        Returns:
          (output (T, hidden), the pool with this step's rows, or None).
        """
        with jax.named_scope("mla"):
            config = self.config
            unrotated = Unrotated(self._queries(x), self.kv_a_proj_with_mqa(x))
            appended = rope_append_latent(
                unrotated,
                self.kv_a_layernorm.weight[...],
                self.rope.get_value(),
                meta.positions,
                cache,
                self.layer,
                meta.slot_mapping,
                eps=self.kv_a_layernorm.eps,
                kernels=self.kernels,
            )
            rows_per_sequence = meta.num_tokens // max(meta.num_seqs, 1)
            if cache is None or expanded_is_cheaper(config, rows_per_sequence):
                heads_out = self._expanded(appended, meta)
            else:
                heads_out, _ = self._absorbed(appended, meta, "all")
            flat = heads_out.reshape(x.shape[0], config.num_attention_heads * config.v_head_dim)
            return self.o_proj(flat), appended.cache

    def _queries(self, x: jax.Array) -> jax.Array:
        config = self.config
        flat = (
            self.q_proj(x)
            if config.q_lora_rank is None
            else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        )
        width = config.qk_nope_head_dim + config.qk_rope_head_dim
        return flat.reshape(x.shape[0], config.num_attention_heads, width)

    def _kv_b(self) -> jax.Array | QuantizedTensor:
        """kv_b_proj as `absorb` takes it: per head (heads, nope key rows then v value rows, kv_lora_rank), a
        free reshape; a quantised one as it is, because its blocks may span heads.
        """
        config, weight = self.config, self.kv_b_proj.weight.get_value()
        if isinstance(weight, QuantizedTensor):
            return weight
        rows = config.qk_nope_head_dim + config.v_head_dim
        return weight.reshape(config.num_attention_heads, rows, config.kv_lora_rank)

    def _absorbed(
        self, appended: Appended, meta: AttentionMetadata, keys: Keys
    ) -> tuple[jax.Array, jax.Array]:
        config, weight = self.config, self._kv_b()
        nope, v = config.qk_nope_head_dim, config.v_head_dim
        q_latent = absorb(appended.q, weight, contract="rows", row_offset=0, rows=nope, kernels=self.kernels)
        latent, logsumexp = mla_attention(
            q_latent, appended, meta, softmax_scale(config), keys=keys, kernels=self.kernels
        )
        out = absorb(latent, weight, contract="columns", row_offset=nope, rows=v, kernels=self.kernels)
        return out, logsumexp

    def _expanded(self, appended: Appended, meta: AttentionMetadata) -> jax.Array:
        config = self.config
        rows = appended_rows(appended, meta)
        kv = self.kv_b_proj(rows[:, : config.kv_lora_rank])
        own, own_logsumexp = mla_attention_expanded(
            appended,
            rows,
            kv,
            meta,
            softmax_scale(config),
            nope=config.qk_nope_head_dim,
            v=config.v_head_dim,
            kernels=self.kernels,
        )
        if appended.cache is None:
            return own

        def with_cached_tokens() -> jax.Array:
            cached, cached_logsumexp = self._absorbed(appended, meta, "cached")
            return merge_attn_states(own, own_logsumexp, cached, cached_logsumexp)[0]

        # Most prefills start at position 0: the absorbed products are not computed for nothing.
        new = meta.query_start_loc[1:] - meta.query_start_loc[:-1]
        return jax.lax.cond(jnp.any(meta.seq_lens > new), with_cached_tokens, lambda: own)
