"""Instructions one by one: many short pieces of assembly in one kernel, each with inputs and outputs of its own.

A piece reads v10, v11, ... (one row of inputs each), may use v60..v99, s20..s79 and a0..a127, and leaves its result
in v40, v41, ..., which hold BEFORE when it starts. v0 is the lane, v1 is 4 x lane;
s[6:7] points at the group's inputs and s[4:5] at the piece's outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from emulation import loaded, poisoned
from hip_toolchain import assemble
from ml_dtypes import bfloat16

LANES = 64
BEFORE = 0xDEADBEEF
LDS_BYTES = 32768
PRIVATE_BYTES = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """`text` on rows of inputs; `expect(*rows)` gives the first `words` output registers, [words, 64] or [64]."""

    text: str
    expect: Callable[..., np.ndarray]
    words: int = 1
    # Relative difference allowed to float32 results; 0 compares bits, where any NaN equals any other.
    ulps: float = 0
    kind: str = "u32"

    @property
    def name(self) -> str:
        return self.text.replace("\n", "; ")


_PROLOGUE = """.amdgcn_target "amdgcn-amd-amdhsa--{arch}"
.text
.globl pieces
.p2align 8
.type pieces,@function
pieces:
  s_load_dwordx4 s[4:7], s[0:1], 0x0
  s_waitcnt lgkmcnt(0)
  s_mul_i32 s8, s2, {in_bytes}
  s_add_u32 s6, s6, s8
  s_addc_u32 s7, s7, 0
  s_mul_i32 s8, s2, {out_bytes}
  s_add_u32 s4, s4, s8
  s_addc_u32 s5, s5, 0
  v_lshlrev_b32_e32 v1, 2, v0
  v_add_u32_e32 v2, 0x1000, v1
  v_add_u32_e32 v3, 0x3000, v1
"""

_EPILOGUE = """  s_endpgm
.Lend:
.size pieces, .Lend-pieces
.rodata
.p2align 6
.amdhsa_kernel pieces
  .amdhsa_group_segment_fixed_size {lds}
  .amdhsa_private_segment_fixed_size {private}
  .amdhsa_enable_private_segment 1
  .amdhsa_user_sgpr_kernarg_segment_ptr 1
  .amdhsa_next_free_vgpr 256
  .amdhsa_next_free_sgpr 96
  .amdhsa_accum_offset 128
  .amdhsa_float_denorm_mode_32 {denormals}
  .amdhsa_float_denorm_mode_16_64 3
.end_amdhsa_kernel
.amdgpu_metadata
---
amdhsa.version: [1, 2]
amdhsa.target: amdgcn-amd-amdhsa--{arch}
amdhsa.kernels:
  - .name: pieces
    .symbol: pieces.kd
    .kernarg_segment_size: 16
    .kernarg_segment_align: 8
    .group_segment_fixed_size: {lds}
    .private_segment_fixed_size: {private}
    .wavefront_size: 64
    .sgpr_count: 96
    .vgpr_count: 256
    .agpr_count: 128
    .max_flat_workgroup_size: 64
    .args:
      - {{.size: 8, .offset: 0, .value_kind: global_buffer, .address_space: global}}
      - {{.size: 8, .offset: 8, .value_kind: global_buffer, .address_space: global}}
...
.end_amdgpu_metadata
"""


def registers(first: int, count: int, letter: str = "v") -> str:
    return f"{letter}{first}" if count == 1 else f"{letter}[{first}:{first + count - 1}]"


def raw_buffer(low: str, high: str, records: int) -> str:
    """Lines that make s[44:47] a raw buffer resource of `records` bytes at the address in two scalars."""
    return f"s_mov_b32 s44, {low}\ns_mov_b32 s45, {high}\ns_movk_i32 s46, 0x{records:x}\ns_mov_b32 s47, 0x20000\n"


def row_address(row: int) -> str:
    """Operands of a load of the group's input row; an instruction's offset spans 8 KiB."""
    return f"v{2 if row < 32 else 3}, s[6:7] offset:{256 * row - (0x1000 if row < 32 else 0x3000)}"


def assembly(pieces: Sequence[tuple[str, int]], rows: int, architecture: str, denormals: int = 3) -> str:
    """The kernel's text: each piece, with its number of output words, between loads and stores."""
    words = sum(count for _, count in pieces)
    out = [_PROLOGUE.format(arch=architecture, in_bytes=rows * 4 * LANES, out_bytes=words * 4 * LANES)]
    for text, count in pieces:
        out += [f"global_load_dword v{10 + row}, {row_address(row)}" for row in range(rows)]
        out += ["s_waitcnt vmcnt(0)", *(f"v_mov_b32_e32 v{40 + word}, 0x{BEFORE:x}" for word in range(count))]
        out += ["s_mov_b64 exec, -1", text, "s_mov_b64 exec, -1", "s_nop 7"]
        out += [f"global_store_dword v1, v{40 + word}, s[4:5] offset:{256 * word}" for word in range(count)]
        out += [f"s_add_u32 s4, s4, {256 * count}", "s_addc_u32 s5, s5, 0"]
    return (
        "\n".join(out)
        + "\n"
        + _EPILOGUE.format(arch=architecture, lds=LDS_BYTES, private=PRIVATE_BYTES, denormals=denormals)
    )


