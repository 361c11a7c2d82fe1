"""Loads, stores and atomics on global, flat, private, buffer and LDS memory, and the transposing LDS reads."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from emulation import EmulatorError
from snippets import FLOAT_CORNERS, INTEGER_CORNERS, LANES, Case, check_cases, mixed_inputs, run_pieces

POISON = np.uint32(0xFFFFFFFF)
# The piece's own slot of the output, s[4:5] + 4 x lane, as a flat address in v[60:61].
_FLAT = "v_mov_b32_e32 v60, s4\nv_mov_b32_e32 v61, s5\nv_add_co_u32_e32 v60, vcc, v60, v1\nv_addc_co_u32_e32 v61, vcc, 0, v61, vcc\n"
_INPUT = "v_mov_b32_e32 v62, s6\nv_mov_b32_e32 v63, s7\nv_add_co_u32_e32 v62, vcc, v62, v1\nv_addc_co_u32_e32 v63, vcc, 0, v63, vcc\n"
# A raw buffer resource over the inputs' 1,024 bytes, and one over the slot's 256.
_BUFFER_IN = "s_mov_b32 s44, s6\ns_mov_b32 s45, s7\ns_movk_i32 s46, 0x400\ns_mov_b32 s47, 0x20000\n"
_BUFFER_OUT = "s_mov_b32 s44, s4\ns_mov_b32 s45, s5\ns_movk_i32 s46, 0x100\ns_mov_b32 s47, 0x20000\n"


def byte(a: np.ndarray, which: int) -> np.ndarray:
    return a >> np.uint32(8 * which) & np.uint32(255)


def short(a: np.ndarray, which: int) -> np.ndarray:
    return a >> np.uint32(16 * which) & np.uint32(0xFFFF)


def extended(a: np.ndarray, bits: int) -> np.ndarray:
    return (a << np.uint32(32 - bits)).view(np.int32) >> (32 - bits)


# What a narrow load at byte 2 of a word leaves in its register. With ECC memory the other half becomes zero.
NARROW = {
    "ubyte": lambda a: byte(a, 2),
    "sbyte": lambda a: extended(byte(a, 2), 8),
    "ushort": lambda a: short(a, 1),
    "sshort": lambda a: extended(short(a, 1), 16),
    "ubyte_d16": lambda a: byte(a, 2),
    "sbyte_d16": lambda a: extended(byte(a, 2), 8).view(np.uint32) & np.uint32(0xFFFF),
    "short_d16": lambda a: short(a, 1),
    "ubyte_d16_hi": lambda a: byte(a, 2) << np.uint32(16),
    "sbyte_d16_hi": lambda a: (extended(byte(a, 2), 8) << 16).view(np.uint32),
    "short_d16_hi": lambda a: short(a, 1) << np.uint32(16),
}
STORES = {
    "byte": lambda a: POISON & ~np.uint32(255 << 16) | byte(a, 0) << np.uint32(16),
    "byte_d16_hi": lambda a: POISON & ~np.uint32(255 << 16) | byte(a, 2) << np.uint32(16),
    "short": lambda a: np.uint32(0xFFFF) | short(a, 0) << np.uint32(16),
    "short_d16_hi": lambda a: np.uint32(0xFFFF) | short(a, 1) << np.uint32(16),
}
WIDE = {1: "", 2: "x2", 3: "x3", 4: "x4"}


def neighbours(count: int) -> Callable[..., np.ndarray]:
    """Word i of a lane is word (lane + i) of the rows laid end to end."""

    def expect(*rows: np.ndarray) -> np.ndarray:
        flat = np.concatenate(rows, 1)
        return np.stack([flat[:, i : i + LANES] for i in range(count)], 1)

    return expect


def registers(first: int, count: int) -> str:
    return f"v{first}" if count == 1 else f"v[{first}:{first + count - 1}]"


def spread(count: int) -> Callable[..., np.ndarray]:
    """A store of `count` words at 16 bytes a lane by lanes 0 to 15, seen as the slot's 64 words."""

    def expect(*rows: np.ndarray) -> np.ndarray:
        out = np.full_like(rows[0], POISON)
        for lane in range(16):
            for i in range(count):
                out[:, 4 * lane + i] = rows[i][:, lane]
        return out

    return expect


