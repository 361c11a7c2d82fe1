"""The static budget of the kernels: what the compiler made of them, against what docs/isa.md records."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
import isa_report  # noqa: E402


@pytest.fixture(scope="module")
def kernels() -> list[isa_report.Kernel]:
    return isa_report.kernels()


def recorded() -> dict[tuple[str, str], int]:
    """(kernel, architecture) -> waves a SIMD, as the document has them."""
    text = isa_report.DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (mla_\w+) \| (gfx\w+) \|(.*)$", text, re.MULTILINE)
    return {(name, architecture): int(rest.split("|")[7]) for name, architecture, rest in rows}


def test_nothing_spills_or_uses_scratch(kernels: list[isa_report.Kernel]) -> None:
    assert [(k.name, k.architecture) for k in kernels if k.spills or k.scratch] == []
    # Into lanes of vector registers, and only where no speed is asked for.
    assert all(k.name.endswith("_plain") for k in kernels if k.sgpr_spills)


def test_occupancy_is_not_below_the_recorded(kernels: list[isa_report.Kernel]) -> None:
    known = recorded()
    assert {(k.name, k.architecture) for k in kernels} == set(known), "docs/isa.md: run make isa-report"
    assert [k.name for k in kernels if k.waves_per_simd < known[k.name, k.architecture]] == []


def test_local_memory_fits(kernels: list[isa_report.Kernel]) -> None:
    for k in kernels:
        assert k.static_lds + k.dynamic_lds <= isa_report.MACHINES[k.architecture].lds, k.name


MATRIX = {"gfx942": "v_mfma_f32_16x16x16_bf16", "gfx950": "v_mfma_f32_16x16x32_bf16"}


def check_tile_loads(kernel: isa_report.Kernel, runs: int) -> None:
    """How keys come: 16 bytes a lane, on gfx950 straight to local memory, a row of them in `runs` instructions."""
    direct = kernel.instructions["global_load_lds_dwordx4"]
    if kernel.architecture == "gfx950":
        # In the code twice: for the first tile, and for the next one while a tile is worked on.
        assert direct == 2 * runs * 32 // (kernel.threads // 64), kernel.name
        # Work goes on with the next tile under way. The compiler counts only its own loads: a wait for one of
        # these would be one for the tile.
        names = [line.split()[0] for line in kernel.code]
        last = len(names) - 1 - names[::-1].index("global_load_lds_dwordx4")
        until = names.index(MATRIX["gfx950"], last)
        assert [line for line in kernel.code[last:until] if "vmcnt" in line] == [], kernel.name
    else:
        assert direct == 0 and kernel.instructions["global_load_dwordx4"] > 0, kernel.name


def test_attention_multiplies_on_matrix_cores(kernels: list[isa_report.Kernel]) -> None:
    tiles = [k for k in kernels if re.fullmatch(r"mla_attention_\d+(_f8)?", k.name)]
    assert len(tiles) == 12
    for k in tiles:
        assert set(k.matrix) == {MATRIX[k.architecture]}
        check_tile_loads(k, 1 if k.name.endswith("_f8") else 2)
        assert not any(name.startswith("flat_") for name in k.instructions), "pointers are known to be global"


def test_codes_are_multiplied_as_they_are(kernels: list[isa_report.Kernel]) -> None:
    products = [k for k in kernels if k.name.startswith("mla_linear_mxfp4")]
    assert len(products) == 4
    for k in products:
        own = "v_mfma_scale_f32_16x16x128_f8f6f4" if k.architecture == "gfx950" else MATRIX[k.architecture]
        assert set(k.matrix) == {own}
        assert k.instructions["global_load_dwordx4"] > 0


def test_only_gfx942_reads_fnuz_codes_with_its_own_conversion(kernels: list[isa_report.Kernel]) -> None:
    # gfx950's instruction of that name reads OCP codes, and gfx942's reads no others than these.
    found = [kernel for kernel in kernels if "_e4m3_" in kernel.name or "_e4m3fnuz_" in kernel.name]
    assert len(found) == 2 * 2 * (11 + 4)
    for kernel in found:
        own = kernel.architecture == "gfx942" and "fnuz" in kernel.name
        pairs = sum(n for name, n in kernel.instructions.items() if name.startswith("v_cvt_pk_f32_fp8_"))
        assert (pairs > 0) == own, kernel.name


def test_expanded_attention_multiplies_on_matrix_cores(kernels: list[isa_report.Kernel]) -> None:
    tiles = [k for k in kernels if k.name in ("mla_expanded_long", "mla_expanded_short")]
    assert len(tiles) == 4
    for k in tiles:
        # Scores of 192 columns and sums of 128, for a wave's rows and 32 keys, each in the code once.
        rows, steps = (2 if k.name.endswith("long") else 1), {"gfx942": 12, "gfx950": 6}[k.architecture]
        assert k.matrix == {MATRIX[k.architecture]: rows * (2 * steps + 8 * steps // 6)}, k.name
        check_tile_loads(k, 2)


def test_absorbing_blocks_share_a_compute_unit(kernels: list[isa_report.Kernel]) -> None:
    tiles = [k for k in kernels if re.fullmatch(r"mla_absorb_(across|along)_\w+_(16|64)", k.name)]
    assert len(tiles) == 24
    for k in tiles:
        assert set(k.matrix) == {MATRIX[k.architecture]}
        assert k.waves_per_simd >= 2, f"{k.name} on {k.architecture}"


def test_every_kernel_knows_its_address_spaces(kernels: list[isa_report.Kernel]) -> None:
    for k in kernels:
        assert not any(name.startswith(("flat_", "scratch_")) for name in k.instructions), k.name


def test_rope_moves_wide(kernels: list[isa_report.Kernel]) -> None:
    for k in kernels:
        if k.name.startswith("mla_rope") and k.name.endswith(("_wide", "query_bf16")):
            assert k.instructions["global_load_dwordx4"] > 0
            assert k.instructions["global_store_dwordx4"] > 0


def test_held_rows_move_wide(kernels: list[isa_report.Kernel]) -> None:
    held = [
        k for k in kernels if re.fullmatch(r"mla_(rmsnorm|fused_qk_rmsnorm)_(f32|bf16)(_\d+|_long)?", k.name)
    ]
    assert len(held) == 2 * 2 * (4 + 1)
    for k in held:
        assert k.instructions["global_load_dwordx4"] > 0, k.name
        assert k.instructions["global_store_dwordx4"] > 0, k.name
