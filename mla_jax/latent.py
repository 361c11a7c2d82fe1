"""The typed form of latent attention: what is not rotated cannot be attended to, nor rotated twice.

`Unrotated` goes into `rope_append_latent`, `Appended` comes out, and `mla_attention` takes nothing else.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from custom_calls.mla_attention import Keys
from custom_calls.mla_attention import mla_attention as _attention_op
from custom_calls.mla_attention_expanded import mla_attention_expanded as _expanded_op
from custom_calls.registry import Kernels
from custom_calls.rope_append_latent import dequantise_rows
from custom_calls.rope_append_latent import rope_append_latent as _append_op
from custom_calls.rope_append_latent import rope_latent_rows as _rows_op
from mla_jax.cache import LatentCache
from mla_jax.errors import LayoutError
from mla_jax.paging import AttentionMetadata, SlotMapping, check_pool
from mla_jax.pytree import pytree
from mla_jax.rope import RopeTable


@pytree(data=("q", "kv_a"), static=("kv_offset",))
@dataclass(frozen=True)
class Unrotated:
    """What the projections produce: nothing in it is rotated, normed or stored.

    Attributes:
      q: (T, H, nope + rope) queries; the last columns are to be rotated.
      kv_a: (T, W); columns [kv_offset, kv_offset + kv_lora_rank + rope) are latent and key part.
      kv_offset: first of these columns, where kv_a is part of a fused projection.
    """

    q: Float[Array, "tokens heads qk_head_dim"]
    kv_a: Float[Array, "tokens width"]
    kv_offset: int = 0


_SEAL = object()


@pytree(data=("q", "q_rope", "cache", "layer", "rows"))
@dataclass(frozen=True, init=False)
class Appended:
    """The proof that a step's queries were rotated once and its rows stored once, before attention.

    Only `rope_append_latent` makes one.

    Attributes:
      q: (T, H, nope + rope) the queries as projected; only their first `nope` columns are still of use.
      q_rope: (T, H, rope) the rotated part.
      cache: the pool that now holds this step's rows, or None without a pool.
      layer: () int32 layer of the pool.
      rows: (T, kv_lora_rank + rope) this step's rows where there is no pool, else None.
    """

    q: Float[Array, "tokens heads qk_head_dim"]
    q_rope: Float[Array, "tokens heads rope"]
    cache: LatentCache | None
    layer: Int[Array, ""]
    rows: Float[Array, "tokens row"] | None

    def __init__(self, *fields: Any, seal: object = None) -> None:
        if seal is not _SEAL:
            raise LayoutError("Appended is made by rope_append_latent only, which rotates and stores")
        for name, value in zip(("q", "q_rope", "cache", "layer", "rows"), fields, strict=True):
            object.__setattr__(self, name, value)


def rope_append_latent(
    unrotated: Unrotated,
    kv_norm_weight: Float[Array, " kv_lora_rank"],
    table: RopeTable,
    positions: Int[Array, " tokens"],
    cache: LatentCache | None,
    layer: int | Int[Array, ""],
    slots: SlotMapping | None,
    *,
    eps: float,
    kernels: Kernels = "auto",
) -> Appended:
    """Norms the latent, rotates query and key part, and stores this step's rows: the only way to do any.

    Args:
      unrotated: the projections.
      kv_norm_weight: weight of the latent's RMSNorm.
      table: cos and sin; `RopeTable.identity` for layers without RoPE.
      positions: token position of each row.
      cache: the pool, updated in place where it is donated; None returns the rows in the result.
      layer: which layer of the pool.
      slots: where each row is stored; None exactly when `cache` is.
      eps: of the RMSNorm.

    Raises:
      LayoutError: the arguments are not of these types, table and cache differ in layout, or the slots
        were made for another pool.
      ShapeError: naming argument, expected and got.
    """
    _require(unrotated, Unrotated, "rope_append_latent", "unrotated", "what the projections produce")
    _require(table, RopeTable, "rope_append_latent", "table", "cos and sin with their layout")
    number = jnp.asarray(layer, jnp.int32)
    static: dict[str, Any] = {
        "eps": eps,
        "layout": table.layout,
        "q_offset": unrotated.q.shape[-1] - 2 * table.cos.shape[-1],
        "kv_offset": unrotated.kv_offset,
        "kernels": kernels,
    }
    rotation = (unrotated.q, unrotated.kv_a, kv_norm_weight, table.cos, table.sin, positions)
    if cache is None:
        if slots is not None:
            raise LayoutError("rope_append_latent: argument 'slots': expected None without a cache")
        q_rope, rows = _rows_op(*rotation, **static)
        return Appended(unrotated.q, q_rope, None, number, rows, seal=_SEAL)
    _require(cache, LatentCache, "rope_append_latent", "cache", "the pool and its layout")
    if not isinstance(slots, SlotMapping):
        raise LayoutError(
            _mismatch(slots, SlotMapping, "rope_append_latent", "slots", "token-granular slots")
        )
    if table.layout != cache.rope_layout:
        raise LayoutError(
            f"rope_append_latent: the table rotates {table.layout!r} pairs, the cache was written with "
            f"{cache.rope_layout!r} pairs"
        )
    check_pool("rope_append_latent", slots, cache)
    q_rope, kv = _append_op(*rotation, slots.slots, cache.kv, number, _layer_scales(cache, number), **static)
    return Appended(unrotated.q, q_rope, cache.with_kv(kv), number, None, seal=_SEAL)


def mla_attention(
    q_latent: Float[Array, "tokens heads kv_lora_rank"],
    appended: Appended,
    meta: AttentionMetadata,
    softmax_scale: float,
    *,
    keys: Keys = "all",
    kernels: Kernels = "auto",
) -> tuple[Float[Array, "tokens heads kv_lora_rank"], Float[Array, "tokens heads"]]:
    """Absorbed latent attention over the pool: ragged, any mix of prefill chunks and decode rows, causal.

    Args:
      q_latent: the queries' part without RoPE, absorbed into the latent space.
      appended: this layer's `rope_append_latent` result, with a pool.
      meta: of the same step.
      softmax_scale: see `mla_jax.rope.softmax_scale`.
      keys: "all" up to each query's own position; "cached" only those from before this step.

    Returns:
      (output in the latent space, natural-log logsumexp float32); 0 and -inf where no key is visible.

    Raises:
      LayoutError: `appended` is not an `Appended` with a pool, or the page table is another pool's.
    """
    _require(appended, Appended, "mla_attention", "appended", "the result of rope_append_latent")
    cache = appended.cache
    if cache is None or meta.page_table is None:
        raise LayoutError(
            "mla_attention: argument 'appended': expected rows in a pool and metadata with a page table; "
            "without a pool use mla_attention_expanded"
        )
    check_pool("mla_attention", meta.page_table, cache)
    return _attention_op(
        q_latent,
        appended.q_rope,
        cache.kv,
        appended.layer,
        _layer_scales(cache, appended.layer),
        meta.page_table.pages,
        meta.query_start_loc,
        meta.seq_lens,
        softmax_scale=softmax_scale,
        keys=keys,
        kernels=kernels,
    )


def appended_rows(appended: Appended, meta: AttentionMetadata) -> Float[Array, "tokens row"]:
    """This step's rows as attention sees them, in the compute dtype: what the pool holds, rounding included.

    Rows that were not stored come back as zeros.
    """
    if appended.rows is not None:
        return appended.rows
    cache, mapping = appended.cache, meta.slot_mapping
    if cache is None or mapping is None:
        raise LayoutError("appended_rows: argument 'meta': expected a slot mapping beside a pool")
    check_pool("appended_rows", mapping, cache)
    pool = cache.kv.reshape(cache.num_layers, cache.num_slots, cache.kv.shape[-1])
    stored = pool.at[appended.layer, mapping.slots].get(
        mode="fill", fill_value=0, wrap_negative_indices=False
    )
    if stored.dtype == appended.q.dtype:
        return stored
    scales = _layer_scales(cache, appended.layer)
    return dequantise_rows(stored, scales, cache.kv_lora_rank).astype(appended.q.dtype)


def mla_attention_expanded(
    appended: Appended,
    rows: Float[Array, "tokens row"],
    kv: Float[Array, "tokens heads_times_nope_plus_v"],
    meta: AttentionMetadata,
    softmax_scale: float,
    *,
    nope: int,
    v: int,
    kernels: Kernels = "auto",
) -> tuple[Float[Array, "tokens heads v_head_dim"], Float[Array, "tokens heads"]]:
    """Causal attention among this step's own tokens, with keys and values expanded by kv_b_proj.

    Args:
      appended: this layer's `rope_append_latent` result.
      rows: `appended_rows(appended, meta)`.
      kv: the rows' latent part through kv_b_proj, per head `nope` key then `v` value columns.
      meta, softmax_scale: as `mla_attention`.

    Returns:
      (per-head output, natural-log logsumexp float32); merge it with `mla_attention(keys="cached")`
      where sequences had tokens before this step.
    """
    _require(appended, Appended, "mla_attention_expanded", "appended", "the result of rope_append_latent")
    return _expanded_op(
        appended.q,
        appended.q_rope,
        kv,
        rows,
        meta.query_start_loc,
        nope=nope,
        v=v,
        softmax_scale=softmax_scale,
        uniform_length=meta.uniform_length,
        kernels=kernels,
    )


def merge_attn_states(
    out_a: Float[Array, "tokens heads dim"],
    logsumexp_a: Float[Array, "tokens heads"],
    out_b: Float[Array, "tokens heads dim"],
    logsumexp_b: Float[Array, "tokens heads"],
) -> tuple[Float[Array, "tokens heads dim"], Float[Array, "tokens heads"]]:
    """Attention over the union of two disjoint key sets, from the states over each.

    out = sum_i exp(lse_i - lse) out_i with lse = log sum_i exp(lse_i), in float32, rounded once to
    out_a's dtype. An empty set (lse = -inf) contributes nothing, whatever its `out` holds; two empty
    sets give 0 and -inf.
    """
    peak = jnp.maximum(logsumexp_a, logsumexp_b)
    safe = jnp.where(jnp.isneginf(peak), jnp.float32(0), peak)
    weight_a, weight_b = jnp.exp(logsumexp_a - safe), jnp.exp(logsumexp_b - safe)
    total = weight_a + weight_b

    def part(weight: jax.Array, out: jax.Array) -> jax.Array:
        used = jnp.where((weight > 0)[:, :, None] | jnp.isnan(weight)[:, :, None], out.astype(jnp.float32), 0)
        return weight[:, :, None] * used

    some = jnp.where(total == 0, jnp.float32(1), total)
    merged = (part(weight_a, out_a) + part(weight_b, out_b)) / some[:, :, None]
    return merged.astype(out_a.dtype), safe + jnp.log(total)


def _layer_scales(cache: LatentCache, layer: jax.Array) -> jax.Array:
    return cache.scales[jnp.clip(layer, 0, cache.num_layers - 1)]


def _require(value: Any, kind: type, op: str, name: str, meaning: str) -> None:
    if not isinstance(value, kind):
        raise LayoutError(_mismatch(value, kind, op, name, meaning))


def _mismatch(value: Any, kind: type, op: str, name: str, meaning: str) -> str:
    return f"{op}: argument '{name}': expected {kind.__name__} ({meaning}), got {type(value).__name__}"
