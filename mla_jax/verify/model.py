"""`mla-jax verify`: the proof over a model's own steps, and its pool updated in place in the compiled module."""

import os
from dataclasses import dataclass

import jax

from mla_jax.loading import load
from mla_jax.models import decode_step, forward, freeze, prefill
from mla_jax.testing import InPlaceReport, assert_in_place
from mla_jax.verify import AttentionReport, check
from mla_jax.verify.steps import int32, paged_arguments, paged_step

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
    found = []
    for name, function, tokens in (("decode", decode_step, _ROWS), ("prefill", prefill, width)):
        step = paged_step(function, tokens)
        arguments = paged_arguments(
            config, num_seqs=_ROWS, num_tokens=tokens, max_len=longest, page_size=_PAGE_SIZE
        )
        attentions = check(step, frozen, *arguments, strict=True)
        in_place = assert_in_place(jax.jit(step, donate_argnames=("cache",)), frozen, *arguments)
        found.append(StepReport(name, attentions, in_place))
    found.append(StepReport("forward", check(forward, frozen, int32(1, width), strict=True), None))
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
