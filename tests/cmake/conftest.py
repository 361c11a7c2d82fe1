"""The tests of this folder share its helper module."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
