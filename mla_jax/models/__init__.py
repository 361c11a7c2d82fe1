"""The models, and the pure functions over them."""

from mla_jax.models.causal_lm import MLAForCausalLM
from mla_jax.models.decode_loop import Decoded, decode_steps
from mla_jax.models.frozen import FrozenModel, freeze
from mla_jax.models.functions import decode_step, forward, prefill

__all__ = [
    "Decoded",
    "FrozenModel",
    "MLAForCausalLM",
    "decode_step",
    "decode_steps",
    "forward",
    "freeze",
    "prefill",
]
