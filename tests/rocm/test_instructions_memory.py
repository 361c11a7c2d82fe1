"""Loads and stores on global, flat, private, buffer and LDS memory, and the transposing LDS reads."""

from collections.abc import Callable

import numpy as np
import pytest
from emulation import EmulatorError
from snippets import (
    INTEGER_CORNERS,
    LANES,
    LDS_BYTES,
    Case,
    check_cases,
    mixed_inputs,
    raw_buffer,
    registers,
    run_pieces,
    words_of,
)

POISON = np.uint32(0xFFFFFFFF)
# The piece's own slot of the output, s[4:5] + 4 x lane, as a flat address in v[60:61].
_FLAT = (
    "v_mov_b32_e32 v60, s4\nv_mov_b32_e32 v61, s5\n"
    "v_add_co_u32_e32 v60, vcc, v60, v1\nv_addc_co_u32_e32 v61, vcc, 0, v61, vcc\n"
)
_INPUT = (
    "v_mov_b32_e32 v62, s6\nv_mov_b32_e32 v63, s7\n"
    "v_add_co_u32_e32 v62, vcc, v62, v1\nv_addc_co_u32_e32 v63, vcc, 0, v63, vcc\n"
)
# Raw buffers over the inputs' 1,024 bytes and over the slot's 256.
_BUFFER_IN = raw_buffer("s6", "s7", 1024)
_BUFFER_OUT = raw_buffer("s4", "s5", 256)


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
                _BUFFER_IN + f"s_movk_i32 s20, 0x100\n"
                f"buffer_load_dword{suffix} {registers(40, count)}, off, s[44:47], s20 offset:8",
                lambda a, b, *_, count=count: np.stack(
                    [np.repeat(b[:, 2 + i : 3 + i], 64, 1) for i in range(count)], 1
                ),
                count,
            ),
        ]
        sixteen = "s_mov_b64 exec, 0xffff\nv_lshlrev_b32_e32 v64, 4, v0\n"
        back = "\ns_mov_b64 exec, -1\nglobal_load_dword v40, v1, s[4:5]"
        flat = (
            "v_mov_b32_e32 v60, s4\nv_mov_b32_e32 v61, s5\n"
            "v_add_co_u32_e32 v60, vcc, v60, v64\nv_addc_co_u32_e32 v61, vcc, 0, v61, vcc\n"
        )
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
            _INPUT + "global_load_dwordx2 v[62:63], v[62:63], off\n"
            "s_waitcnt vmcnt(0)\nv_mov_b32_e32 v40, v62\nv_mov_b32_e32 v41, v63",
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
    fill = (
        "ds_write_b32 v1, v10\nds_write_b32 v1, v11 offset:256\n"
        "ds_write_b32 v1, v12 offset:512\nds_write_b32 v1, v13 offset:768\n"
    )
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
            "ds_write2_b32 v1, v10, v11 offset0:1 offset1:65\n"
            "ds_read_b32 v40, v1 offset:4\nds_read_b32 v41, v1 offset:260",
            lambda a, b, *_: np.stack([a, b], 1),
            2,
        ),
        Case(
            "ds_write2st64_b32 v1, v10, v11 offset0:3 offset1:1\n"
            "ds_read_b32 v40, v1 offset:768\nds_read_b32 v41, v1 offset:256",
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
            f"{fill}s_mov_b64 s[20:21], src_shared_base\nv_mov_b32_e32 v61, s21\n"
            f"v_mov_b32_e32 v60, v1\nflat_load_dword v40, v[60:61] offset:256",
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


def to_lds_in_holes(words: int) -> Case:
    """A lane's number and not its rank among the enabled ones says where its element lands; others' places stay."""
    exec_mask = 0x8421

    def expect(*rows: np.ndarray) -> np.ndarray:
        out = np.full_like(rows[0], 0x77777777)
        flat = np.concatenate(rows, 1)
        for lane in range(16):
            if exec_mask >> lane & 1:
                at = slice(lane * words, (lane + 1) * words)
                out[:, at] = flat[:, (15 - lane) * 4 : (15 - lane) * 4 + words]
        return out

    suffix = "" if words == 1 else f"x{words}"
    text = (
        "v_mov_b32_e32 v60, 0x77777777\nds_write_b32 v1, v60 offset:64\ns_movk_i32 m0, 64\n"
        "v_sub_u32_e32 v61, 15, v0\nv_lshlrev_b32_e32 v61, 4, v61\nv_mov_b32_e32 v63, s7\n"
        "v_add_co_u32_e32 v62, vcc, s6, v61\nv_addc_co_u32_e32 v63, vcc, 0, v63, vcc\n"
        f"s_mov_b64 exec, 0x{exec_mask:x}\nglobal_load_lds_dword{suffix} v[62:63], off\n"
        "s_waitcnt vmcnt(0)\ns_mov_b64 exec, -1\nds_read_b32 v40, v1 offset:64"
    )
    return Case(text, expect)


def waited_for(words: int) -> Case:
    """Of two loads to the same place vmcnt says which has arrived: neither, the first, both; others count too."""
    suffix = "" if words == 1 else f"x{words}"
    load = f"global_load_lds_dword{suffix} v61, s[6:7]"
    steps = [f"s_waitcnt vmcnt({later})\nds_read_b32 v{40 + i}, v1" for i, later in enumerate((3, 2, 1, 0))]
    text = (
        "v_mov_b32_e32 v60, 0x77777777\nds_write_b32 v1, v60\ns_mov_b32 m0, 0\n"
        f"v_mul_u32_u24_e32 v61, {4 * words}, v0\ns_mov_b64 exec, 0xffff\n{load}\n"
        f"v_add_u32_e32 v61, 0x100, v61\n{load}\ns_mov_b64 exec, -1\n"
        "global_load_dword v62, v1, s[6:7]\n" + "\n".join(steps)
    )

    def expect(*rows: np.ndarray) -> np.ndarray:
        count = 16 * words
        first, second = (np.where(np.arange(LANES) < count, row, np.uint32(0x77777777)) for row in rows[:2])
        return np.stack([np.full_like(first, 0x77777777), first, second, second], 1)

    return Case(text, expect, words=4)


def waited_for_among_many() -> Case:
    """The counter has six bits: of 21 instructions 21 may be under way, the load to LDS too, or the last 20."""
    plain = "\n".join(["global_load_dword v62, v1, s[6:7]"] * 20)
    text = (
        "v_mov_b32_e32 v60, 0x77777777\nds_write_b32 v1, v60\ns_mov_b32 m0, 0\ns_nop 0\n"
        f"global_load_lds_dword v1, s[6:7]\n{plain}\n"
        "s_waitcnt vmcnt(21)\nds_read_b32 v40, v1\ns_waitcnt vmcnt(20)\nds_read_b32 v41, v1"
    )
    return Case(text, lambda a, *_: np.stack([np.full_like(a, 0x77777777), a], 1), words=2)


DMA = [
    to_lds_in_holes(1),
    waited_for(1),
    waited_for_among_many(),
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
    to_lds_in_holes(3),
    to_lds_in_holes(4),
    waited_for(4),
    to_lds("global_load_lds_dwordx3", 3, lambda a: a),
    to_lds("global_load_lds_dwordx4", 4, lambda a: a),
    buffer_to_lds("dwordx3", 3, lambda a: a),
    buffer_to_lds("dwordx4", 4, lambda a: a),
]


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

    text = (
        f"ds_write_b32 v1, v10\nds_write_b32 v1, v11 offset:256\n"
        f"v_lshlrev_b32_e32 v60, 3, v0\nds_read_b64_tr_b{bits} v[40:41], v60"
    )
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
    flat = (
        "s_mov_b64 s[22:23], src_private_base\nv_mov_b32_e32 v63, s23\n"
        "v_mov_b32_e32 v62, 8\nflat_load_dword v40, v[62:63]"
    )
    return [*cases, Case(fill + flat, lambda a, *_: a)]


TRANSPOSED = [transposed(bits) for bits in (4, 8, 16)]
CASES = [*global_cases(), *scratch_cases(), *lds_cases(), *DMA]
CASES_950 = [*DMA_950, *TRANSPOSED]


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


def test_global_to_lds_stays_inside(architecture: str) -> None:
    size, suffix = (16, "x4") if architecture == "gfx950" else (4, "")
    inputs = np.zeros((1, 4, LANES), np.uint32)

    def run(base: int, offset: int) -> None:
        load = f"global_load_lds_dword{suffix} v61, s[6:7] offset:{offset}"
        text = f"s_mov_b32 m0, 0x{base:x}\nv_mov_b32_e32 v61, 0\n{load}"
        run_pieces(architecture, [(text, 1)], inputs)

    last = LDS_BYTES - LANES * size
    run(last, 0)
    # The offset moves both addresses; M0 has more than sixteen bits.
    for base, offset in ((last + 4, 0), (last, 4), (0x10000, 0)):
        with pytest.raises(
            EmulatorError,
            match=rf"load_lds.*LDS access of {size} bytes by lane \d+ .* is outside",
        ):
            run(base, offset)
    with pytest.raises(
        EmulatorError, match=r"global_load_lds_dword.*global load .* is outside every registered"
    ):
        run_pieces(
            architecture,
            [(f"s_mov_b32 m0, 0\nv_mov_b32_e32 v61, 0x400\nglobal_load_lds_dword{suffix} v61, s[6:7]", 1)],
            inputs,
        )


def test_transposed_reads(rng: np.random.Generator) -> None:
    check_cases("gfx950", TRANSPOSED, rng.integers(0, 2**32, (3, 4, LANES), np.uint32))
