"""Scalar instructions: arithmetic with its SCC, bit fields, EXEC manipulation, branches, scalar loads."""

from collections.abc import Callable

import numpy as np
from snippets import INTEGER_CORNERS, LANES, Case, check_cases, mixed_inputs, run_pieces

MASK32, MASK64 = 2**32 - 1, 2**64 - 1
# Scalars come from lane 0: s20 and s21 (also as the pair s[20:21]), s22 and s23.
_READ = "\n".join(f"v_readfirstlane_b32 s{20 + i}, v{10 + i}" for i in range(4))
_SCC = "\ns_cselect_b32 s40, 1, 0\nv_mov_b32_e32 v42, s40"
_TO_40 = "\nv_mov_b32_e32 v40, s30"
_TO_41 = "\nv_mov_b32_e32 v41, s31"


def signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def pair(a: int, b: int) -> int:
    return a | b << 32


def scalar(text: str, f: Callable[..., tuple[int, bool | None]], *, wide: bool = False) -> Case:
    """f(s20, s21, s22, s23) -> (result, SCC after it; None where SCC must stay 1)."""

    def expect(*rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows[0]), 3, LANES), np.uint32)
        for group in range(len(out)):
            value, flag = f(*(int(row[group, 0]) for row in rows))
            out[group] = np.array(
                [value & MASK32, value >> 32 & MASK32 if wide else 0xDEADBEEF, 1 if flag is None else flag]
            )[:, None]
        return out

    return Case(f"{_READ}\ns_cmp_eq_u32 s20, s20\n{text}{_SCC}{_TO_40}{_TO_41 if wide else ''}", expect, 3)


def nonzero(value: int) -> tuple[int, bool]:
    return value, value != 0


def field(value: int, control: int, bits: int, is_signed: bool) -> tuple[int, bool]:
    offset, width = control & (bits - 1), control >> 16 & 0x7F
    out = (value >> offset if not is_signed else signed(value, bits) >> offset) & (
        (1 << min(width, bits)) - 1
    )
    if is_signed and width and width < bits and out >> (width - 1) & 1:
        out |= MASK64 & ~((1 << width) - 1)
    if is_signed and width >= bits:
        out &= (1 << bits) - 1
    return nonzero(out & ((1 << bits) - 1))


def leading(value: int, bits: int) -> int:
    return bits - value.bit_length() if value else MASK32


def trailing(value: int) -> int:
    return (value & -value).bit_length() - 1 if value else MASK32


