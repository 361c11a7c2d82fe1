"""What the engine is asked for, and what it answers step by step."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    Attributes:
      prompt: token ids, at least one.
      max_tokens: tokens to generate at most, >= 1.
      temperature, top_p, top_k, min_p: see `mla_jax.sample`; temperature 0 is greedy.
      seed: of this request's own random stream.
      stop_token_ids: ids that end the sequence; the id itself is reported.
      logprobs: how many of the most likely tokens to report at every step, or None.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None


@dataclass(frozen=True)
class Event:
    """One generated token.

    Attributes:
      request_id: of `Engine.add`.
      token_id: the token.
      logprobs: token id -> natural-log probability of the reported tokens, the chosen one included; None
        unless asked for. Probabilities are the model's own, before temperature and limits.
      finish_reason: "stop" (a stop id), "length", or None while the sequence goes on.
    """

    request_id: int
    token_id: int
    logprobs: dict[int, float] | None
    finish_reason: FinishReason | None


@dataclass
class Running:
    """A request that holds a batch row and its pages."""

    request_id: int
    request: Request
    row: int
    pages: int
    prefilled: int = 0
    generated: int = 0
