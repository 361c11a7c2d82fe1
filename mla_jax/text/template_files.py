"""Where a checkpoint keeps its chat templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mla_jax.errors import TokenizerError, shown

MAX_TEMPLATE_BYTES = 1_000_000
"""The largest template of a published model is about 30 kB."""

MAX_TEMPLATES = 64


def read_templates(folder: Path, config: Mapping[str, Any], config_path: str) -> dict[str, str]:
    """The folder's templates by name; the only or main one is called "default".

    As in transformers, `chat_template.jinja` and `additional_chat_templates/NAME.jinja` replace what
    tokenizer_config.json says under "chat_template" (a string, or a list of objects with "name" and
    "template"). The templates are only read here, never compiled.

    Raises:
      TokenizerError: a file cannot be read or is too large, or the config's value is malformed.
    """
    files = _template_files(folder)
    if len(files) > MAX_TEMPLATES:
        raise TokenizerError(f"{folder}: expected at most {MAX_TEMPLATES} chat templates, got {len(files)}")
    if files:
        return {name: _read(path) for name, path in files.items()}
    return _from_config(config.get("chat_template"), config_path)


def _template_files(folder: Path) -> dict[str, Path]:
    files = {}
    main = folder / "chat_template.jinja"
    if main.exists():
        files["default"] = main
    try:
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    except OSError as failure:
        raise TokenizerError(
            f"{folder / 'additional_chat_templates'}: cannot be read: {failure}"
        ) from failure
    for path in others:
        files.setdefault(path.stem, path)
    return files


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise TokenizerError(f"{path}: expected a regular file")
        with path.open("rb") as file:
            source = file.read(MAX_TEMPLATE_BYTES + 1)
        if len(source) > MAX_TEMPLATE_BYTES:
            raise TokenizerError(f"{path}: expected at most {MAX_TEMPLATE_BYTES} bytes, got more")
        return source.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise TokenizerError(f"{path}: is not UTF-8: {failure.reason} at byte {failure.start}") from None
    except OSError as failure:
        raise TokenizerError(f"{path}: cannot be read: {failure}") from failure


def _from_config(value: Any, path: str) -> dict[str, str]:
    where = f"{path}: chat_template"
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list):
        raise TokenizerError(f"{where}: expected a string or a list of named templates, got {shown(value)}")
    if len(value) > MAX_TEMPLATES:
        raise TokenizerError(f"{where}: expected at most {MAX_TEMPLATES} templates, got {len(value)}")
    templates: dict[str, str] = {}
    for i, entry in enumerate(value):
        name = entry.get("name") if isinstance(entry, dict) else None
        source = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(source, str):
            raise TokenizerError(
                f'{where}[{i}]: expected an object with the strings "name" and "template", got {shown(entry)}'
            )
        if name in templates:
            raise TokenizerError(f"{where}[{i}]: the name {shown(name)} occurs twice")
        templates[name] = source
    return templates