def global_cases() -> list[Case]:
    cases = []
    for name, f in NARROW.items():
        cases += [
            Case(f"global_load_{name} v40, v1, s[6:7] offset:2", lambda a, *_, f=f: f(a)),
            Case(_INPUT + f"global_load_{name} v40, v[62:63], off offset:2", lambda a, *_, f=f: f(a)),
            Case(_INPUT + f"flat_load_{name} v40, v[62:63] offset:2", lambda a, *_, f=f: f(a)),
            Case(
                _BUFFER_IN + f"buffer_load_{name} v40, v1, s[44:47], 0 offen offset:2",
                lambda a, *_, f=f: f(a),
            ),
        ]
    for count, suffix in WIDE.items():
        cases += [
            Case(f"global_load_dword{suffix} {registers(40, count)}, v1, s[6:7]", neighbours(count), count),
            Case(
                _INPUT + f"global_load_dword{suffix} {registers(40, count)}, v[62:63], off sc0 sc1 nt",
                neighbours(count),
                count,
            ),
            Case(
                _INPUT + f"flat_load_dword{suffix} {registers(40, count)}, v[62:63]", neighbours(count), count
            ),
            Case(
                _BUFFER_IN + f"buffer_load_dword{suffix} {registers(40, count)}, v1, s[44:47], 0 offen",
                neighbours(count),
                count,
            ),
            Case(
                _BUFFER_IN
                + f"s_movk_i32 s20, 0x100\nbuffer_load_dword{suffix} {registers(40, count)}, off, s[44:47], s20 offset:8",
                lambda a, b, *_, count=count: np.stack(
                    [np.repeat(b[:, 2 + i : 3 + i], 64, 1) for i in range(count)], 1
                ),
                count,
            ),
        ]
        sixteen = "s_mov_b64 exec, 0xffff\nv_lshlrev_b32_e32 v64, 4, v0\n"
        back = "\ns_mov_b64 exec, -1\nglobal_load_dword v40, v1, s[4:5]"
        flat = "v_mov_b32_e32 v60, s4\nv_mov_b32_e32 v61, s5\nv_add_co_u32_e32 v60, vcc, v60, v64\nv_addc_co_u32_e32 v61, vcc, 0, v61, vcc\n"
        data = registers(10, count)
        for store in (
            f"global_store_dword{suffix} v64, {data}, s[4:5]",
            f"{flat}global_store_dword{suffix} v[60:61], {data}, off",
            f"{flat}flat_store_dword{suffix} v[60:61], {data}",
            f"{_BUFFER_OUT}buffer_store_dword{suffix} {data}, v64, s[44:47], 0 offen",
        ):
            cases.append(Case(sixteen + store + back, spread(count)))
    for name, f in STORES.items():
        for store in (
            f"global_store_{name} v1, v10, s[4:5] offset:2",
            f"{_FLAT}flat_store_{name} v[60:61], v10 offset:2",
            f"{_BUFFER_OUT}buffer_store_{name} v10, v1, s[44:47], 0 offen offset:2",
        ):
            cases.append(Case(f"{store}\nglobal_load_dword v40, v1, s[4:5]", lambda a, *_, f=f: f(a)))
    # Bounds of a raw buffer: words past num_records read zero and are not written.
    cases += [
        Case(
            _BUFFER_IN + "s_movk_i32 s46, 0x84\nbuffer_load_dwordx2 v[40:41], v1, s[44:47], 0 offen",
            lambda a, *_: np.stack(
                [np.where(np.arange(64) < 33, a, 0), np.where(np.arange(64) < 32, np.roll(a, -1, 1), 0)], 1
            ).astype(np.uint32),
            2,
        ),
        Case(
            _BUFFER_OUT
            + "s_movk_i32 s46, 0x80\nbuffer_store_dword v10, v1, s[44:47], 0 offen\nglobal_load_dword v40, v1, s[4:5]",
            lambda a, *_: np.where(np.arange(64) < 32, a, POISON),
        ),
        # A load that overwrites its own address registers.
        Case(
            _INPUT
            + "global_load_dwordx2 v[62:63], v[62:63], off\ns_waitcnt vmcnt(0)\nv_mov_b32_e32 v40, v62\nv_mov_b32_e32 v41, v63",
            neighbours(2),
            2,
        ),
        Case(
            "v_subrev_u32_e32 v60, 64, v1\nv_add_u32_e32 v60, 0x80, v60\nglobal_load_dword v40, v60, s[6:7] offset:-64",
            lambda a, *_: a,
        ),
        Case(
            "global_load_dword a3, v1, s[6:7]\ns_waitcnt vmcnt(0)\nv_accvgpr_read_b32 v40, a3",
            lambda a, *_: a,
        ),
    ]
    return cases


