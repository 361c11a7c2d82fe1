"""Values that move between lanes: DPP controls, permutes, swizzles, lane reads and writes, accumulation registers."""

from collections.abc import Callable

import numpy as np
import pytest
from emulation import EmulatorError
from snippets import BEFORE, LANES, Case, check_cases, run_pieces

LANE = np.arange(LANES)
ROW, IN_ROW = LANE // 16 * 16, LANE % 16


def moved(source: np.ndarray, valid: np.ndarray | bool, zeroed: bool) -> Callable[..., np.ndarray]:
    """A move through DPP: lanes without a valid source get 0 with bound_ctrl, else keep what they held."""

    def expect(a: np.ndarray, *_: np.ndarray) -> np.ndarray:
        return np.where(valid, a[:, np.where(valid, source, 0)], np.uint32(0 if zeroed else BEFORE))

    return expect


CONTROLS: dict[str, tuple[np.ndarray, np.ndarray | bool]] = {
    "quad_perm:[3,0,2,1]": (LANE // 4 * 4 + np.array([3, 0, 2, 1])[LANE % 4], True),
    "row_shl:3": (LANE + 3, IN_ROW + 3 < 16),
    "row_shr:1": (LANE - 1, IN_ROW >= 1),
    "row_shr:8": (LANE - 8, IN_ROW >= 8),
    "row_ror:5": (ROW + (IN_ROW - 5) % 16, True),
    "wave_shl:1": (LANE + 1, LANE < 63),
    "wave_rol:1": ((LANE + 1) % 64, True),
    "wave_shr:1": (LANE - 1, LANE >= 1),
    "wave_ror:1": ((LANE - 1) % 64, True),
    "row_mirror": (ROW + 15 - IN_ROW, True),
    "row_half_mirror": (LANE // 8 * 8 + 7 - LANE % 8, True),
    "row_bcast:15": (ROW - 1, LANE >= 16),
    "row_bcast:31": (np.full(LANES, 31), LANE >= 32),
    "row_newbcast:6": (ROW + 6, True),
}
DPP = [
    Case(
        f"v_mov_b32_dpp v40, v10 {control} row_mask:0xf bank_mask:0xf" + (" bound_ctrl:1" if zeroed else ""),
        moved(source, valid, zeroed),
    )
    for control, (source, valid) in CONTROLS.items()
    for zeroed in (False, True)
] + [
    # Rows 1 and 3 are written, and of those the first two banks of four lanes.
    Case(
        "v_mov_b32_dpp v40, v10 row_ror:1 row_mask:0xa bank_mask:0x3",
        lambda a, *_: np.where(
            (LANE // 16 % 2 == 1) & (IN_ROW < 8), a[:, ROW + (IN_ROW - 1) % 16], np.uint32(BEFORE)
        ),
    ),
    Case(
        "v_mov_b32_e32 v40, v12\nv_add_u32_dpp v40, v10, v11 row_shr:1 row_mask:0xf bank_mask:0xf",
        lambda a, b, c, *_: np.where(IN_ROW >= 1, np.roll(a, 1, 1) + b, c),
    ),
    Case(
        "v_add_f32_dpp v40, v10, v10 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf",
        lambda a, *_: (a.view(np.float32)[:, LANE ^ 1] + a.view(np.float32)).view(np.uint32),
    ),
    Case(
        "s_mov_b64 exec, 0xffff\nv_mov_b32_dpp v40, v10 row_ror:1 row_mask:0xf bank_mask:0xf",
        lambda a, *_: np.where(LANE < 16, a[:, ROW + (IN_ROW - 1) % 16], np.uint32(BEFORE)),
    ),
    # A disabled source lane counts as missing.
    Case(
        "s_mov_b32 exec_lo, 0xfffffff7\nv_mov_b32_dpp v40, v10 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1",
        lambda a, *_: np.where(
            LANE == 3,
            np.uint32(BEFORE),
            np.where((IN_ROW == 0) | (LANE == 4), np.uint32(0), np.roll(a, 1, 1)),
        ),
    ),
    Case(
        "s_mov_b32 exec_lo, 0xfffffff7\nv_mov_b32_dpp v40, v10 row_shr:1 row_mask:0xf bank_mask:0xf",
        lambda a, *_: np.where(
            (LANE == 3) | (IN_ROW == 0) | (LANE == 4), np.uint32(BEFORE), np.roll(a, 1, 1)
        ),
    ),
    Case(
        "v_mov_b64_dpp v[40:41], v[10:11] row_newbcast:2 row_mask:0xf bank_mask:0xf",
        lambda a, b, *_: np.stack([a[:, ROW + 2], b[:, ROW + 2]], 1),
        2,
    ),
]


def swizzled(pattern: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda a, *_: a[:, pattern(LANE)]


def scattered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ds_permute: the highest lane that names a destination wins; unnamed ones are zero."""
    out = np.zeros_like(a)
    for lane in range(LANES):
        out[np.arange(len(a)), (b[:, lane] // 4 % 64).astype(int)] = a[:, lane]
    return out


PERMUTES = [
    Case(
        "ds_bpermute_b32 v40, v11, v10",
        lambda a, b, *_: np.take_along_axis(a, (b // 4 % 64).astype(np.int64), 1),
    ),
    Case(
        "ds_bpermute_b32 v40, v11, v10 offset:8",
        lambda a, b, *_: np.take_along_axis(a, ((b + np.uint32(8)) // 4 % 64).astype(np.int64), 1),
    ),
    Case("ds_permute_b32 v40, v11, v10", lambda a, b, *_: scattered(a, b)),
    Case("ds_swizzle_b32 v40, v10 offset:swizzle(QUAD_PERM,1,0,3,2)", swizzled(lambda i: i ^ 1)),
    Case(
        'ds_swizzle_b32 v40, v10 offset:swizzle(BITMASK_PERM,"01pip")',
        swizzled(lambda i: i & 32 | (i & 7 | 8) ^ 2),
    ),
    Case("ds_swizzle_b32 v40, v10 offset:swizzle(SWAP,16)", swizzled(lambda i: i ^ 16)),
    Case("ds_swizzle_b32 v40, v10 offset:swizzle(REVERSE,8)", swizzled(lambda i: i ^ 7)),
    Case("ds_swizzle_b32 v40, v10 offset:swizzle(BROADCAST,4,3)", swizzled(lambda i: i & ~3 | 3)),
    Case("ds_swizzle_b32 v40, v10 offset:0x7c00", swizzled(lambda i: i | 31)),
    Case(
        "s_mov_b64 exec, 0xff\nds_bpermute_b32 v40, v11, v10",
        lambda a, b, *_: np.where(
            LANE < 8,
            np.where(b // 4 % 64 < 8, np.take_along_axis(a, (b // 4 % 64).astype(np.int64), 1), 0),
            np.uint32(BEFORE),
        ),
    ),
    Case("v_readlane_b32 s20, v10, 37\nv_mov_b32_e32 v40, s20", lambda a, *_: np.repeat(a[:, 37:38], 64, 1)),
    Case(
        "s_mov_b32 s21, 0x85\nv_readlane_b32 s20, v10, s21\nv_mov_b32_e32 v40, s20",
        lambda a, *_: np.repeat(a[:, 5:6], 64, 1),
    ),
    Case(
        "s_mov_b64 exec, 0xf00\nv_readfirstlane_b32 s20, v10\ns_mov_b64 exec, -1\nv_mov_b32_e32 v40, s20",
        lambda a, *_: np.repeat(a[:, 8:9], 64, 1),
    ),
    Case(
        "s_mov_b64 exec, 0\nv_readfirstlane_b32 s20, v10\ns_mov_b64 exec, -1\nv_mov_b32_e32 v40, s20",
        lambda a, *_: np.repeat(a[:, :1], 64, 1),
    ),
    Case(
        "s_movk_i32 s20, 0x1234\ns_mov_b64 exec, 0\nv_writelane_b32 v40, s20, 9",
        lambda a, *_: np.where(LANE == 9, np.uint32(0x1234), np.uint32(BEFORE)) + 0 * a,
    ),
    Case(
        "v_mbcnt_lo_u32_b32 v40, -1, 0\nv_mbcnt_hi_u32_b32 v40, -1, v40",
        lambda a, *_: 0 * a + LANE.astype(np.uint32),
    ),
    Case(
        "v_mbcnt_lo_u32_b32 v40, v10, v11\nv_mbcnt_hi_u32_b32 v40, v10, v40",
        lambda a, b, *_: (
            b
            + np.array(
                [
                    [
                        bin(int(x) & (1 << min(i, 32)) - 1).count("1")
                        + bin(int(x) & (1 << max(i - 32, 0)) - 1).count("1")
                        for i, x in enumerate(row)
                    ]
                    for row in a
                ],
                np.uint32,
            )
        ),
    ),
    Case(
        "v_mov_b32_e32 v60, v10\nv_mov_b32_e32 v40, v11\ns_mov_b64 exec, 3\nv_swap_b32 v40, v60",
        lambda a, b, *_: np.where(LANE < 2, a, b),
    ),
    Case(
        "v_accvgpr_write_b32 a7, v10\ns_nop 1\nv_accvgpr_mov_b32 a9, a7\ns_nop 1\nv_accvgpr_read_b32 v40, a9",
        lambda a, *_: a,
    ),
]
SWAPS = [
    Case(
        "v_mov_b32_e32 v40, v10\nv_mov_b32_e32 v41, v11\nv_permlane32_swap_b32_e32 v40, v41",
        lambda a, b, *_: np.stack(
            [np.concatenate([a[:, :32], b[:, :32]], 1), np.concatenate([a[:, 32:], b[:, 32:]], 1)], 1
        ),
        2,
    ),
    Case(
        "v_mov_b32_e32 v40, v10\nv_mov_b32_e32 v41, v11\nv_permlane16_swap_b32_e32 v40, v41",
        lambda a, b, *_: np.stack(
            [
                np.concatenate([a[:, :16], b[:, :16], a[:, 32:48], b[:, 32:48]], 1),
                np.concatenate([a[:, 16:32], b[:, 16:32], a[:, 48:], b[:, 48:]], 1),
            ],
            1,
        ),
        2,
    ),
]
CASES = DPP + PERMUTES
CASES_950 = SWAPS


def test_dpp(architecture: str, rng: np.random.Generator) -> None:
    inputs = rng.integers(0, 2**32, (3, 4, LANES), np.uint32)
    inputs[:, 0] &= np.uint32(0x3FFFFFFF)  # finite as floats
    check_cases(architecture, DPP, inputs)


def test_permutes(architecture: str, rng: np.random.Generator) -> None:
    check_cases(architecture, PERMUTES, rng.integers(0, 2**32, (3, 4, LANES), np.uint32))


def test_swaps_of_rows_and_halves(rng: np.random.Generator) -> None:
    inputs = rng.integers(0, 2**32, (3, 4, LANES), np.uint32)
    check_cases("gfx950", SWAPS, inputs)
    with pytest.raises(EmulatorError, match="v_permlane32_swap_b32.*disabled lanes"):
        run_pieces("gfx950", [("s_mov_b64 exec, 1\nv_permlane32_swap_b32_e32 v40, v10", 1)], inputs)
