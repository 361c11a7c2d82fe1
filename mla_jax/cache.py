"""`LatentCache`: one pool of latent rows for all layers, and the layout that it was written with."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from custom_calls.checks import CACHE_DTYPES
from custom_calls.rope_contract import RopeLayout
from mla_jax.arguments import as_integer, dtype_name
from mla_jax.config import ModelConfig
from mla_jax.errors import ShapeError, shown
from mla_jax.pytree import pytree

MAX_SLOTS = 2**31 - 2
"""Most token slots of a layer: slot numbers are int32, and one more number is the sentinel."""

_DTYPE_NAMES = {"fp8": "float8_e4m3fn", "bf16": "bfloat16", "fp32": "float32"}


@pytree(data=("kv", "scales"), static=("kv_lora_rank", "rope_layout"))
@dataclass(frozen=True)
class LatentCache:
    """The paged pool: per token and layer one row [normed latent | rotated key part].

    Attributes:
      kv: (num_layers, num_pages, page_size, kv_lora_rank + qk_rope_head_dim), float32, bfloat16 or
        float8_e4m3fn. One array for all layers, so that a step updates it in place under donation.
      scales: (num_layers, 2) float32: value = stored * scale, for the latent and the RoPE part. Only
        float8 rows use them.
      kv_lora_rank: width of the latent part.
      rope_layout: pairing of the rotated part; a RopeTable of another layout is refused.
    """

    kv: Float[Array, "num_layers num_pages page_size row"]
    scales: Float[Array, "num_layers 2"]
    kv_lora_rank: int
    rope_layout: RopeLayout

    @property
    def num_layers(self) -> int:
        """Layers that have rows in the pool."""
        return self.kv.shape[0]

    @property
    def num_pages(self) -> int:
        """Pages per layer."""
        return self.kv.shape[1]

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.kv.shape[2]

    @property
    def num_slots(self) -> int:
        """Token slots per layer: num_pages * page_size."""
        return self.num_pages * self.page_size

    @property
    def nbytes(self) -> int:
        """Bytes of the pool without its scales."""
        return self.kv.size * self.kv.dtype.itemsize

    def with_kv(self, kv: jax.Array) -> "LatentCache":
        """The same cache around an updated pool."""
        return replace(self, kv=kv)


def cache_dtype(asked: Any, compute_dtype: str) -> jnp.dtype[Any]:
    """Resolves "auto" (the compute dtype), "fp8", dtypes and their names; raises `ShapeError` for others."""
    name = dtype_name(asked) or ""
    resolved = compute_dtype if name == "auto" else _DTYPE_NAMES.get(name, name)
    if resolved not in CACHE_DTYPES:
        raise ShapeError(
            f"cache dtype: expected 'auto', {', '.join(CACHE_DTYPES)} or 'fp8', got {shown(asked)}"
        )
    return jnp.dtype(resolved)


def init_cache(
    config: ModelConfig,
    *,
    num_tokens: int,
    page_size: int = 16,
    dtype: Any = "auto",
    scales: jax.Array | None = None,
) -> LatentCache:
    """An empty pool with room for `num_tokens` tokens, rounded up to whole pages.

    Args:
      config: the model's; its `dtype` is what "auto" stands for.
      num_tokens: tokens of all sequences together, >= 1.
      page_size: tokens per page, >= 1. Every page size gives the same tokens.
      dtype: "auto", "float32", "bfloat16" or "fp8" (float8_e4m3fn); or a dtype, such as `jnp.bfloat16`.
      scales: (num_layers, 2) float32 for fp8; ones by default, as production caches use.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    num_tokens, page_size = _size("num_tokens", num_tokens), _size("page_size", page_size)
    resolved = cache_dtype(dtype, config.dtype)
    num_pages = -(-num_tokens // page_size)
    if num_pages * page_size > MAX_SLOTS:
        raise ShapeError(
            f"init_cache: arguments 'num_tokens', 'page_size': expected at most {MAX_SLOTS} slots (their numbers "
            f"are int32), got {num_pages * page_size}"
        )
    width = config.kv_lora_rank + config.qk_rope_head_dim
    if scales is None:
        scales = jnp.ones((config.num_hidden_layers, 2), jnp.float32)
    if scales.shape != (config.num_hidden_layers, 2) or scales.dtype != jnp.float32:
        raise ShapeError(
            f"init_cache: argument 'scales': expected float32 of shape ({config.num_hidden_layers}, 2), "
            f"got {scales.dtype} of shape {scales.shape}"
        )
    return LatentCache(
        kv=jnp.zeros((config.num_hidden_layers, num_pages, page_size, width), resolved),
        scales=scales,
        kv_lora_rank=config.kv_lora_rank,
        rope_layout=config.rope.layout,
    )


def _size(name: str, value: Any) -> int:
    size = as_integer(value)
    if size is None or size < 1:
        raise ShapeError(f"init_cache: argument '{name}': expected an integer >= 1, got {shown(value)}")
    return size
