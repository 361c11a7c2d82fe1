"""Bugs planted in the library's own kernels: the shared tests of the ops fail with each of them, in the emulator.

A mutation is one change of one file, in a copy of csrc/. One op's code object is compiled from the copy for one
architecture, by the build's own command, and takes its place in a copy of the emulated library, with which a shared
test then runs. The same tests pass with code objects that are made in the same way and have no change.
"""

import dataclasses
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import emulated_cpu
import pytest

CSRC = emulated_cpu.ROOT / "csrc"
SHARED = emulated_cpu.ROOT / "tests" / "custom_calls"

# How a mutation shows, in the words of the shared tests (op_base.check) and of the emulator. Poison is what nobody has
# written: local memory that another wave would have, a result.
WRONG = r"outside their bounds, first \(.*\): got np\.float64\((?!nan)"
POISON = r"outside their bounds, first \(.*\): got np\.float64\(nan\)"
ELSEWHERE = "access of .* is outside every registered buffer"
LEFT_WAITING = "waves wait at a barrier that the others have ended without reaching"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """`old`, which `file` has once, becomes `new`; `test` then fails and its report `shows` how."""

    architecture: str
    op: str
    """Whose code object is made anew."""
    file: str
    old: str
    new: str
    test: str
    shows: str


def oracle_test(op: str, case: str) -> str:
    """The id of an op's test against the oracle."""
    name = "".join(map(str.capitalize, op.split("_")))
    return f"test_{op}.py::Test{name}::test_matches_oracle[{case}-native]"


# Of MLA's own widths, on matrix cores: splits of two tiles of keys each, and pages of 16.
SPLITS = oracle_test("mla_attention", "R512-H16-splits-bfloat16-bfloat16")
PAGES = oracle_test("mla_attention", "R512-H20-chunk-bfloat16-bfloat16")
SEQUENCES = oracle_test("mla_attention", "many-sequences-bfloat16-float8_e4m3fn")
ROPE = oracle_test("rope_append_latent", "T3-page64-R512-bfloat16-bfloat16")
MXFP4 = oracle_test("linear_mxfp4", "M17-bfloat16")
FP8 = oracle_test("linear_fp8", "M17-bfloat16")
SHUFFLED = oracle_test("linear_shuffled", "M17-bfloat16-float32")

