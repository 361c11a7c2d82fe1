"""Writes docs/bug-classes.md: real bugs of inference engines, and the test that each would fail here.

Tests say which bugs they stand for: @pytest.mark.bug("owner/repo#number", MECHANISM). The mechanisms are "type"
(the mistake cannot be written), "verifier" (`mla_jax.verify` refuses it) and "test" (a test of that class of mistakes
fails). Usage: python tools/bug_classes.py [--check]
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "bug-classes.md"

MECHANISMS = {
    "type": "unwritable: the types refuse it",
    "verifier": "refused by `mla_jax.verify`",
    "test": "a test of this class fails",
}

BUGS = {
    "sgl-project/sglang#24148": "Two files each decided who rotates; under one backend both did. GSM8K 0.953 to 0.169.",
    "sgl-project/sglang#24799": "A kernel was renamed in a library; 28 model modules could no longer be imported.",
    "sgl-project/sglang#14497": "A fused norm and quantisation changed its arguments and results; its caller broke.",
    "sgl-project/sglang#25463": "A batched MXFP4 product wrote head-major, so that every layer copied before o_proj.",
    "sgl-project/sglang#21315": "A fused RoPE and cache write: the caller rotated too, the key's scale served values, "
    "two-axis inputs and sliding-window slots went wrong.",
    "sgl-project/sglang#25556": "The page size was handed over as a block size beside token-granular indices. "
    "GSM8K 0.970 to 0.005.",
    "sgl-project/sglang#18242": "A fused write was switched on for one more GPU, whose caller still rotated.",
    "vllm-project/vllm#56314": "Layers without RoPE were read with the row width of layers with it.",
    "sgl-project/sglang#27972": "A kernel of one GPU was chosen on another, because its import worked; FNUZ was not "
    "seen to be FP8.",
    "sgl-project/sglang#24587": "An index buffer was sized in pages and filled in tokens.",
    "ROCm/aiter#2996": "Pages of more than one token gave silently wrong attention.",
    "ROCm/aiter#2768": "32-bit offsets overflowed in long caches.",
    "ROCm/aiter#4474": "The same beyond 2 GB.",
    "sgl-project/sglang#36207": "Padded tokens wrote into a reserved slot and leaked into answers.",
    "ROCm/aiter#5010": "A fused writer had no way to say that a token is padding.",
    "vllm-project/vllm#37682": "Rows of padding were never written and read as NaN later.",
    "ROCm/aiter#4342": "A token without a slot did not get its query rotated either.",
    "sgl-project/sglang#34765": "The scale of an FP8 cache did not reach the kernel that reads it.",
    "vllm-project/vllm#45681": "FNUZ bytes were written where OCP's were read.",
    "sgl-project/sglang#29275": "Scales were written in one layout and read in the other.",
    "ROCm/aiter#4181": "A contraction of 192 columns was not a multiple of what the kernel stepped by.",
    "ROCm/aiter#2585": "Fewer than 16 query heads were not supported.",
    "sgl-project/sglang#28471": "A shuffled FP8 layout was read as a plain one. GSM8K 0.000.",
    "vllm-project/vllm#31282": "The last page's length was computed wrongly.",
    "ROCm/aiter#2720": "Query lengths that are no powers of two all gave one answer.",
    "vllm-project/vllm#26042": "Prefill in chunks differed from prefill in one piece. GSM8K 0.93 to 0.647.",
    "vllm-project/vllm#39146": "Blocks of one sequence were overwritten by another's.",
    "vllm-project/vllm#13418": "Slots for fewer tokens than keys, under padding.",
    "sgl-project/sglang#38663": "A plan made on the host was stale when a captured graph replayed.",
    "sgl-project/sglang#35522": "Expanding a cached prefix took a temporary that grows with the context.",
}


class Marked(NamedTuple):
    """A test that stands for a bug."""

    bug: str
    mechanism: str
    test: str


def marked_tests(folder: Path) -> Iterator[Marked]:
    """Every marker of every test below a folder, by reading the files; nothing is imported."""
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not node.name.lower().startswith(
                "test"
            ):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.bug":
                    bug, mechanism = (ast.literal_eval(argument) for argument in decorator.args)
                    yield Marked(bug, mechanism, f"{path.relative_to(ROOT)}::{node.name}")


def document(marked: list[Marked]) -> str:
    """The text of docs/bug-classes.md.

    Raises:
      SystemExit: a marker names an unknown bug or mechanism.
    """
    for one in marked:
        if one.bug not in BUGS or one.mechanism not in MECHANISMS:
            raise SystemExit(f"{one.test}: unknown bug or mechanism: {one.bug}, {one.mechanism}")
    lines = [
        "# Bug classes",
        "",
        "Bugs that inference engines really had, and what stands against each here. Written by",
        "`python tools/bug_classes.py` from the markers of the tests; a test that vanishes fails the suite.",
        "",
        "| bug | what happened | here | test |",
        "|---|---|---|---|",
    ]
    for bug, what in BUGS.items():
        repo, _, number = bug.partition("#")
        link = f"[{bug}](https://github.com/{repo}/pull/{number})"
        found = [one for one in marked if one.bug == bug]
        for i, one in enumerate(found):
            first = (link, what) if i == 0 else ("", "")
            lines.append(f"| {first[0]} | {first[1]} | {MECHANISMS[one.mechanism]} | `{one.test}` |")
        if not found:
            lines.append(f"| {link} | {what} | not covered | |")
    covered = {one.bug for one in marked}
    lines += ["", f"{len(covered)} of {len(BUGS)} are covered: "]
    lines[-1] += ", ".join(
        f"{len({one.bug for one in marked if one.mechanism == mechanism})} by {mechanism}"
        for mechanism in MECHANISMS
    )
    lines[-1] += " (some by several)."
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes the document, or with --check compares it; returns the exit code."""
    text = document(list(marked_tests(ROOT / "tests")))
    if sys.argv[1:] == ["--check"]:
        if not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != text:
            print(
                f"{DOCUMENT.name} is not what the tests say: run python tools/bug_classes.py", file=sys.stderr
            )
            return 1
        return 0
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