def reversed_bits(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


def overflows(value: int) -> bool:
    return not -(2**31) <= value < 2**31


BITWISE = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}
CASES = [
    *(
        scalar(f"s_{name}_b32 s30, s20, s22", lambda a, b, c, d, f=f: nonzero(f(a, c) & MASK32))
        for name, f in BITWISE.items()
    ),
    *(
        scalar(
            f"s_{name}_b64 s[30:31], s[20:21], s[22:23]",
            lambda a, b, c, d, f=f: nonzero(f(pair(a, b), pair(c, d)) & MASK64),
            wide=True,
        )
        for name, f in BITWISE.items()
    ),
    scalar("s_not_b32 s30, s20", lambda a, *_: nonzero(~a & MASK32)),
    scalar("s_not_b64 s[30:31], s[20:21]", lambda a, b, *_: nonzero(~pair(a, b) & MASK64), wide=True),
    scalar("s_mov_b32 s30, s20", lambda a, *_: (a, None)),
    scalar("s_mov_b64 s[30:31], s[20:21]", lambda a, b, *_: (pair(a, b), None), wide=True),
    scalar("s_mov_b64 s[30:31], -7", lambda *_: (MASK64 - 6, None), wide=True),
    scalar("s_mov_b64 s[30:31], 0x200", lambda *_: (0x200, None), wide=True),
    scalar("s_mov_b32 s30, 9\ns_cmov_b32 s30, s20", lambda a, *_: (a, None)),
    scalar("s_cmp_lg_u32 s20, s20\ns_mov_b32 s30, 9\ns_cmov_b32 s30, s20", lambda *_: (9, False)),
    scalar("s_cmov_b64 s[30:31], s[20:21]", lambda a, b, *_: (pair(a, b), None), wide=True),
    scalar("s_cselect_b32 s30, s20, s22", lambda a, b, c, d: (a, None)),
    scalar(
        "s_cmp_lt_u32 s20, s22\ns_cselect_b64 s[30:31], s[20:21], s[22:23]",
        lambda a, b, c, d: (pair(a, b) if a < c else pair(c, d), a < c),
        wide=True,
    ),
    scalar("s_brev_b32 s30, s20", lambda a, *_: (reversed_bits(a, 32), None)),
    scalar(
        "s_brev_b64 s[30:31], s[20:21]", lambda a, b, *_: (reversed_bits(pair(a, b), 64), None), wide=True
    ),
    scalar("s_bcnt0_i32_b32 s30, s20", lambda a, *_: nonzero(32 - a.bit_count())),
    scalar("s_bcnt1_i32_b32 s30, s20", lambda a, *_: nonzero(a.bit_count())),
    scalar("s_bcnt0_i32_b64 s30, s[20:21]", lambda a, b, *_: nonzero(64 - pair(a, b).bit_count())),
    scalar("s_bcnt1_i32_b64 s30, s[20:21]", lambda a, b, *_: nonzero(pair(a, b).bit_count())),
    scalar("s_ff1_i32_b32 s30, s20", lambda a, *_: (trailing(a), None)),
    scalar("s_ff1_i32_b64 s30, s[20:21]", lambda a, b, *_: (trailing(pair(a, b)), None)),
    scalar("s_ff0_i32_b32 s30, s20", lambda a, *_: (trailing(~a & MASK32), None)),
    scalar("s_ff0_i32_b64 s30, s[20:21]", lambda a, b, *_: (trailing(~pair(a, b) & MASK64), None)),
    scalar("s_flbit_i32_b32 s30, s20", lambda a, *_: (leading(a, 32), None)),
    scalar("s_flbit_i32 s30, s20", lambda a, *_: (leading(a ^ MASK32 if a >> 31 else a, 32), None)),
    scalar("s_flbit_i32_b64 s30, s[20:21]", lambda a, b, *_: (leading(pair(a, b), 64), None)),
    scalar("s_mov_b32 s30, 0\ns_bitcmp0_b32 s20, s22", lambda a, b, c, d: (0, not a >> (c & 31) & 1)),
    scalar("s_mov_b32 s30, 0\ns_bitcmp1_b32 s20, s22", lambda a, b, c, d: (0, bool(a >> (c & 31) & 1))),
    scalar(
        "s_mov_b32 s30, 0\ns_bitcmp0_b64 s[20:21], s22",
        lambda a, b, c, d: (0, not pair(a, b) >> (c & 63) & 1),
    ),
    scalar(
        "s_mov_b32 s30, 0\ns_bitcmp1_b64 s[20:21], s22",
        lambda a, b, c, d: (0, bool(pair(a, b) >> (c & 63) & 1)),
    ),
    scalar("s_mov_b32 s30, s20\ns_bitset0_b32 s30, s22", lambda a, b, c, d: (a & ~(1 << (c & 31)), None)),
    scalar("s_mov_b32 s30, s20\ns_bitset1_b32 s30, s22", lambda a, b, c, d: (a | 1 << (c & 31), None)),
    scalar(
        "s_mov_b64 s[30:31], s[20:21]\ns_bitset0_b64 s[30:31], s22",
        lambda a, b, c, d: (pair(a, b) & ~(1 << (c & 63)), None),
        wide=True,
    ),
    scalar(
        "s_mov_b64 s[30:31], s[20:21]\ns_bitset1_b64 s[30:31], s22",
        lambda a, b, c, d: (pair(a, b) | 1 << (c & 63), None),
        wide=True,
    ),
    scalar("s_movk_i32 s30, 0x8001", lambda *_: (0xFFFF8001, None)),
    scalar(
        "s_mov_b32 s30, s20\ns_addk_i32 s30, 0xfff0",
        lambda a, *_: ((a - 16) & MASK32, overflows(signed(a) - 16)),
    ),
    scalar("s_mov_b32 s30, s20\ns_mulk_i32 s30, 0xfffd", lambda a, *_: (-3 * a & MASK32, None)),
    scalar("s_mov_b32 s30, s20\ns_cmovk_i32 s30, 0xfffd", lambda *_: (MASK32 - 2, None)),
    scalar("s_add_u32 s30, s20, s22", lambda a, b, c, d: (a + c & MASK32, a + c > MASK32)),
    scalar(
        "s_add_u32 s30, s20, s22\ns_addc_u32 s31, s21, s23",
        lambda a, b, c, d: (pair(a, b) + pair(c, d) & MASK64, pair(a, b) + pair(c, d) > MASK64),
        wide=True,
    ),
    scalar("s_sub_u32 s30, s20, s22", lambda a, b, c, d: (a - c & MASK32, c > a)),
    scalar(
        "s_sub_u32 s30, s20, s22\ns_subb_u32 s31, s21, s23",
        lambda a, b, c, d: (pair(a, b) - pair(c, d) & MASK64, pair(a, b) < pair(c, d)),
        wide=True,
    ),
    scalar("s_add_i32 s30, s20, s22", lambda a, b, c, d: (a + c & MASK32, overflows(signed(a) + signed(c)))),
    scalar("s_sub_i32 s30, s20, s22", lambda a, b, c, d: (a - c & MASK32, overflows(signed(a) - signed(c)))),
    scalar("s_mul_i32 s30, s20, s22", lambda a, b, c, d: (a * c & MASK32, None)),
    scalar("s_mul_hi_u32 s30, s20, s22", lambda a, b, c, d: (a * c >> 32, None)),
    scalar("s_mul_hi_i32 s30, s20, s22", lambda a, b, c, d: (signed(a) * signed(c) >> 32 & MASK32, None)),
    scalar(
        "s_min_i32 s30, s20, s22",
        lambda a, b, c, d: (a if signed(a) < signed(c) else c, signed(a) < signed(c)),
    ),
    scalar(
        "s_max_i32 s30, s20, s22",
        lambda a, b, c, d: (a if signed(a) >= signed(c) else c, signed(a) >= signed(c)),
    ),
    scalar("s_min_u32 s30, s20, s22", lambda a, b, c, d: (min(a, c), a < c)),
    scalar("s_max_u32 s30, s20, s22", lambda a, b, c, d: (max(a, c), a >= c)),
    scalar("s_abs_i32 s30, s20", lambda a, *_: nonzero(abs(signed(a)) & MASK32)),
    scalar("s_absdiff_i32 s30, s20, s22", lambda a, b, c, d: nonzero(abs(signed(a - c & MASK32)) & MASK32)),
    scalar("s_lshl_b32 s30, s20, s22", lambda a, b, c, d: nonzero(a << (c & 31) & MASK32)),
    scalar("s_lshr_b32 s30, s20, s22", lambda a, b, c, d: nonzero(a >> (c & 31))),
    scalar("s_ashr_i32 s30, s20, s22", lambda a, b, c, d: nonzero(signed(a) >> (c & 31) & MASK32)),
    scalar(
        "s_lshl_b64 s[30:31], s[20:21], s22",
        lambda a, b, c, d: nonzero(pair(a, b) << (c & 63) & MASK64),
        wide=True,
    ),
    scalar(
        "s_lshr_b64 s[30:31], s[20:21], s22", lambda a, b, c, d: nonzero(pair(a, b) >> (c & 63)), wide=True
    ),
    scalar(
        "s_ashr_i64 s[30:31], s[20:21], s22",
        lambda a, b, c, d: nonzero(signed(pair(a, b), 64) >> (c & 63) & MASK64),
        wide=True,
    ),
    *(
        scalar(f"s_bfe_u32 s30, s20, 0x{k:x}", lambda a, b, c, d, k=k: field(a, k, 32, False))
        for k in (0x50003, 0x1F0001, 0x200000)
    ),
    *(
        scalar(f"s_bfe_i32 s30, s20, 0x{k:x}", lambda a, b, c, d, k=k: field(a, k, 32, True))
        for k in (0x50003, 0x1F0001, 0x200000, 0x4)
    ),
    scalar(
        "s_bfe_u64 s[30:31], s[20:21], 0x2b0007",
        lambda a, b, *_: field(pair(a, b), 0x2B0007, 64, False),
        wide=True,
    ),
    scalar(
        "s_bfe_i64 s[30:31], s[20:21], 0x2b0007",
        lambda a, b, *_: field(pair(a, b), 0x2B0007, 64, True),
        wide=True,
    ),
    scalar("s_bfm_b32 s30, s20, s22", lambda a, b, c, d: (((1 << (a & 31)) - 1) << (c & 31) & MASK32, None)),
    scalar(
        "s_bfm_b64 s[30:31], s20, s22",
        lambda a, b, c, d: (((1 << (a & 63)) - 1) << (c & 63) & MASK64, None),
        wide=True,
    ),
    scalar("s_sext_i32_i8 s30, s20", lambda a, *_: (signed(a & 255, 8) & MASK32, None)),
    scalar("s_sext_i32_i16 s30, s20", lambda a, *_: (signed(a & 65535, 16) & MASK32, None)),
    scalar("s_pack_ll_b32_b16 s30, s20, s22", lambda a, b, c, d: (a & 65535 | (c & 65535) << 16, None)),
    scalar("s_pack_lh_b32_b16 s30, s20, s22", lambda a, b, c, d: (a & 65535 | c & 0xFFFF0000, None)),
    scalar("s_pack_hh_b32_b16 s30, s20, s22", lambda a, b, c, d: (a >> 16 | c & 0xFFFF0000, None)),
    *(
        scalar(
            f"s_lshl{k}_add_u32 s30, s20, s22",
            lambda a, b, c, d, k=k: ((a << k) + c & MASK32, (a << k) + c > MASK32),
        )
        for k in (1, 2, 3, 4)
    ),
    scalar(
        "s_wqm_b64 s[30:31], s[20:21]",
        lambda a, b, *_: nonzero(sum(15 << 4 * q for q in range(16) if pair(a, b) >> 4 * q & 15)),
        wide=True,
    ),
    scalar("s_getpc_b64 s[30:31]\ns_getpc_b64 s[32:33]\ns_sub_u32 s30, s32, s30", lambda *_: (4, False)),
    scalar(
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1\ns_getreg_b32 s30, hwreg(HW_REG_MODE, 22, 3)\n"
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 0\ns_and_b32 s30, s30, 2",
        lambda *_: (2, True),
    ),
    scalar(
        "s_mov_b32 s31, 0\ns_setreg_b32 hwreg(HW_REG_MODE, 23, 1), s31\ns_mov_b32 s30, s20",
        lambda a, *_: (a, None),
    ),
]