MUTATIONS = {
    # ---- a dropped barrier ----
    "scores-of-other-waves": Mutation(
        "gfx942", "mla_attention", "mla_attention/gpu_tiles.h",
        "      Barrier();\n      Softmax(", "      Softmax(",
        SPLITS, POISON,
    ),
    "keys-that-others-still-read": Mutation(
        "gfx942", "mla_attention", "mla_attention/gpu_keys.h",
        "if (!Copy::kTakesTurns) Barrier();", "",
        SPLITS, WRONG,
    ),
    "rows-that-the-first-wave-finds": Mutation(
        "gfx950", "mla_attention", "mla_attention/gpu_keys.h",
        "    NoteRow(second);\n    Barrier();\n", "    NoteRow(second);\n",
        SPLITS, WRONG,
    ),
    "a-sequence-that-another-wave-finds": Mutation(
        "gfx942", "mla_attention", "mla_attention/gpu_plan.h",
        "if (ThreadX() == 0) shared[0] = -1;\n  Barrier();\n", "if (ThreadX() == 0) shared[0] = -1;\n",
        SEQUENCES, WRONG,
    ),
    "sums-of-other-waves": Mutation(
        "gfx942", "linear_shuffled", "linear_shuffled/gpu_few.h",
        "    Barrier();\n    Emit();", "    Emit();",
        SHUFFLED, WRONG,
    ),
    "a-barrier-for-one-wave": Mutation(
        "gfx950", "linear_mxfp4", "gpu/tile_sums.h",
        "    Barrier();\n    if (split != 0) return false;", "    if (split != 0) return false;\n    Barrier();",
        MXFP4, LEFT_WAITING,
    ),
    "squares-of-other-waves": Mutation(
        "gfx950", "rmsnorm", "gpu/row_norm.h",
        "    Barrier();\n    value = waves[first];", "    value = waves[first];",
        "test_rmsnorm.py::TestRmsNorm::test_matches_oracle[T3-N2049-bfloat16-bfloat16-native]", POISON,
    ),
    # ---- a wrong lane map ----
    "sums-transposed": Mutation(
        "gfx942", "mla_attention", "gpu/mma.h",
        "Row(int i) { return 4 * (Lane() / 16) + i; }\n  static MLA_DEVICE int Column(int) { return Lane() % 16; }",
        "Row(int) { return Lane() % 16; }\n  static MLA_DEVICE int Column(int i) { return 4 * (Lane() / 16) + i; }",
        SPLITS, WRONG,
    ),
    "k-exchanged-in-one-operand": Mutation(
        "gfx950", "mla_attention", "gpu/mma.h",
        "run(Lane() % 16, kLaneK * (Lane() / 16))", "run(Lane() % 16, kLaneK * (Lane() / 16 ^ 1))",
        SPLITS, WRONG,
    ),
    "halves-exchanged-in-one-operand": Mutation(
        "gfx942", "linear_shuffled", "gpu/octet.h",
        "mfma_f32_16x16x16bf16_1k(a.at[i], b.at[i], d", "mfma_f32_16x16x16bf16_1k(a.at[i], b.at[1 - i], d",
        SHUFFLED, WRONG,
    ),
    "eights-exchanged-in-one-operand": Mutation(
        "gfx942", "linear_fp8", "gpu/fp8.h",
        "fp8_fp8(a.at[i], b.at[i], d", "fp8_fp8(a.at[i], b.at[3 - i], d",
        FP8, WRONG,
    ),
    # ---- a wrong op_sel, a wrong scale of MXFP4 ----
    "scale-byte-of-the-product": Mutation(
        "gfx950", "linear_mxfp4", "linear_mxfp4/gpu_kernel.cc",
        "kFp4, kFp4, 0, static_cast<int>(rows.at[0].scale)", "kFp4, kFp4, 1, static_cast<int>(rows.at[0].scale)",
        MXFP4, WRONG,
    ),
    "byte-of-the-conversion": Mutation(
        "gfx950", "linear_shuffled", "gpu/decode.h",
        "cvt_scalef32_pk_bf16_fp4(word, power, 2)", "cvt_scalef32_pk_bf16_fp4(word, power, 3)",
        SHUFFLED, WRONG,
    ),
    "scale-of-twice-the-size": Mutation(
        "gfx942", "linear_mxfp4", "gpu/decode.h",
        "ScalePair(pair, static_cast<int>(scale.byte) - 1)", "ScalePair(pair, static_cast<int>(scale.byte))",
        MXFP4, WRONG,
    ),
    # ---- wrong scales and codes of FP8, columns that are not there ----
    "tokens-of-half-the-value": Mutation(
        "gfx942", "linear_fp8", "gpu/fp8.h",
        "(rows_fnuz ? 1.0f : 2.0f) * (tokens_fnuz ? 1.0f : 2.0f)", "(rows_fnuz ? 1.0f : 2.0f)",
        FP8, WRONG,
    ),
    "minus-zero-as-it-is": Mutation(
        "gfx942", "linear_fp8", "gpu/decode.h",
        "(word & (magnitude + 0x7f7f7f7fu) & 0x80808080u)", "(word & 0x80808080u)",
        FP8, POISON,
    ),
    "scale-of-another-group": Mutation(
        "gfx950", "linear_fp8", "linear_fp8/gpu_kernel.cc",
        "(block_token_scales + group)", "block_token_scales",
        FP8, WRONG,
    ),
    "columns-behind-the-last": Mutation(
        "gfx950", "linear_fp8", "linear_fp8/gpu_kernel.cc",
        "      EndRows(now, group - Shape::kSplits);\n", "",
        FP8, WRONG,
    ),
    # ---- a page mix-up ----
    "page-as-slot": Mutation(
        "gfx950", "mla_attention", "mla_attention/gpu_plan.h",
        "((plan.layer * args.pages + page) * args.page_size + offset)",
        "(plan.layer * args.pages * args.page_size + page + offset)",
        PAGES, POISON,
    ),
    "key-as-page": Mutation(
        "gfx942", "mla_attention", "mla_attention/gpu_plan.h",
        "static_cast<uint32_t>(key) / static_cast<uint32_t>(args.page_size);\n  return",
        "static_cast<uint32_t>(key);\n  return",
        PAGES, ELSEWHERE,
    ),
    "layers-inside-slots": Mutation(
        "gfx942", "rope_append_latent", "rope_append_latent/gpu_kernel.cc",
        "(layer * args.slots_per_layer + slot)", "(slot * args.layers + layer)",
        ROPE, WRONG,
    ),
    "a-slot-of-the-next-layer": Mutation(
        "gfx950", "rope_append_latent", "rope_append_latent/gpu_kernel.cc",
        "slot >= args.slots_per_layer", "slot > args.slots_per_layer",
        oracle_test("rope_append_latent", "dropped-slots-page3-bfloat16-bfloat16"), WRONG,
    ),
    # ---- a merge that ignores what a split's weights are relative to, of few splits and of more than at once ----
    "splits-without-their-lse": Mutation(
        "gfx942", "mla_attention", "mla_attention/gpu_merge.h",
        "const float weight = Exp2(lse[b] - base);", "const float weight = written ? 1.0f : 0.0f;",
        oracle_test("mla_attention", "split-512-bfloat16-bfloat16"), WRONG,
    ),
    "splits-before-without-a-new-peak": Mutation(
        "gfx950", "mla_attention", "mla_attention/gpu_merge.h",
        "    merged.total *= shrink;\n", "",
        oracle_test("mla_attention", "split-8100-float32-float32"), WRONG,
    ),
    # ---- rotations, strides, experts, rounding ----
    "key-rotated-twice": Mutation(
        "gfx950", "rope_append_latent", "rope_append_latent/gpu_kernel.cc",
        """    const Pairs<T, pairs> in(src + args.rank, first, half, half_layout);
    return Angles<pairs>(args.cos, args.sin, table + first).Rotate(in, half_layout);""",
        """    Pairs<T, pairs> in(src + args.rank, first, half, half_layout);
    const Angles<pairs> angles(args.cos, args.sin, table + first);
    const Rotated<pairs> once = angles.Rotate(in, half_layout);
    for (int i = 0; i < 2 * pairs; ++i) in.raw.at[i] = FromFloat<T>(once.at[i]);
    return angles.Rotate(in, half_layout);""",
        ROPE, WRONG,
    ),
    "heads-as-tokens": Mutation(
        "gfx950", "absorb_quantized", "absorb_quantized/gpu_across.h",
        "token * args.y_stride + block.batch * args.y_batch + output",
        "token * args.y_batch + block.batch * args.y_stride + output",
        oracle_test("absorb_quantized", "mxfp4-T5-aligned-rows-bfloat16"), WRONG,
    ),
    "the-next-expert": Mutation(
        "gfx942", "expert_mlp", "expert_mlp/gpu_kernel.cc",
        "plan.tile_expert[j][tile] = e;", "plan.tile_expert[j][tile] = (e + 1) % experts;",
        oracle_test("expert_mlp", "T17-E4-k3-bfloat16"), POISON,
    ),
    "scale-that-rounds-up-later": Mutation(
        "gfx942", "flatten_quantize", "gpu/mxfp4.h",
        "(magnitude + 0x200000u) >> 23", "(magnitude + 0x100000u) >> 23",
        oracle_test("mxfp4_quantize", "rows-even-bfloat16"), WRONG,
    ),
    "ties-away-from-zero": Mutation(
        "gfx950", "flatten_quantize", "gpu/mxfp4.h",
        "u + 0x1fffffu + ((u >> 22) & 1u)", "u + 0x200000u",
        oracle_test("mxfp4_quantize", "rows-even-bfloat16"), WRONG,
    ),
}  # fmt: skip


