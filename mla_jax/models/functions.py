"""`forward`, `prefill` and `decode_step`: pure functions over pytrees.

They survive jit, grad, scan and while_loop. Jit the paged ones with `donate_argnames=("cache",)` to update
the pool in place; without donation JAX copies it once, and the caller's cache stays valid.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mla_jax.cache import LatentCache
from mla_jax.checking import first_wrong, known, require
from mla_jax.errors import LayoutError, ShapeError
from mla_jax.models.causal_lm import MLAForCausalLM
from mla_jax.models.frozen import FrozenModel, Model
from mla_jax.models.token_ids import token_ids
from mla_jax.paging import AttentionMetadata


def forward(model: Model, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocab"]:
    """Logits of whole sequences, without a pool; differentiable with respect to the model.

    Args:
      model: of `mla_jax.load`, `MLAForCausalLM.init` or `freeze`.
      tokens: (B, S) integer token ids; causal, so padding on the right changes nothing before it.

    Returns:
      (B, S, vocab_size) float32; [b, i] predicts token i + 1. Memory is O(B S^2) at most.

    Raises:
      ShapeError: wrong rank or dtype, or S beyond the model's context.
    """
    module = _module(model)
    ids = token_ids("forward", tokens, ("B", "S"))
    batch, length = ids.shape
    _check_context("forward", module, length)
    hidden, _ = module(ids.reshape(batch * length), None, AttentionMetadata.dense(batch, length))
    return module.logits(hidden).reshape(batch, length, module.config.vocab_size)


def prefill(
    model: Model, tokens: Int[Array, " tokens"], cache: LatentCache, meta: AttentionMetadata
) -> tuple[Float[Array, "num_seqs vocab"], LatentCache]:
    """A ragged step: any number of new tokens for every sequence, appended to what the pool holds.

    Args:
      model: of `mla_jax.load`, `MLAForCausalLM.init` or `freeze`.
      tokens: (T,) ids, the sequences' new tokens one after the other; padding at the end.
      cache: the pool; donate it when jitting.
      meta: of `AttentionMetadata.extend`.

    Returns:
      (logits (num_seqs, vocab_size) float32 of each sequence's last new token, zeros for a sequence
      without new tokens; the pool with the new rows). NaN for a sequence whose answer is not known: longer
      than the model's context or its row of the page table, or without pages for some of its tokens.

    Raises:
      ShapeError, LayoutError: naming argument, expected and got; a sequence longer than the model's context
      is one where lengths are known, outside jit.
    """
    module = _module(model)
    ids = token_ids("prefill", tokens, ("T",))
    _check_step("prefill", module, ids, cache, meta)
    hidden, cache_after = module(ids, cache, meta)
    assert cache_after is not None
    starts, ends = meta.query_start_loc[:-1], meta.query_start_loc[1:]
    logits = jnp.zeros((meta.num_seqs, module.config.vocab_size), jnp.float32)
    if ids.shape[0] > 0:
        last = jnp.clip(ends - 1, 0, ids.shape[0] - 1)
        logits = jnp.where((ends > starts)[:, None], module.logits(hidden[last]), logits)
    return _answerable(logits, module, meta), cache_after


def decode_step(
    model: Model, tokens: Int[Array, " num_seqs"], cache: LatentCache, meta: AttentionMetadata
) -> tuple[Float[Array, "num_seqs vocab"], LatentCache]:
    """One new token for every sequence.

    Args:
      model, cache: as `prefill`.
      tokens: (num_seqs,) ids; row i belongs to sequence i.
      meta: of `advance`, with one row a sequence.

    Returns:
      (logits (num_seqs, vocab_size) float32, the pool with the new rows). NaN as for `prefill`, and for a
      sequence whose one row is not its own: metadata of a prefill of as many tokens as sequences.

    Raises:
      ShapeError, LayoutError: as `prefill`; outside jit also on metadata in which row i is not sequence i's.
    """
    module = _module(model)
    ids = token_ids("decode_step", tokens, ("num_seqs",))
    if meta.num_tokens != meta.num_seqs:
        raise ShapeError(
            f"decode_step: argument 'meta': expected one row for each of {meta.num_seqs} sequences, got "
            f"{meta.num_tokens} rows; call mla_jax.advance(meta) after a prefill"
        )
    _check_step("decode_step", module, ids, cache, meta)
    starts = meta.query_start_loc
    if known(starts) and (np.asarray(starts) != np.arange(meta.num_seqs + 1)).any():
        raise ShapeError(
            f"decode_step: argument 'meta': expected one row for each of {meta.num_seqs} sequences, got "
            f"{np.diff(np.asarray(starts)).tolist()} rows for them; call mla_jax.advance(meta) after a prefill"
        )
    hidden, cache_after = module(ids, cache, meta)
    assert cache_after is not None
    in_place = starts == jnp.arange(meta.num_seqs + 1, dtype=jnp.int32)
    own = in_place[:-1] & in_place[1:]
    if meta.checks:
        require(
            first_wrong(
                ~own,
                "decode_step: sequence {sequence}: expected one row, its own, got rows {first} to {end}; call "
                "mla_jax.advance(meta) after a prefill",
                lambda row: {"sequence": row, "first": starts[row], "end": starts[row + 1]},
            )
        )
    return _answerable(
        jnp.where(own[:, None], module.logits(hidden), jnp.float32(jnp.nan)), module, meta
    ), cache_after


def _answerable(logits: jax.Array, module: MLAForCausalLM, meta: AttentionMetadata) -> jax.Array:
    """NaN for a sequence that outgrew its row of the page table, or the model's context in its last page."""
    assert meta.page_table is not None
    limit = min(meta.page_table.capacity, module.config.max_context)
    return jnp.where((meta.seq_lens > limit)[:, None], jnp.float32(jnp.nan), logits)


