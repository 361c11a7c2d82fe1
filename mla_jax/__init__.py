"""DeepSeek-family inference (multi-head latent attention) in JAX through native XLA custom calls.

Names are loaded on first use, so that `mla-jax --help` does not have to import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AttentionMetadata": "mla_jax.paging",
    "Appended": "mla_jax.latent",
    "CheckError": "mla_jax.errors",
    "Completion": "mla_jax.completion",
    "Decoded": "mla_jax.models",
    "Engine": "mla_jax.engine",
    "EngineLimits": "mla_jax.engine",
    "FrozenModel": "mla_jax.models",
    "LLM": "mla_jax.llm",
    "LatentCache": "mla_jax.cache",
    "MLAForCausalLM": "mla_jax.models",
    "MlaJaxError": "mla_jax.errors",
    "ModelConfig": "mla_jax.config",
    "PageTable": "mla_jax.paging",
    "RopeTable": "mla_jax.rope",
    "SamplingParams": "mla_jax.sampling_params",
    "SlotMapping": "mla_jax.paging",
    "Unrotated": "mla_jax.latent",
    "advance": "mla_jax.paging",
    "check_step": "mla_jax.step_checks",
    "checked": "mla_jax.checking",
    "decode_step": "mla_jax.models",
    "decode_steps": "mla_jax.models",
    "forward": "mla_jax.models",
    "freeze": "mla_jax.models",
    "init_cache": "mla_jax.cache",
    "load": "mla_jax.loading",
    "merge_attn_states": "mla_jax.latent",
    "mla_attention": "mla_jax.latent",
    "mla_attention_expanded": "mla_jax.latent",
    "prefill": "mla_jax.models",
    "rope_append_latent": "mla_jax.latent",
    "sample": "mla_jax.sampling",
    "softmax_scale": "mla_jax.rope",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mla_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if TYPE_CHECKING:
    from mla_jax.cache import LatentCache, init_cache
    from mla_jax.checking import checked
    from mla_jax.completion import Completion
    from mla_jax.config import ModelConfig
    from mla_jax.engine import Engine, EngineLimits
    from mla_jax.errors import CheckError, MlaJaxError
    from mla_jax.latent import (
        Appended,
        Unrotated,
        merge_attn_states,
        mla_attention,
        mla_attention_expanded,
        rope_append_latent,
    )
    from mla_jax.llm import LLM
    from mla_jax.loading import load
    from mla_jax.models import (
        Decoded,
        FrozenModel,
        MLAForCausalLM,
        decode_step,
        decode_steps,
        forward,
        freeze,
        prefill,
    )
    from mla_jax.paging import AttentionMetadata, PageTable, SlotMapping, advance
    from mla_jax.rope import RopeTable, softmax_scale
    from mla_jax.sampling import sample
    from mla_jax.sampling_params import SamplingParams
    from mla_jax.step_checks import check_step
