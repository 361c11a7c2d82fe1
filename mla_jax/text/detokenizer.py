"""Token ids to text, one id at a time, without ever splitting a character."""

from mla_jax.text.protocol import TokenizerLike

# U+FFFD, which decoders put in place of bytes that are not (or not yet) UTF-8.
_REPLACEMENT = "\ufffd"

# A character is at most four bytes: after four tokens of at least one byte each, the state of a UTF-8
# decoder no longer depends on what came before them.
_RESYNC_TOKENS = 4

# How many tokens may wait for the rest of a character before they are taken to be broken. Valid text
# waits for four at most, except where it spells U+FFFD itself.
_MAX_WAITING = 12


class Detokenizer:
    """Turns a stream of token ids into a stream of text.

    All pieces that `feed` returns plus `flush` are exactly `tokenizer.decode(ids)`, and no piece ends
    inside a character. Only `decode` is called, on a window of a few tokens, so any tokenizer will do
    and the cost of a token does not grow with the text. The window begins with tokens that are already
    shown: decoders strip a space at the start of what they are given, and these take that upon them.

    Byte-fallback decoders (SentencePiece style, tokens like `<0xE4>`) judge a run of byte tokens as a
    whole: one invalid byte turns all of it into U+FFFD. Where the tokenizer says which ids those are
    (`byte_token_ids`, as `mla_jax.text.Tokenizer` does), a run is held until it ends. Where it does
    not, characters are shown as soon as they are complete, and only a run with invalid UTF-8 in it may
    come out otherwise than by decoding the whole.

    Args:
      tokenizer: its `decode` is called with `skip_special_tokens`.
      skip_special_tokens: whether special tokens are left out of the text.
    """

    def __init__(self, tokenizer: TokenizerLike, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._byte_token_ids: frozenset[int] = getattr(tokenizer, "byte_token_ids", frozenset())
        # Tokens that are shown and give context, then tokens that wait.
        self._window: list[int] = []
        self._shown_tokens = 0
        # How many characters of decode(window) are shown, and how many it had when last decoded.
        self._shown_chars = 0
        self._last_length = 0

    def feed(self, token_id: int) -> str:
        """Takes the next id and returns the text that it completes, often `""`."""
        run_is_open = len(self._window) > self._shown_tokens
        if token_id in self._byte_token_ids:
            self._window.append(token_id)
            return ""
        # A token that never gives text must not end a run of bytes, nor fill the window.
        if self._byte_token_ids and run_is_open and self._is_silent(token_id):
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) == self._last_length and self._is_silent(token_id):
            self._window.pop()
            return ""
        self._last_length = len(text)
        if self._byte_token_ids or not text.endswith(_REPLACEMENT):
            return self._show_all(text)
        if len(self._window) - self._shown_tokens >= _MAX_WAITING:
            return self._show_all_but_last(text)
        return ""

    def flush(self) -> str:
        """Returns what was held back, with U+FFFD for an unfinished character, and starts a new stream."""
        text = self._decode(self._window)[self._shown_chars :]
        self._window = []
        self._shown_tokens = self._shown_chars = self._last_length = 0
        return text

    def _show_all(self, text: str) -> str:
        """The window ends with a whole character: what waited is shown and becomes the context."""
        new = text[self._shown_chars :]
        self._keep(self._window[self._shown_tokens :], hidden_chars=0)
        return new

    def _show_all_but_last(self, text: str) -> str:
        """Too much waits, so it is broken: only the last U+FFFD may still become a character."""
        new = text[self._shown_chars : -1]
        self._keep(self._window[-_RESYNC_TOKENS:], hidden_chars=1)
        return new

    def _keep(self, tokens: list[int], *, hidden_chars: int) -> None:
        self._window = tokens
        self._shown_tokens = len(tokens)
        self._last_length = len(self._decode(tokens))
        self._shown_chars = self._last_length - hidden_chars

    def _is_silent(self, token_id: int) -> bool:
        """Whether the token gives no text anywhere.

        Tried twice in a row: a lone space may be stripped where it comes first.
        """
        return not self._decode([token_id, token_id])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
