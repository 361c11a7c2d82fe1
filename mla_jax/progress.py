"""The live line of `generate`: how far, how many tokens a second."""

import sys
import time
from collections.abc import Sequence
from typing import Self, TextIO

from mla_jax.completion import TextSequence


class TokenProgress:
    """Rewrites one line on a terminal; elsewhere prints the last state only.

    Args:
      sequences: what to report on. Others may be served in the same engine steps: they do not count.
      enabled: False prints nothing; neither does having no sequences.
      stream: standard error unless given.
    """

    def __init__(
        self, sequences: Sequence[TextSequence], *, enabled: bool, stream: TextIO | None = None
    ) -> None:
        self._sequences = sequences
        self._stream = (stream or sys.stderr) if enabled and sequences else None
        self._live = self._stream is not None and self._stream.isatty()
        self._start = time.perf_counter()
        self._shown = 0.0
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self) -> None:
        """Draws the present state, at most ten times a second."""
        now = time.perf_counter()
        if self._live and now - self._shown > 0.1:
            self._shown = now
            self._write("\r", "")

    def close(self) -> None:
        """Draws the final state."""
        self._write("\r" if self._live else "", "\n")

    def _write(self, start: str, end: str) -> None:
        if self._stream is None:
            return
        seconds = max(time.perf_counter() - self._start, 1e-9)
        finished = sum(one.finish_reason is not None for one in self._sequences)
        tokens = sum(len(one.token_ids) for one in self._sequences)
        line = (
            f"[{finished}/{len(self._sequences)}] {tokens} tokens in {seconds:.1f} s, "
            f"{tokens / seconds:.1f} tokens/s"
        )
        # A shorter line must cover the one that it replaces.
        print(f"{start}{line:<{self._width}}", end=end, file=self._stream, flush=True)
        self._width = len(line) if self._live else 0
