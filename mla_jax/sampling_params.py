"""What a request may say about sampling, and what it means beside a model's own defaults."""

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mla_jax.arguments import as_integer
from mla_jax.errors import RequestError, shown

MAX_LOGPROBS = 20

MAX_SEED = 2**32 - 1
"""JAX ignores the upper half of a longer seed unless 64-bit mode is on: two seeds would be one."""

MAX_N = 16_384
"""More answers than are served at a time wait their turn, so no engine is too small for a large n. But every
answer is queued at once and kept until the last one ends: more than this is a slip, and would fill the host's
memory before the first token."""

# Logits divided by less than this overflow float32; the outcome would be greedy anyway.
_MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. None means: as the model's generation_config.json says.

    Where that says nothing either, the most likely token is taken, up to the longest sequence.

    Attributes:
      max_tokens: tokens to generate at most, >= 1.
      temperature: divides the logits, >= 0; 0 takes the most likely token.
      top_p: only the smallest set of tokens with this probability, in (0, 1]; 1 is off.
      top_k: only the k most likely tokens, >= 0; 0 is off. -1, as in other libraries, is refused.
      min_p: only tokens with this fraction of the best one's probability, in [0, 1]; 0 is off.
      seed: of the random numbers, in [0, 2**32). None: a fresh one.
      stop: texts that end the answer and are not part of it. One string is taken as a tuple of one.
      stop_token_ids: ids that end the answer, beside the model's EOS ids.
      ignore_eos: whether to go on after the model's EOS ids.
      logprobs: how many of the likeliest tokens to report at every step, 0 to 20; None reports none.
      n: how many answers to one prompt, 1 to 16384. Those that do not fit beside each other wait their turn.

    Raises:
      RequestError: a value is of the wrong type (a bool is no number) or out of range; the message
        names the field, what was expected and what came.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        self._set("max_tokens", _integer("max_tokens", self.max_tokens, low=1))
        self._set("temperature", _number("temperature", self.temperature, "a number >= 0", low=0.0))
        self._set("top_p", _number("top_p", self.top_p, "a number in (0, 1]", above=0.0, high=1.0))
        self._set("top_k", _integer("top_k", self.top_k, low=0, hint=" (0 is off)"))
        self._set("min_p", _number("min_p", self.min_p, "a number in [0, 1]", low=0.0, high=1.0))
        self._set("seed", _integer("seed", self.seed, low=0, high=MAX_SEED))
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _token_ids(self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            _fail("ignore_eos", "True or False", self.ignore_eos)
        self._set("logprobs", _integer("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS))
        if self.n is None:
            _fail("n", f"an integer from 1 to {MAX_N}", self.n)
        self._set("n", _integer("n", self.n, low=1, high=MAX_N))

    def _set(self, name: str, value: object) -> None:
        # Plain Python values in a frozen object: NumPy's scalars and lists would not be hashable or equal.
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class ResolvedParams:
    """`SamplingParams` with nothing left open.

    Attributes:
      max_tokens: None means as long as a sequence may be.
      temperature: 0.0 is greedy. top_p: 1.0 is off. top_k: 0 is off. min_p: 0.0 is off.
      seed: None means a fresh one.
      stop: texts that end the answer.
      stop_token_ids: ids that the request names.
      eos_token_ids: the model's own end ids; empty where the request ignores them.
      logprobs: likeliest tokens to report, or None.
      n: answers to one prompt.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    logprobs: int | None
    n: int

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


def resolve(params: SamplingParams, defaults: Any = None) -> ResolvedParams:
    """Fills what `params` leaves open.

    The request comes first, then `defaults`, then: greedy, every limit off. `do_sample` false makes the
    default temperature 0, whatever temperature the defaults name; true without a temperature means 1.
    A request's own temperature is not affected by it, and naming only top_p, top_k or min_p does not
    switch sampling on. Temperatures below 1e-5 become 0.

    Args:
      params: a request's.
      defaults: any object with some of the attributes temperature, top_p, top_k, min_p, do_sample,
        max_new_tokens and eos_token_ids, such as `mla_jax.checkpoints.GenerationDefaults`, or None.

    Raises:
      RequestError: the defaults hold a value that a request could not ask for either.
    """
    limits = SamplingParams(
        max_tokens=_first(params.max_tokens, getattr(defaults, "max_new_tokens", None)),
        temperature=_first(params.temperature, _default_temperature(defaults)),
        top_p=_first(params.top_p, getattr(defaults, "top_p", None)),
        top_k=_first(params.top_k, getattr(defaults, "top_k", None)),
        min_p=_first(params.min_p, getattr(defaults, "min_p", None)),
    )
    temperature = limits.temperature or 0.0
    eos = getattr(defaults, "eos_token_ids", None) or ()
    return ResolvedParams(
        max_tokens=limits.max_tokens,
        temperature=temperature if temperature >= _MIN_TEMPERATURE else 0.0,
        top_p=1.0 if limits.top_p is None else limits.top_p,
        top_k=limits.top_k or 0,
        min_p=limits.min_p or 0.0,
        seed=params.seed,
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        eos_token_ids=() if params.ignore_eos else tuple(eos),
        logprobs=params.logprobs,
        n=params.n,
    )


def _default_temperature(defaults: Any) -> float:
    do_sample = getattr(defaults, "do_sample", None)
    temperature: float | None = getattr(defaults, "temperature", None)
    if do_sample is False:
        return 0.0
    if temperature is None:
        return 1.0 if do_sample else 0.0
    return temperature


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _integer(name: str, value: Any, *, low: int, high: int | None = None, hint: str = "") -> int | None:
    if value is None:
        return None
    number = as_integer(value)
    if number is not None and low <= number and (high is None or number <= high):
        return number
    _fail(
        name,
        f"an integer >= {low}{hint}" if high is None else f"an integer from {low} to {high}",
        value,
    )


def _number(
    name: str,
    value: Any,
    expected: str,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            number = math.inf
        if math.isfinite(number) and low <= number <= high and number > above:
            return number
    _fail(name, expected, value)


def _stop_strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        _fail("stop", "a string or a sequence of strings", value)
    strings = tuple(value)
    for i, string in enumerate(strings):
        if not isinstance(string, str) or not string:
            _fail(f"stop[{i}]", "a non-empty string", string)
    return strings


def _token_ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        _fail("stop_token_ids", "a sequence of token ids", value)
    ids = []
    for i, item in enumerate(value):
        token_id = _integer(f"stop_token_ids[{i}]", item, low=0)
        if token_id is None:
            _fail(f"stop_token_ids[{i}]", "an integer >= 0", item)
        ids.append(token_id)
    return tuple(ids)


def _fail(name: str, expected: str, got: object) -> NoReturn:
    raise RequestError(f"{name}: expected {expected}, got {shown(got)}")
