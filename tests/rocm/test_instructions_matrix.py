"""Matrix instructions: lane maps, formats and scales against plain matrix products of known matrices.

The maps are written out from the documents: A is [rows, K], lane l brings row l % rows. Integers small enough to be
exact in every format make the comparison exact, so that one wrong lane cannot hide in a tolerance.
"""

import ml_dtypes
import numpy as np
import pytest
from emulation import EmulatorError
from hip_toolchain import assemble
from snippets import LANES, assembly, registers, row_address, run_pieces

FP8 = {"gfx942": ml_dtypes.float8_e4m3fnuz, "gfx950": ml_dtypes.float8_e4m3fn}
BF8 = {"gfx942": ml_dtypes.float8_e5m2fnuz, "gfx950": ml_dtypes.float8_e5m2}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
LANE = np.arange(LANES)


def element_type(name: str, architecture: str) -> object:
    return {
        "f32": np.float32,
        "f16": np.float16,
        "bf16": ml_dtypes.bfloat16,
        "fp8": FP8[architecture],
        "bf8": BF8[architecture],
        "i8": np.int8,
        "fp4": None,
    }[name]


def codes_of(values: np.ndarray, name: str, architecture: str) -> np.ndarray:
    """Codes of representable values, in the unsigned type of the format's width (fp4: one code a byte)."""
    if name == "fp4":
        return np.array(
            [
                int(np.flatnonzero((value == E2M1) & (np.signbit(value) == np.signbit(E2M1)))[0])
                for value in values.ravel()
            ],
            np.uint8,
        ).reshape(values.shape)
    typed = values.astype(element_type(name, architecture))
    return typed.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[typed.dtype.itemsize])


