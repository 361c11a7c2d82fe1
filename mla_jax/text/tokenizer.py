"""A checkpoint's tokenizer: tokenizer.json and what the files beside it say about special tokens."""

import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers

from mla_jax.checkpoints.json_files import parse_json_object, read_json_object, read_json_text
from mla_jax.errors import RequestError, TemplateError, TokenizerError, shown
from mla_jax.text.chat_template import ChatTemplate
from mla_jax.text.protocol import TokenizerLike
from mla_jax.text.special_tokens import SpecialTokens
from mla_jax.text.template_files import read_templates
from mla_jax.text.tiktoken_backend import TiktokenBackend

MAX_TOKENIZER_BYTES = 200_000_000
"""The largest tokenizer.json of a published model is about 30 MB."""

MAX_CONFIG_BYTES = 20_000_000

Backend = tokenizers.Tokenizer | TiktokenBackend

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def load_tokenizer(source: "str | os.PathLike[str] | TokenizerLike") -> TokenizerLike:
    """The tokenizer of a checkpoint folder; a tokenizer object of one's own is returned as it is.

    Raises:
      TokenizerError: see `Tokenizer.from_folder`; or `source` is neither a path nor a tokenizer.
    """
    if isinstance(source, str | os.PathLike):
        return Tokenizer.from_folder(source)
    if isinstance(source, TokenizerLike):
        return source
    raise TokenizerError(
        "tokenizer: expected a checkpoint folder or an object with encode, decode and eos_token_id, got "
        f"{shown(source)}"
    )