def two(first: int, second: int) -> Callable[..., np.ndarray]:
    """The lane's own words of two rows."""
    return lambda *rows: np.stack([rows[first], rows[second]], 1)


def lds_cases() -> list[Case]:
    fill = "ds_write_b32 v1, v10\nds_write_b32 v1, v11 offset:256\nds_write_b32 v1, v12 offset:512\nds_write_b32 v1, v13 offset:768\n"
    names = {
        "u8": "ubyte",
        "i8": "sbyte",
        "u16": "ushort",
        "i16": "sshort",
        "u8_d16": "ubyte_d16",
        "i8_d16": "sbyte_d16",
        "u16_d16": "short_d16",
        "u8_d16_hi": "ubyte_d16_hi",
        "i8_d16_hi": "sbyte_d16_hi",
        "u16_d16_hi": "short_d16_hi",
    }
    cases = [
        Case(f"{fill}ds_read_{name} v40, v1 offset:2", lambda a, *_, f=NARROW[same]: f(a))
        for name, same in names.items()
    ]
    writes = {"b8": "byte", "b8_d16_hi": "byte_d16_hi", "b16": "short", "b16_d16_hi": "short_d16_hi"}
    cases += [
        Case(
            f"v_mov_b32_e32 v60, -1\nds_write_b32 v1, v60\nds_write_{name} v1, v10 offset:2\nds_read_b32 v40, v1",
            lambda a, *_, f=STORES[same]: f(a),
        )
        for name, same in writes.items()
    ]
    for count, bits in ((1, 32), (2, 64), (3, 96), (4, 128)):
        cases.append(Case(f"{fill}ds_read_b{bits} {registers(40, count)}, v1", neighbours(count), count))
        data = registers(10, count)
        cases.append(
            Case(
                f"v_mov_b32_e32 v60, -1\nds_write_b32 v1, v60\nv_lshlrev_b32_e32 v64, 4, v0\ns_mov_b64 exec, 0xffff\n"
                f"ds_write_b{bits} v64, {data}\ns_mov_b64 exec, -1\nds_read_b32 v40, v1",
                spread(count),
            )
        )
    cases += [
        Case(f"{fill}ds_read2_b32 v[40:41], v1 offset0:64 offset1:192", two(1, 3), 2),
        Case(f"{fill}ds_read2st64_b32 v[40:41], v1 offset0:2 offset1:1", two(2, 1), 2),
        Case(
            f"{fill}v_lshlrev_b32_e32 v60, 3, v0\nds_read2_b64 v[40:43], v60 offset1:32",
            lambda *r: np.stack([np.concatenate(r, 1)[:, 2 * np.arange(64) + k] for k in (0, 1, 64, 65)], 1),
            4,
        ),
        Case(
            f"{fill}v_lshlrev_b32_e32 v60, 3, v0\nds_read2st64_b64 v[40:43], v60 offset0:1 offset1:0",
            lambda *r: np.stack(
                [np.concatenate(r, 1)[:, 2 * np.arange(64) + k] for k in (128, 129, 0, 1)], 1
            ),
            4,
        ),
        Case(
            "ds_write2_b32 v1, v10, v11 offset0:1 offset1:65\nds_read_b32 v40, v1 offset:4\nds_read_b32 v41, v1 offset:260",
            lambda a, b, *_: np.stack([a, b], 1),
            2,
        ),
        Case(
            "ds_write2st64_b32 v1, v10, v11 offset0:3 offset1:1\nds_read_b32 v40, v1 offset:768\nds_read_b32 v41, v1 offset:256",
            lambda a, b, *_: np.stack([a, b], 1),
            2,
        ),
        Case(
            "v_lshlrev_b32_e32 v60, 3, v0\nds_write2_b64 v60, v[10:11], v[12:13] offset0:64 offset1:128\n"
            "ds_read_b64 v[40:41], v60 offset:512\nds_read_b64 v[42:43], v60 offset:1024",
            lambda *r: np.stack(r, 1),
            4,
        ),
        Case(
            "v_lshlrev_b32_e32 v60, 3, v0\nds_write2st64_b64 v60, v[10:11], v[12:13] offset0:1 offset1:2\n"
            "ds_read_b64 v[40:41], v60 offset:512\nds_read_b64 v[42:43], v60 offset:1024",
            lambda *r: np.stack(r, 1),
            4,
        ),
        # A flat address in the shared aperture reaches LDS.
        Case(
            f"{fill}s_mov_b64 s[20:21], src_shared_base\nv_mov_b32_e32 v61, s21\nv_mov_b32_e32 v60, v1\nflat_load_dword v40, v[60:61] offset:256",
            lambda a, b, *_: b,
        ),
    ]
    return cases