@functools.cache
def built() -> Path:
    return emulated_cpu.build()


def image_of(op: str) -> Path:
    """What the build made of an op's kernels, for every architecture."""
    return built().parent / "rocm" / f"{op}.image"


def code_object(op: str, architecture: str, csrc: Path, image: Path) -> bytes:
    """The op's code object for one architecture, of the sources in `csrc`, by the command that made the library's."""
    ninja = [str(Path(sys.executable).parent / "ninja"), "-C", str(built().parent)]
    listed = subprocess.run(
        [*ninja, "-t", "commands", f"mla_rocm_{op}"], capture_output=True, text=True, check=True
    )
    command = [
        word.replace(str(CSRC), str(csrc)).replace(str(image_of(op)), str(image))
        for word in shlex.split(listed.stdout.rpartition("&&")[2])
        if not word.startswith("--offload-arch=") or word.endswith(f"={architecture}")
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return image.read_bytes()


def library(codes: Mapping[str, bytes], folder: Path) -> Path:
    """A copy of the emulated library with these ops' code objects in the place of its own."""
    content = built().read_bytes()
    for op, code in codes.items():
        own = image_of(op).read_bytes()
        assert content.count(own) == 1, f"{op}: the library has its code {content.count(own)} times"
        assert len(code) <= len(own), f"{op}: {len(code)} bytes in the place of {len(own)}"
        content = content.replace(own, code.ljust(len(own), b"\0"))
    copy = folder / built().name
    copy.write_bytes(content)
    return copy


def run(tests: Iterable[str], architecture: str, handlers: Path) -> subprocess.CompletedProcess[str]:
    """pytest on shared tests, with the library at `handlers`."""
    environment = {
        **os.environ,
        "MLA_JAX_EMULATED_ARCH": architecture,
        "MLA_JAX_EMULATED_MODULE": str(handlers),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "emulated_cpu", "-p", "no:cacheprovider"]
    ids = [str(SHARED / test) for test in tests]
    return subprocess.run(
        [*command, *ids], capture_output=True, text=True, env=environment, cwd=emulated_cpu.ROOT
    )


def test_without_a_mutation_the_tests_pass(architecture: str, tmp_path: Path) -> None:
    chosen = [each for each in MUTATIONS.values() if each.architecture == architecture]
    codes = {
        op: code_object(op, architecture, CSRC, tmp_path / op) for op in sorted({each.op for each in chosen})
    }
    tests = sorted({each.test for each in chosen})
    done = run(tests, architecture, library(codes, tmp_path))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"\n{len(tests)} passed in" in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name: str, tmp_path: Path) -> None:
    mutation = MUTATIONS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    source = csrc / mutation.file
    text = source.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file} has the text {text.count(mutation.old)} times"
    source.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    code = code_object(mutation.op, mutation.architecture, csrc, tmp_path / mutation.op)
    done = run([mutation.test], mutation.architecture, library({mutation.op: code}, tmp_path))
    assert done.returncode == 1, done.stdout[-6000:] + done.stderr[-2000:]
    assert "\n1 failed in" in done.stdout, done.stdout[-2000:]
    assert re.search(mutation.shows, done.stdout), done.stdout[-6000:]
