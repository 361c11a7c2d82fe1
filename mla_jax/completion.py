"""Results in text: completions, stream pieces, and the sequence that turns tokens into both."""

import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple

from mla_jax.engine.request import Event, FinishReason
from mla_jax.text.detokenizer import Detokenizer
from mla_jax.text.protocol import TokenizerLike
from mla_jax.text.stop import StopMatcher


class Usage(NamedTuple):
    """Token counts of one completion."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """One finished sequence.

    Attributes:
      text: the generated text without special tokens and without the stop string; "" without a tokenizer.
      token_ids: the generated ids, the one that ended the sequence included.
      logprobs: for each generated token a dict token id -> natural-log probability, or None.
      finish_reason: "stop" (end token, stop token or stop string) or "length".
      usage: token counts.
      prompt_token_ids: what the model was fed.
    """

    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]] | None
    finish_reason: FinishReason
    usage: Usage
    prompt_token_ids: list[int]


class StreamPiece(NamedTuple):
    """One step of a stream.

    Attributes:
      text: the text that this token completes, often "", never a part of a character or stop string.
      token_id: the token.
      prompt_tps: prompt tokens per second until the first token came.
      generation_tps: generated tokens per second since then.
      finish_reason: "stop" or "length" on the last piece, else None.
    """

    text: str
    token_id: int
    prompt_tps: float
    generation_tps: float
    finish_reason: FinishReason | None


class TextSequence:
    """Collects one request's tokens: text, stop strings, log-probabilities, times.

    Args:
      prompt: its token ids.
      tokenizer: for the text; None leaves it empty.
      stop: stop strings.
      stop_token_ids: ids whose own text is not part of the result.
    """

    def __init__(
        self,
        prompt: SequenceOf[int],
        tokenizer: TokenizerLike | None,
        stop: SequenceOf[str],
        stop_token_ids: frozenset[int],
    ) -> None:
        self.prompt = list(prompt)
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, float]] = []
        self.finish_reason: FinishReason | None = None
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._stop = StopMatcher(stop)
        self._stop_token_ids = stop_token_ids
        self._text: list[str] = []
        self._start = time.perf_counter()
        self._first: float | None = None
        self._last = self._start

    def take(self, event: Event) -> StreamPiece:
        """Adds a token. Afterwards `finish_reason` says whether the sequence has ended."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        self.token_ids.append(event.token_id)
        if event.logprobs is not None:
            self.logprobs.append(event.logprobs)
        self.finish_reason = event.finish_reason
        text = "" if event.token_id in self._stop_token_ids else self._feed(event.token_id)
        if self.finish_reason is not None:
            text += self._flush()
        self._text.append(text)
        return StreamPiece(text, event.token_id, self.prompt_tps, self.generation_tps, self.finish_reason)

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens per second, waiting for a place included."""
        end = self._last if self._first is None else self._first
        return len(self.prompt) / max(end - self._start, 1e-9)

    @property
    def generation_tps(self) -> float:
        """Generated tokens per second after the first; 0 while there is only one."""
        if self._first is None or len(self.token_ids) < 2:
            return 0.0
        return (len(self.token_ids) - 1) / max(self._last - self._first, 1e-9)

    def completion(self) -> Completion:
        """The result of an ended sequence."""
        assert self.finish_reason is not None, "only an ended sequence has a completion"
        return Completion(
            text="".join(self._text),
            token_ids=self.token_ids,
            logprobs=self.logprobs or None,
            finish_reason=self.finish_reason,
            usage=Usage(len(self.prompt), len(self.token_ids)),
            prompt_token_ids=self.prompt,
        )

    def _feed(self, token_id: int) -> str:
        if self._detokenizer is None:
            return ""
        text = self._stop.feed(self._detokenizer.feed(token_id))
        if self._stop.stopped_by is not None:
            self.finish_reason = "stop"
        return text

    def _flush(self) -> str:
        if self._detokenizer is None:
            return ""
        text = self._stop.feed(self._detokenizer.flush())
        if self._stop.stopped_by is not None:
            self.finish_reason = "stop"
        return text + self._stop.flush()
