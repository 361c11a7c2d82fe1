"""`mla-jax verify`: the proof over a model's own steps, and its pool updated in place in the compiled module."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.cache import LatentCache, init_cache
from mla_jax.loading import load
from mla_jax.models import decode_step, forward, freeze, prefill
from mla_jax.paging import AttentionMetadata, PageTable
from mla_jax.testing import InPlaceReport, assert_in_place
from mla_jax.verify import AttentionReport, check

_ROWS, _TOKENS, _PAGE_SIZE = 2, 64, 16


@dataclass(frozen=True)
class StepReport:
    """What is shown of one step: its attentions, and for a step with a pool its compiled module."""

    name: str
    attentions: list[AttentionReport]
    in_place: InPlaceReport | None


def check_model(path_or_id: str | os.PathLike[str], *, revision: str | None = None) -> list[StepReport]:
    """Proves decode, prefill and forward of a checkpoint's model; no weight is read.

    Args:
      path_or_id, revision: as for `load`.

    Raises:
      VerificationError: see `check`, which is strict here.
      AssertionError: see `assert_in_place`.
      CheckpointError, ConfigError: see `load`.
    """
    model, config = load(path_or_id, revision=revision, abstract=True)
    frozen = freeze(model)
    longest = min(config.max_context, 4 * _TOKENS)
    width = min(_TOKENS, longest)

    def pool() -> LatentCache:
        return init_cache(config, num_tokens=_ROWS * (longest + _PAGE_SIZE), page_size=_PAGE_SIZE)

    cache = jax.eval_shape(pool)
    table = jax.eval_shape(lambda: PageTable.empty(pool(), _ROWS, longest))
    lengths = _ints(_ROWS)

    def with_metadata(function: Callable[..., Any], tokens: int) -> Callable[..., Any]:
        def step(
            model: Any, tokens_in: Any, cache: Any, table: PageTable, seq_lens: Any, num_new: Any
        ) -> Any:
            meta = AttentionMetadata.extend(table, seq_lens, num_new, num_tokens=tokens)
            return function(model, tokens_in, cache, meta)

        return step

    found = []
    for name, function, tokens in (("decode", decode_step, _ROWS), ("prefill", prefill, width)):
        step = with_metadata(function, tokens)
        arguments = (frozen, _ints(tokens), cache, table, lengths, lengths)
        attentions = check(step, *arguments, strict=True)
        in_place = assert_in_place(jax.jit(step, donate_argnames=("cache",)), *arguments)
        found.append(StepReport(name, attentions, in_place))
    found.append(StepReport("forward", check(forward, frozen, _ints(1, width), strict=True), None))
    return found


def format_model_report(found: list[StepReport]) -> str:
    """One line a step."""
    lines = []
    for step in found:
        layers = len({one.layer for one in step.attentions})
        line = f"{step.name:8} {len(step.attentions)} attentions in {layers} layers: queries and keys rotated once"
        if step.in_place is not None:
            line += (
                f", rows stored once; compiled, the pool of {step.in_place.cache_bytes} bytes is updated in place "
                f"({step.in_place.temp_bytes} bytes of temporaries)"
            )
        lines.append(line)
    return "\n".join(lines)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
