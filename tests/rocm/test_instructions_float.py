"""Vector instructions on singles and doubles against NumPy: specials, denormals, rounding, division."""

import numpy as np
from snippets import FLOAT_CORNERS, Case, check_cases, mixed_inputs

F32_TINY = np.finfo(np.float32).tiny


def f(a: np.ndarray) -> np.ndarray:
    return a.view(np.float32)


def d(a: np.ndarray) -> np.ndarray:
    return f(a).astype(np.float64)


def single(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32)


def is_signalling(a: np.ndarray) -> np.ndarray:
    bits = a.view(np.uint32)
    return np.isnan(a) & (bits & np.uint32(0x00400000) == 0)


def number(a: np.ndarray, b: np.ndarray, larger: bool) -> np.ndarray:
    """IEEE 754-2008 minNum and maxNum, -0 below +0; a signalling NaN makes the result NaN."""
    key_a, key_b = ordered(a), ordered(b)
    out = np.where((key_a > key_b) == larger, a, b)
    out = np.where(np.isnan(a), b, np.where(np.isnan(b), a, out))
    return np.where(is_signalling(a) | is_signalling(b), np.float32(np.nan), out)


def ordered(a: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats, with -0 below +0."""
    bits = a.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)


def med3(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    ranked = np.take_along_axis(
        np.stack([a, b, c]), np.argsort(np.stack([ordered(a), ordered(b), ordered(c)]), axis=0), 0
    )[1]
    any_nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return np.where(any_nan, number(number(a, b, False), c, False), ranked)


def strict(a: np.ndarray, b: np.ndarray, larger: bool) -> np.ndarray:
    return np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), number(a, b, larger))


def flushed(f64):
    """A transcendental: denormal operands and results are zeros of their sign."""

    def expect(a: np.ndarray, *_: np.ndarray) -> np.ndarray:
        value = f(a)
        value = np.where(np.abs(value) < F32_TINY, np.copysign(np.float32(0), value), value)
        out = f64(value.astype(np.float64))
        return np.where(np.abs(out) < F32_TINY, np.copysign(0.0, out), out).astype(np.float32)

    return expect


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One rounding: the product is exact in double, and the double sum is rounded to odd before the last step."""
    x, y = d(a) * d(b), d(c)
    total = x + y
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return (bits + np.where(inexact, away, 0)).view(np.float64).astype(np.float32)


def clamp01(a: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(a), np.float32(0), np.clip(a, np.float32(0), np.float32(1)) + np.float32(0))


def fract(a: np.ndarray) -> np.ndarray:
    return np.minimum(single(a - np.floor(a)), np.float32(1 - 2**-24))


def frexp_parts(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mantissa, exponent = np.frexp(f(a))
    finite = np.isfinite(f(a))
    return np.where(finite, mantissa, f(a)).astype(np.float32), np.where(finite, exponent, 0).astype(np.int32)


def case(text: str, expect, **options) -> Case:
    return Case(text, expect, kind="f32", **options)


# Transcendentals are promised to 1 ulp by the ISA documents; the emulator rounds a double result once, so one
# ulp of difference to NumPy's own double functions is all that two roundings can make.
TRANSCENDENTAL = dict(ulps=1.0)
CASES = [
    case("v_add_f32_e32 v40, v10, v11", lambda a, b, *_: f(a) + f(b)),
    case("v_sub_f32_e32 v40, v10, v11", lambda a, b, *_: f(a) - f(b)),
    case("v_subrev_f32_e32 v40, v10, v11", lambda a, b, *_: f(b) - f(a)),
    case("v_mul_f32_e32 v40, v10, v11", lambda a, b, *_: f(a) * f(b)),
    case(
        "v_mul_legacy_f32 v40, v10, v11",
        lambda a, b, *_: np.where((f(a) == 0) | (f(b) == 0), np.float32(0), f(a) * f(b)),
    ),
    case("v_add_f32_e64 v40, -v10, |v11|", lambda a, b, *_: -f(a) + np.abs(f(b))),
    case("v_mul_f32_e64 v40, -|v10|, v11", lambda a, b, *_: -np.abs(f(a)) * f(b)),
    case("v_add_f32_e64 v40, v10, v11 clamp", lambda a, b, *_: clamp01(f(a) + f(b))),
    case("v_add_f32_e64 v40, v10, v11 mul:4", lambda a, b, *_: single((f(a) + f(b)).astype(np.float64) * 4)),
    case("v_mul_f32_e64 v40, v10, v11 div:2", lambda a, b, *_: single((f(a) * f(b)).astype(np.float64) / 2)),
    case("v_mul_f32_e32 v40, 0x3fb8aa3b, v10", lambda a, *_: f(a) * np.uint32(0x3FB8AA3B).view(np.float32)),
    case("v_mul_f32_e32 v40, 0.15915494, v10", lambda a, *_: f(a) * np.uint32(0x3E22F983).view(np.float32)),
    case("v_fma_f32 v40, v10, v11, v12", lambda a, b, c, *_: fma(a, b, c)),
    case(
        "v_fma_f32 v40, -v10, v11, 1.0",
        lambda a, b, *_: fma(a ^ np.uint32(1 << 31), b, 0 * a + np.uint32(0x3F800000)),
    ),
    case("v_mov_b32_e32 v40, v12\nv_fmac_f32_e32 v40, v10, v11", lambda a, b, c, *_: fma(a, b, c)),
    case("v_fmamk_f32 v40, v10, 0x40490fdb, v11", lambda a, b, *_: fma(a, 0 * a + np.uint32(0x40490FDB), b)),
    case("v_fmaak_f32 v40, v10, v11, 0x40490fdb", lambda a, b, *_: fma(a, b, 0 * a + np.uint32(0x40490FDB))),
    case("v_min_f32_e32 v40, v10, v11", lambda a, b, *_: number(f(a), f(b), False)),
    case("v_max_f32_e32 v40, v10, v11", lambda a, b, *_: number(f(a), f(b), True)),
    case("v_min3_f32 v40, v10, v11, v12", lambda a, b, c, *_: number(number(f(a), f(b), False), f(c), False)),
    case("v_max3_f32 v40, v10, v11, v12", lambda a, b, c, *_: number(number(f(a), f(b), True), f(c), True)),
    case("v_med3_f32 v40, v10, v11, v12", lambda a, b, c, *_: med3(f(a), f(b), f(c))),
    case("v_trunc_f32_e32 v40, v10", lambda a, *_: np.trunc(f(a))),
    case("v_ceil_f32_e32 v40, v10", lambda a, *_: np.ceil(f(a))),
    case("v_floor_f32_e32 v40, v10", lambda a, *_: np.floor(f(a))),
    case("v_rndne_f32_e32 v40, v10", lambda a, *_: np.rint(f(a))),
    case("v_fract_f32_e32 v40, v10", lambda a, *_: fract(f(a))),
    case(
        "v_bfe_i32 v60, v11, 0, 10\nv_ldexp_f32 v40, v10, v60",
        lambda a, b, *_: single(np.ldexp(d(a), (b << np.uint32(22)).view(np.int32) >> 22)),
    ),
    case(
        "v_ldexp_f32 v40, v10, v11",
        lambda a, b, *_: single(np.ldexp(d(a), np.clip(b.view(np.int32), -999, 999))),
    ),
    case("v_frexp_mant_f32_e32 v40, v10", lambda a, *_: frexp_parts(a)[0]),
    Case("v_frexp_exp_i32_f32_e32 v40, v10", lambda a, *_: frexp_parts(a)[1]),
    case("v_exp_f32_e32 v40, v10", flushed(np.exp2), **TRANSCENDENTAL),
    case("v_log_f32_e32 v40, v10", flushed(np.log2), **TRANSCENDENTAL),
    case("v_rcp_f32_e32 v40, v10", flushed(lambda a: 1 / a), **TRANSCENDENTAL),
    case("v_rcp_iflag_f32_e32 v40, v10", flushed(lambda a: 1 / a), **TRANSCENDENTAL),
    case("v_rsq_f32_e32 v40, v10", flushed(lambda a: 1 / np.sqrt(a)), **TRANSCENDENTAL),
    case("v_sqrt_f32_e32 v40, v10", flushed(np.sqrt), **TRANSCENDENTAL),
]
CASES_950 = [
    case(
        "v_minimum3_f32 v40, v10, v11, v12",
        lambda a, b, c, *_: strict(strict(f(a), f(b), False), f(c), False),
    ),
    case(
        "v_maximum3_f32 v40, v10, v11, v12", lambda a, b, c, *_: strict(strict(f(a), f(b), True), f(c), True)
    ),
]


def two_words(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.stack([low.view(np.uint32), high.view(np.uint32)], 1)


PAIRS = [
    case(
        "v_pk_add_f32 v[40:41], v[10:11], v[12:13]",
        lambda a, b, c, e: two_words(f(a) + f(c), f(b) + f(e)),
        words=2,
    ),
    case(
        "v_pk_mul_f32 v[40:41], v[10:11], v[12:13] op_sel:[1,0] op_sel_hi:[0,1]",
        lambda a, b, c, e: two_words(f(b) * f(c), f(a) * f(e)),
        words=2,
    ),
    case(
        "v_pk_mul_f32 v[40:41], v[10:11], 2.0 op_sel_hi:[1,0]",
        lambda a, b, *_: two_words(f(a) * np.float32(2), f(b) * np.float32(2)),
        words=2,
    ),
    case(
        "v_pk_fma_f32 v[40:41], v[10:11], v[12:13], v[10:11] neg_lo:[0,0,1] neg_hi:[1,0,0]",
        lambda a, b, c, e: two_words(fma(a, c, a ^ np.uint32(1 << 31)), fma(b ^ np.uint32(1 << 31), e, b)),
        words=2,
    ),
    case(
        "v_pk_mov_b32 v[40:41], v[10:11], v[12:13] op_sel:[1,0]", lambda a, b, c, e: two_words(b, c), words=2
    ),
]


def g(rows: tuple[np.ndarray, ...], first: int) -> np.ndarray:
    return (rows[first].astype(np.uint64) | rows[first + 1].astype(np.uint64) << np.uint64(32)).view(
        np.float64
    )


def words64(a: np.ndarray) -> np.ndarray:
    bits = a.astype(np.float64).view(np.uint64)
    return np.stack(
        [(bits & np.uint64(0xFFFFFFFF)).astype(np.uint32), (bits >> np.uint64(32)).astype(np.uint32)], 1
    )


def number64(a: np.ndarray, b: np.ndarray, larger: bool) -> np.ndarray:
    pick = np.where(a == b, np.signbit(a) != larger, (a > b) == larger)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.where(pick, a, b)))


# Doubles without NaN: their bits are compared, and a NaN's payload is nobody's promise.
DOUBLE = [
    Case("v_add_f64 v[40:41], v[10:11], v[12:13]", lambda *r: words64(g(r, 0) + g(r, 2)), 2),
    Case("v_add_f64 v[40:41], v[10:11], 1.0", lambda *r: words64(g(r, 0) + 1.0), 2),
    Case("v_mul_f64 v[40:41], -v[10:11], |v[12:13]|", lambda *r: words64(-g(r, 0) * np.abs(g(r, 2))), 2),
    Case("v_min_f64 v[40:41], v[10:11], v[12:13]", lambda *r: words64(number64(g(r, 0), g(r, 2), False)), 2),
    Case("v_max_f64 v[40:41], v[10:11], v[12:13]", lambda *r: words64(number64(g(r, 0), g(r, 2), True)), 2),
    Case("v_fma_f64 v[40:41], v[10:11], 2.0, v[12:13]", lambda *r: words64(2 * g(r, 0) + g(r, 2)), 2),
    Case(
        "v_mov_b64_e32 v[40:41], v[12:13]\nv_fmac_f64_e32 v[40:41], 2.0, v[10:11]",
        lambda *r: words64(2 * g(r, 0) + g(r, 2)),
        2,
    ),
    Case("v_rcp_f64_e32 v[40:41], v[10:11]", lambda *r: words64(1 / g(r, 0)), 2),
    Case("v_sqrt_f64_e64 v[40:41], |v[10:11]|", lambda *r: words64(np.sqrt(np.abs(g(r, 0)))), 2),
    Case("v_rsq_f64_e64 v[40:41], |v[10:11]|", lambda *r: words64(1 / np.sqrt(np.abs(g(r, 0)))), 2),
    Case("v_ldexp_f64 v[40:41], v[10:11], 7", lambda *r: words64(np.ldexp(g(r, 0), 7)), 2),
    Case("v_floor_f64_e32 v[40:41], v[10:11]", lambda *r: words64(np.floor(g(r, 0))), 2),
    Case("v_trunc_f64_e32 v[40:41], v[10:11]", lambda *r: words64(np.trunc(g(r, 0))), 2),
    Case("v_ceil_f64_e32 v[40:41], v[10:11]", lambda *r: words64(np.ceil(g(r, 0))), 2),
    Case("v_rndne_f64_e32 v[40:41], v[10:11]", lambda *r: words64(np.rint(g(r, 0))), 2),
    Case(
        "v_fract_f64_e32 v[40:41], v[10:11]",
        lambda *r: words64(np.minimum(g(r, 0) - np.floor(g(r, 0)), 1 - 2.0**-53)),
        2,
    ),
    Case("v_frexp_mant_f64_e32 v[40:41], v[10:11]", lambda *r: words64(np.frexp(g(r, 0))[0]), 2),
    Case("v_frexp_exp_i32_f64_e32 v40, v[10:11]", lambda *r: np.frexp(g(r, 0))[1].astype(np.int32)),
]

DIVISION = """v_div_scale_f32 v60, s[20:21], v11, v11, v10
v_div_scale_f32 v61, vcc, v10, v11, v10
v_rcp_f32_e32 v62, v60
v_fma_f32 v63, -v60, v62, 1.0
v_fmac_f32_e32 v62, v63, v62
v_mul_f32_e32 v64, v61, v62
v_fma_f32 v65, -v60, v64, v61
v_fmac_f32_e32 v64, v65, v62
v_fma_f32 v60, -v60, v64, v61
v_div_fmas_f32 v60, v60, v62, v64
v_div_fixup_f32 v40, v60, v11, v10"""
DIVISION_64 = """v_div_scale_f64 v[60:61], s[20:21], v[12:13], v[12:13], v[10:11]
v_rcp_f64_e32 v[62:63], v[60:61]
v_fma_f64 v[64:65], -v[60:61], v[62:63], 1.0
v_fma_f64 v[62:63], v[62:63], v[64:65], v[62:63]
v_div_scale_f64 v[66:67], vcc, v[10:11], v[12:13], v[10:11]
v_mul_f64 v[68:69], v[66:67], v[62:63]
v_fma_f64 v[60:61], -v[60:61], v[68:69], v[66:67]
v_div_fmas_f64 v[60:61], v[60:61], v[62:63], v[68:69]
v_div_fixup_f64 v[40:41], v[60:61], v[12:13], v[10:11]"""
# The compiler's expansion of a division is correctly rounded only if all of its steps are right.
DIVISIONS = [case(DIVISION, lambda a, b, *_: f(a) / f(b))]
DIVISIONS_64 = [Case(DIVISION_64, lambda *r: words64(g(r, 0) / g(r, 2)), 2)]
TURNS = [
    case(
        "v_sin_f32_e32 v40, v10",
        lambda a, *_: single(np.sin(2 * np.pi * np.remainder(d(a) + 0.5, 1) - np.pi)),
        ulps=1.0,
    ),
    case(
        "v_cos_f32_e32 v40, v10",
        lambda a, *_: single(np.cos(2 * np.pi * np.remainder(d(a) + 0.5, 1) - np.pi)),
        ulps=1.0,
    ),
]


def test_single_precision(architecture: str, rng: np.random.Generator) -> None:
    cases = CASES + (CASES_950 if architecture == "gfx950" else [])
    check_cases(architecture, cases, mixed_inputs(rng, FLOAT_CORNERS))


def test_single_precision_of_ordinary_values(architecture: str, rng: np.random.Generator) -> None:
    inputs = (4 * rng.standard_normal((16, 4, 64))).astype(np.float32).view(np.uint32)
    check_cases(architecture, CASES, inputs)


def test_transcendentals_whose_results_are_denormal(architecture: str, rng: np.random.Generator) -> None:
    cases = [
        case for case in CASES if any(f"v_{name}_f32" in case.text for name in ("exp", "rcp", "rcp_iflag"))
    ]
    assert len(cases) == 3
    exponents = -rng.uniform(125, 150, (4, 4, 64))
    check_cases(architecture, cases, exponents.astype(np.float32).view(np.uint32))
    check_cases(
        architecture, cases, np.ldexp(rng.uniform(1, 2, (4, 4, 64)), 126).astype(np.float32).view(np.uint32)
    )


def test_packed_singles(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, PAIRS, mixed_inputs(rng, FLOAT_CORNERS))


def test_double_precision(architecture: str, rng: np.random.Generator) -> None:
    values = np.concatenate(
        [
            rng.standard_normal(2000) * 10.0 ** rng.integers(-300, 300, 2000),
            [0.0, -0.0, 0.5, 1.5, 2.5, -1.0, 5e-324],
        ]
    )
    chosen = rng.choice(values, (8, 2, 64))
    inputs = np.ascontiguousarray(np.moveaxis(chosen[..., None].view(np.uint32), -1, 2)).reshape(8, 4, 64)
    # A sum of two such values may overflow or cancel, but is never NaN: there are no infinities to subtract.
    check_cases(architecture, DOUBLE, inputs)


def test_divisions(architecture: str, rng: np.random.Generator) -> None:
    # Every exponent meets every other: quotients that overflow, vanish, or are denormal.
    bits = mixed_inputs(rng, FLOAT_CORNERS, groups=32)
    # A denormal quotient is rounded twice by the expansion's own scaling on hardware as well: the corner values
    # and random exponents here produce it in a few lanes, which may be one step of 2^-149 away.
    with np.errstate(all="ignore"):
        quotient = np.abs(f(bits[:, 0]) / f(bits[:, 1]))
    bits[:, 0] = np.where((quotient > 0) & (quotient < F32_TINY), np.uint32(0x3F800000), bits[:, 0])
    with np.errstate(all="ignore"):
        quotient = np.abs(f(bits[:, 0]) / f(bits[:, 1]))
    bits[:, 1] = np.where((quotient > 0) & (quotient < F32_TINY), np.uint32(0x3F800000), bits[:, 1])
    check_cases(architecture, DIVISIONS, bits)


def test_double_divisions(architecture: str, rng: np.random.Generator) -> None:
    values = rng.standard_normal((8, 2, 64)) * 10.0 ** rng.integers(-150, 150, (8, 2, 64))
    inputs = np.ascontiguousarray(np.moveaxis(values[..., None].view(np.uint32), -1, 2)).reshape(8, 4, 64)
    check_cases(architecture, DIVISIONS_64, inputs)


def test_turns(architecture: str, rng: np.random.Generator) -> None:
    inputs = np.sign(rng.standard_normal((4, 4, 64))) * rng.uniform(1e-3, 200, (4, 4, 64))
    check_cases(architecture, TURNS, inputs.astype(np.float32).view(np.uint32))