COMPARES = (
    [
        scalar(
            f"s_mov_b32 s30, 0\ns_cmp_{name}_{kind} s20, s22",
            lambda a, b, c, d, f=f, kind=kind: (0, f(signed(a), signed(c)) if kind == "i32" else f(a, c)),
        )
        for kind in ("i32", "u32")
        for name, f in {
            "eq": int.__eq__,
            "lg": int.__ne__,
            "gt": int.__gt__,
            "ge": int.__ge__,
            "lt": int.__lt__,
            "le": int.__le__,
        }.items()
    ]
    + [
        scalar(
            f"s_mov_b32 s30, 0\ns_cmpk_{name}_{kind} s20, 0xfffe",
            lambda a, b, c, d, f=f, kind=kind: (0, f(signed(a), -2) if kind == "i32" else f(a, 0xFFFE)),
        )
        for kind in ("i32", "u32")
        for name, f in {
            "eq": int.__eq__,
            "lg": int.__ne__,
            "gt": int.__gt__,
            "ge": int.__ge__,
            "lt": int.__lt__,
            "le": int.__le__,
        }.items()
    ]
    + [
        scalar(
            "s_mov_b32 s30, 0\ns_cmp_eq_u64 s[20:21], s[22:23]",
            lambda a, b, c, d: (0, pair(a, b) == pair(c, d)),
        ),
        scalar(
            "s_mov_b32 s30, 0\ns_cmp_lg_u64 s[20:21], s[22:23]",
            lambda a, b, c, d: (0, pair(a, b) != pair(c, d)),
        ),
    ]
)


