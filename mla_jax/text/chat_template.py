"""Chat templates: Jinja programs that come with a checkpoint, run at arm's length."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from mla_jax.errors import RequestError, TemplateError, shown
from mla_jax.text.messages import checked_messages, checked_tools, plain_json
from mla_jax.text.template_process import shared_process

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


@dataclass(frozen=True)
class TemplateLimits:
    """What rendering may cost at most.

    Attributes:
      template_chars: length of the template.
      messages: how many messages.
      request_bytes: template and variables together, as ASCII JSON (6 bytes for a Chinese character).
      output_chars: length of the prompt.
      seconds: time to render, once the process runs.
      memory_bytes: of the process, its interpreter (40 MB) included. Not enforced on macOS and Windows.
    """

    template_chars: int = 1_000_000
    messages: int = 10_000
    request_bytes: int = 32_000_000
    output_chars: int = 8_000_000
    seconds: float = 2.0
    memory_bytes: int = 512_000_000


class ChatTemplate:
    """Turns messages into a prompt, in the dialect that transformers defines.

    That is Jinja with `trim_blocks` and `lstrip_blocks`, `break` and `continue`, `raise_exception`,
    `strftime_now`, a `tojson` that keeps non-ASCII text, and `{% generation %}`. A template sees
    `messages`, `tools`, `documents` (null), `add_generation_prompt`, the special tokens by name and what
    the caller adds.

    A template is a stranger's program. Jinja's immutable sandbox keeps it from Python's internals but not
    from loops without end, so it runs in a child process with limited memory and time, which is
    started at the first rendering (60 ms), shared by all templates and kept (1 ms for each one after).

    Args:
      source: the template. It is compiled at the first rendering.
      name: what messages call it.
      special_tokens: "bos_token" and the like -> text.
      limits: what rendering may cost.

    Raises:
      TemplateError: the source is not a string or too long.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str = "chat template",
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self.limits = limits or TemplateLimits()
        self._special_tokens = plain_json(dict(special_tokens or {}), "special_tokens")
        if not isinstance(source, str):
            raise TemplateError(f"{name}: expected a string, got {shown(source)}")
        if len(source) > self.limits.template_chars:
            raise TemplateError(
                f"{name}: expected at most {self.limits.template_chars} characters, got {len(source)}"
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt.

        Args:
          messages: objects with "role" and "content"; content is a string or a list of text parts.
          add_generation_prompt: whether the prompt ends where the assistant's answer begins.
          tools: JSON objects that describe tools.
          variables: further variables of the template, JSON values; they replace special tokens.

        Raises:
          RequestError: an argument is malformed, or all of them together are too large.
          TemplateError: the template is malformed, fails, refuses the messages, or takes too much time,
            memory or text; the message names the template and, where known, the line.
        """
        if not isinstance(add_generation_prompt, bool):
            raise RequestError(
                f"add_generation_prompt: expected True or False, got {shown(add_generation_prompt)}"
            )
        for reserved in _RESERVED:
            if reserved in variables:
                raise RequestError(f"{reserved}: cannot be given as a variable of a chat template")
        values = {
            **self._special_tokens,
            **plain_json(variables, "variables"),
            "messages": checked_messages(messages, self.limits.messages),
            "tools": checked_tools(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        self._check_size(values)
        answer = shared_process(self.limits.memory_bytes).render(
            self.source, values, seconds=self.limits.seconds, max_chars=self.limits.output_chars
        )
        if "text" in answer:
            return str(answer["text"])
        self._fail(**answer["error"])

    def _check_size(self, values: dict[str, Any]) -> None:
        try:
            size = len(json.dumps(values)) + len(json.dumps(self.source))
        except ValueError as failure:  # an integer of more than 4300 digits
            raise RequestError(f"messages: {failure}") from failure
        if size > self.limits.request_bytes:
            raise RequestError(
                f"messages: with tools and variables expected at most {self.limits.request_bytes} bytes of "
                f"JSON, got {size}"
            )

    def _fail(self, kind: str, message: str, line: int | None) -> NoReturn:
        limits = self.limits
        reason = {
            "raised": f"refuses these messages: {message}",
            "syntax": f"is not valid Jinja: {message}",
            "render": f"failed: {message}",
            "output": f"gave more than {limits.output_chars} characters of text",
            "memory": f"needed more than {limits.memory_bytes} bytes of memory",
            "time": f"was not done after {limits.seconds} s",
            "crash": "brought its process down (memory or CPU limit, or too deeply nested)",
        }.get(kind, f"failed: {message}")
        place = self.name if line is None else f"{self.name}, line {line}"
        raise TemplateError(f"{place}: {reason}")
