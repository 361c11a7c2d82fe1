"""`mla-jax compare`: the native kernels against the references, layer by layer, on the same inputs."""

import os
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.errors import RequestError
from mla_jax.loading import load
from mla_jax.models import MLAForCausalLM, freeze
from mla_jax.paging import AttentionMetadata

BOUNDS = {"float32": 1e-4, "bfloat16": 4e-2}
"""Largest error, relative to the largest magnitude, that rounding alone may cause in a row of one layer."""

ROWS_AT_TIES = {"float32": 0.0, "bfloat16": 0.05}
"""Share of the rows that may be beyond it: where two experts' scores are equal to within a rounding of bfloat16,
the two implementations may choose differently, and that token's row with them."""


@dataclass(frozen=True)
class LayerDifference:
    """One layer's outputs from equal inputs.

    Attributes:
      name: "layer 3" or "logits".
      max_error: largest difference.
      scale: largest magnitude of the reference's output.
      cosine: 1 - cosine of the angle between the two.
      rows_beyond: rows whose error is above the compute dtype's bound.
      diverges: more of them than near ties of a router explain, or something is not finite.
    """

    name: str
    max_error: float
    scale: float
    cosine: float
    rows_beyond: int
    diverges: bool


def compare(
    path_or_id: str | os.PathLike[str],
    *,
    against: str = "reference",
    revision: str | None = None,
    num_tokens: int = 64,
    seed: int = 0,
) -> list[LayerDifference]:
    """Runs every layer twice on the reference's own stream, so that no layer's difference hides in another's.

    Args:
      path_or_id: the checkpoint.
      against: "reference", the only implementation that there is to compare with.
      revision: of a hub id.
      num_tokens: length of the random prompt.
      seed: of the prompt.

    Raises:
      RequestError: sizes or `against` out of range; KernelUnavailableError: no native kernels.
    """
    if against != "reference":
        raise RequestError(f"against: expected 'reference', got {against!r}")
    if num_tokens < 1:
        raise RequestError(f"num_tokens: expected at least 1, got {num_tokens}")
    model, config = load(path_or_id, revision=revision, kernels="native")
    if num_tokens > config.max_context:
        raise RequestError(f"compare: {num_tokens} tokens: {config.context_reason}")
    native = freeze(model)
    reference = replace(native, kernels="reference")
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, num_tokens)
    pair = (native.thaw(), reference.thaw())
    x = pair[1].model.embed_tokens(jnp.asarray(tokens, jnp.int32))
    meta = AttentionMetadata.dense(1, num_tokens)
    found = []
    for layer in range(config.num_hidden_layers):
        ours, theirs = (jax.jit(_layer(module, layer))(x, meta) for module in pair)
        found.append(_difference(f"layer {layer}", ours, theirs, config.dtype))
        x = theirs
    ours, theirs = (jax.jit(lambda x, module=module: module.logits(x))(x) for module in pair)
    found.append(_difference("logits", ours, theirs, config.dtype))
    return found


def _layer(module: MLAForCausalLM, layer: int):  # type: ignore[no-untyped-def]
    return lambda x, meta: module.model.layers[layer](x, None, meta)[0]


def _difference(name: str, ours: jax.Array, theirs: jax.Array, dtype: str) -> LayerDifference:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error, scale = float(np.max(np.abs(a - b))), float(np.max(np.abs(b)))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = 1 - float(np.vdot(a, b)) / norms if norms else 0.0
    beyond = int(np.sum(~(np.max(np.abs(a - b), axis=-1) <= BOUNDS[dtype] * scale)))
    diverges = not np.isfinite(error) or beyond > ROWS_AT_TIES[dtype] * a.shape[0]
    return LayerDifference(name, error, scale, cosine, beyond, diverges)


def format_report(found: list[LayerDifference]) -> str:
    """A line a layer, and the first one that diverges."""
    lines = [f"{'':12} {'max error':>12} {'of magnitude':>12} {'1 - cosine':>12} {'rows beyond':>12}"]
    for one in found:
        mark = "  diverges" if one.diverges else ""
        lines.append(
            f"{one.name:12} {one.max_error:12.3e} {one.scale:12.3e} {one.cosine:12.3e} {one.rows_beyond:12d}{mark}"
        )
    first = next((one.name for one in found if one.diverges), None)
    lines.append("native and reference agree" if first is None else f"the first to diverge is {first}")
    return "\n".join(lines)