def random_values(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    if name == "fp4":
        return rng.choice(E2M1, shape)
    return rng.integers(-8, 9, shape).astype(np.float64)


def lane_elements(matrix: np.ndarray, per_lane: int, striped: bool) -> np.ndarray:
    """[64, per_lane]: what each lane brings of [rows, K]. Striped operands take sixteen of each half of K."""
    rows, depth = matrix.shape
    block = LANE // rows
    element = np.arange(per_lane)
    k = block[:, None] * per_lane + element
    if striped:
        k = element // 16 * (depth // 2) + block[:, None] * 16 + element % 16
    return matrix[LANE[:, None] % rows, k]


def as_words(codes: np.ndarray, name: str) -> np.ndarray:
    """[words, 64] uint32 registers of [64, elements] codes."""
    if name == "fp4":
        codes = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
    return np.ascontiguousarray(np.ascontiguousarray(codes).view(np.uint32).T)


def output_matrix(words: np.ndarray, rows: int) -> np.ndarray:
    """[rows, rows] from [registers, 64]; the row of a register follows from the lane's group."""
    out = np.empty((rows, rows), words.dtype)
    for register in range(len(words)):
        row = (
            4 * (LANE // 16) + register
            if rows == 16
            else 8 * (register // 4) + 4 * (LANE // 32) + register % 4
        )
        out[row, LANE % rows] = words[register]
    return out


def input_words(matrix: np.ndarray, rows: int) -> np.ndarray:
    registers = rows * rows // LANES
    out = np.empty((registers, LANES), np.float32)
    for register in range(registers):
        row = (
            4 * (LANE // 16) + register
            if rows == 16
            else 8 * (register // 4) + 4 * (LANE // 32) + register % 4
        )
        out[register] = matrix[row, LANE % rows]
    return out.view(np.uint32)


def multiply(
    architecture: str,
    mnemonic: str,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    names: tuple[str, str],
    *,
    extra: str = "",
    scales: np.ndarray | None = None,
    striped: tuple[bool, bool] = (False, False),
    integer: bool = False,
    letter: str = "v",
) -> np.ndarray:
    """a: [rows, K], b: [columns, K], c: [rows, columns] values; returns D as float32 (int32 for integers)."""
    rows, depth = a.shape
    per_lane = depth * rows // LANES
    left, right = (
        as_words(codes_of(lane_elements(x, per_lane, stripe), name, architecture), name)
        for x, name, stripe in ((a, names[0], striped[0]), (b, names[1], striped[1]))
    )
    addend = input_words(c, rows) if not integer else input_words(c.astype(np.int32).view(np.float32), rows)
    count = len(addend)
    inputs = np.concatenate([left, right, *([scales] if scales is not None else [])])[None]
    # The addend's rows follow the operands'.
    inputs = np.concatenate([inputs, addend[None]], 1)
    first_b, first_scale = 10 + len(left), 10 + len(left) + len(right)
    first_c = inputs.shape[1] - count
    d, source = registers(40, count), registers(40, count)
    # It is read from memory: with eight registers a side there is no room for it beside them.
    text = "".join(f"global_load_dword v{40 + i}, {row_address(first_c + i)}\n" for i in range(count))
    text += "s_waitcnt vmcnt(0)\n"
    if letter == "a":
        text += "".join(f"v_accvgpr_write_b32 a{i}, v{40 + i}\n" for i in range(count)) + "s_nop 7\n"
        d = source = registers(0, count, "a")
    scale_operands = f", v{first_scale}, v{first_scale + 1}" if scales is not None else ""
    operands = f"{d}, {registers(10, len(left))}, {registers(first_b, len(right))}, {source}{scale_operands}"
    text += f"{mnemonic} {operands}{extra}\ns_nop 15"
    if letter == "a":
        text += "".join(f"\nv_accvgpr_read_b32 v{40 + i}, a{i}" for i in range(count))
    assert 10 + first_c <= 40
    (out,) = run_pieces(architecture, [(text, count)], np.ascontiguousarray(inputs))
    return output_matrix(out[0].view(np.int32 if integer else np.float32), rows)


BOTH = [
    ("v_mfma_f32_16x16x4_f32", 16, 4, "f32", "f32"),
    ("v_mfma_f32_32x32x2_f32", 32, 2, "f32", "f32"),
    ("v_mfma_f32_16x16x16_f16", 16, 16, "f16", "f16"),
    ("v_mfma_f32_32x32x8_f16", 32, 8, "f16", "f16"),
    ("v_mfma_f32_16x16x16_bf16", 16, 16, "bf16", "bf16"),
    ("v_mfma_f32_32x32x8_bf16", 32, 8, "bf16", "bf16"),
    *((f"v_mfma_f32_16x16x32_{x}_{y}", 16, 32, x, y) for x in ("fp8", "bf8") for y in ("fp8", "bf8")),
    *((f"v_mfma_f32_32x32x16_{x}_{y}", 32, 16, x, y) for x in ("fp8", "bf8") for y in ("fp8", "bf8")),
    ("v_mfma_i32_16x16x32_i8", 16, 32, "i8", "i8"),
    ("v_mfma_i32_32x32x16_i8", 32, 16, "i8", "i8"),
]
ONLY_950 = [
    ("v_mfma_f32_16x16x32_f16", 16, 32, "f16", "f16"),
    ("v_mfma_f32_32x32x16_f16", 32, 16, "f16", "f16"),
    ("v_mfma_f32_16x16x32_bf16", 16, 32, "bf16", "bf16"),
    ("v_mfma_f32_32x32x16_bf16", 32, 16, "bf16", "bf16"),
    ("v_mfma_i32_16x16x64_i8", 16, 64, "i8", "i8"),
    ("v_mfma_i32_32x32x32_i8", 32, 32, "i8", "i8"),
]
MIXED = [(16, 128), (32, 64)]
FORMATS = {"fp8": 0, "bf8": 1, "fp4": 4}
MNEMONICS = (
    [row[0] for row in BOTH],
    [
        *(row[0] for row in ONLY_950),
        *(
            f"v_mfma_{scale}f32_{rows}x{rows}x{depth}_f8f6f4"
            for rows, depth in MIXED
            for scale in ("", "scale_")
        ),
    ],
)


@pytest.mark.parametrize("letter", ["v", "a"])
def test_lane_maps(architecture: str, letter: str, rng: np.random.Generator) -> None:
    for mnemonic, rows, depth, left, right in BOTH + (ONLY_950 if architecture == "gfx950" else []):
        a, b = random_values(rng, (rows, depth), left), random_values(rng, (rows, depth), right)
        c = rng.integers(-100, 100, (rows, rows)).astype(np.float64)
        got = multiply(architecture, mnemonic, a, b, c, (left, right), integer=left == "i8", letter=letter)
        np.testing.assert_array_equal(got, a @ b.T + c, err_msg=mnemonic)


@pytest.mark.parametrize(("rows", "depth"), MIXED)
@pytest.mark.parametrize("left", FORMATS)
@pytest.mark.parametrize("right", FORMATS)
def test_mixed_formats_and_scales(
    rows: int, depth: int, left: str, right: str, rng: np.random.Generator
) -> None:
    a, b = random_values(rng, (rows, depth), left), random_values(rng, (rows, depth), right)
    c = rng.integers(-8, 8, (rows, rows)).astype(np.float64)
    formats = "".join(
        f" {key}:{FORMATS[name]}" for key, name in (("cbsz", left), ("blgp", right)) if FORMATS[name]
    )
    striped = (left != "fp4", right != "fp4")
    shape = f"f32_{rows}x{rows}x{depth}_f8f6f4"
    plain = multiply("gfx950", f"v_mfma_{shape}", a, b, c, (left, right), extra=formats, striped=striped)
    np.testing.assert_array_equal(plain, a @ b.T + c)
    # A lane's scale belongs to its row and to its own block of 32; op_sel picks a byte, op_sel_hi its high bit.
    exponents = rng.integers(125, 130, (2, 4, LANES)).astype(np.uint32)
    words = (exponents << np.array([0, 8, 16, 24], np.uint32)[:, None]).sum(1, dtype=np.uint32)
    for byte_a, byte_b in ((0, 0), (1, 2), (3, 0), (2, 3)):
        select = f" op_sel:[{byte_a & 1},{byte_b & 1},0] op_sel_hi:[{byte_a >> 1},{byte_b >> 1},0]"
        factors = [np.empty((rows, depth // 32)) for _ in range(2)]
        for factor, exponent in zip(factors, (exponents[0, byte_a], exponents[1, byte_b]), strict=True):
            factor[LANE % rows, LANE // rows] = 2.0 ** (exponent.astype(np.float64) - 127)
        expected = (a * np.repeat(factors[0], 32, 1)) @ (b * np.repeat(factors[1], 32, 1)).T + c
        got = multiply(
            "gfx950",
            f"v_mfma_scale_{shape}",
            a,
            b,
            c,
            (left, right),
            extra=select + formats,
            scales=words,
            striped=striped,
        )
        np.testing.assert_array_equal(got, expected, err_msg=select)


def test_a_scale_of_255_is_nan(rng: np.random.Generator) -> None:
    a = random_values(rng, (16, 128), "fp4")
    words = np.full((2, LANES), 127, np.uint32)
    words[0, 19] = 255  # row 3, block 1
    got = multiply(
        "gfx950",
        "v_mfma_scale_f32_16x16x128_f8f6f4",
        a,
        a,
        np.zeros((16, 16)),
        ("fp4", "fp4"),
        extra=" op_sel_hi:[0,0,0] cbsz:4 blgp:4",
        scales=words,
    )
    assert np.isnan(got[3]).all() and np.isfinite(np.delete(got, 3, 0)).all()


def test_constants_as_addends(architecture: str, rng: np.random.Generator) -> None:
    inputs = rng.integers(0, 2**32, (1, 4, LANES), np.uint32) & np.uint32(0x3FFF3FFF)
    pieces = [
        (f"v_mfma_f32_16x16x16_bf16 v[40:43], v[10:11], v[12:13], {constant}", 4) for constant in ("0", "1.0")
    ]
    zero, one = (out[0].view(np.float32) for out in run_pieces(architecture, pieces, inputs))
    # The sum is the same up to the one rounding of each.
    np.testing.assert_allclose(one, zero + 1, rtol=2**-22)


def test_denormals_and_specials(architecture: str) -> None:
    a = np.zeros((16, 16))
    a[0, 0], a[1, 0], a[2, 0], a[2, 1] = 2.0**-133, np.inf, np.inf, -np.inf
    b = np.ones((16, 16))
    b[1] = 0
    got = multiply(architecture, "v_mfma_f32_16x16x16_bf16", a, b, np.zeros((16, 16)), ("bf16", "bf16"))
    assert got[0, 0] == np.float32(2.0**-133), "a denormal operand or result was flushed"
    assert np.isinf(got[1, 0]) and np.isnan(got[1, 1]) and np.isnan(got[2, 0])


def test_a_matrix_instruction_ignores_exec(architecture: str, rng: np.random.Generator) -> None:
    inputs = rng.integers(0, 2**32, (1, 4, LANES), np.uint32) & np.uint32(0x3FFF3FFF)
    text = "v_mfma_f32_16x16x16_bf16 v[40:43], v[10:11], v[12:13], 0"
    whole, masked = run_pieces(architecture, [(text, 4), (f"s_mov_b64 exec, 1\n{text}", 4)], inputs)
    np.testing.assert_array_equal(whole, masked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "v_mfma_scale_f32_16x16x128_f8f6f4 v[40:43], v[10:15], v[20:25], 0, v30, v31 cbsz:2 blgp:2",
            "six-bit matrix formats",
        ),
        ("v_mfma_f32_16x16x16_bf16 v[40:43], v[10:11], v[12:13], 0 cbsz:1", "cbsz"),
    ],
)
def test_refused_forms(text: str, message: str) -> None:
    assert assemble(assembly([(text, 4)], 1, "gfx950"), "gfx950")
    with pytest.raises(EmulatorError, match=message):
        run_pieces("gfx950", [(text, 4)], np.zeros((1, 1, LANES), np.uint32))
