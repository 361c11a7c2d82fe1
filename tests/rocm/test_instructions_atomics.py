"""Atomics on global, flat, buffer and LDS memory: what they leave, and what they return."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from snippets import (
    FLOAT_CORNERS,
    INTEGER_CORNERS,
    LANES,
    Case,
    check_cases,
    mixed_inputs,
    raw_buffer,
    registers,
    run_pieces,
    words_of,
)


def minimum_number(a: np.ndarray, b: np.ndarray, larger: bool) -> np.ndarray:
    pick = np.where(a == b, np.signbit(a) != larger, (a > b) == larger)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.where(pick, a, b)))


def integer_update(name: str, bits: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    u, s = (np.uint32, np.int32) if bits == 32 else (np.uint64, np.int64)
    return {
        "add": lambda m, d, c: m + d,
        "sub": lambda m, d, c: m - d,
        "and": lambda m, d, c: m & d,
        "or": lambda m, d, c: m | d,
        "xor": lambda m, d, c: m ^ d,
        "swap": lambda m, d, c: d,
        "umax": lambda m, d, c: np.maximum(m, d),
        "umin": lambda m, d, c: np.minimum(m, d),
        "smax": lambda m, d, c: np.maximum(m.view(s), d.view(s)).view(u),
        "smin": lambda m, d, c: np.minimum(m.view(s), d.view(s)).view(u),
        "inc": lambda m, d, c: np.where(m >= d, u(0), m + u(1)),
        "dec": lambda m, d, c: np.where((m == 0) | (m > d), d, m - u(1)),
        "cmpswap": lambda m, d, c: np.where(m == c, d, m),
    }[name]


def float_update(name: str) -> tuple[int, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    def on(
        dtype: type, f: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda m, d: np.ascontiguousarray(f(m.view(dtype), d.view(dtype)).astype(dtype)).view(m.dtype)

    def halves(dtype: type) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return on(dtype, lambda a, b: a.astype(np.float32) + b.astype(np.float32))

    return {
        "add_f32": (32, on(np.float32, np.add)),
        "min_f32": (32, on(np.float32, lambda a, b: minimum_number(a, b, False))),
        "max_f32": (32, on(np.float32, lambda a, b: minimum_number(a, b, True))),
        "add_f64": (64, on(np.float64, np.add)),
        "min_f64": (64, on(np.float64, lambda a, b: minimum_number(a, b, False))),
        "max_f64": (64, on(np.float64, lambda a, b: minimum_number(a, b, True))),
        "pk_add_f16": (32, halves(np.float16)),
        "pk_add_bf16": (32, halves(ml_dtypes.bfloat16)),
    }[name]


INTEGER_ATOMICS = (
    "add",
    "sub",
    "and",
    "or",
    "xor",
    "swap",
    "umax",
    "umin",
    "smax",
    "smin",
    "inc",
    "dec",
    "cmpswap",
)
LDS_NAMES = {
    "add": "add_u",
    "sub": "sub_u",
    "and": "and_b",
    "or": "or_b",
    "xor": "xor_b",
    "swap": "wrxchg_b",
    "umax": "max_u",
    "umin": "min_u",
    "smax": "max_i",
    "smin": "min_i",
    "inc": "inc_u",
    "dec": "dec_u",
    "cmpswap": "cmpst_b",
}


def join(bits: int, rows: tuple[np.ndarray, ...], first: int) -> np.ndarray:
    if bits == 32:
        return rows[first]
    return rows[first].astype(np.uint64) | rows[first + 1].astype(np.uint64) << np.uint64(32)


def atomic_case(
    text: str,
    bits: int,
    update: Callable[..., np.ndarray],
    returns: bool,
    compares: bool = False,
    *,
    kind: str = "u32",
) -> Case:
    """Memory starts as the first row (pair); the data is the second row (v[12:13] for pairs); old and new come out."""
    count = bits // 32

    def expect(*rows: np.ndarray) -> np.ndarray:
        memory = join(bits, rows, 0)
        # Data rows repeat where there are not enough: v14 to v17 hold v10's and v12's values again.
        data = rows[1] if bits == 32 else join(64, rows, 2)
        compare = (rows[2] if bits == 32 else memory) if compares else None
        new = (
            update(memory, data, compare)
            if compares is not None and update.__code__.co_argcount == 3
            else update(memory, data)
        )
        return np.stack([*words_of(np.asarray(new)), *(words_of(memory) if returns else [])], 1)

    return Case(text, expect, count * (2 if returns else 1), kind=kind)


def atomic_cases(
    family: str, name: str, bits: int, update: Callable[..., np.ndarray], *, kind: str = "u32"
) -> list[Case]:
    """With and without the old value, for one address form."""
    count, compares = bits // 32, name.startswith("cmpswap")
    cases = []
    mem, data = registers(10, count), ("v11" if bits == 32 else "v[12:13]")
    if compares:
        # New value, then the comparison: an equal one in the even lanes.
        data = registers(64, 2 * count)
    set_up = ""
    if compares and bits == 32:
        set_up = "v_mov_b32_e32 v64, v11\nv_mov_b32_e32 v65, v12\n"
    elif compares:
        set_up = "v_mov_b64_e32 v[64:65], v[12:13]\nv_mov_b64_e32 v[66:67], v[10:11]\n"
    slot = "v_lshlrev_b32_e32 v70, 3, v0\n" if bits == 64 else "v_mov_b32_e32 v70, v1\n"
    flat = (
        "v_mov_b32_e32 v60, s4\nv_mov_b32_e32 v61, s5\n"
        "v_add_co_u32_e32 v60, vcc, v60, v70\nv_addc_co_u32_e32 v61, vcc, 0, v61, vcc\n"
    )
    width = "x2" if bits == 64 else ""
    for returns in (False, True):
        old = registers(40 + count, count)
        prefix = f"{old}, " if returns else ""
        suffix = " sc0" if returns else ""
        if family == "ds":
            rtn = name[: name.rfind("_")] + "_rtn" + name[name.rfind("_") :] if returns else name
            if name.startswith("wrxchg") and not returns:
                continue
            operands = (
                f"{registers(66, count) if bits == 64 else 'v65'}, {registers(64, count)}"
                if compares or "cmpst" in name
                else data
            )
            body = (
                f"ds_write_b{bits} v70, {mem}\n"
                f"ds_{rtn} {prefix}v70, {operands}\nds_read_b{bits} {registers(40, count)}, v70"
            )
        else:
            start = f"global_store_dword{width} v70, {mem}, s[4:5]\n"
            end = f"\nglobal_load_dword{width} {registers(40, count)}, v70, s[4:5]"
            if family == "global":
                what = f"global_atomic_{name} {prefix}v70, {data}, s[4:5]{suffix}"
            elif family == "flat":
                what = f"{flat}flat_atomic_{name} {prefix}v[60:61], {data}{suffix}"
            else:
                keep = (
                    "".join(f"\nv_mov_b32_e32 v{40 + count + i}, v{74 + i}" for i in range(count))
                    if returns
                    else ""
                )
                move = "".join(
                    f"v_mov_b32_e32 v{74 + i}, v{(64 if compares else 11 if bits == 32 else 12) + i}\n"
                    for i in range((2 if compares else 1) * count)
                )
                both = registers(74, (2 if compares else 1) * count)
                buffer = raw_buffer("s4", "s5", 1024)
                what = f"{move}{buffer}buffer_atomic_{name} {both}, v70, s[44:47], 0 offen{suffix}{keep}"
            body = start + what + end
        cases.append(
            atomic_case(set_up + slot + body, bits, update, returns, compares or "cmpst" in name, kind=kind)
        )
    return cases


def all_atomics() -> list[Case]:
    cases = []
    for name in INTEGER_ATOMICS:
        for bits in (32, 64):
            update = integer_update(name, bits)
            for family in ("global", "flat", "buffer"):
                cases += atomic_cases(family, name + ("_x2" if bits == 64 else ""), bits, update)
            if name == "cmpswap":
                set_up = (
                    "v_mov_b32_e32 v64, v11\nv_mov_b32_e32 v65, v12\n"
                    if bits == 32
                    else "v_mov_b64_e32 v[64:65], v[12:13]\nv_mov_b64_e32 v[66:67], v[10:11]\n"
                )
                cases += [
                    Case(set_up + c.text, c.expect, c.words)
                    for c in atomic_cases("ds", f"cmpst_b{bits}", bits, update)
                ]
            else:
                cases += atomic_cases("ds", f"{LDS_NAMES[name]}{bits}", bits, update)
    for name in ("add_f32", "add_f64", "min_f64", "max_f64", "pk_add_f16", "pk_add_bf16"):
        bits, update = float_update(name)
        kind = {"add_f32": "f32", "pk_add_f16": "f16", "pk_add_bf16": "bf16"}.get(name, "u32")
        for family in ("global", "flat", "buffer", "ds"):
            if family == "buffer" and name == "pk_add_bf16":
                continue  # gfx950 alone has it
            cases += atomic_cases(family, name, bits, update, kind=kind)
    for name in ("min_f32", "max_f32"):
        cases += atomic_cases("ds", name, 32, float_update(name)[1], kind="f32")
    return cases


CASES = all_atomics()
ATOMICS_950 = atomic_cases("buffer", "pk_add_bf16", *float_update("pk_add_bf16"), kind="bf16")
CASES_950 = ATOMICS_950


@pytest.mark.parametrize("corners", [INTEGER_CORNERS, FLOAT_CORNERS], ids=["integers", "floats"])
def test_atomics(architecture: str, corners: np.ndarray, rng: np.random.Generator) -> None:
    inputs = mixed_inputs(rng, corners, groups=3)
    # Doubles without NaN: their bits are compared. Every other comparison of a swap is equal.
    inputs[:, 1::2] &= np.uint32(0xBFFFFFFF)
    inputs[:, 2] = np.where(np.arange(LANES) % 2, inputs[:, 0], inputs[:, 2])
    signalling = (inputs & np.uint32(0x7FC00000)) == np.uint32(0x7F800000)
    inputs = np.where(signalling & (inputs & np.uint32(0x3FFFFF) != 0), inputs | np.uint32(0x400000), inputs)
    check_cases(architecture, CASES + (CASES_950 if architecture == "gfx950" else []), inputs)


def test_atomics_of_one_word_meet(architecture: str) -> None:
    """All lanes add to one counter: each sees a different old value, in the order that the run asks for."""
    text = (
        "v_mov_b32_e32 v60, 0\nglobal_store_dword v60, v60, s[4:5]\n"
        "v_mov_b32_e32 v61, 3\nglobal_atomic_add v40, v60, v61, s[4:5] sc0"
    )
    for order in (0, 1):
        (out,) = run_pieces(architecture, [(text, 1)], np.zeros((1, 4, LANES), np.uint32), order=order)
        np.testing.assert_array_equal(out[0, 0], 3 * (np.arange(64) if order == 0 else np.arange(64)[::-1]))
