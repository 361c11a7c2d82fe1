"""Half precision and packed 16-bit instructions, dot products and the mixed FMA against NumPy."""

import numpy as np
from snippets import Case, check_cases, mixed_inputs
from test_instructions_float import case, clamp01, d, fma, number, single


def halves(a: np.ndarray) -> np.ndarray:
    """[..., 2]: the low and the high half of each word as float16."""
    return a[..., None].view(np.float16)


def pack(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Two float16 arrays as words."""
    return low.astype(np.float16).view(np.uint16).astype(np.uint32) | high.astype(np.float16).view(
        np.uint16
    ).astype(np.uint32) << np.uint32(16)


def h(a: np.ndarray, high: int = 0) -> np.ndarray:
    return halves(a)[..., high]


def half_number(a: np.ndarray, b: np.ndarray, larger: bool) -> np.ndarray:
    """As `number`, for halves widened to float32: no signalling pattern survives the widening's test below."""
    signalling = [np.isnan(x) & (x.view(np.uint16) & np.uint16(0x0200) == 0) for x in (a, b)]
    out = number(a.astype(np.float32), b.astype(np.float32), larger)
    return np.where(signalling[0] | signalling[1], np.float32(np.nan), out).astype(np.float16)


def half_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    exact = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    return exact.astype(np.float16)


def low_only(value: np.ndarray) -> np.ndarray:
    return pack(value, np.zeros_like(value))


def kept(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).view(np.uint16).astype(np.uint32) | np.uint32(0xDEAD0000)


def u16_pair(f_):
    def expect(*rows: np.ndarray) -> np.ndarray:
        parts = [[x & np.uint32(0xFFFF) for x in rows], [x >> np.uint32(16) for x in rows]]
        low, high = (np.asarray(f_(*part)).astype(np.int64) & 0xFFFF for part in parts)
        return (low | high << 16).astype(np.uint32)

    return expect


def s16(a: np.ndarray) -> np.ndarray:
    return a.astype(np.uint16).view(np.int16).astype(np.int64)


def h_case(text: str, expect) -> Case:
    return Case(text, expect, kind="f16")


HALF = [
    h_case("v_add_f16_e32 v40, v10, v11", lambda a, b, *_: low_only(h(a) + h(b))),
    h_case("v_sub_f16_e32 v40, v10, v11", lambda a, b, *_: low_only(h(a) - h(b))),
    h_case("v_subrev_f16_e32 v40, v10, v11", lambda a, b, *_: low_only(h(b) - h(a))),
    h_case("v_mul_f16_e32 v40, v10, v11", lambda a, b, *_: low_only(h(a) * h(b))),
    h_case("v_min_f16_e32 v40, v10, v11", lambda a, b, *_: low_only(half_number(h(a), h(b), False))),
    h_case("v_max_f16_e32 v40, v10, v11", lambda a, b, *_: low_only(half_number(h(a), h(b), True))),
    h_case(
        "v_add_f16_sdwa v40, v10, v11 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:WORD_1 src1_sel:WORD_0",
        lambda a, b, *_: pack(np.zeros_like(h(a)), h(a, 1) + h(b)),
    ),
    h_case(
        "v_add_f16_e64 v40, v10, v11 clamp",
        lambda a, b, *_: low_only(clamp01((h(a) + h(b)).astype(np.float32))),
    ),
    h_case("v_fma_f16 v40, v10, v11, v12", lambda a, b, c, *_: kept(half_fma(h(a), h(b), h(c)))),
    h_case(
        "v_fma_f16 v40, v10, v11, v12 op_sel:[1,0,1,1]",
        lambda a, b, c, *_: pack(np.zeros_like(h(a)), half_fma(h(a, 1), h(b), h(c, 1))) | np.uint32(0xBEEF),
    ),
    h_case("v_rcp_f16_e32 v40, v10", lambda a, *_: low_only(1 / h(a).astype(np.float64))),
    h_case("v_sqrt_f16_e32 v40, v10", lambda a, *_: low_only(np.sqrt(h(a).astype(np.float64)))),
    h_case("v_rsq_f16_e32 v40, v10", lambda a, *_: low_only(1 / np.sqrt(h(a).astype(np.float64)))),
    h_case("v_exp_f16_e32 v40, v10", lambda a, *_: low_only(np.exp2(h(a).astype(np.float64)))),
    h_case("v_log_f16_e32 v40, v10", lambda a, *_: low_only(np.log2(h(a).astype(np.float64)))),
    h_case("v_pk_add_f16 v40, v10, v11", lambda a, b, *_: pack(h(a) + h(b), h(a, 1) + h(b, 1))),
    h_case(
        "v_pk_add_f16 v40, v10, 1.0 op_sel_hi:[1,0]",
        lambda a, *_: pack(h(a) + np.float16(1), h(a, 1) + np.float16(1)),
    ),
    h_case(
        "v_pk_mul_f16 v40, v10, v11 op_sel:[1,0] op_sel_hi:[0,1]",
        lambda a, b, *_: pack(h(a, 1) * h(b), h(a) * h(b, 1)),
    ),
    h_case(
        "v_pk_mul_f16 v40, v10, v11 neg_lo:[1,0] neg_hi:[0,1]",
        lambda a, b, *_: pack(-h(a) * h(b), h(a, 1) * -h(b, 1)),
    ),
    h_case(
        "v_pk_fma_f16 v40, v10, v11, v12",
        lambda a, b, c, *_: pack(half_fma(h(a), h(b), h(c)), half_fma(h(a, 1), h(b, 1), h(c, 1))),
    ),
    h_case(
        "v_pk_min_f16 v40, v10, v11",
        lambda a, b, *_: pack(half_number(h(a), h(b), False), half_number(h(a, 1), h(b, 1), False)),
    ),
    h_case(
        "v_pk_max_f16 v40, v10, v11",
        lambda a, b, *_: pack(half_number(h(a), h(b), True), half_number(h(a, 1), h(b, 1), True)),
    ),
    Case("v_pk_add_u16 v40, v10, v11", u16_pair(lambda a, b, *_: a + b)),
    Case("v_pk_add_i16 v40, v10, v11", u16_pair(lambda a, b, *_: a + b)),
    Case("v_pk_sub_u16 v40, v10, v11", u16_pair(lambda a, b, *_: a.astype(np.int64) - b)),
    Case("v_pk_sub_i16 v40, v10, v11", u16_pair(lambda a, b, *_: a.astype(np.int64) - b)),
    Case("v_pk_mul_lo_u16 v40, v10, v11", u16_pair(lambda a, b, *_: a * b)),
    Case("v_pk_mad_u16 v40, v10, v11, v12", u16_pair(lambda a, b, c, *_: a * b + c)),
    Case("v_pk_mad_i16 v40, v10, v11, v12", u16_pair(lambda a, b, c, *_: a * b + c)),
    Case("v_pk_lshlrev_b16 v40, v10, v11", u16_pair(lambda a, b, *_: b << (a & np.uint32(15)))),
    Case("v_pk_lshrrev_b16 v40, v10, v11", u16_pair(lambda a, b, *_: b >> (a & np.uint32(15)))),
    Case(
        "v_pk_ashrrev_i16 v40, v10, v11",
        u16_pair(lambda a, b, *_: s16(b) >> (a & np.uint32(15)).astype(np.int64)),
    ),
    Case("v_pk_min_u16 v40, v10, v11", u16_pair(lambda a, b, *_: np.minimum(a, b))),
    Case("v_pk_max_u16 v40, v10, v11", u16_pair(lambda a, b, *_: np.maximum(a, b))),
    Case("v_pk_min_i16 v40, v10, v11", u16_pair(lambda a, b, *_: np.minimum(s16(a), s16(b)))),
    Case("v_pk_max_i16 v40, v10, v11", u16_pair(lambda a, b, *_: np.maximum(s16(a), s16(b)))),
    case(
        "v_dot2_f32_f16 v40, v10, v11, v12",
        lambda a, b, c, *_: single(
            h(a).astype(np.float64) * h(b) + h(a, 1).astype(np.float64) * h(b, 1) + d(c)
        ),
    ),
    case(
        "v_mov_b32_e32 v40, v12\nv_dot2c_f32_f16_e32 v40, v10, v11",
        lambda a, b, c, *_: single(
            h(a).astype(np.float64) * h(b) + h(a, 1).astype(np.float64) * h(b, 1) + d(c)
        ),
    ),
    case(
        "v_fma_mix_f32 v40, v10, v11, v12 op_sel:[1,0,0] op_sel_hi:[1,1,0]",
        lambda a, b, c, *_: single(h(a, 1).astype(np.float64) * h(b) + d(c)),
    ),
    case(
        "v_fma_mix_f32 v40, -v10, |v11|, v12",
        lambda a, b, c, *_: fma(a ^ np.uint32(1 << 31), b & np.uint32(0x7FFFFFFF), c),
    ),
    h_case(
        "v_fma_mixlo_f16 v40, v10, v11, v12 op_sel_hi:[1,1,1]",
        lambda a, b, c, *_: kept(single(h(a).astype(np.float64) * h(b) + h(c))),
    ),
    h_case(
        "v_fma_mixhi_f16 v40, v10, v11, v12 op_sel_hi:[1,1,1]",
        lambda a, b, c, *_: (
            pack(np.zeros_like(h(a)), single(h(a).astype(np.float64) * h(b) + h(c))) | np.uint32(0xBEEF)
        ),
    ),
]


# The half's division: a float quotient, rounded, and its special cases put right.
DIVISIONS_16 = [
    h_case(
        "v_cvt_f32_f16_e32 v60, v11\nv_rcp_f32_e32 v60, v60\nv_cvt_f32_f16_e32 v61, v10\nv_mul_f32_e32 v60, v61, v60\n"
        "v_cvt_f16_f32_e32 v60, v60\nv_div_fixup_f16 v40, v60, v11, v10",
        lambda a, b, *_: low_only(h(a) / h(b)),
    )
]


def test_half_precision(architecture: str, rng: np.random.Generator) -> None:
    corners = np.array(
        [0, 0x8000, 0x3C00, 0x7C00, 0xFC00, 0x7E00, 0x7D01, 1, 0x3FF, 0x400, 0x7BFF, 0xFBFF], np.uint32
    )
    check_cases(
        architecture, HALF, mixed_inputs(rng, (corners[:, None] | corners[None] << np.uint32(16)).ravel())
    )


def test_half_divisions(architecture: str, rng: np.random.Generator) -> None:
    corners = np.array([0, 0x8000, 0x3C00, 0x7C00, 0xFC00, 0x7E00, 0x4000, 0xC400, 0x3800], np.uint32)
    check_cases(architecture, DIVISIONS_16, rng.choice(corners, (8, 4, 64)))
