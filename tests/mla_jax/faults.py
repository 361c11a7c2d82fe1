"""Mistakes that the design forbids, made on purpose by going around its types, and what each costs in answers.

Only for tests. Each fault is a context manager within which a newly made `LLM` computes wrongly. The table of the
README: `python tests/mla_jax/faults.py [N]` (N problems each, 200 if not said).
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import mla_jax
import mla_jax.llm as llm_module
from custom_calls.quantized_tensor import QuantizedTensor
from custom_calls.rope_contract import rotate
from mla_jax import latent
from mla_jax.convert import convert
from mla_jax.evaluation import Score, evaluate, make_task
from mla_jax.layers import attention
from mla_jax.paging import SlotMapping
from mla_jax.rope import RopeTable

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "arithmetic"
PAGE_SIZE = 16


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
      what: of the mistake, for the table.
      refused: what refuses it where nobody goes around it.
      field: the field's own figure for this class, or "".
      weights: of the checkpoint that it is made on.
    """

    what: str
    refused: str
    field: str = ""
    weights: str = "bf16"


FAULTS = {
    "none": Fault("nothing wrong", ""),
    "rope_twice": Fault("RoPE applied twice", "type, verifier", "GSM8K 0.953 to 0.169 (sglang#24148)"),
    "rope_never": Fault("RoPE never applied (an identity table)", "a skipped rotation: type, verifier"),
    "rope_layout": Fault("RoPE in the other layout", "type: table and cache carry it"),
    "lengths_in_pages": Fault(
        "lengths in pages read as tokens", "type", "GSM8K 0.970 to 0.005 (sglang#25556)"
    ),
    "stored_twice": Fault("rows stored again, not rotated", "type, verifier"),
    "wrong_slot": Fault("rows stored one slot further", "type: slots come from the page table"),
    "no_mscale": Fault("softmax scale without mscale", "one function computes it; parity tests"),
    "mxfp4": Fault("nothing wrong, MXFP4 weights", "", weights="mxfp4"),
    "nibbles": Fault("MXFP4 nibbles swapped", "named packing; published vectors", weights="mxfp4"),
    "scale_byte": Fault("MXFP4 scale bytes off by one", "published vectors", weights="mxfp4"),
}


def _replaced(module: Any, name: str, make: Any) -> Any:
    return mock.patch.object(module, name, make(getattr(module, name)))


@contextlib.contextmanager
def fault(name: str) -> Iterator[None]:
    """Within it every `LLM` that is made computes with the fault."""
    patches = {
        "rope_twice": lambda: _replaced(attention, "rope_append_latent", _rotated_before),
        "rope_never": lambda: _replaced(attention, "rope_append_latent", _with_identity),
        "rope_layout": lambda: _replaced(attention, "rope_append_latent", _with_other_layout),
        "stored_twice": lambda: _replaced(attention, "rope_append_latent", _stored_again),
        "wrong_slot": lambda: _replaced(attention, "rope_append_latent", _one_slot_further),
        "lengths_in_pages": lambda: _replaced(attention, "mla_attention", _lengths_in_pages),
        "no_mscale": lambda: _replaced(attention, "softmax_scale", _without_mscale),
        "nibbles": lambda: _replaced(llm_module, "freeze", _with_weights(_swapped)),
        "scale_byte": lambda: _replaced(llm_module, "freeze", _with_weights(_next_scale)),
    }
    if name not in patches:
        yield
        return
    # What is compiled outlives a patch, and what was compiled before would be used within it.
    jax.clear_caches()
    try:
        with patches[name]():
            yield
    finally:
        jax.clear_caches()


def _with_weights(change: Callable[[QuantizedTensor], QuantizedTensor]) -> Callable[..., Any]:
    def make(freeze: Any) -> Any:
        def changed(node: Any) -> Any:
            return change(node) if isinstance(node, QuantizedTensor) else node

        return lambda model: jax.tree.map(
            changed, freeze(model), is_leaf=lambda node: isinstance(node, QuantizedTensor)
        )

    return make


def _swapped(weight: QuantizedTensor) -> QuantizedTensor:
    return replace(weight, data=weight.data << np.uint8(4) | weight.data >> np.uint8(4))


def _next_scale(weight: QuantizedTensor) -> QuantizedTensor:
    return replace(weight, scale=weight.scale + np.uint8(1))


