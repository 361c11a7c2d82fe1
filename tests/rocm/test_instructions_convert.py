"""Conversions between formats, against ml_dtypes' own types: OCP fp8 on gfx950, FNUZ on gfx942, e2m1 with scales."""

import ml_dtypes
import numpy as np
import pytest
from snippets import FLOAT_CORNERS, LANES, Case, check_cases, mixed_inputs, run_pieces

BF16 = ml_dtypes.bfloat16
FP8 = {"gfx942": ml_dtypes.float8_e4m3fnuz, "gfx950": ml_dtypes.float8_e4m3fn}
BF8 = {"gfx942": ml_dtypes.float8_e5m2fnuz, "gfx950": ml_dtypes.float8_e5m2}
# The value of each e2m1 code, from the OCP Microscaling specification, table 5.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def f(a: np.ndarray) -> np.ndarray:
    return a.view(np.float32)


def byte(a: np.ndarray, which: int) -> np.ndarray:
    return (a >> np.uint32(8 * which) & np.uint32(255)).astype(np.uint8)


def half(a: np.ndarray, which: int = 0) -> np.ndarray:
    return (a >> np.uint32(16 * which) & np.uint32(0xFFFF)).astype(np.uint16)


def pack(*halves: np.ndarray) -> np.ndarray:
    low, high = (value.view(np.uint16).astype(np.uint32) for value in halves)
    return low | high << np.uint32(16)


def single(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32)


