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
    """A request that is served.

    Attributes:
      request_id, request: what it is.
      row: its batch row. pages: of its reservation.
      max_new: tokens that it can have: `max_tokens`, or fewer where the sequence would become too long.
      prefilled: prompt tokens that were sent. sent: new tokens that programs were asked for, as far as none stops.
      generated: new tokens that were read.
      has_row: whether row and pages are its own still; tokens may be unread when they are given back.
      ended: whether it is over, so that what else was sent for it does not count.
    """

    request_id: int
    request: Request
    row: int
    pages: int
    max_new: int
    prefilled: int = 0
    sent: int = 0
    generated: int = 0
    has_row: bool = True
    ended: bool = False
