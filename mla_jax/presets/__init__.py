"""Configurations of published models, for measurements without their weights."""

from pathlib import Path

PRESETS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.json")))


def preset_file(name: str) -> Path:
    """The config.json of a preset; `name` is one of `PRESETS`."""
    return Path(__file__).parent / f"{name}.json"
