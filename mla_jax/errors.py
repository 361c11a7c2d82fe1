"""Every error that mla_jax raises on purpose: one root, one line each.

The op layer's errors are the same classes, so that one `except MlaJaxError` covers both packages.
"""

import reprlib

from custom_calls.errors import (
    KernelFallbackWarning,
    KernelUnavailableError,
    LayoutError,
    MlaJaxError,
    ShapeError,
    UnsupportedTransformError,
)


class CheckpointError(MlaJaxError):
    """A checkpoint's files are missing, damaged, contradictory or not what the model needs."""


class ConfigError(MlaJaxError, ValueError):
    """A configuration value is missing, of the wrong type, out of range or contradicts another one."""


class UnsupportedModelError(ConfigError):
    """A well-formed configuration describes a model or container that this library cannot run."""


class TokenizerError(MlaJaxError):
    """A tokenizer's files are missing or damaged, or text cannot be converted with them."""


class TemplateError(MlaJaxError):
    """A chat template is missing, malformed, or exceeded its time or size budget."""


class RequestError(MlaJaxError, ValueError):
    """A generation request asks for something that can never be served."""


class PoolExhaustedError(MlaJaxError):
    """The cache pool has too few free pages for what was asked."""


class CheckError(MlaJaxError):
    """Checked mode found metadata that contradicts itself or its pool, or a scale that is no number."""


class NumericsError(MlaJaxError):
    """A model's logits are not numbers: damaged weights, a dtype too narrow, or a broken page table."""


def shown(value: object) -> str:
    """How a rejected value is quoted in a message: escaped, cut short, and never an error itself."""
    try:
        return _QUOTING.repr(value)
    except Exception:  # a repr may fail: integers of 10,000 digits, objects of the caller
        return f"a value of type {type(value).__name__} that cannot be printed"


_QUOTING = reprlib.Repr()
_QUOTING.maxstring = _QUOTING.maxother = 160
_QUOTING.maxlevel = 3


__all__ = [
    "CheckError",
    "CheckpointError",
    "ConfigError",
    "KernelFallbackWarning",
    "KernelUnavailableError",
    "LayoutError",
    "MlaJaxError",
    "NumericsError",
    "PoolExhaustedError",
    "RequestError",
    "ShapeError",
    "TemplateError",
    "TokenizerError",
    "UnsupportedModelError",
    "UnsupportedTransformError",
    "shown",
]
