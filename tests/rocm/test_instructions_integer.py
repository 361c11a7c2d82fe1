"""Integer and bitwise vector instructions against NumPy, on corner values and random bits."""

import numpy as np
from snippets import INTEGER_CORNERS, Case, check_cases, mixed_inputs, run_pieces


def i32(a: np.ndarray) -> np.ndarray:
    return a.view(np.int32)


def u64(a: np.ndarray) -> np.ndarray:
    return a.astype(np.uint64)


def i64(a: np.ndarray) -> np.ndarray:
    return i32(a).astype(np.int64)


def low(a: np.ndarray) -> np.ndarray:
    return (
        a.astype(np.uint64).astype(np.uint32)
        if a.dtype != np.uint64
        else (a & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    )


def wrap(a: np.ndarray) -> np.ndarray:
    """The low 32 bits of Python-sized integers held as int64."""
    return (a & 0xFFFFFFFF).astype(np.uint32)


def u16(a: np.ndarray) -> np.ndarray:
    return a & np.uint32(0xFFFF)


def i16(a: np.ndarray) -> np.ndarray:
    return (a & np.uint32(0xFFFF)).astype(np.uint16).view(np.int16).astype(np.int64)


def shift(a: np.ndarray, bits: int = 31) -> np.ndarray:
    return a & np.uint32(bits)


def u24(a: np.ndarray) -> np.ndarray:
    return u64(a & np.uint32(0xFFFFFF))


def i24(a: np.ndarray) -> np.ndarray:
    return i32(a << np.uint32(8)).astype(np.int64) >> 8


def bits_of(a: np.ndarray) -> np.ndarray:
    """[..., 32] booleans, the lowest bit first."""
    return (a[..., None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1) == 1


def first_set(bits: np.ndarray) -> np.ndarray:
    return np.where(bits.any(-1), bits.argmax(-1), 0xFFFFFFFF).astype(np.uint32)


def bfe_i32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    width = shift(c).astype(np.int64)
    field = (i64(a) >> shift(b).astype(np.int64)) & ((1 << width) - 1)
    sign = np.where(width > 0, field >> np.maximum(width - 1, 0) & 1, 0)
    return wrap(field - (sign << width))


def perm(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    data = [
        *((b >> np.uint32(8 * i)) & np.uint32(255) for i in range(4)),
        *((a >> np.uint32(8 * i)) & np.uint32(255) for i in range(4)),
    ]
    # Selectors 8 to 11 repeat the sign of bytes 1, 3, 5 and 7; 12 is zero and the rest ones.
    table = np.stack(
        [*data, *(np.where(data[i] & 128, 255, 0) for i in (1, 3, 5, 7)), 0 * a, 0 * a + 255]
    ).astype(np.uint32)
    out = np.zeros_like(a)
    for i in range(4):
        selector = np.minimum((c >> np.uint32(8 * i)) & np.uint32(255), 13).astype(np.int64)
        out |= np.take_along_axis(table, selector[None], 0)[0] << np.uint32(8 * i)
    return out


def sad(a: np.ndarray, b: np.ndarray, c: np.ndarray, masked: bool) -> np.ndarray:
    total = c.astype(np.int64)
    for i in range(4):
        x, y = (
            (a >> np.uint32(8 * i) & np.uint32(255)).astype(np.int64),
            (b >> np.uint32(8 * i) & np.uint32(255)).astype(np.int64),
        )
        total += np.where((y != 0) | (not masked), np.abs(x - y), 0)
    return wrap(total)


def bitop3(table: int):
    def expect(a: np.ndarray, b: np.ndarray, c: np.ndarray, *_: np.ndarray) -> np.ndarray:
        index = 4 * bits_of(a).astype(np.uint32) + 2 * bits_of(b) + bits_of(c)
        return ((np.uint32(table) >> index & np.uint32(1)) << np.arange(32, dtype=np.uint32)).sum(
            -1, dtype=np.uint32
        )

    return expect


def median(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.sort(np.stack([a, b, c]), axis=0)[1]


def two(name: str, f) -> Case:
    return Case(f"{name} v40, v10, v11", lambda a, b, *_: f(a, b))


def three(name: str, f) -> Case:
    return Case(f"{name} v40, v10, v11, v12", lambda a, b, c, *_: f(a, b, c))


CASES = [
    Case("v_mov_b32_e32 v40, v10", lambda a, *_: a),
    Case("v_not_b32_e32 v40, v10", lambda a, *_: ~a),
    two("v_and_b32_e32", lambda a, b: a & b),
    two("v_or_b32_e32", lambda a, b: a | b),
    two("v_xor_b32_e32", lambda a, b: a ^ b),
    two("v_xnor_b32_e32", lambda a, b: ~(a ^ b)),
    three("v_or3_b32", lambda a, b, c: a | b | c),
    three("v_and_or_b32", lambda a, b, c: a & b | c),
    three("v_xad_u32", lambda a, b, c: (a ^ b) + c),
    three("v_bfi_b32", lambda a, b, c: (a & b) | (~a & c)),
    two("v_bfm_b32", lambda a, b: low(((np.uint64(1) << u64(shift(a))) - np.uint64(1)) << u64(shift(b)))),
    three(
        "v_bfe_u32",
        lambda a, b, c: low(u64(a) >> u64(shift(b)) & ((np.uint64(1) << u64(shift(c))) - np.uint64(1))),
    ),
    three("v_bfe_i32", bfe_i32),
    Case(
        "v_bfrev_b32_e32 v40, v10",
        lambda a, *_: (bits_of(a)[..., ::-1] << np.arange(32, dtype=np.uint32)).sum(-1, dtype=np.uint32),
    ),
    Case("v_ffbh_u32_e32 v40, v10", lambda a, *_: first_set(bits_of(a)[..., ::-1])),
    Case("v_ffbl_b32_e32 v40, v10", lambda a, *_: first_set(bits_of(a))),
    Case("v_ffbh_i32_e32 v40, v10", lambda a, *_: first_set(bits_of(a)[..., ::-1] != bits_of(a)[..., 31:])),
    two("v_bcnt_u32_b32", lambda a, b: bits_of(a).sum(-1, dtype=np.uint32) + b),
    two("v_lshlrev_b32_e32", lambda a, b: b << shift(a)),
    two("v_lshrrev_b32_e32", lambda a, b: b >> shift(a)),
    two("v_ashrrev_i32_e32", lambda a, b: i32(b) >> i32(shift(a))),
    three("v_lshl_add_u32", lambda a, b, c: (a << shift(b)) + c),
    three("v_add_lshl_u32", lambda a, b, c: (a + b) << shift(c)),
    three("v_lshl_or_b32", lambda a, b, c: a << shift(b) | c),
    three("v_add3_u32", lambda a, b, c: a + b + c),
    two("v_add_u32_e32", lambda a, b: a + b),
    two("v_sub_u32_e32", lambda a, b: a - b),
    two("v_subrev_u32_e32", lambda a, b: b - a),
    Case(
        "v_add_u32_e64 v40, v10, v11 clamp",
        lambda a, b, *_: low(np.minimum(u64(a) + u64(b), np.uint64(0xFFFFFFFF))),
    ),
    Case("v_sub_u32_e64 v40, v10, v11 clamp", lambda a, b, *_: np.where(a > b, a - b, 0).astype(np.uint32)),
    two("v_add_i32", lambda a, b: a + b),
    two("v_sub_i32", lambda a, b: a - b),
    Case(
        "v_add_i32 v40, v10, v11 clamp", lambda a, b, *_: wrap(np.clip(i64(a) + i64(b), -(2**31), 2**31 - 1))
    ),
    Case(
        "v_sub_i32 v40, v10, v11 clamp", lambda a, b, *_: wrap(np.clip(i64(a) - i64(b), -(2**31), 2**31 - 1))
    ),
    two("v_mul_lo_u32", lambda a, b: a * b),
    two("v_mul_hi_u32", lambda a, b: low(u64(a) * u64(b) >> np.uint64(32))),
    two("v_mul_hi_i32", lambda a, b: wrap(i64(a) * i64(b) >> 32)),
    two("v_mul_u32_u24_e32", lambda a, b: low(u24(a) * u24(b))),
    two("v_mul_hi_u32_u24_e32", lambda a, b: low(u24(a) * u24(b) >> np.uint64(32))),
    two("v_mul_i32_i24_e32", lambda a, b: wrap(i24(a) * i24(b))),
    two("v_mul_hi_i32_i24_e32", lambda a, b: wrap(i24(a) * i24(b) >> 32)),
    three("v_mad_u32_u24", lambda a, b, c: low(u24(a) * u24(b) + u64(c))),
    three("v_mad_i32_i24", lambda a, b, c: wrap(i24(a) * i24(b) + i64(c))),
    three("v_mad_u32_u16", lambda a, b, c: u16(a) * u16(b) + c),
    three("v_mad_i32_i16", lambda a, b, c: wrap(i16(a) * i16(b) + i64(c))),
    Case(
        "v_mad_u32_u16 v40, v10, v11, v12 op_sel:[1,0,0,0]",
        lambda a, b, c, *_: (a >> np.uint32(16)) * u16(b) + c,
    ),
    two("v_min_i32_e32", lambda a, b: np.minimum(i32(a), i32(b))),
    two("v_max_i32_e32", lambda a, b: np.maximum(i32(a), i32(b))),
    two("v_min_u32_e32", np.minimum),
    two("v_max_u32_e32", np.maximum),
    three("v_min3_i32", lambda a, b, c: np.minimum(np.minimum(i32(a), i32(b)), i32(c))),
    three("v_max3_i32", lambda a, b, c: np.maximum(np.maximum(i32(a), i32(b)), i32(c))),
    three("v_min3_u32", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    three("v_max3_u32", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    three("v_med3_i32", lambda a, b, c: median(i32(a), i32(b), i32(c))),
    three("v_med3_u32", median),
    three("v_alignbit_b32", lambda a, b, c: low((u64(a) << np.uint64(32) | u64(b)) >> u64(shift(c)))),
    three("v_alignbyte_b32", lambda a, b, c: low((u64(a) << np.uint64(32) | u64(b)) >> u64(8 * shift(c, 3)))),
    three("v_perm_b32", perm),
    Case(
        "v_and_b32_e32 v60, 0x0f0f0f0f, v12\nv_perm_b32 v40, v10, v11, v60",
        lambda a, b, c, *_: perm(a, b, c & np.uint32(0x0F0F0F0F)),
    ),
    three("v_sad_u8", lambda a, b, c: sad(a, b, c, False)),
    three("v_msad_u8", lambda a, b, c: sad(a, b, c, True)),
    three("v_sad_u32", lambda a, b, c: np.where(a > b, a - b, b - a) + c),
    two("v_add_u16_e32", lambda a, b: u16(a + b)),
    two("v_sub_u16_e32", lambda a, b: u16(a - b)),
    two("v_subrev_u16_e32", lambda a, b: u16(b - a)),
    two("v_mul_lo_u16_e32", lambda a, b: u16(a * b)),
    two("v_lshlrev_b16_e32", lambda a, b: u16(b << shift(a, 15))),
    two("v_lshrrev_b16_e32", lambda a, b: u16(b) >> shift(a, 15)),
    two("v_ashrrev_i16_e32", lambda a, b: u16(wrap(i16(b) >> shift(a, 15)))),
    two("v_min_u16_e32", lambda a, b: np.minimum(u16(a), u16(b))),
    two("v_max_u16_e32", lambda a, b: np.maximum(u16(a), u16(b))),
    two("v_min_i16_e32", lambda a, b: u16(wrap(np.minimum(i16(a), i16(b))))),
    two("v_max_i16_e32", lambda a, b: u16(wrap(np.maximum(i16(a), i16(b))))),
    # Constants: inline ones by value, 32-bit literals as they are; SGPR operands; SDWA parts.
    Case("v_and_b32_e32 v40, -16, v10", lambda a, *_: a & np.uint32(0xFFFFFFF0)),
    Case("v_add_u32_e32 v40, 0x89abcdef, v10", lambda a, *_: a + np.uint32(0x89ABCDEF)),
    Case("v_readfirstlane_b32 s20, v10\nv_xor_b32_e32 v40, s20, v11", lambda a, b, *_: a[:, :1] ^ b),
    Case("v_mov_b32_e32 v40, 1.0", lambda a, *_: 0 * a + np.uint32(0x3F800000)),
    Case(
        "v_add_u32_sdwa v40, v10, v11 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_2 src1_sel:WORD_1",
        lambda a, b, *_: (a >> np.uint32(16) & np.uint32(255)) + (b >> np.uint32(16)),
    ),
    Case(
        "v_add_u32_sdwa v40, sext(v10), v11 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_0 src1_sel:BYTE_3",
        lambda a, b, *_: wrap(i16(a) + (b >> np.uint32(24)).astype(np.int64)),
    ),
    Case(
        "v_or_b32_sdwa v40, v10, v11 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:BYTE_0 src1_sel:DWORD",
        lambda a, b, *_: (a & np.uint32(255) | b) << np.uint32(16) | np.uint32(0xBEEF),
    ),
    Case(
        "v_or_b32_sdwa v40, v10, v11 dst_sel:BYTE_1 dst_unused:UNUSED_SEXT src0_sel:DWORD src1_sel:DWORD",
        lambda a, b, *_: wrap(i32((a | b) << np.uint32(24)).astype(np.int64) >> 16) & np.uint32(0xFFFFFF00),
    ),
    Case(
        "v_or_b32_sdwa v40, v10, v11 dst_sel:BYTE_2 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:DWORD",
        lambda a, b, *_: (a | b) << np.uint32(16) & np.uint32(0xFF0000),
    ),
]

CASES_950 = [
    Case(f"v_bitop3_b32 v40, v10, v11, v12 bitop3:0x{table:x}", bitop3(table))
    for table in (0x01, 0x68, 0xCA, 0x96, 0x7F)
] + [
    Case(
        f"v_bitop3_b16 v40, v10, v11, v12 bitop3:0x{table:x}",
        lambda *rows, table=table: u16(bitop3(table)(*rows)),
    )
    for table in (0x01, 0xEC)
]


def pair(rows: tuple[np.ndarray, ...], first: int) -> np.ndarray:
    return u64(rows[first]) | u64(rows[first + 1]) << np.uint64(32)


def words(a: np.ndarray) -> np.ndarray:
    """[groups, 64] 64-bit values as [groups, 2, 64] words."""
    a = a.astype(np.uint64)
    return np.stack([low(a), low(a >> np.uint64(32))], 1)


def carry_chain(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    return words(pair((a, b), 0) + pair((c, d), 0))


def borrow_chain(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    return words(pair((a, b), 0) - pair((c, d), 0))


def mad_wide(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, signed: bool) -> np.ndarray:
    """The 64-bit sum and, as a third word, the bit that leaves it."""
    wide = i64 if signed else u64
    exact = wide(a).astype(object) * wide(b).astype(object)
    addend = pair((c, d), 0)
    exact = exact + (addend.view(np.int64) if signed else addend).astype(object)
    to_u64 = np.vectorize(lambda value: value & (2**64 - 1), otypes=[np.uint64])
    carry = np.vectorize(lambda value: value >> 64 & 1, otypes=[np.uint32])(exact)
    return np.concatenate([words(to_u64(exact)), carry[:, None]], 1)


_CARRY_OUT = "\nv_cndmask_b32_e64 v42, 0, 1, s[20:21]"
WIDE = [
    Case("v_mov_b64_e32 v[40:41], v[10:11]", lambda *r: words(pair(r, 0)), 2),
    Case(
        "v_lshl_add_u64 v[40:41], v[10:11], 3, v[12:13]",
        lambda *r: words((pair(r, 0) << np.uint64(3)) + pair(r, 2)),
        2,
    ),
    Case("v_lshl_add_u64 v[40:41], v[10:11], 0, -4", lambda *r: words(pair(r, 0) - np.uint64(4)), 2),
    Case("v_lshlrev_b64 v[40:41], v12, v[10:11]", lambda *r: words(pair(r, 0) << u64(shift(r[2], 63))), 2),
    Case("v_lshrrev_b64 v[40:41], v12, v[10:11]", lambda *r: words(pair(r, 0) >> u64(shift(r[2], 63))), 2),
    Case(
        "v_ashrrev_i64 v[40:41], v12, v[10:11]",
        lambda *r: words((pair(r, 0).view(np.int64) >> shift(r[2], 63).astype(np.int64)).view(np.uint64)),
        2,
    ),
    Case(
        "v_mad_u64_u32 v[40:41], s[20:21], v10, v11, v[12:13]" + _CARRY_OUT,
        lambda *r: mad_wide(*r, signed=False),
        3,
    ),
    Case(
        "v_mad_i64_i32 v[40:41], s[20:21], v10, v11, v[12:13]" + _CARRY_OUT,
        lambda *r: mad_wide(*r, signed=True),
        3,
    ),
    Case("v_add_co_u32_e32 v40, vcc, v10, v12\nv_addc_co_u32_e32 v41, vcc, v11, v13, vcc", carry_chain, 2),
    Case(
        "v_add_co_u32_e64 v40, s[20:21], v10, v12\nv_addc_co_u32_e64 v41, s[22:23], v11, v13, s[20:21]",
        carry_chain,
        2,
    ),
    Case("v_sub_co_u32_e32 v40, vcc, v10, v12\nv_subb_co_u32_e32 v41, vcc, v11, v13, vcc", borrow_chain, 2),
    Case(
        "v_subrev_co_u32_e32 v40, vcc, v12, v10\nv_subbrev_co_u32_e32 v41, vcc, v13, v11, vcc",
        borrow_chain,
        2,
    ),
    Case(
        "v_cmp_gt_u32_e32 vcc, v10, v11\nv_cndmask_b32_e32 v40, v12, v13, vcc",
        lambda a, b, c, d: np.where(a > b, d, c),
    ),
    Case(
        "v_cmp_gt_u32_e64 s[20:21], v10, v11\nv_cndmask_b32_e64 v40, -v12, |v13|, s[20:21]",
        lambda a, b, c, d: np.where(a > b, d & np.uint32(0x7FFFFFFF), c ^ np.uint32(0x80000000)),
    ),
]


def test_words(architecture: str, rng: np.random.Generator) -> None:
    cases = CASES + (CASES_950 if architecture == "gfx950" else [])
    check_cases(architecture, cases, mixed_inputs(rng, INTEGER_CORNERS))


def test_pairs_and_carries(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, WIDE, mixed_inputs(rng, INTEGER_CORNERS))


def test_disabled_lanes_keep_their_registers(architecture: str, rng: np.random.Generator) -> None:
    inputs = mixed_inputs(rng, INTEGER_CORNERS)
    enabled = "s_mov_b32 exec_lo, 0x0f0f1234\ns_mov_b32 exec_hi, 0x80000001\n"
    mask = np.array([(0x800000010F0F1234 >> lane) & 1 for lane in range(64)], bool)
    pieces = [
        (enabled + "v_add_u32_e32 v40, v10, v11", 1),
        (enabled + "v_lshlrev_b64 v[40:41], 3, v[10:11]", 2),
    ]
    plain, wide = run_pieces(architecture, pieces, inputs)
    before = np.uint32(0xDEADBEEF)
    np.testing.assert_array_equal(plain[:, 0], np.where(mask, inputs[:, 0] + inputs[:, 1], before))
    shifted = words(pair((inputs[:, 0], inputs[:, 1]), 0) << np.uint64(3))
    np.testing.assert_array_equal(wide, np.where(mask, shifted, before))


def test_carries_of_disabled_lanes_are_zero(architecture: str) -> None:
    ones = np.full((1, 4, 64), 0xFFFFFFFF, np.uint32)
    text = (
        "s_mov_b64 exec, 5\nv_add_co_u32_e64 v60, s[20:21], v10, v11\n"
        "s_mov_b64 exec, -1\nv_mov_b32_e32 v40, s20\nv_mov_b32_e32 v41, s21"
    )
    (out,) = run_pieces(architecture, [(text, 2)], ones)
    assert (out[0, 0] == 5).all() and (out[0, 1] == 0).all()
