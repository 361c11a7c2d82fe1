"""Runs the suite on every supported Python that this machine has, each with the newest jax it may use.

Each Python gets an environment of its own under build/matrix/. Pythons are looked for as `python3.N` on
PATH and in ~/.pyenv/versions; one that is missing is named, and at least one must be found.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINORS = (12, 13)


def find(minor: int) -> str | None:
    """The interpreter of Python 3.`minor`, or None."""
    for candidate in sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python3")):
        return str(candidate)
    found = shutil.which(f"python3.{minor}")
    works = found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    return found if works else None


def main() -> int:
    results = {}
    for minor in MINORS:
        interpreter = find(minor)
        if interpreter is None:
            print(f"Python 3.{minor}: not installed here, not tested")
            continue
        venv = f"build/matrix/3.{minor}"
        command = ["make", "test-editable", f"PYTHON={interpreter}", f"VENV={venv}"]
        print(f"Python 3.{minor}: {' '.join(command)}", flush=True)
        results[minor] = subprocess.run(command, cwd=ROOT, env=os.environ, check=False).returncode
        shutil.rmtree(ROOT / "build" / "editable", ignore_errors=True)
    for minor, code in results.items():
        print(f"Python 3.{minor}: {'passed' if code == 0 else f'failed with exit code {code}'}")
    return 0 if results and not any(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
