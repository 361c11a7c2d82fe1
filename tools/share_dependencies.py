"""Lets a virtual environment see this one's installed packages, but none of its editable installs.

Usage: share_dependencies.py OTHER_VENV
"""

import sys
import sysconfig
from pathlib import Path


def main() -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = Path(sys.argv[1]) / "lib" / version / "site-packages"
    # Folders named in a .pth file are searched, but .pth files inside them are not run, and those are
    # what an editable install consists of.
    (target / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