def exec_case(text: str, f: Callable[[int, int], tuple[int, int]]) -> Case:
    """f(operand, EXEC before) -> (destination, EXEC after); SCC is EXEC != 0."""

    def run(a: int, b: int, c: int, d: int) -> tuple[int, bool]:
        destination, now = f(pair(a, b), pair(c, d))
        return (destination ^ now) & MASK64, now != 0

    body = f"s_mov_b64 exec, s[22:23]\n{text}\ns_mov_b64 s[34:35], exec\ns_mov_b64 exec, -1\ns_cselect_b32 s36, 1, 0"
    return scalar(f"{body}\ns_xor_b64 s[30:31], s[30:31], s[34:35]\ns_cmp_eq_u32 s36, 1", run, wide=True)


EXECS = [
    exec_case("s_and_saveexec_b64 s[30:31], s[20:21]", lambda a, e: (e, a & e)),
    exec_case("s_or_saveexec_b64 s[30:31], s[20:21]", lambda a, e: (e, a | e)),
    exec_case("s_xor_saveexec_b64 s[30:31], s[20:21]", lambda a, e: (e, a ^ e)),
    exec_case("s_andn2_saveexec_b64 s[30:31], s[20:21]", lambda a, e: (e, a & ~e)),
    exec_case("s_orn2_saveexec_b64 s[30:31], s[20:21]", lambda a, e: (e, (a | ~e) & MASK64)),
    exec_case("s_andn1_saveexec_b64 s[30:31], s[20:21]", lambda a, e: (e, ~a & e)),
    exec_case("s_andn1_wrexec_b64 s[30:31], s[20:21]", lambda a, e: (~a & e, ~a & e)),
    exec_case("s_andn2_wrexec_b64 s[30:31], s[20:21]", lambda a, e: (a & ~e, a & ~e)),
]


