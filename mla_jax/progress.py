"""The live line of `generate`: how far, how many tokens a second."""

import sys
import time
from typing import TextIO


class TokenProgress:
    """Rewrites one line on a terminal; elsewhere prints the last state only.

    Args:
      total: sequences to finish.
      enabled: False prints nothing.
      stream: standard error unless given.
    """

    def __init__(self, total: int, *, enabled: bool, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = (stream or sys.stderr) if enabled else None
        self._live = self._stream is not None and self._stream.isatty()
        self._start = time.perf_counter()
        self._shown = 0.0
        self._finished = self._tokens = 0

    def update(self, finished: int, tokens: int) -> None:
        """Adds finished sequences and generated tokens; draws at most ten times a second."""
        self._finished += finished
        self._tokens += tokens
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
        line = (
            f"[{self._finished}/{self._total}] {self._tokens} tokens in {seconds:.1f} s, "
            f"{self._tokens / seconds:.1f} tokens/s"
        )
        print(f"{start}{line}", end=end, file=self._stream, flush=True)