def saturated(a: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Truncated, clipped, NaN to 0; the low 32 bits."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    value = np.where(np.isnan(a), 0.0, a.astype(np.float64))
    return (np.clip(np.trunc(value), low, high).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)


def toward_zero(a: np.ndarray) -> np.ndarray:
    """float32 to float16, never away from zero."""
    near = a.astype(np.float16)
    above = np.isfinite(a) & (np.abs(near.astype(np.float64)) > np.abs(a.astype(np.float64)))
    return (near.view(np.uint16) - above.astype(np.uint16)).view(np.float16)


def case(text: str, expect, **options) -> Case:
    return Case(text, expect, kind="f32", **options)


PLAIN = [
    case("v_cvt_f32_i32_e32 v40, v10", lambda a, *_: single(a.view(np.int32))),
    case("v_cvt_f32_u32_e32 v40, v10", lambda a, *_: single(a)),
    Case("v_cvt_i32_f32_e32 v40, v10", lambda a, *_: saturated(f(a), 32, True)),
    Case("v_cvt_u32_f32_e32 v40, v10", lambda a, *_: saturated(f(a), 32, False)),
    Case(
        "v_cvt_rpi_i32_f32_e32 v40, v10",
        lambda a, *_: saturated(np.floor(f(a).astype(np.float64) + 0.5), 32, True),
    ),
    Case("v_cvt_flr_i32_f32_e32 v40, v10", lambda a, *_: saturated(np.floor(f(a)), 32, True)),
    *(case(f"v_cvt_f32_ubyte{i}_e32 v40, v10", lambda a, *_, i=i: single(byte(a, i))) for i in range(4)),
    Case(
        "v_cvt_f64_f32_e32 v[60:61], |v10|\nv_cvt_f32_f64_e32 v40, v[60:61]".replace(
            "_e32 v[60:61], |", "_e64 v[60:61], |"
        ),
        lambda a, *_: np.abs(f(a)),
        kind="f32",
    ),
    case(
        "v_cvt_f64_i32_e32 v[60:61], v10\nv_cvt_f64_u32_e32 v[62:63], v11\n"
        "v_fma_f64 v[60:61], v[60:61], 0.5, v[62:63]\n"
        "v_cvt_f32_f64_e32 v40, v[60:61]",
        lambda a, b, *_: single(a.view(np.int32).astype(np.float64) / 2 + b),
    ),
    Case(
        "v_cvt_f64_f32_e32 v[60:61], v10\nv_cvt_i32_f64_e32 v40, v[60:61]",
        lambda a, *_: saturated(f(a), 32, True),
    ),
    Case(
        "v_cvt_f64_f32_e32 v[60:61], v10\nv_cvt_u32_f64_e32 v40, v[60:61]",
        lambda a, *_: saturated(f(a), 32, False),
    ),
    Case(
        "v_cvt_f16_f32_e32 v40, v10",
        lambda a, *_: pack(f(a).astype(np.float16), np.zeros_like(half(a))),
        kind="f16",
    ),
    case("v_cvt_f32_f16_e32 v40, v10", lambda a, *_: single(half(a).view(np.float16))),
    case(
        "v_cvt_f32_f16_sdwa v40, v10 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1",
        lambda a, *_: single(half(a, 1).view(np.float16)),
    ),
    Case(
        "v_cvt_f16_u16_e32 v40, v10", lambda a, *_: pack(half(a).astype(np.float16), np.zeros_like(half(a)))
    ),
    Case(
        "v_cvt_f16_i16_e32 v40, v10",
        lambda a, *_: pack(half(a).view(np.int16).astype(np.float16), np.zeros_like(half(a))),
    ),
    Case("v_cvt_u16_f16_e32 v40, v10", lambda a, *_: saturated(half(a).view(np.float16), 16, False)),
    Case(
        "v_cvt_i16_f16_e32 v40, v10",
        lambda a, *_: saturated(half(a).view(np.float16), 16, True) & np.uint32(0xFFFF),
    ),
    Case(
        "v_cvt_pkrtz_f16_f32 v40, v10, v11",
        lambda a, b, *_: pack(toward_zero(f(a)), toward_zero(f(b))),
        kind="f16",
    ),
    Case("v_pack_b32_f16 v40, v10, v11", lambda a, b, *_: pack(half(a), half(b))),
    Case("v_pack_b32_f16 v40, v10, v11 op_sel:[1,0,0]", lambda a, b, *_: pack(half(a, 1), half(b))),
    Case(
        "v_cvt_pk_i16_i32 v40, v10, v11",
        lambda a, b, *_: pack(*(np.clip(x.view(np.int32), -32768, 32767).astype(np.int16) for x in (a, b))),
    ),
    Case(
        "v_cvt_pk_u16_u32 v40, v10, v11",
        lambda a, b, *_: pack(*(np.minimum(x, 65535).astype(np.uint16) for x in (a, b))),
    ),
    Case(
        "v_cvt_pk_u8_f32 v40, v10, 2, v12",
        lambda a, b, c, *_: c & np.uint32(0xFF00FFFF) | saturated(f(a), 8, False) << np.uint32(16),
    ),
]


def scale_of(a: np.ndarray) -> np.ndarray:
    exponent = (a >> np.uint32(23) & np.uint32(255)).astype(np.int64)
    return np.where(exponent == 255, np.nan, np.ldexp(1.0, exponent - 127))


def to_e2m1(value: np.ndarray) -> np.ndarray:
    """Nearest code, ties to the even one; beyond 6, and for NaN, the largest magnitude."""
    magnitude = np.where(np.isnan(value), np.inf, np.abs(value))
    boundaries = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    code = (magnitude[..., None] > boundaries).sum(-1)
    tie = (magnitude[..., None] == boundaries) & (np.arange(7) % 2 == 1)
    return (code + tie.any(-1) + 8 * np.signbit(value)).astype(np.uint32)


def scaled_fp4() -> list[Case]:
    cases = []
    for which in range(4):
        bits = f"{which & 1},{which >> 1}"

        def widened(a: np.ndarray, b: np.ndarray, *_: np.ndarray, which: int = which) -> list[np.ndarray]:
            return [E2M1[byte(a, which) >> shift & 15] * scale_of(b) for shift in (0, 4)]

        def placed(code: np.ndarray, which: int = which) -> np.ndarray:
            return np.uint32(0xDEADBEEF) & ~np.uint32(255 << 8 * which) | code << np.uint32(8 * which)

        cases += [
            case(
                f"v_cvt_scalef32_pk_f32_fp4 v[40:41], v10, v11 op_sel:[{bits},0]",
                lambda *r, w=widened: np.stack([single(value).view(np.uint32) for value in w(*r)], 1),
                words=2,
            ),
            Case(
                f"v_cvt_scalef32_pk_f16_fp4 v40, v10, v11 op_sel:[{bits},0]",
                lambda *r, w=widened: pack(*(value.astype(np.float16) for value in w(*r))),
                kind="f16",
            ),
            Case(
                f"v_cvt_scalef32_pk_fp4_f32 v40, v10, v11, v12 op_sel:[0,0,{bits}]",
                lambda a, b, c, *_, p=placed: p(
                    to_e2m1(f(a) / scale_of(c)) | to_e2m1(f(b) / scale_of(c)) << np.uint32(4)
                ),
            ),
            Case(
                f"v_cvt_scalef32_pk_fp4_bf16 v40, v10, v11 op_sel:[0,0,{bits}]",
                lambda a, b, *_, p=placed: p(
                    to_e2m1(half(a).view(BF16).astype(np.float64) / scale_of(b))
                    | to_e2m1(half(a, 1).view(BF16).astype(np.float64) / scale_of(b)) << np.uint32(4)
                ),
            ),
            Case(
                f"v_cvt_scalef32_pk_fp4_f16 v40, v10, v11 op_sel:[0,0,{bits}]",
                lambda a, b, *_, p=placed: p(
                    to_e2m1(half(a).view(np.float16).astype(np.float64) / scale_of(b))
                    | to_e2m1(half(a, 1).view(np.float16).astype(np.float64) / scale_of(b)) << np.uint32(4)
                ),
            ),
        ]
    return cases


def encoded(value: np.ndarray, dtype: type) -> np.ndarray:
    """One code a value. Past the largest number ml_dtypes gives NaN (infinity in e5m2), as MODE.FP16_OVFL = 0."""
    return value.astype(dtype).view(np.uint8).astype(np.uint32)


def scaled_fp8(name: str, dtype: type) -> list[Case]:
    cases = []
    for word in range(2):

        def widened(a: np.ndarray, b: np.ndarray, *_: np.ndarray, word: int = word) -> list[np.ndarray]:
            return [byte(a, 2 * word + i).view(dtype).astype(np.float64) * scale_of(b) for i in range(2)]

        def placed(low: np.ndarray, high: np.ndarray, word: int = word) -> np.ndarray:
            kept = np.uint32(0xDEADBEEF) & ~np.uint32(0xFFFF << 16 * word)
            return kept | (encoded(low, dtype) | encoded(high, dtype) << np.uint32(8)) << np.uint32(16 * word)

        cases += [
            case(
                f"v_cvt_scalef32_pk_f32_{name} v[40:41], v10, v11 op_sel:[{word},0,0]",
                lambda *r, w=widened: np.stack([single(value).view(np.uint32) for value in w(*r)], 1),
                words=2,
            ),
            Case(
                f"v_cvt_scalef32_pk_f16_{name} v40, v10, v11 op_sel:[{word},0,0]",
                lambda *r, w=widened: pack(*(value.astype(np.float16) for value in w(*r))),
                kind="f16",
            ),
            Case(
                f"v_cvt_scalef32_pk_{name}_f32 v40, v10, v11, v12 op_sel:[0,0,0,{word}]",
                lambda a, b, c, *_, p=placed: p(f(a) / scale_of(c), f(b) / scale_of(c)),
            ),
            Case(
                f"v_cvt_scalef32_pk_{name}_bf16 v40, v10, v11 op_sel:[0,0,{word}]",
                lambda a, b, *_, p=placed: p(
                    *(half(a, i).view(BF16).astype(np.float64) / scale_of(b) for i in (0, 1))
                ),
            ),
            Case(
                f"v_cvt_scalef32_pk_{name}_f16 v40, v10, v11 op_sel:[0,0,{word}]",
                lambda a, b, *_, p=placed: p(
                    *(half(a, i).view(np.float16).astype(np.float64) / scale_of(b) for i in (0, 1))
                ),
            ),
        ]
    return [
        *cases,
        *(
            case(
                f"v_cvt_scalef32_f32_{name} v40, v10, v11 op_sel:[{i & 1},{i >> 1},0]",
                lambda a, b, *_, i=i: single(byte(a, i).view(dtype).astype(np.float64) * scale_of(b)),
            )
            for i in range(4)
        ),
    ]


def plain_fp8(name: str, dtype: type) -> list[Case]:
    return [
        case(f"v_cvt_f32_{name}_e32 v40, v10", lambda a, *_: single(byte(a, 0).view(dtype))),
        case(f"v_cvt_f32_{name}_sdwa v40, v10 src0_sel:BYTE_3", lambda a, *_: single(byte(a, 3).view(dtype))),
        case(
            f"v_cvt_pk_f32_{name}_e32 v[40:41], v10",
            lambda a, *_: np.stack([single(byte(a, i).view(dtype)).view(np.uint32) for i in (0, 1)], 1),
            words=2,
        ),
        case(
            f"v_cvt_pk_f32_{name}_sdwa v[40:41], v10 src0_sel:WORD_1",
            lambda a, *_: np.stack([single(byte(a, i).view(dtype)).view(np.uint32) for i in (2, 3)], 1),
            words=2,
        ),
        Case(
            f"v_cvt_pk_{name}_f32 v40, v10, v11",
            lambda a, b, *_: (
                np.uint32(0xDEAD0000) | encoded(f(a), dtype) | encoded(f(b), dtype) << np.uint32(8)
            ),
        ),
        Case(
            f"v_cvt_pk_{name}_f32 v40, -v10, v11 op_sel:[0,0,1]",
            lambda a, b, *_: (
                np.uint32(0xBEEF)
                | (encoded(-f(a), dtype) | encoded(f(b), dtype) << np.uint32(8)) << np.uint32(16)
            ),
        ),
    ]


def dot2(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    low, high = (
        half(a, i).view(BF16).astype(np.float64) * half(b, i).view(BF16).astype(np.float64) for i in (0, 1)
    )
    return single(low + high + f(c).astype(np.float64))


BF16_CASES = [
    Case(
        "v_cvt_pk_bf16_f32 v40, v10, v11",
        lambda a, b, *_: pack(f(a).astype(BF16), f(b).astype(BF16)),
        kind="bf16",
    ),
    Case(
        "v_cvt_pk_f16_f32 v40, v10, v11",
        lambda a, b, *_: pack(f(a).astype(np.float16), f(b).astype(np.float16)),
        kind="f16",
    ),
    Case("v_cvt_f32_bf16_e32 v40, v10", lambda a, *_: a << np.uint32(16)),
    case("v_dot2_f32_bf16 v40, v10, v11, v12", lambda a, b, c, *_: dot2(a, b, c)),
    case("v_mov_b32_e32 v40, v12\nv_dot2c_f32_bf16_e32 v40, v10, v11", lambda a, b, c, *_: dot2(a, b, c)),
    *(
        Case(
            f"v_cvt_scalef32_pk_bf16_fp4 v40, v10, v11 op_sel:[{i & 1},{i >> 1},0]",
            lambda a, b, *_, i=i: pack(
                *(single(E2M1[byte(a, i) >> shift & 15] * scale_of(b)).astype(BF16) for shift in (0, 4))
            ),
            kind="bf16",
        )
        for i in range(4)
    ),
    *(
        Case(
            f"v_cvt_scalef32_pk_bf16_{name} v40, v10, v11 op_sel:[{i},0,0]",
            lambda a, b, *_, i=i, dtype=dtype: pack(
                *(
                    single(byte(a, 2 * i + k).view(dtype).astype(np.float64) * scale_of(b)).astype(BF16)
                    for k in (0, 1)
                )
            ),
            kind="bf16",
        )
        for name, dtype in (("fp8", ml_dtypes.float8_e4m3fn), ("bf8", ml_dtypes.float8_e5m2))
        for i in range(2)
    ),
]
CASES_950 = [
    *BF16_CASES,
    *scaled_fp4(),
    *scaled_fp8("fp8", ml_dtypes.float8_e4m3fn),
    *scaled_fp8("bf8", ml_dtypes.float8_e5m2),
]
CASES = [*PLAIN, *plain_fp8("fp8", FP8["gfx950"]), *plain_fp8("bf8", BF8["gfx950"])]


def inputs_near_codes(rng: np.random.Generator, dtype: type) -> np.ndarray:
    """Values around the codes of a narrow format, its largest and its smallest ones, and halfway between two."""
    codes = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    codes = codes[np.isfinite(codes)]
    middles = (codes[:, None] * np.array([1, 1 + 2**-4, 1 + 2**-3, 1.5, 1 - 2**-5], np.float32)).ravel()
    nudged = np.concatenate(
        [middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(0))]
    )
    return rng.choice(nudged, (8, 4, LANES)).view(np.uint32)


def test_plain_conversions(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, PLAIN, mixed_inputs(rng, FLOAT_CORNERS))


@pytest.mark.parametrize("name", ["fp8", "bf8"])
def test_eight_bit_floats(architecture: str, name: str, rng: np.random.Generator) -> None:
    dtype = {"fp8": FP8, "bf8": BF8}[name][architecture]
    for inputs in (mixed_inputs(rng, FLOAT_CORNERS), inputs_near_codes(rng, dtype)):
        check_cases(architecture, plain_fp8(name, dtype), inputs)


def test_every_code_of_eight_bits(architecture: str) -> None:
    codes = np.broadcast_to(np.arange(256, dtype=np.uint32).reshape(4, 1, 64), (4, 4, 64)).copy()
    for name, dtype in (("fp8", FP8[architecture]), ("bf8", BF8[architecture])):
        check_cases(architecture, plain_fp8(name, dtype)[:1], codes)


def test_scaled_and_bf16_conversions(rng: np.random.Generator) -> None:
    inputs = mixed_inputs(rng, FLOAT_CORNERS)
    check_cases("gfx950", CASES_950, inputs)
    # Scales near one keep most values inside the narrow formats.
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        near = inputs_near_codes(rng, dtype)
        near[:, 1:3] = (rng.integers(124, 131, near[:, 1:3].shape) << 23).astype(np.uint32)
        check_cases("gfx950", CASES_950, near)


def test_saturation_is_a_mode(architecture: str) -> None:
    """MODE.FP16_OVFL: conversions past the largest number clamp to it."""
    inputs = np.full((1, 4, LANES), np.float32(1e6).view(np.uint32))
    piece = (
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1\nv_cvt_pk_fp8_f32 v40, v10, v10\n"
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 0",
        1,
    )
    (out,) = run_pieces(architecture, [piece], inputs)
    largest = (
        np.array(np.float32(ml_dtypes.finfo(FP8[architecture]).max)).astype(FP8[architecture]).view(np.uint8)
    )
    assert (out & 0xFF == largest).all() and (out >> 8 & 0xFF == largest).all()