def _rotated_before(append: Any) -> Any:
    def wrong(unrotated: Any, weight: Any, table: RopeTable, positions: Any, *rest: Any, **more: Any) -> Any:
        width = 2 * table.cos.shape[1]
        cos, sin = (array[positions] for array in (table.cos, table.sin))

        def rotated(values: jax.Array) -> jax.Array:
            heads = values.astype(jnp.float32)
            out = rotate(heads, cos[:, None], sin[:, None], table.layout)
            return out.astype(values.dtype)

        q = jnp.concatenate([unrotated.q[..., :-width], rotated(unrotated.q[..., -width:])], axis=-1)
        key = rotated(unrotated.kv_a[:, None, -width:])[:, 0]
        kv_a = jnp.concatenate([unrotated.kv_a[:, :-width], key], axis=-1)
        return append(replace(unrotated, q=q, kv_a=kv_a), weight, table, positions, *rest, **more)

    return wrong


def _with_identity(append: Any) -> Any:
    def wrong(unrotated: Any, weight: Any, table: RopeTable, *rest: Any, **more: Any) -> Any:
        none = replace(table, cos=jnp.ones_like(table.cos), sin=jnp.zeros_like(table.sin))
        return append(unrotated, weight, none, *rest, **more)

    return wrong


def _with_other_layout(append: Any) -> Any:
    def wrong(
        unrotated: Any, weight: Any, table: RopeTable, positions: Any, cache: Any, *rest: Any, **more: Any
    ) -> Any:
        other = replace(table, layout="half" if table.layout == "interleaved" else "interleaved")
        appended = append(
            unrotated, weight, other, positions, replace(cache, rope_layout=other.layout), *rest, **more
        )
        own = replace(appended.cache, rope_layout=table.layout)
        return latent.Appended(
            appended.q, appended.q_rope, own, appended.layer, appended.rows, seal=latent._SEAL
        )

    return wrong


def _stored_again(append: Any) -> Any:
    def wrong(
        unrotated: Any,
        weight: Any,
        table: RopeTable,
        positions: Any,
        cache: Any,
        layer: Any,
        slots: Any,
        **more: Any,
    ) -> Any:
        once = append(unrotated, weight, table, positions, cache, layer, slots, **more)
        none = replace(table, cos=jnp.ones_like(table.cos), sin=jnp.zeros_like(table.sin))
        again = append(unrotated, weight, none, positions, once.cache, layer, slots, **more)
        return latent.Appended(once.q, once.q_rope, again.cache, once.layer, once.rows, seal=latent._SEAL)

    return wrong


def _one_slot_further(append: Any) -> Any:
    def wrong(
        unrotated: Any, weight: Any, table: RopeTable, positions: Any, cache: Any, layer: Any, slots: SlotMapping,
        **more: Any,
    ) -> Any:  # fmt: skip
        live = (slots.slots >= 0) & (slots.slots + 1 < cache.num_slots)
        moved = replace(slots, slots=jnp.where(live, slots.slots + 1, slots.slots))
        return append(unrotated, weight, table, positions, cache, layer, moved, **more)

    return wrong


def _lengths_in_pages(attend: Any) -> Any:
    def wrong(q_latent: Any, appended: Any, meta: Any, *rest: Any, **more: Any) -> Any:
        size = appended.cache.page_size
        return attend(q_latent, appended, replace(meta, seq_lens=-(-meta.seq_lens // size)), *rest, **more)

    return wrong


def _without_mscale(_: Any) -> Any:
    return lambda config: (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5


def score(name: str, folder: Path, count: int) -> Score:
    """Of a model with the fault, on held-out problems."""
    with fault(name):
        with contextlib.redirect_stderr(io.StringIO()):  # the table of kernels, each time
            llm = mla_jax.LLM(folder, page_size=PAGE_SIZE, max_num_seqs=16, max_model_len=320)
        return evaluate(llm, make_task("arithmetic", n=count), progress=False)


def checkpoint(weights: str, scratch: Path) -> Path:
    """The shipped checkpoint with its weights in a container."""
    if weights == "bf16":
        return CHECKPOINT
    folder = scratch / weights
    if not folder.exists():
        convert(CHECKPOINT, folder, weights=weights, progress=False)
    return folder


def main() -> None:
    """Prints the table."""
    import tempfile

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"| mistake | exact match of {count} (95 %) | refused by | in the field |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, one in FAULTS.items():
            found = score(name, checkpoint(one.weights, Path(scratch)), count)
            share = f"{found.exact_match:.3f} ({found.low:.3f} to {found.high:.3f})"
            print(f"| {one.what} | {share} | {one.refused} | {one.field} |", flush=True)


if __name__ == "__main__":
    main()
