"""Lines on standard error that grow: bytes while a checkpoint is read, tokens while text is generated."""

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:  # reading checkpoints must not import the engine
    from mla_jax.completion import TextSequence


class _Line:
    """One line of a terminal, drawn again at most ten times a second, and a last time at the end.

    Args:
      stream: standard error if None.
      enabled: False prints nothing anywhere.
      elsewhere: whether what is not a terminal gets the last state.
    """

    def __init__(self, stream: TextIO | None, *, enabled: bool, elsewhere: bool) -> None:
        chosen = stream or sys.stderr  # None in a process without a console
        self._live = chosen is not None and chosen.isatty()
        self._stream = chosen if enabled and (self._live or elsewhere) else None
        self._start = time.perf_counter()
        self._drawn = -math.inf
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._draw("\n")

    def update(self) -> None:
        """Draws the present state, unless that was done a moment ago."""
        if self._live and time.perf_counter() - self._drawn > 0.1:
            self._draw("")

    def _text(self, seconds: float) -> str:
        raise NotImplementedError

    def _draw(self, end: str) -> None:
        if self._stream is None:
            return
        self._drawn = time.perf_counter()
        text = self._text(max(self._drawn - self._start, 1e-9))
        # A shorter line must cover the one that it replaces.
        start = "\r" if self._live else ""
        print(f"{start}{text:<{self._width}}", end=end, file=self._stream, flush=True)
        self._width = len(text)


class ByteProgress(_Line):
    """Bytes, share and rate on a terminal; elsewhere nothing.

    Args:
      what: first word of the line.
      total: bytes to come.
      enabled: False prints nothing anywhere.
      stream: standard error unless given.
    """

    def __init__(self, what: str, total: int, *, enabled: bool, stream: TextIO | None = None) -> None:
        super().__init__(stream, enabled=enabled, elsewhere=False)
        self._what, self._total, self._done = what, total, 0

    def advance(self, count: int) -> None:
        """Adds bytes."""
        self._done += count
        self.update()

    def _text(self, seconds: float) -> str:
        share = 100 if self._total == 0 else 100 * self._done // self._total
        size = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        return f"{self._what} {size} ({share} %), {self._done / seconds / 1e9:.2f} GB/s"


class TokenProgress(_Line):
    """How many requests have ended and how many tokens a second come; where there is no terminal, at the end.

    Args:
      sequences: what to report on. Others may be served in the same engine steps: they do not count.
      enabled: False prints nothing; neither does having no sequences.
      stream: standard error unless given.
    """

    def __init__(
        self, sequences: "Sequence[TextSequence]", *, enabled: bool, stream: TextIO | None = None
    ) -> None:
        super().__init__(stream, enabled=enabled and len(sequences) > 0, elsewhere=True)
        self._sequences = sequences

    def _text(self, seconds: float) -> str:
        finished = sum(one.finish_reason is not None for one in self._sequences)
        tokens = sum(len(one.token_ids) for one in self._sequences)
        return (
            f"[{finished}/{len(self._sequences)}] {tokens} tokens in {seconds:.1f} s, "
            f"{tokens / seconds:.1f} tokens/s"
        )
