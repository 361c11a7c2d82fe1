"""Stop strings over streamed text."""

from collections.abc import Sequence

from mla_jax.errors import RequestError, shown


def _failure_table(pattern: str) -> list[int]:
    """For each prefix of `pattern`: how long its longest proper prefix is that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = table[length - 1]
        if pattern[i] == pattern[length]:
            length += 1
        table[i] = length
    return table


class StopMatcher:
    """Passes streamed text through until one of `stop` appears in it.

    Text that may still turn out to be the beginning of a stop string is held back, so no part of the
    stop string that is found is ever returned. The one that is complete first wins; where two are
    complete at the same character, the longer one does. How the text was cut into pieces changes
    nothing: every stop string is followed by its own Knuth-Morris-Pratt automaton, so the cost is one
    step per character and stop string, whatever the strings look like.

    Args:
      stop: the stop strings; may be empty, in which case nothing is held back.

    Raises:
      RequestError: `stop` is one string, or holds anything but non-empty strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if isinstance(stop, str):
            raise RequestError(f"stop: expected a sequence of strings, got the string {shown(stop)}")
        for i, pattern in enumerate(stop):
            if not isinstance(pattern, str) or not pattern:
                raise RequestError(f"stop[{i}]: expected a non-empty string, got {shown(pattern)}")
        # The longest first: it wins where several are complete at the same character.
        self._patterns = sorted(set(stop), key=lambda pattern: (-len(pattern), pattern))
        self._tables = [_failure_table(pattern) for pattern in self._patterns]
        self._matched = [0] * len(self._patterns)
        self._held = ""
        self._stopped_by: str | None = None

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was found, or None so far."""
        return self._stopped_by

    def feed(self, text: str) -> str:
        """Takes the next piece and returns what is safe to show; after a match always `""`."""
        if self._stopped_by is not None:
            return ""
        if not self._patterns:
            return text
        text_start = len(self._held)
        self._held += text
        for position, character in enumerate(text, start=text_start + 1):
            found = self._advance(character)
            if found is not None:
                self._stopped_by = found
                shown, self._held = self._held[: position - len(found)], ""
                return shown
        safe = len(self._held) - max(self._matched)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def flush(self) -> str:
        """Returns what was held back: the stream is over, so it cannot become a stop string."""
        shown, self._held = self._held, ""
        self._matched = [0] * len(self._patterns)
        return shown

    def _advance(self, character: str) -> str | None:
        """Moves every automaton by one character; returns the stop string that this completes."""
        found = None
        for i, (pattern, table) in enumerate(zip(self._patterns, self._tables, strict=True)):
            length = self._matched[i]
            while length and pattern[length] != character:
                length = table[length - 1]
            if pattern[length] == character:
                length += 1
            self._matched[i] = length
            if length == len(pattern) and found is None:
                found = pattern
        return found