def jump(set_up: str, branch: str, taken: Callable[..., bool]) -> Case:
    text = (
        f"s_mov_b32 s30, 1\n{set_up}\n{branch} 1\ns_mov_b32 s30, 0\ns_mov_b64 exec, -1\ns_cmp_eq_u32 s20, s20"
    )
    return scalar(text, lambda *r: (int(taken(*r)), True))


BRANCHES = [
    jump("s_nop 0", "s_branch", lambda *_: True),
    jump("s_cmp_lt_u32 s20, s22", "s_cbranch_scc0", lambda a, b, c, d: a >= c),
    jump("s_cmp_lt_u32 s20, s22", "s_cbranch_scc1", lambda a, b, c, d: a < c),
    jump(
        "s_and_b64 vcc, s[20:21], s[22:23]", "s_cbranch_vccz", lambda a, b, c, d: pair(a, b) & pair(c, d) == 0
    ),
    jump(
        "s_and_b64 vcc, s[20:21], s[22:23]",
        "s_cbranch_vccnz",
        lambda a, b, c, d: pair(a, b) & pair(c, d) != 0,
    ),
    jump(
        "s_and_b64 exec, s[20:21], s[22:23]",
        "s_cbranch_execz",
        lambda a, b, c, d: pair(a, b) & pair(c, d) == 0,
    ),
    jump(
        "s_and_b64 exec, s[20:21], s[22:23]",
        "s_cbranch_execnz",
        lambda a, b, c, d: pair(a, b) & pair(c, d) != 0,
    ),
    # A call and its return: the callee sits behind a branch.
    scalar(
        "s_getpc_b64 s[36:37]\ns_add_u32 s36, s36, 20\ns_addc_u32 s37, s37, 0\ns_swappc_b64 s[38:39], s[36:37]\n"
        "s_cmp_eq_u32 s20, s20\ns_branch 2\ns_add_u32 s30, s20, 3\ns_setpc_b64 s[38:39]",
        lambda a, *_: (a + 3 & MASK32, True),
    ),
]