class Tokenizer:
    """Text to token ids and back, as a checkpoint defines it.

    Which special tokens surround a text is decided once, at load:

    - `add_bos_token` and `add_eos_token` of tokenizer_config.json, where they are given, decide, be it
      true or false: what a checkpoint's authors wrote down beats what another file implies.
    - Where they are absent or null, tokenizer.json's post-processor decides.

    transformers is of several minds: in release 4 the fast Llama tokenizer (which DeepSeek's checkpoints
    name) obeys the flags and takes an absent `add_bos_token` for true, the general fast tokenizer ignores
    them; release 5 ignores them whenever there is a tokenizer.json. Where flags and post-processor agree,
    as in published checkpoints they should, all of them and this class give the same ids.

    Text that already begins with the BOS text, as chat templates render it, does not get a second one.
    Special tokens are recognised anywhere in a text, as everywhere in this ecosystem: a caller who does
    not want users to write `<｜Assistant｜>` has to filter their text.

    Nothing in the folder is imported or run: `auto_map` and `tokenizer_class` are not looked at.

    Attributes:
      bos_token_id, eos_token_id, pad_token_id: None where the checkpoint names no such token.
      vocab_size: one more than the highest id. Often less than the width of the model's output layer,
        and ids in between decode to "".
      special_ids: ids that `decode` leaves out.
      byte_token_ids: ids of `<0x00>`..`<0xFF>` if the decoder puts bytes together from them, else empty.
      templates: chat templates by name.
      special_tokens: "bos_token" and the like -> text.
    """

    def __init__(
        self,
        backend: Backend,
        special: SpecialTokens,
        *,
        templates: Mapping[str, str] | None = None,
        source: str = "tokenizer.json",
    ) -> None:
        """Use `from_folder`, unless there is no folder.

        Args:
          backend: owned from now on; padding and truncation are switched off.
          special: what is known about special tokens.
          templates: chat templates by name.
          source: what messages call this tokenizer.
        """
        self._backend = backend
        self.source = source
        # Files saved during training may cut or pad every text to some length.
        backend.no_padding()
        backend.no_truncation()
        self.special_ids = frozenset(_register_special_tokens(backend, special, source))
        self.special_tokens = dict(special.named)
        self.templates = dict(templates or {})
        self.bos_token_id = self._id_of(special, "bos_token")
        self.eos_token_id = self._id_of(special, "eos_token")
        self.pad_token_id = self._id_of(special, "pad_token")
        self._prefix, self._suffix = self._surroundings(special)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.byte_token_ids = _byte_token_ids(backend, vocabulary)
        self._chat_templates: dict[str, ChatTemplate] = {}

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """Reads tokenizer.json or tiktoken.model, tokenizer_config.json, special_tokens_map.json and templates.

        Raises:
          TokenizerError: a file is missing, malformed, too large or contradicts another; the message
            names it.
        """
        root = Path(folder)
        path = root / "tokenizer.json"
        if not path.is_file():
            path = root / "tiktoken.model"
        if not path.is_file():
            raise TokenizerError(_why_missing(root))
        config_path, map_path = root / "tokenizer_config.json", root / "special_tokens_map.json"
        config = _read_optional(config_path)
        special = SpecialTokens.from_json(config, str(config_path), _read_optional(map_path), str(map_path))
        templates = read_templates(root, config, str(config_path))
        ranks = path.name == "tiktoken.model"
        backend = TiktokenBackend(path, special.flags) if ranks else _read_backend(path)
        return cls(backend, special, templates=templates, source=str(path))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`.

        Args:
          text: any text without lone surrogates.
          add_special_tokens: whether BOS and EOS are added where the checkpoint asks for them.

        Raises:
          RequestError: `text` is not a string of Unicode characters.
        """
        if not isinstance(text, str):
            raise RequestError(f"text: expected a string, got {shown(text)}")
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as failure:  # what the binding makes of a lone surrogate
            raise RequestError(f"text: expected Unicode text, got {shown(text)}") from failure
        if not add_special_tokens:
            return ids
        prefix, suffix = self._prefix, self._suffix
        if ids[: len(prefix)] == prefix:
            prefix = []
        elif ids[:1] == [self.bos_token_id]:
            prefix = [i for i in prefix if i != self.bos_token_id]
        if suffix and ids[-len(suffix) :] == suffix:
            suffix = []
        return prefix + ids + suffix

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; U+FFFD stands for bytes that are not UTF-8.

        Ids that no token has, negative or too large ones included, give no text.
        """
        special = self.special_ids if skip_special_tokens else frozenset()
        # The binding takes 32-bit ids and raises OverflowError for anything else.
        kept = [i for i in map(int, ids) if i not in special and 0 <= i < self.vocab_size]
        text: str = self._backend.decode(kept, skip_special_tokens=False)
        return text

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt that a chat template makes of `messages`; arguments as for `ChatTemplate.render`.

        Args:
          chat_template: name of one of `templates`. Default: "tool_use" if there are tools and it
            exists, else "default".

        Raises:
          TemplateError: there is no such template, or it fails.
          RequestError: the messages are malformed.
        """
        template = self._template(chat_template, has_tools=tools is not None)
        return template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The ids of `render_chat`. The template alone decides about BOS and EOS, as in transformers."""
        text = self.render_chat(
            messages,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **variables,
        )
        return self.encode(text, add_special_tokens=False)

    def _template(self, name: str | None, *, has_tools: bool) -> ChatTemplate:
        if name is None:
            name = "tool_use" if has_tools and "tool_use" in self.templates else "default"
        if name not in self.templates:
            known = ", ".join(sorted(self.templates)) or "none"
            raise TemplateError(
                f"{self.source}: there is no chat template {shown(name)} beside it (templates: {known}). "
                "Models that bring Python code instead of a template need their prompts rendered by the "
                "caller; that code is never run here"
            )
        if name not in self._chat_templates:
            self._chat_templates[name] = ChatTemplate(
                self.templates[name],
                name=f"chat template {shown(name)}",
                special_tokens=self.special_tokens,
            )
        return self._chat_templates[name]

    def _id_of(self, special: SpecialTokens, name: str) -> int | None:
        text = special.named.get(name)
        if text is None:
            return None
        token_id: int | None = self._backend.token_to_id(text)
        # Nothing is ever padded with pad_token, so that one may be missing.
        if token_id is None and name != "pad_token":
            raise TokenizerError(f"{self.source}: {name} {shown(text)} is not in the vocabulary")
        return token_id

    def _surroundings(self, special: SpecialTokens) -> tuple[list[int], list[int]]:
        """The ids that `encode` puts before and after a text."""
        prefix, suffix = _post_processor_ids(self._backend)
        prefix = _with_or_without(
            special.add_bos_token,
            self.bos_token_id,
            prefix,
            f"{self.source}: add_bos_token",
            first=True,
        )
        suffix = _with_or_without(
            special.add_eos_token,
            self.eos_token_id,
            suffix,
            f"{self.source}: add_eos_token",
            first=False,
        )
        return prefix, suffix


def _why_missing(root: Path) -> str:
    if not root.is_dir():
        return f"{root}: there is no such folder"
    path = root / "tokenizer.json"
    if (root / "tokenizer.model").exists():
        return (
            f"{path}: there is no such file, only tokenizer.model (SentencePiece); convert it with "
            "transformers' save_pretrained"
        )
    return f"{path}: there is no such file"


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, TokenizerError, MAX_CONFIG_BYTES) if path.exists() else {}


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    text = read_json_text(path, TokenizerError, MAX_TOKENIZER_BYTES)
    values = parse_json_object(text, str(path), TokenizerError)
    try:
        backend = tokenizers.Tokenizer.from_buffer(text)
    except BaseException as failure:
        # A panic in Rust arrives as a BaseException of a class that cannot be imported.
        if isinstance(failure, Exception) or type(failure).__name__ == "PanicException":
            raise TokenizerError(f"{path}: is not a tokenizer: {failure}") from failure
        raise
    _check_added_ids(backend, values, path)
    return backend


def _check_added_ids(backend: Backend, values: Mapping[str, Any], path: Path) -> None:
    """An added token whose id is not the next free one is silently given that one instead."""
    for token in values.get("added_tokens") or []:
        actual = backend.token_to_id(token["content"])
        if actual != token["id"]:
            raise TokenizerError(
                f"{path}: added token {shown(token['content'])} has id {token['id']}, but its place in the "
                f"vocabulary is {actual}"
            )


def _register_special_tokens(backend: Backend, special: SpecialTokens, source: str) -> set[int]:
    """Makes `backend` recognise every special token in text; returns their ids."""
    ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    for token_id, (text, is_special) in sorted(special.flags.items()):
        if backend.token_to_id(text) is None:
            backend.add_tokens([tokenizers.AddedToken(text, special=is_special, normalized=False)])
        actual = backend.token_to_id(text)
        if actual != token_id:
            raise TokenizerError(
                f"{source}: tokenizer_config.json says that token {shown(text)} has id {token_id}, the "
                f"vocabulary says {actual}"
            )
        ids = ids | {token_id} if is_special else ids - {token_id}
    for text in (*special.named.values(), *special.others):
        known_id: int | None = backend.token_to_id(text)
        if known_id is None:
            continue
        ids.add(known_id)
        if known_id not in backend.get_added_tokens_decoder():
            backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False)])
    return ids


def _post_processor_ids(backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that tokenizer.json's post-processor puts before and after a text."""
    if isinstance(backend, TiktokenBackend):
        return [], []
    # sequence_ids tells what came from the text; a probe that gives no token at all shows nothing.
    for probe in ("a", "0", *islice(backend.get_vocab(with_added_tokens=True), 16)):
        encoding = backend.encode(probe, add_special_tokens=True)
        from_text = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if from_text:
            return encoding.ids[: from_text[0]], encoding.ids[from_text[-1] + 1 :]
    return [], []


def _with_or_without(
    wanted: bool | None, token_id: int | None, ids: list[int], where: str, *, first: bool
) -> list[int]:
    """`ids` with `token_id` at its outer end, without it, or as it was where `wanted` is None."""
    if wanted is None:
        return ids
    if token_id is None:
        if wanted:
            raise TokenizerError(f"{where} is true, but the checkpoint names no such token")
        return ids
    others = [i for i in ids if i != token_id]
    if not wanted:
        return others
    if token_id in ids:
        return ids
    return [token_id, *others] if first else [*others, token_id]


def _byte_token_ids(backend: Backend, vocabulary: Mapping[str, int]) -> frozenset[int]:
    decoder = backend.decoder
    if decoder is None or b'"ByteFallback"' not in decoder.__getstate__():
        return frozenset()
    return frozenset(i for text, i in vocabulary.items() if _BYTE_TOKEN.fullmatch(text))
