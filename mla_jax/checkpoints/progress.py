"""A progress bar in bytes for reading checkpoints."""

import sys
import time
from types import TracebackType
from typing import TextIO


class ByteProgress:
    """Rewrites one line of a terminal with bytes, share and rate; elsewhere prints nothing.

    Args:
      what: first word of the line.
      total: bytes to come.
      enabled: False prints nothing anywhere.
      stream: standard error unless given.
    """

    def __init__(self, what: str, total: int, *, enabled: bool, stream: TextIO | None = None) -> None:
        self._what, self._total = what, total
        chosen = stream or sys.stderr  # None in a process without a console
        self._stream = chosen if enabled and chosen is not None and chosen.isatty() else None
        self._done = 0
        self._start = self._drawn = time.perf_counter()

    def advance(self, count: int) -> None:
        """Adds bytes; draws at most ten times a second."""
        self._done += count
        if time.perf_counter() - self._drawn > 0.1:
            self._draw("")

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw("\n")

    def _draw(self, end: str) -> None:
        if self._stream is None:
            return
        self._drawn = time.perf_counter()
        rate = self._done / max(self._drawn - self._start, 1e-9)
        share = 100 if self._total == 0 else 100 * self._done // self._total
        size = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        print(
            f"\r{self._what} {size} ({share} %), {rate / 1e9:.2f} GB/s ",
            end=end,
            file=self._stream,
            flush=True,
        )
