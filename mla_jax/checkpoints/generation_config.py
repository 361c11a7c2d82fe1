"""generation_config.json: how a model's authors recommend to sample from it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_jax.checkpoints.fields import Fields
from mla_jax.checkpoints.json_files import read_json_object
from mla_jax.errors import ConfigError

MAX_GENERATION_CONFIG_BYTES = 16_000_000


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling defaults; every field is what to do when a request says nothing.

    Attributes:
      do_sample: False means greedy, whatever the other numbers are.
      temperature: divides the logits; 0.0 is greedy, and always 0.0 when do_sample is False.
      top_p: keeps the smallest set of tokens with this probability; 1.0 keeps all.
      top_k: keeps the k best tokens; None keeps all.
      min_p: drops tokens below this fraction of the best one's probability; 0.0 drops none.
      repetition_penalty: 1.0 is none.
      eos_token_ids: generation ends at any of these; empty if the file names none.
      bos_token_id, pad_token_id: None if the file names none.
      max_new_tokens: None if the file sets no limit.
    """

    do_sample: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    max_new_tokens: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.temperature == 0.0

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "GenerationDefaults":
        """Reads the JSON object of a generation_config.json.

        A missing do_sample is false, as in transformers. A missing or zero top_k keeps all tokens:
        transformers' hidden default of 50 is not taken over, because no file asks for it.

        Raises:
          ConfigError: a value is of the wrong type or out of range; the message names its key.
        """
        fields = Fields(values)
        # null is common here ("no opinion"), so it counts as missing, unlike in a model's configuration.
        sample = fields.boolean("do_sample", default=False) if fields.has("do_sample") else False
        temperature = fields.number("temperature", default=1.0)
        if not 0.0 <= temperature <= 100.0:
            fields.fail("temperature", "a number from 0 to 100")
        top_p = fields.number("top_p", default=1.0)
        if not 0.0 < top_p <= 1.0:
            fields.fail("top_p", "a number above 0, at most 1")
        min_p = fields.number("min_p", default=0.0)
        if not 0.0 <= min_p <= 1.0:
            fields.fail("min_p", "a number from 0 to 1")
        penalty = fields.number("repetition_penalty", default=1.0)
        if not penalty > 0.0:
            fields.fail("repetition_penalty", "a number above 0")
        return cls(
            do_sample=sample and temperature > 0.0,
            temperature=temperature if sample else 0.0,
            top_p=top_p,
            top_k=fields.integer("top_k", low=0, default=0) or None,
            min_p=min_p,
            repetition_penalty=penalty,
            eos_token_ids=fields.integers("eos_token_id", low=0),
            bos_token_id=fields.integer("bos_token_id", low=0, default=None),
            pad_token_id=fields.integer("pad_token_id", low=0, default=None),
            max_new_tokens=fields.integer("max_new_tokens", low=1, default=None),
        )

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> "GenerationDefaults":
        """`from_hf` of a folder's generation_config.json; the plain defaults where there is none."""
        path = Path(folder) / "generation_config.json"
        if not os.path.exists(path):  # Path.exists raises for names that are too long
            return cls()
        values = read_json_object(path, ConfigError, MAX_GENERATION_CONFIG_BYTES)
        try:
            return cls.from_hf(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
