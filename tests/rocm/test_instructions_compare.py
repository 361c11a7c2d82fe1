"""Comparisons and classes of every type, with and without narrowing EXEC."""

import numpy as np
from snippets import FLOAT_CORNERS, Case, check_cases, mixed_inputs
from test_instructions_float import F32_TINY, f, g, is_signalling

CONDITIONS = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "lg": lambda a, b: (a < b) | (a > b),
    "neq": lambda a, b: ~(a == b),
    "nlt": lambda a, b: ~(a < b),
    "nle": lambda a, b: ~(a <= b),
    "ngt": lambda a, b: ~(a > b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "ne": np.not_equal,
}
INTEGER_CONDITIONS = ("lt", "le", "gt", "ge", "eq", "ne")
_TO_MASK = "\nv_cndmask_b32_e64 v40, 0, 1, s[20:21]"


def operands_of(
    kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, e: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The compared values: pairs of words for 64 bits, low halves for 16."""
    bits = int(kind[1:])
    if bits == 64:
        joined = [x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32) for x, y in ((a, b), (c, e))]
        return tuple(
            value.view({"f": np.float64, "u": np.uint64, "i": np.int64}[kind[0]]) for value in joined
        )
    if bits == 16:
        short = [(x & np.uint32(0xFFFF)).astype(np.uint16) for x in (a, c)]
        return tuple(value.view({"f": np.float16, "u": np.uint16, "i": np.int16}[kind[0]]) for value in short)
    return tuple(x.view({"f": np.float32, "u": np.uint32, "i": np.int32}[kind[0]]) for x in (a, c))


def comparison(kind: str, condition: str, narrow: bool) -> Case:
    first, second = ("v[10:11]", "v[12:13]") if kind.endswith("64") else ("v10", "v12")
    text = f"v_cmp{'x' if narrow else ''}_{condition}_{kind}_e64 s[20:21], {first}, {second}"
    # A narrowed EXEC is what the move runs under; the other lanes keep what v40 held before.
    text += "\nv_mov_b32_e32 v40, 1" if narrow else _TO_MASK

    def expect(*rows: np.ndarray) -> np.ndarray:
        hit = CONDITIONS[condition](*operands_of(kind, *rows))
        return np.where(hit, np.uint32(1), np.uint32(0xDEADBEEF if narrow else 0))

    return Case(text, expect)


COMPARES = [
    comparison(kind, condition, narrow)
    for kind in ("f32", "f64", "f16", "u32", "i32", "u64", "i64", "u16", "i16")
    for condition in CONDITIONS
    for narrow in (False, True)
    if (condition != "ne") == (kind[0] == "f") or condition in INTEGER_CONDITIONS[:5]
]


def classes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    value, negative, tiny = f(a), a >> np.uint32(31) == 1, np.abs(f(a)) < F32_TINY
    zero, infinite, nan = value == 0, np.isinf(value), np.isnan(value)
    normal = ~(tiny | infinite | nan)
    which = [
        nan & is_signalling(value),
        nan & ~is_signalling(value),
        infinite & negative,
        normal & negative,
        tiny & ~zero & negative,
        zero & negative,
        zero & ~negative,
        tiny & ~zero & ~negative,
        normal & ~negative,
        infinite & ~negative,
    ]
    hit = np.zeros(a.shape, bool)
    for bit, holds in enumerate(which):
        hit |= holds & (b >> np.uint32(bit) & np.uint32(1) == 1)
    return hit.astype(np.uint32)


CLASSES = [
    Case(
        "v_cmp_class_f32_e32 vcc, v10, v11\nv_cndmask_b32_e64 v40, 0, 1, vcc", lambda a, b, *_: classes(a, b)
    ),
    Case(
        "v_cmp_class_f64_e64 vcc, v[10:11], 8\nv_cndmask_b32_e64 v40, 0, 1, vcc",
        lambda *r: ((g(r, 0) < 0) & (np.abs(g(r, 0)) >= np.finfo(np.float64).tiny)).astype(np.uint32),
    ),
    Case(
        "v_cmpx_class_f32_e64 s[20:21], v10, v11\nv_mov_b32_e32 v40, 1",
        lambda a, b, *_: np.where(classes(a, b) == 1, np.uint32(1), np.uint32(0xDEADBEEF)),
    ),
    # 0x204: the infinities.
    Case(
        "s_movk_i32 s22, 0x204\nv_cmpx_class_f64_e64 s[20:21], v[10:11], s22\nv_mov_b32_e32 v40, 1",
        lambda *r: np.where(np.isinf(g(r, 0)), np.uint32(1), np.uint32(0xDEADBEEF)),
    ),
]


def test_comparisons(architecture: str, rng: np.random.Generator) -> None:
    corners = np.concatenate(
        [FLOAT_CORNERS, np.array([0, 1, 0x7C00, 0x7E01, 0x8000, 0xFFFF, 0x80000000], np.uint32)]
    )
    inputs = mixed_inputs(rng, corners)
    inputs[:, 2] = np.where(rng.random(inputs[:, 2].shape) < 0.4, inputs[:, 0], inputs[:, 2])
    inputs[:, 3] = np.where(rng.random(inputs[:, 3].shape) < 0.6, inputs[:, 1], inputs[:, 3])
    inputs[:, 0] = np.where(inputs[:, 1] << np.uint32(12) == 0, np.uint32(0), inputs[:, 0])
    check_cases(architecture, COMPARES + CLASSES, inputs)