def _module(model: Model) -> MLAForCausalLM:
    if isinstance(model, FrozenModel):
        return model.thaw()
    if isinstance(model, MLAForCausalLM):
        return model
    raise LayoutError(f"argument 'model': expected MLAForCausalLM or FrozenModel, got {type(model).__name__}")


def _check_context(op: str, module: MLAForCausalLM, length: int) -> None:
    limit, reason = module.config.max_context, module.config.context_reason
    if length > limit:
        raise ShapeError(f"{op}: {length} tokens exceed the model's context of {limit}: {reason}")


def _check_step(
    op: str, module: MLAForCausalLM, ids: jax.Array, cache: LatentCache, meta: AttentionMetadata
) -> None:
    if not isinstance(cache, LatentCache):
        raise LayoutError(f"{op}: argument 'cache': expected LatentCache, got {type(cache).__name__}")
    if not isinstance(meta, AttentionMetadata) or meta.page_table is None or meta.slot_mapping is None:
        raise LayoutError(f"{op}: argument 'meta': expected AttentionMetadata with a page table")
    if ids.shape != (meta.num_tokens,):
        raise ShapeError(
            f"{op}: argument 'tokens': expected shape ({meta.num_tokens},) as the metadata, got {ids.shape}"
        )
    limit, reason = module.config.max_context, module.config.context_reason
    table = meta.page_table
    if table.capacity - table.page_size >= limit:
        raise ShapeError(
            f"{op}: argument 'meta': the page table lets a sequence grow to {table.capacity} tokens, the "
            f"model's context is {limit}: {reason}"
        )
    if known(meta.seq_lens) and meta.num_seqs > 0:
        _check_context(op, module, int(np.asarray(meta.seq_lens).max()))
    if cache.num_layers != module.config.num_hidden_layers:
        raise ShapeError(
            f"{op}: argument 'cache': expected {module.config.num_hidden_layers} layers, got {cache.num_layers}"
        )
