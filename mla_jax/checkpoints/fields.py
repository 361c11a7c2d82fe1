"""Typed access to the keys of a JSON object, so that every complaint names key, expected and got."""

from collections.abc import Mapping
from typing import Any, NoReturn

from mla_jax.config import MAX_INT
from mla_jax.errors import ConfigError, shown

REQUIRED = object()
"""Default of a key that has to be present. A present null is not a missing key."""


class Fields:
    """Reads values of a JSON object.

    Every method takes the key's accepted spellings, the preferred one first; if several are present
    they must agree. `default` is used where no spelling is present or the value is null.

    Args:
      values: the object.
      where: prefix of messages, such as "text_config.".
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where or 'config'}: expected a JSON object, got {shown(values)}")
        self._values = values
        self.where = where

    def has(self, *keys: str) -> bool:
        """Whether one of the spellings is present with a value other than null."""
        return any(self._values.get(key) is not None for key in keys)

    def present(self, *keys: str) -> bool:
        """Whether one of the spellings is present, be it as null."""
        return any(key in self._values for key in keys)

    def raw(self, *keys: str) -> Any:
        """The value, unchecked; None where no spelling is present."""
        present = [key for key in keys if self._values.get(key) is not None]
        for other in present[1:]:
            if self._values[other] != self._values[present[0]]:
                first, second = shown(self._values[present[0]]), shown(self._values[other])
                raise ConfigError(
                    f"{self.where}{other}: expected the same as its other spelling"
                    f" {present[0]} = {first}, got {second}"
                )
        return self._values[present[0]] if present else None

    def fail(self, key: str, expected: str) -> NoReturn:
        """Raises ConfigError about `key`."""
        got = shown(self._values[key]) if key in self._values else "no such key"
        raise ConfigError(f"{self.where}{key}: expected {expected}, got {got}")

    def integer(self, *keys: str, low: int, default: Any = REQUIRED) -> Any:
        """An int in [low, MAX_INT], or the default. JSON's true, 1.0 and "1" are no integers."""
        value = self.raw(*keys)
        if value is None:
            return self._default(keys, default)
        if type(value) is not int or not low <= value <= MAX_INT:
            self.fail(self._spelling(keys), f"an integer from {low} to {MAX_INT}")
        return value

    def number(self, *keys: str, default: Any = REQUIRED) -> Any:
        """A float, or the default. Ranges are checked where the value is used."""
        value = self.raw(*keys)
        if value is None:
            return self._default(keys, default)
        if type(value) is int and abs(value) <= MAX_INT:
            return float(value)
        if type(value) is not float or not abs(value) < float("inf"):
            self.fail(self._spelling(keys), "a finite number")
        return value

    def boolean(self, *keys: str, default: Any = REQUIRED) -> Any:
        """A bool, or the default where the key is missing; null is refused.

        transformers reads a null boolean as false even where the default is true.
        """
        value = self.raw(*keys)
        if value is None and not self.present(*keys):
            return self._default(keys, default)
        if type(value) is not bool:
            self.fail(self._spelling(keys), "true or false")
        return value

    def string(self, *keys: str, default: Any = REQUIRED) -> Any:
        """A str, or the default."""
        value = self.raw(*keys)
        if value is None:
            return self._default(keys, default)
        if type(value) is not str:
            self.fail(self._spelling(keys), "a string")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A tuple of str; empty where the key is missing or null."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)) or any(type(item) is not str for item in value):
            self.fail(key, "a list of strings")
        return tuple(value)

    def integers(self, key: str, *, low: int) -> tuple[int, ...]:
        """A tuple of int from one integer or a list of them; empty where missing or null."""
        value = self.raw(key)
        if value is None:
            return ()
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(type(item) is not int or not low <= item <= MAX_INT for item in items):
            self.fail(key, f"an integer from {low} to {MAX_INT}, or a list of them")
        return tuple(items)

    def object(self, *keys: str) -> "Fields | None":
        """The fields of a nested object; None where it is missing or null."""
        value = self.raw(*keys)
        if value is None:
            return None
        spelling = self._spelling(keys)
        if not isinstance(value, Mapping):
            self.fail(spelling, "a JSON object")
        return Fields(value, f"{self.where}{spelling}.")

    def items(self) -> list[tuple[str, Any]]:
        """All keys and values."""
        return list(self._values.items())

    def _spelling(self, keys: tuple[str, ...]) -> str:
        return next((key for key in keys if self._values.get(key) is not None), keys[0])

    def _default(self, keys: tuple[str, ...], default: Any) -> Any:
        if default is REQUIRED:
            self.fail(keys[0], "a value")
        return default