def to_lds(name: str, words: int, value: Callable[[np.ndarray], np.ndarray]) -> Case:
    """Global to LDS: lane l's element lands at M0 + offset + l x size, whatever address it came from."""

    def expect(*rows: np.ndarray) -> np.ndarray:
        flat = np.concatenate(rows, 1)
        # The source is reversed: lane l reads the element of lane 15 - l, two words further for the offset.
        out = np.full_like(rows[0], POISON)
        for lane in range(16):
            for i in range(words):
                out[:, lane * words + i] = value(flat[:, 2 + (15 - lane) * 4 + i])
        return out

    text = (
        "v_mov_b32_e32 v60, -1\nds_write_b32 v1, v60 offset:520\ns_movk_i32 m0, 0x200\ns_mov_b64 exec, 0xffff\n"
        "v_sub_u32_e32 v61, 15, v0\nv_lshlrev_b32_e32 v61, 4, v61\n"
        f"{name} v61, s[6:7] offset:8\ns_waitcnt vmcnt(0)\ns_mov_b64 exec, -1\nds_read_b32 v40, v1 offset:520"
    )
    return Case(text, expect)


def buffer_to_lds(suffix: str, words: int, value: Callable[[np.ndarray], np.ndarray]) -> Case:
    plain = to_lds("LOAD", words, value)
    return Case(
        plain.text.replace(
            "LOAD v61, s[6:7] offset:8",
            f"{_BUFFER_IN}buffer_load_{suffix} v61, s[44:47], 0 offen offset:8 lds",
        ),
        plain.expect,
    )


