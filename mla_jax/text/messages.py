"""Checks on what a caller hands to a chat template: messages, tools, variables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mla_jax.errors import RequestError, shown

MAX_DEPTH = 64


def checked_messages(messages: Sequence[Mapping[str, Any]], max_messages: int) -> list[dict[str, Any]]:
    """The messages as plain JSON, each with "role" and "content".

    Content is text, or a list of `{"type": "text", "text": ...}` parts, which is joined with newlines
    because templates of text models concatenate it. It may be null or absent only beside "tool_calls";
    it is then handed on as it is (DeepSeek's templates ask whether content is none). Further keys
    are free.

    Raises:
      RequestError: anything else; the message says where, such as `messages[2].content`.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        _fail("messages", "a list of messages", messages)
    if not messages:
        _fail("messages", "at least one message", messages)
    if len(messages) > max_messages:
        raise RequestError(f"messages: expected at most {max_messages}, got {len(messages)}")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools, each a JSON object (a JSON schema, as a rule), or None.

    Raises:
      RequestError: something else; functions are not turned into schemas here.
    """
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        _fail("tools", "a list of JSON objects", tools)
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            _fail(f"tools[{i}]", "a JSON object", tool)
    return [plain_json(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def plain_json(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of `value` made of dict, list, str, int, float, bool and None.

    Tuples become lists. A template is handed nothing else: no objects, whose methods it could call.

    Raises:
      RequestError: something that JSON cannot say, or deeper than 64 levels.
    """
    if depth > MAX_DEPTH:
        raise RequestError(f"{where}: expected at most {MAX_DEPTH} levels of JSON")
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                _fail(where, "strings as keys", key)
        return {str(key): plain_json(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    _fail(where, "a JSON value", value)


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        _fail(where, 'an object with "role" and "content"', message)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        _fail(f"{where}.role", "a non-empty string", role)
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return _plain_object(message, where)
    return {**_plain_object(message, where), "content": _content_text(content, f"{where}.content")}


def _plain_object(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    result: dict[str, Any] = plain_json({k: v for k, v in message.items() if k != "content"}, where)
    return {**result, "content": None} if "content" in message else result


def _content_text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        _fail(where, 'a string or a list of {"type": "text", "text": ...} parts', content)
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            _fail(f"{where}[{i}]", 'a part of type "text" (this library reads text only)', part)
        if not isinstance(part.get("text"), str):
            _fail(f"{where}[{i}].text", "a string", part.get("text"))
        texts.append(part["text"])
    return "\n".join(texts)


def _fail(where: str, expected: str, got: object) -> NoReturn:
    raise RequestError(f"{where}: expected {expected}, got {shown(got)}")
