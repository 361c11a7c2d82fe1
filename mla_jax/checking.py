"""Checked mode: a wrong page, slot, length or scale becomes a sentence instead of an answer.

Metadata says whether it is checked (`AttentionMetadata.checks`, static). Where values are known, outside jit, a
mistake is raised at once. Inside jit nothing can be raised, and a callback to the host would cost a GPU its
asynchrony and be a hidden effect: there the checks are `jax.experimental.checkify` checks, which `checked` turns into
one more result of the compiled step, an error value that the host reads when the step is done.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Bool

from mla_jax.errors import CheckError, ConfigError, shown
from mla_jax.pytree import pytree

VARIABLE = "MLA_JAX_CHECK"

_CHECKIFYS_SUFFIX = " (`check` failed)"


def known(value: Any) -> bool:
    """Whether a value can be looked at now: not inside jit."""
    return not isinstance(value, jax.core.Tracer)


@pytree(data=("holds", "numbers"), static=("sentence",))
@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      sentence: said where it does not hold; `{name}` stands for one of `numbers`.
      holds: () bool.
      numbers: of the first thing that is wrong; anything where nothing is.
    """

    sentence: str
    holds: Bool[Array, ""]
    numbers: dict[str, Any]


def first_wrong(wrong: Bool[Array, "..."], sentence: str, numbers: Callable[..., dict[str, Any]]) -> Finding:
    """The finding of an array of mistakes: `numbers` describes the first, given its index along each axis."""
    if wrong.size == 0:
        return Finding(sentence, jnp.array(True), {})
    index = jnp.unravel_index(jnp.argmax(wrong), wrong.shape)
    return Finding(sentence, ~jnp.any(wrong), numbers(*index))


def require(finding: Finding) -> None:
    """Raises `CheckError` where the finding is known; inside jit leaves it to `checked`."""
    if not known(finding.holds):
        checkify.check(finding.holds, finding.sentence, **finding.numbers)
    elif not bool(finding.holds):
        raise CheckError(finding.sentence.format(**finding.numbers))


class CheckedStep:
    """A jitted step that raises what checked mode finds; made by `checked`."""

    def __init__(self, step: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, step)
        with_error = functools.wraps(step)(checkify.checkify(step, errors=checkify.user_checks))
        self._jitted: Any = jax.jit(with_error, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The step's result; waits for it. Raises `CheckError`."""
        error, result = self._jitted(*args, **kwargs)
        found = error.get()
        if found is not None:
            raise CheckError(found.removesuffix(_CHECKIFYS_SUFFIX))
        return result

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(step).lower`, of a step whose results are (error value, result)."""
        return self._jitted.lower(*args, **kwargs)

    def _cache_size(self) -> int:
        return int(self._jitted._cache_size())


def checked(step: Callable[..., Any], **options: Any) -> CheckedStep:
    """`jax.jit` for a step that makes or takes metadata with `checks=True`.

        @partial(mla_jax.checked, donate_argnames="cache")
        def step(model, tokens, cache, table, held, new):
            meta = mla_jax.AttentionMetadata.extend(table, held, new, num_tokens=16, checks=True)
            return mla_jax.prefill(model, tokens, cache, meta)

    Loops and branches inside the step are checked too. Of several mistakes one is reported, the first by its place
    in the step. A step under plain `jax.jit` that holds such metadata is refused by JAX when it is lowered, as its
    checks would have nowhere to go.

    Args:
      step: a function that `jax.jit` takes.
      options: of `jax.jit`: static and donated arguments, by number or name.

    Returns:
      A function with the step's arguments and results. It waits for the device, to read the error value. After a
      `CheckError` donated arguments are gone, as after any error of a step.

    Raises:
      CheckError: when called: one sentence that names sequence and page.
    """
    return CheckedStep(step, options)


def checks_asked(asked: Any = None) -> bool:
    """Whether checked mode is on.

    Args:
      asked: True, False, or None for the environment's MLA_JAX_CHECK: 1 is on; 0, empty or unset is off.

    Raises:
      ConfigError: anything else.
    """
    if asked is not None:
        return check_flag(asked)
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"environment variable {VARIABLE}: expected 0 or 1, got {shown(value)}")
    return value == "1"


def check_flag(value: Any) -> bool:
    """`value`, which has to be a bool: it decides what is compiled. Raises `ConfigError`."""
    if not isinstance(value, bool):
        raise ConfigError(f"checks: expected True or False, got {shown(value)}")
    return value