DMA = [
    to_lds("global_load_lds_dword", 1, lambda a: a),
    to_lds("global_load_lds_ubyte", 1, lambda a: a & np.uint32(255)),
    to_lds("global_load_lds_sbyte", 1, lambda a: extended(a & np.uint32(255), 8).view(np.uint32)),
    to_lds("global_load_lds_ushort", 1, lambda a: a & np.uint32(0xFFFF)),
    to_lds("global_load_lds_sshort", 1, lambda a: extended(a & np.uint32(0xFFFF), 16).view(np.uint32)),
    buffer_to_lds("dword", 1, lambda a: a),
    buffer_to_lds("ubyte", 1, lambda a: a & np.uint32(255)),
    buffer_to_lds("ushort", 1, lambda a: a & np.uint32(0xFFFF)),
]
DMA_950 = [
    to_lds("global_load_lds_dwordx3", 3, lambda a: a),
    to_lds("global_load_lds_dwordx4", 4, lambda a: a),
    buffer_to_lds("dwordx3", 3, lambda a: a),
    buffer_to_lds("dwordx4", 4, lambda a: a),
]


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


def words_of(value: np.ndarray) -> list[np.ndarray]:
    if value.dtype == np.uint32:
        return [value]
    return [(value & np.uint64(0xFFFFFFFF)).astype(np.uint32), (value >> np.uint64(32)).astype(np.uint32)]


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
    flat = "v_mov_b32_e32 v60, s4\nv_mov_b32_e32 v61, s5\nv_add_co_u32_e32 v60, vcc, v60, v70\nv_addc_co_u32_e32 v61, vcc, 0, v61, vcc\n"
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
            body = f"ds_write_b{bits} v70, {mem}\nds_{rtn} {prefix}v70, {operands}\nds_read_b{bits} {registers(40, count)}, v70"
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
                what = f"{move}{_BUFFER_OUT.replace('0x100', '0x400')}buffer_atomic_{name} {registers(74, (2 if compares else 1) * count)}, v70, s[44:47], 0 offen{suffix}{keep}"
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


def transposed(bits: int) -> Case:
    """Sixteen lanes bring rows of 16 columns; lane c of them leaves with column c."""
    per_lane = 64 // bits

    def expect(*rows: np.ndarray) -> np.ndarray:
        groups = len(rows[0])
        # Each lane reads its own 8 bytes of the two rows laid end to end.
        memory = np.concatenate(rows[:2], 1).reshape(groups, 4, 32)
        codes = memory.view(np.uint8).reshape(groups, 4, 128)
        if bits == 16:
            elements = codes.view(np.uint16).astype(np.uint64)
        elif bits == 8:
            elements = codes.astype(np.uint64)
        else:
            elements = np.stack([codes & 15, codes >> 4], -1).reshape(groups, 4, 256).astype(np.uint64)
        tile = elements.reshape(groups, 4, per_lane, 16)  # [row, column] of each sixteen lanes
        joined = (
            (tile.swapaxes(2, 3) << (bits * np.arange(per_lane, dtype=np.uint64)))
            .sum(-1, dtype=np.uint64)
            .reshape(groups, LANES)
        )
        return np.stack(words_of(joined), 1)

    text = f"ds_write_b32 v1, v10\nds_write_b32 v1, v11 offset:256\nv_lshlrev_b32_e32 v60, 3, v0\nds_read_b64_tr_b{bits} v[40:41], v60"
    return Case(text, expect, 2)


def scratch_cases() -> list[Case]:
    """Private memory: each lane's own bytes, addressed by a scalar, a vector register or neither."""
    cases = []
    fill = "scratch_store_dword off, v10, off offset:8\ns_mov_b32 s20, 6\nv_mov_b32_e32 v60, 6\n"
    for name, f in NARROW.items():
        for address in ("off, s20 offset:4", "v60, off offset:4", "off, off offset:10"):
            cases.append(Case(f"{fill}scratch_load_{name} v40, {address}", lambda a, *_, f=f: f(a)))
    for name, f in STORES.items():
        clear = "v_mov_b32_e32 v61, -1\nscratch_store_dword off, v61, off offset:8\n"
        store = f"{fill}{clear}scratch_store_{name} v60, v10, off offset:4"
        cases.append(Case(f"{store}\nscratch_load_dword v40, off, off offset:8", lambda a, *_, f=f: f(a)))
    for count, suffix in WIDE.items():
        move = f"scratch_store_dword{suffix} off, {registers(10, count)}, s20 offset:10\n"
        load = f"scratch_load_dword{suffix} {registers(40, count)}, v60, off offset:10"
        cases.append(Case(fill + move + load, lambda *rows, count=count: np.stack(rows[:count], 1), count))
    flat = "s_mov_b64 s[22:23], src_private_base\nv_mov_b32_e32 v63, s23\nv_mov_b32_e32 v62, 8\nflat_load_dword v40, v[62:63]"
    return [*cases, Case(fill + flat, lambda a, *_: a)]