# s[6:7] points at the group's inputs: word k of the first row is lane k's.
_LOADED = {1: "", 2: "x2", 4: "x4", 8: "x8", 16: "x16"}
LOADS = [
    Case(
        f"s_load_dword{suffix} s[{44}:{43 + words}], s[6:7], 0x14\n"
        f"s_waitcnt lgkmcnt(0)\nv_mov_b32_e32 v40, s{43 + words}".replace("s[44:44]", "s44"),
        lambda a, *_, words=words: np.repeat(a[:, 4 + words : 5 + words], 64, 1),
    )
    for words, suffix in _LOADED.items()
] + [
    Case(
        "s_movk_i32 s20, 0x100\ns_load_dword s44, s[6:7], s20\nv_mov_b32_e32 v40, s44",
        lambda a, b, *_: np.repeat(b[:, :1], 64, 1),
    ),
    Case(
        "s_mov_b32 s44, s6\ns_mov_b32 s45, s7\ns_mov_b32 s46, 12\n"
        "s_mov_b32 s47, 0x20000\ns_buffer_load_dwordx4 s[48:51], s[44:47], 0x4\n"
        "v_mov_b32_e32 v40, s49\nv_mov_b32_e32 v41, s50",
        lambda a, *_: np.stack([np.repeat(a[:, 2:3], 64, 1), 0 * a], 1),
        2,
    ),
    *(
        Case(
            f"s_mov_b32 s44, s6\ns_mov_b32 s45, s7\ns_movk_i32 s46, 0x400\ns_mov_b32 s47, 0x20000\n"
            f"s_buffer_load_dword{suffix} s[{52}:{51 + words}], s[44:47], 0x8\n"
            f"v_mov_b32_e32 v40, s{51 + words}".replace("s[52:52]", "s52"),
            lambda a, *_, words=words: np.repeat(a[:, 1 + words : 2 + words], 64, 1),
        )
        for words, suffix in _LOADED.items()
    ),
]
WAITS = [
    Case(
        "s_nop 3\ns_waitcnt vmcnt(0) lgkmcnt(0)\ns_sleep 1\ns_setprio 2\n"
        "s_dcache_inv\ns_dcache_wb\ns_icache_inv\nbuffer_wbl2 sc1\n"
        "buffer_inv sc1\nv_nop\ns_sethalt 0\ns_sendmsg sendmsg(MSG_INTERRUPT)\n"
        "s_ttracedata\ns_incperflevel 1\ns_decperflevel 1\n"
        "s_memtime s[30:31]\ns_memtime s[32:33]\ns_memrealtime s[34:35]\n"
        "s_cmp_lt_u32 s30, s32\ns_cselect_b32 s30, 7, 8\nv_mov_b32_e32 v40, s30",
        lambda a, *_: 0 * a + np.uint32(7),
    ),
]

# VGPR indexing: s20 picks one of v10 to v13, for reading or writing.
INDEXING = [
    Case(
        "v_readfirstlane_b32 s20, v10\ns_and_b32 s20, s20, 3\ns_set_gpr_idx_on s20, gpr_idx(SRC0)\n"
        "v_mov_b32_e32 v40, v10\ns_set_gpr_idx_off\nv_mov_b32_e32 v41, v10",
        lambda *r: np.stack(
            [
                np.take_along_axis(np.stack(r), (r[0][None, :, :1] & np.uint32(3)).astype(np.int64), 0)[0],
                r[0],
            ],
            1,
        ),
        2,
    ),
    Case(
        "s_mov_b32 s20, 1\ns_set_gpr_idx_on s20, gpr_idx(SRC1,DST)\nv_add_u32_e32 v40, v10, v11\ns_set_gpr_idx_off",
        lambda a, b, c, *_: np.stack([0 * a + np.uint32(0xDEADBEEF), a + c], 1),
        2,
    ),
]


def inputs(rng: np.random.Generator) -> np.ndarray:
    given = mixed_inputs(rng, INTEGER_CORNERS, groups=40)
    # Every fourth group compares equal values; a few pairs have no common bit.
    given[::4, 2:] = given[::4, :2]
    given[1::8, 2:] = ~given[1::8, :2]
    return given


def test_arithmetic(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, CASES, inputs(rng))


def test_comparisons(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, COMPARES, inputs(rng))


def test_exec_masks(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, EXECS, inputs(rng))


def test_branches_and_calls(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, BRANCHES, inputs(rng))


def test_loads(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, LOADS, mixed_inputs(rng, INTEGER_CORNERS))


def test_vgpr_indexing(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, INDEXING, mixed_inputs(rng, INTEGER_CORNERS))


def test_waits_do_nothing(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, WAITS, mixed_inputs(rng, INTEGER_CORNERS))


def test_scalar_registers_start_poisoned(architecture: str) -> None:
    (out,) = run_pieces(
        architecture,
        [("v_mov_b32_e32 v40, s77\nv_mov_b32_e32 v41, v99", 2)],
        np.zeros((1, 4, LANES), np.uint32),
    )
    assert (out == 0xFFFFFFFF).all()