def run_pieces(
    architecture: str,
    pieces: Sequence[tuple[str, int]],
    inputs: np.ndarray,
    *,
    order: int = 0,
    denormals: int = 3,
) -> list[np.ndarray]:
    """inputs: [groups, rows, 64] uint32. Returns one [groups, words, 64] uint32 array a piece."""
    groups, rows, lanes = inputs.shape
    assert lanes == LANES and inputs.dtype == np.uint32
    out = poisoned((groups, sum(count for _, count in pieces), LANES), np.uint32)
    image = assemble(assembly(pieces, rows, architecture, denormals), architecture)
    with loaded(image, architecture) as module:
        module.launch("pieces", [groups], [LANES], [out, np.ascontiguousarray(inputs)], order=order)
    splits = np.cumsum([count for _, count in pieces])[:-1]
    return np.split(out, splits, axis=1)


def _same_bits(got: np.ndarray, expected: np.ndarray, kind: str) -> np.ndarray:
    if kind == "u32":
        return got == expected
    bits, floats = {
        "f32": (np.uint32, np.float32),
        "f16": (np.uint16, np.float16),
        "bf16": (np.uint16, bfloat16),
    }[kind]
    with np.errstate(invalid="ignore"):  # of signalling patterns
        both_nan = np.isnan(got.view(floats)) & np.isnan(expected.view(floats))
    same = (got.view(bits) == expected.view(bits)) | both_nan
    return same.reshape(*got.shape, -1).all(-1)


def check_cases(architecture: str, cases: Sequence[Case], inputs: np.ndarray) -> None:
    """Runs every case in one kernel and compares each with its own expectation."""
    outputs = run_pieces(architecture, [(case.text, case.words) for case in cases], inputs)
    rows = list(np.moveaxis(inputs, 1, 0))
    for case, got in zip(cases, outputs, strict=True):
        with np.errstate(all="ignore"):
            expected = np.asarray(case.expect(*rows))
        if expected.ndim == 2 and case.words == 1:
            expected = expected[:, None]
        expected = np.ascontiguousarray(np.broadcast_to(expected, got.shape))
        if expected.dtype.itemsize != 4:
            raise AssertionError(f"{case.name}: the expectation has dtype {expected.dtype}, not 32 bits")
        if case.ulps:
            a, b = got.view(np.float32), expected.view(np.float32)
            with np.errstate(all="ignore"):
                near = np.abs(a.astype(np.float64) - b) <= case.ulps * np.spacing(np.abs(b)).astype(
                    np.float64
                )
            good = near | (got == expected.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
        else:
            good = _same_bits(got, expected.view(np.uint32), case.kind)
        if not good.all():
            at = tuple(int(i) for i in np.argwhere(~good)[0])
            operands = [f"0x{int(row[at[0], at[2]]):08x}" for row in rows]
            raise AssertionError(
                f"{case.name} on {architecture}: lane {at[2]} word {at[1]} of inputs {operands}: "
                f"got 0x{int(got[at]):08x}, expected 0x{int(expected.view(np.uint32)[at]):08x}; "
                f"{int((~good).sum())} of {good.size} differ"
            )


FLOAT_CORNERS = np.array(
    [0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001,
     0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x80800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F000000, 0x4B000001,
     0x4F000000, 0xCF000000, 0x4F800000, 0x5F000000, 0x34000000, 0x33800000, 0x477FE000, 0x477FF000, 0x38800000,
     0x387FC000, 0x33000000, 0x43800000, 0x43E00000, 0x43E80000, 0x3F808000, 0x3F818000, 0x3E200000, 0x40C00000],
    np.uint32,
)  # fmt: skip
INTEGER_CORNERS = np.array(
    [0, 1, 2, 31, 32, 33, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFF, 0x800000, 0xFFFFFF,
     0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0xFFFFFFFE, 0xAAAAAAAA, 0x55555555],
    np.uint32,
)  # fmt: skip


def mixed_inputs(rng: np.random.Generator, corners: np.ndarray, rows: int = 4, groups: int = 8) -> np.ndarray:
    """[groups, rows, 64] uint32: half of the lanes corner values, half random bits; every pair of rows differs."""
    random = rng.integers(0, 2**32, (groups, rows, LANES), np.uint32)
    return np.where(rng.random(random.shape) < 0.5, rng.choice(corners, random.shape), random)


def words_of(value: np.ndarray) -> list[np.ndarray]:
    if value.dtype == np.uint32:
        return [value]
    return [(value & np.uint64(0xFFFFFFFF)).astype(np.uint32), (value >> np.uint64(32)).astype(np.uint32)]
