"""The static budget of the kernels: what the compiler made of them, against what docs/isa.md records."""

import dataclasses
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import isa_report
from isa.code_objects import Kernel
from isa.code_objects import kernels as all_kernels
from isa.document import document
from isa.families import steps
from isa.flow import Instruction
from isa.machines import LANES, MACHINES, multiplications
from isa.steps import Step


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return all_kernels()


@pytest.fixture(scope="module")
def stepped(kernels: list[Kernel]) -> list[tuple[Kernel, Step]]:
    """Every kernel that is said to have steps, with each of them."""
    of = {architecture: steps(architecture) for architecture in MACHINES}
    return [(kernel, step) for kernel in kernels for step in of[kernel.architecture].get(kernel.name, [])]


@pytest.fixture(scope="module")
def text(kernels: list[Kernel]) -> str:
    return document(kernels)


def test_the_document_is_up_to_date(text: str) -> None:
    assert isa_report.DOCUMENT.read_text(encoding="utf-8") == text, "docs/isa.md: run make isa-report"


def test_check_fails_where_the_document_is_stale(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "isa.md"
    stale.write_text(text.replace("| 1048 /", "| 1047 /", 1))
    monkeypatch.setattr(isa_report, "DOCUMENT", stale)
    monkeypatch.setattr(isa_report, "kernels", list)
    monkeypatch.setattr(isa_report, "document", lambda found: text)
    monkeypatch.setattr(sys, "argv", ["isa_report.py", "--check"])
    with pytest.raises(SystemExit, match="out of date: run make isa-report"):
        isa_report.main()
    monkeypatch.setattr(sys, "argv", ["isa_report.py"])
    isa_report.main()
    monkeypatch.setattr(sys, "argv", ["isa_report.py", "--check"])
    isa_report.main()


def test_a_kernel_without_a_budget_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(found: list[Kernel]) -> str:
        raise LookupError("mla_kernel moves something else")

    monkeypatch.setattr(isa_report, "kernels", list)
    monkeypatch.setattr(isa_report, "document", refuse)
    monkeypatch.setattr(sys, "argv", ["isa_report.py", "--check"])
    with pytest.raises(SystemExit, match=r"^mla_kernel moves something else$"):
        isa_report.main()


def recorded() -> dict[tuple[str, str], int]:
    """(kernel, architecture) -> waves a SIMD, as the document has them."""
    text = isa_report.DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (mla_\w+) \| (gfx\w+) \|(.*)$", text, re.MULTILINE)
    return {(name, architecture): int(rest.split("|")[7]) for name, architecture, rest in rows}


def test_nothing_spills_or_uses_scratch(kernels: list[Kernel]) -> None:
    assert [(k.name, k.architecture) for k in kernels if k.spills or k.scratch] == []
    # Into lanes of vector registers, and only where no speed is asked for.
    assert all(k.name.endswith("_plain") for k in kernels if k.sgpr_spills)


def test_occupancy_is_not_below_the_recorded(kernels: list[Kernel]) -> None:
    known = recorded()
    assert {(k.name, k.architecture) for k in kernels} == set(known), "docs/isa.md: run make isa-report"
    assert [k.name for k in kernels if k.waves_per_simd < known[k.name, k.architecture]] == []


def test_local_memory_fits(kernels: list[Kernel]) -> None:
    for k in kernels:
        assert k.static_lds + k.dynamic_lds <= MACHINES[k.architecture].lds, k.name


MATRIX = {"gfx942": "v_mfma_f32_16x16x16_bf16", "gfx950": "v_mfma_f32_16x16x32_bf16"}
# Kernels for any width, alignment and type: no speed is asked of them. The plan of experts is one block.
UNTIMED = re.compile(r"_plain|_twice|_any|_f32|_plan$|rope_append_bf16$|rope_kv_bf16_(bf16|f8)$")


def test_every_kernel_that_should_be_fast_has_steps(
    kernels: list[Kernel], stepped: list[tuple[Kernel, Step]]
) -> None:
    fast = {(k.name, k.architecture) for k in kernels if not UNTIMED.search(k.name)}
    assert fast == {(k.name, k.architecture) for k, _ in stepped}


def test_code_does_what_its_steps_say(stepped: list[tuple[Kernel, Step]]) -> None:
    """A way with just a step's accesses and products; and a loop of products has nothing else on any way."""
    for kernel, step in stepped:
        work = step.work(kernel)
        assert work.matrix == Counter(dict([step.matrix] if step.matrix else [])), kernel.name
        assert work.vector > 0, kernel.name
        if step.matrix is not None:
            spare = step.present(kernel) - step.wanted
            # Scales of products are f32 or bf16, which is known at the launch.
            assert set(spare) <= {("load", 2)} and set(step.present(kernel)) >= set(step.wanted), kernel.name
            assert not spare or re.search("e4m3|int4", kernel.name), kernel.name


def test_a_loop_that_moves_something_else_is_noticed(stepped: list[tuple[Kernel, Step]]) -> None:
    kernel, step = next(pair for pair in stepped if pair[0].name == "mla_linear_mxfp4_few")
    loads = [i for i, line in enumerate(kernel.code) if line.name == "global_load_dwordx4"]
    for at in loads[-2:]:  # In front of the loop there are two for the first step.
        line = kernel.code[at]
        twice = (*kernel.code[: at + 1], Instruction(line.address + 1, line.text), *kernel.code[at + 1 :])
        with pytest.raises(LookupError, match="mla_linear_mxfp4_few on gfx942.*families.py"):
            step.work(dataclasses.replace(kernel, code=twice))


def test_lanes_have_room_for_the_bytes_of_their_operands(stepped: list[tuple[Kernel, Step]]) -> None:
    for kernel, step in stepped:
        for operand in step.operands:
            room = operand.count * operand.width * LANES * kernel.waves
            assert 0 < operand.bytes <= room and 0 <= operand.memory <= operand.bytes, (kernel.name, operand)
            # Of weights and activations every lane has its own.
            if operand.name in ("codes", "x", "y", "sum", "residual", "values", "queries", "rotated"):
                assert operand.bytes == operand.memory == room, (kernel.name, operand)


BITS = {"fp8": 8, "e2m1": 4, "mxfp4": 4, "shuffled": 4, "int4": 4, "e4m3": 8, "e4m3fnuz": 8, "bf16": 16}


def test_products_read_and_multiply_what_their_unit_says(stepped: list[tuple[Kernel, Step]]) -> None:
    found = [pair for pair in stepped if re.match("mla_(product|absorb|linear)_", pair[0].name)]
    assert {kernel.name.split("_")[1] for kernel, _ in found} == {"product", "absorb", "linear"}
    for kernel, step in found:
        unit = re.fullmatch(r"(?:(\d+) times )?(\d+) x (\d+), (\d+)", step.unit)
        assert unit is not None and step.matrix is not None, step.unit
        times, rows, k, tokens = (int(number or 1) for number in unit.groups())
        bits = next(BITS[part] for part in kernel.name.split("_") if part in BITS)
        (codes,) = (operand for operand in step.operands if operand.name == "codes")
        assert codes.memory == times * rows * k * bits / 8, kernel.name
        # An MXFP4 scale is one byte for 32 codes.
        scales = [operand.memory for operand in step.operands if operand.name == "scales"]
        if bits == 4 and "int4" not in kernel.name:
            assert scales == [times * rows * k / 32], kernel.name
        name, count = step.matrix
        padded = -(-tokens // 16) * 16
        assert multiplications(name) * count * kernel.waves == times * rows * k * padded, kernel.name


def test_attention_reads_and_multiplies_what_its_unit_says(stepped: list[tuple[Kernel, Step]]) -> None:
    found = [pair for pair in stepped if re.match(r"mla_(attention_\d|expanded)", pair[0].name)]
    assert {kernel.name.split("_")[1] for kernel, _ in found} == {"attention", "expanded"}
    for kernel, step in found:
        keys, rows = map(int, re.findall(r"\d+", step.unit))
        expanded = "expanded" in kernel.name
        key_bytes = (128 + 128 + 64) * 2 if expanded else 576 * (1 if "f8" in kernel.name else 2)
        assert sum(o.bytes for o in step.operands if o.name != "pages") == keys * key_bytes, kernel.name
        assert step.memory == (0 if expanded else keys * key_bytes), kernel.name
        assert step.matrix is not None
        done = multiplications(step.matrix[0]) * step.matrix[1] * kernel.waves
        useful = keys * rows * ((192 + 128) if expanded else (576 + 512))
        # Where waves cannot share the contraction's instructions evenly some of them multiply for nobody.
        assert useful <= done <= useful * 1.06, kernel.name


def check_tile_loads(kernel: Kernel, runs: int) -> None:
    """How keys come: 16 bytes a lane, on gfx950 straight to local memory, a row of them in `runs` instructions."""
    direct = kernel.instructions["global_load_lds_dwordx4"]
    if kernel.architecture == "gfx950":
        # In the code twice: for the first tile, and for the next one while a tile is worked on.
        assert direct == 2 * runs * 32 // (kernel.threads // 64), kernel.name
        # Work goes on with the next tile under way. The compiler counts only its own loads: a wait for one of
        # these would be one for the tile.
        names = [line.name for line in kernel.code]
        last = len(names) - 1 - names[::-1].index("global_load_lds_dwordx4")
        until = names.index(MATRIX["gfx950"], last)
        assert [line for line in kernel.code[last:until] if "vmcnt" in line.text] == [], kernel.name
    else:
        assert direct == 0 and kernel.instructions["global_load_dwordx4"] > 0, kernel.name


def test_attention_multiplies_on_matrix_cores(kernels: list[Kernel]) -> None:
    tiles = [k for k in kernels if re.fullmatch(r"mla_attention_\d+(_f8)?", k.name)]
    assert len(tiles) == 12
    for k in tiles:
        assert set(k.matrix) == {MATRIX[k.architecture]}
        check_tile_loads(k, 1 if k.name.endswith("_f8") else 2)
        assert not any(name.startswith("flat_") for name in k.instructions), "pointers are known to be global"


def test_codes_are_multiplied_as_they_are(kernels: list[Kernel]) -> None:
    products = [k for k in kernels if k.name.startswith("mla_linear_mxfp4")]
    assert len(products) == 4
    for k in products:
        # Four bits on both sides, which is the rate that the document takes.
        own = {"gfx950": "v_mfma_scale_f32_16x16x128_f8f6f4 cbsz:4 blgp:4"}
        assert set(k.matrix) == {own.get(k.architecture, MATRIX[k.architecture])}
        assert k.instructions["global_load_dwordx4"] > 0


FP8_MATRIX = {"gfx942": "v_mfma_f32_16x16x32_fp8_fp8", "gfx950": "v_mfma_scale_f32_16x16x128_f8f6f4"}


def test_fp8_codes_are_multiplied_as_they_are(kernels: list[Kernel]) -> None:
    products = [k for k in kernels if k.name.startswith("mla_linear_fp8")]
    assert len(products) == 2 * 2 * 4
    for k in products:
        # gfx950 multiplies no FNUZ codes; gfx942 has made others into these.
        decoded = k.architecture == "gfx950" and "fnuz" in k.name
        # No formats behind the name: eight bits on both sides.
        assert set(k.matrix) == {(MATRIX if decoded else FP8_MATRIX)[k.architecture]}, k.name
        assert decoded or not any(name.startswith("v_cvt_") and "fp8" in name for name in k.instructions), (
            k.name
        )
        assert k.waves_per_simd >= (2 if k.name.endswith("many") else 4), f"{k.name} on {k.architecture}"
    others = {k.name for k in kernels if FP8_MATRIX[k.architecture] in k.matrix} - {k.name for k in products}
    assert not others, others


def test_codes_of_fp8_are_decoded_by_instructions_for_them(kernels: list[Kernel]) -> None:
    # gfx942 has one for e4m3fnuz codes, which e4m3fn ones first become; gfx950 one for e4m3fn codes, to bfloat16. What
    # multiplies codes as they are decodes none (above).
    decoding = ("_e4m3_", "_e4m3fnuz_", "_attention_16_f8", "_attention_32_f8", "_attention_64_f8")
    found = [kernel for kernel in kernels if any(part in f"{kernel.name}_" for part in decoding)]
    assert len(found) == 2 * (2 * (11 + 4) + 3)
    for kernel in found:
        names = {name for name in kernel.instructions if name.startswith("v_cvt_") and "fp8" in name}
        if kernel.architecture == "gfx942":
            assert {name.partition("_fp8")[0] for name in names} == {"v_cvt_pk_f32"}, kernel.name
        elif "fnuz" in kernel.name:
            assert not names, kernel.name
        else:
            assert names == {"v_cvt_scalef32_pk_bf16_fp8"}, kernel.name


def test_expanded_attention_multiplies_on_matrix_cores(kernels: list[Kernel]) -> None:
    tiles = [k for k in kernels if k.name in ("mla_expanded_long", "mla_expanded_short")]
    assert len(tiles) == 4
    for k in tiles:
        # Scores of 192 columns and sums of 128, for a wave's rows and 32 keys, each in the code once.
        rows, steps = (2 if k.name.endswith("long") else 1), {"gfx942": 12, "gfx950": 6}[k.architecture]
        assert k.matrix == {MATRIX[k.architecture]: rows * (2 * steps + 8 * steps // 6)}, k.name
        check_tile_loads(k, 2)


def test_absorbing_blocks_share_a_compute_unit(kernels: list[Kernel]) -> None:
    tiles = [k for k in kernels if re.fullmatch(r"mla_absorb_(across|along)_\w+_(16|64)", k.name)]
    assert len(tiles) == 24
    for k in tiles:
        assert set(k.matrix) == {MATRIX[k.architecture]}
        assert k.waves_per_simd >= 2, f"{k.name} on {k.architecture}"


def test_every_kernel_knows_its_address_spaces(kernels: list[Kernel]) -> None:
    for k in kernels:
        assert not any(name.startswith(("flat_", "scratch_")) for name in k.instructions), k.name


def test_rope_moves_wide(kernels: list[Kernel]) -> None:
    for k in kernels:
        if k.name.startswith("mla_rope") and k.name.endswith(("_wide", "query_bf16")):
            assert k.instructions["global_load_dwordx4"] > 0
            assert k.instructions["global_store_dwordx4"] > 0


def test_held_rows_move_wide(kernels: list[Kernel]) -> None:
    held = [
        k for k in kernels if re.fullmatch(r"mla_(rmsnorm|fused_qk_rmsnorm)_(f32|bf16)(_\d+|_long)?", k.name)
    ]
    assert len(held) == 2 * 2 * (4 + 1)
    for k in held:
        assert k.instructions["global_load_dwordx4"] > 0, k.name
        assert k.instructions["global_store_dwordx4"] > 0, k.name
