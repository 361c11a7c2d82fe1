"""What the engine asks of a tokenizer: three names, so that a caller may bring their own."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class TokenizerLike(Protocol):
    """Anything that turns text into token ids and back.

    `mla_jax.text.Tokenizer` is one; so is a tokenizer object of `transformers`.
    """

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a sequence, or None where there is none."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`, with the model's own BOS (and EOS) unless told otherwise."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Must not fail on ids that the vocabulary does not hold."""
