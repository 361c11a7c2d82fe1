"""Writes docs/isa.md: what the ROCm kernels cost, read from their gfx942 and gfx950 code objects.

Usage: isa_report.py [--check]. With --check nothing is written and a document that is out of date is an error.
Needs clang-22 (tools/install_rocm_toolchain.sh). Nothing here runs on or claims a measurement of AMD hardware.
"""

import argparse
import sys

from isa.code_objects import ROOT, kernels
from isa.document import document

DOCUMENT = ROOT / "docs" / "isa.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if docs/isa.md is out of date")
    arguments = parser.parse_args()
    try:
        text = document(kernels())
    except LookupError as error:
        sys.exit(str(error.args[0]))
    if not arguments.check:
        DOCUMENT.write_text(text, encoding="utf-8")
    elif DOCUMENT.read_text(encoding="utf-8") != text:
        sys.exit("docs/isa.md is out of date: run make isa-report")


if __name__ == "__main__":
    main()