TRANSPOSED = [transposed(bits) for bits in (4, 8, 16)]
CASES = [*global_cases(), *scratch_cases(), *lds_cases(), *DMA, *all_atomics()]
ATOMICS_950 = atomic_cases("buffer", "pk_add_bf16", *float_update("pk_add_bf16"), kind="bf16")
CASES_950 = [*DMA_950, *TRANSPOSED, *ATOMICS_950]


def test_global_flat_and_buffer(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, global_cases(), mixed_inputs(rng, INTEGER_CORNERS, groups=3))


def test_private_memory(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, scratch_cases(), mixed_inputs(rng, INTEGER_CORNERS, groups=3))
    with pytest.raises(
        EmulatorError, match="private access of 4 bytes by lane 0 at address 0x3e is outside the lane's 64"
    ):
        run_pieces(
            architecture,
            [("scratch_store_dword off, v10, off offset:62", 1)],
            np.zeros((1, 4, LANES), np.uint32),
        )


def test_lds(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, lds_cases(), mixed_inputs(rng, INTEGER_CORNERS, groups=3))


def test_global_to_lds(architecture: str, rng: np.random.Generator) -> None:
    cases = DMA + (DMA_950 if architecture == "gfx950" else [])
    check_cases(architecture, cases, mixed_inputs(rng, INTEGER_CORNERS, groups=3))


@pytest.mark.parametrize("corners", [INTEGER_CORNERS, FLOAT_CORNERS], ids=["integers", "floats"])
def test_atomics(architecture: str, corners: np.ndarray, rng: np.random.Generator) -> None:
    inputs = mixed_inputs(rng, corners, groups=3)
    # Doubles without NaN: their bits are compared. Every other comparison of a swap is equal.
    inputs[:, 1::2] &= np.uint32(0xBFFFFFFF)
    inputs[:, 2] = np.where(np.arange(LANES) % 2, inputs[:, 0], inputs[:, 2])
    signalling = (inputs & np.uint32(0x7FC00000)) == np.uint32(0x7F800000)
    inputs = np.where(signalling & (inputs & np.uint32(0x3FFFFF) != 0), inputs | np.uint32(0x400000), inputs)
    check_cases(architecture, all_atomics() + (ATOMICS_950 if architecture == "gfx950" else []), inputs)


def test_atomics_of_one_word_meet(architecture: str) -> None:
    """All lanes add to one counter: each sees a different old value, in the order that the run asks for."""
    text = "v_mov_b32_e32 v60, 0\nglobal_store_dword v60, v60, s[4:5]\nv_mov_b32_e32 v61, 3\nglobal_atomic_add v40, v60, v61, s[4:5] sc0"
    for order in (0, 1):
        (out,) = run_pieces(architecture, [(text, 1)], np.zeros((1, 4, LANES), np.uint32), order=order)
        np.testing.assert_array_equal(out[0, 0], 3 * (np.arange(64) if order == 0 else np.arange(64)[::-1]))


def test_transposed_reads(rng: np.random.Generator) -> None:
    check_cases("gfx950", TRANSPOSED, rng.integers(0, 2**32, (3, 4, LANES), np.uint32))
