"""`MLAForCausalLM`: the one config-driven model of all DeepSeek-family checkpoints."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from custom_calls.linear import linear
from custom_calls.registry import Kernels
from mla_jax.cache import LatentCache
from mla_jax.config import ModelConfig
from mla_jax.layers import DecoderLayer, Embedding, Linear, RMSNorm, RopeState
from mla_jax.paging import AttentionMetadata
from mla_jax.parameters import Tree, abstract_parameters, parameter_table, random_parameters
from mla_jax.rope import RopeTable
from mla_jax.step_checks import check_step


class Decoder(nnx.Module):
    """Embedding, decoder layers and final norm: the checkpoint's `model.`"""

    def __init__(
        self, config: ModelConfig, params: Mapping[str, Any], rope: RopeState, *, kernels: Kernels = "auto"
    ) -> None:
        self.embed_tokens = Embedding(params["embed_tokens"])
        self.layers = nnx.List(
            [
                DecoderLayer(config, layer_params, rope, i, kernels=kernels)
                for i, layer_params in enumerate(params["layers"])
            ]
        )
        self.norm = RMSNorm(params["norm"], eps=config.rms_norm_eps, kernels=kernels)

    def __call__(
        self, tokens: Int[Array, " tokens"], cache: LatentCache | None, meta: AttentionMetadata
    ) -> tuple[Float[Array, "tokens hidden"], LatentCache | None]:
        """Residual stream after the last layer, before the final norm."""
        x = self.embed_tokens(tokens)
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                x, cache = layer(x, cache, meta)
        return x, cache


class MLAForCausalLM(nnx.Module):
    """A causal language model with multi-head latent attention.

    Attribute paths are checkpoint tensor names: `model.model.layers[3].self_attn.q_b_proj.weight`.

    Args:
      config: what the checkpoint's config.json says.
      params: arrays (or `jax.ShapeDtypeStruct`s) nested as `parameter_table(config)`.
      rope: the table for positions 0 .. max_position_embeddings - 1.
      kernels: "auto", "native" or "reference", for every op of the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, Any],
        rope: RopeTable,
        *,
        kernels: Kernels = "auto",
    ) -> None:
        self.config = config
        self.kernels = kernels
        self.rope = RopeState(rope)
        self.model = Decoder(config, params["model"], self.rope, kernels=kernels)
        self.lm_head = None if config.tie_word_embeddings else Linear(params["lm_head"], kernels=kernels)

    @staticmethod
    def init(
        config: ModelConfig, key: jax.Array, *, table: Tree | None = None, kernels: Kernels = "auto"
    ) -> "MLAForCausalLM":
        """Random weights of `config.dtype`; `table` as for `abstract`."""
        params = random_parameters(table or parameter_table(config), key, config.dtype)
        rope = RopeTable.from_config(config.rope, config.max_position_embeddings)
        return MLAForCausalLM(config, params, rope, kernels=kernels)

    @staticmethod
    def abstract(
        config: ModelConfig, *, table: Tree | None = None, kernels: Kernels = "auto"
    ) -> "MLAForCausalLM":
        """Shapes and dtypes only: plans memory and compiles without data.

        `table` is `parameter_table(config)`, perhaps with the storage of quantised parameters.
        """
        params = abstract_parameters(table or parameter_table(config), config.dtype)
        rope = RopeTable.abstract(config.rope, config.max_position_embeddings)
        return MLAForCausalLM(config, params, rope, kernels=kernels)

    def __call__(
        self, tokens: Int[Array, " tokens"], cache: LatentCache | None, meta: AttentionMetadata
    ) -> tuple[Float[Array, "tokens hidden"], LatentCache | None]:
        """Hidden states (T, hidden) of T ragged tokens, before the final norm, and the pool.

        Raises:
          CheckError: metadata in checked mode contradicts itself or the pool, see `mla_jax.check_step`.
        """
        if meta.checks:
            check_step(cache, meta, max_len=self.config.max_context)
        return self.model(tokens, cache, meta)

    def logits(self, hidden: Float[Array, "rows hidden"]) -> Float[Array, "rows vocab"]:
        """float32 logits of hidden states: final norm and output head."""
        with jax.named_scope("lm_head"):
            normed = self.model.norm(hidden)
            if self.lm_head is None:
                weight = self.model.embed_tokens.weight[...]
                return linear(normed, weight, out_dtype="float32", kernels=self.kernels)
            return self.lm_head(normed, "float32")
