"""Prints what a development environment installs, read from pyproject.toml.

`--constraints` prints pip's constraint option instead, where the lock was made for this Python.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKED_PYTHON = (3, 11)


def main() -> None:
    if "--constraints" in sys.argv[1:]:
        if sys.version_info[:2] == LOCKED_PYTHON:
            print("--constraint constraints.txt")
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join([*project["dependencies"], *project["optional-dependencies"]["dev"]]))


if __name__ == "__main__":
    main()
