"""Ways through code, and what an instruction counts for: what docs/isa.md is made of."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from isa import code_objects, cost
from isa.flow import Flow, Instruction
from isa.machines import MACHINES, MI350X, multiplications
from isa.steps import Operand, Step


def code(text: str) -> tuple[Instruction, ...]:
    """Lines of instructions; `name:` in front of one is a label, and branches name theirs."""
    lines = [
        re.fullmatch(r"(?:(\w+): )?(\w+)(?: (\w+))?", line.strip()) for line in text.strip().splitlines()
    ]
    labels = {line[1]: 4 * i for i, line in enumerate(lines) if line is not None and line[1]}
    return tuple(
        Instruction(4 * i, line[2], labels[line[3]] if line[3] else None)
        for i, line in enumerate(lines)
        if line is not None
    )


def kind(instruction: Instruction) -> str | None:
    return instruction.name if instruction.name in ("load", "store", "product") else None


def names(way: tuple[Instruction, ...] | None) -> list[str]:
    assert way is not None
    return [instruction.name for instruction in way]


NESTED = code("""
    start
    outer: load
    inner: product
    s_cbranch_scc1 inner
    store
    s_cbranch_scc0 outer
    s_endpgm
""")


def test_loops_are_found_from_the_outside_in() -> None:
    flow = Flow(NESTED)
    (outer,) = flow.loops(flow.all)
    (inner,) = flow.loops(outer)
    assert [names(flow.blocks[block]) for block in sorted(outer.blocks)] == [
        ["load"],
        ["product", "s_cbranch_scc1"],
        ["store", "s_cbranch_scc0"],
    ]
    assert [names(flow.blocks[block]) for block in inner.blocks] == [["product", "s_cbranch_scc1"]]
    assert flow.loops(inner) == []


def test_a_way_takes_each_loop_once() -> None:
    flow = Flow(NESTED)
    (outer,) = flow.loops(flow.all)
    wanted = {"load": 1, "product": 1, "store": 1}
    turn = ["load", "product", "s_cbranch_scc1", "store", "s_cbranch_scc0"]
    assert names(flow.way(outer, kind, wanted)) == turn
    assert names(flow.way(flow.all, kind, wanted)) == ["start", *turn, "s_endpgm"]


@pytest.mark.parametrize("wanted", [{"load": 1, "product": 1}, {"load": 2, "product": 1, "store": 1}])
def test_there_is_no_way_with_less_or_more_than_the_code_has(wanted: dict[str, int]) -> None:
    flow = Flow(NESTED)
    assert flow.way(flow.all, kind, wanted) is None


def test_what_is_wanted_decides_between_ways() -> None:
    flow = Flow(
        code("""
            s_cbranch_vccnz second
            load
            s_branch rest
            second: store
            rest: s_endpgm
        """)
    )
    assert names(flow.way(flow.all, kind, {"load": 1})) == ["s_cbranch_vccnz", "load", "s_branch", "s_endpgm"]
    assert names(flow.way(flow.all, kind, {"store": 1})) == ["s_cbranch_vccnz", "store", "s_endpgm"]
    assert flow.way(flow.all, kind, {"load": 1, "store": 1}) is None


GUARDED = code("""
    s_cbranch_execz first
    v_one
    first: s_cbranch_scc0 second
    v_two
    second: load
    s_endpgm
""")


def test_the_shortest_way_jumps_over_what_it_can() -> None:
    flow = Flow(GUARDED)
    assert names(flow.way(flow.all, kind, {"load": 1})) == [
        "s_cbranch_execz",
        "s_cbranch_scc0",
        "load",
        "s_endpgm",
    ]


def test_code_for_some_lanes_is_on_the_way_where_that_is_asked() -> None:
    flow = Flow(GUARDED)
    way = flow.way(flow.all, kind, {"load": 1}, every_lane=True)
    assert names(way) == ["s_cbranch_execz", "v_one", "s_cbranch_scc0", "load", "s_endpgm"]


def test_a_branch_for_any_lane_is_code_for_some_lanes_too() -> None:
    flow = Flow(
        code("""
            s_cbranch_execnz work
            back: load
            s_endpgm
            work: v_one
            s_branch back
        """)
    )
    assert names(flow.way(flow.all, kind, {"load": 1}))[1] == "load"
    assert names(flow.way(flow.all, kind, {"load": 1}, every_lane=True))[1] == "v_one"


def test_a_step_is_of_the_loop_that_multiplies_most() -> None:
    kernel = code_objects.Kernel(
        "op",
        "kernel",
        "gfx942",
        *(64, 8, 0, 8, 0, 0, 0, 0, 0),
        code("""
            once: v_mfma_f32_16x16x16_bf16
            global_load_dword
            s_cbranch_scc1 once
            twice: v_mfma_f32_16x16x16_bf16
            v_mfma_f32_16x16x16_bf16
            ds_read_b128
            s_cbranch_scc1 twice
            v_one
            s_endpgm
        """),
    )
    assert Step("kernel", "", (), ("v_mfma_f32_16x16x16_bf16", 2)).work(kernel) == cost.Work(
        lds=16, matrix=Counter({"v_mfma_f32_16x16x16_bf16": 2}), vector=0
    )
    load = Operand("x", 4, 1, 256, 256)
    assert Step("kernel", "", (load,), ("v_mfma_f32_16x16x16_bf16", 2)).present(kernel) == {
        "v_mfma_f32_16x16x16_bf16": 2
    }
    with pytest.raises(LookupError, match=r"kernel on gfx942: expected .*'load', 4.*got .*v_mfma"):
        Step("kernel", "", (load,), ("v_mfma_f32_16x16x16_bf16", 2)).work(kernel)


def test_what_an_instruction_moves() -> None:
    widths = {
        "global_load_ubyte": 1,
        "global_load_ushort": 2,
        "global_load_short_d16_hi": 2,
        "global_load_dword": 4,
        "global_load_dwordx3": 12,
        "global_load_lds_dwordx4": 16,
        "global_store_short_d16_hi": 2,
        "global_store_dwordx2": 8,
        "s_load_dwordx4": 0,
        "ds_read_b128": 0,
    }
    assert {name: cost.global_bytes(name) for name in widths} == widths
    local = {
        "ds_read_u16": 2,
        "ds_write_b64": 8,
        "ds_read2_b32": 8,
        "ds_read2st64_b64": 16,
        "ds_write2_b32": 8,
        "ds_write_b128": 16,
        "ds_bpermute_b32": 4,
        "global_load_lds_dwordx4": 16,
        "global_load_dwordx4": 0,
    }
    assert {name: cost.lds_bytes(name) for name in local} == local
    assert cost.access("global_store_dword") == ("store", 4)
    assert cost.access("global_load_lds_dwordx4") == ("load", 16)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (cost.global_bytes, "global_atomic_add_f32"),
        (cost.global_bytes, "flat_load_dword"),
        (cost.lds_bytes, "ds_read_b64_tr_b16"),
    ],
)
def test_an_unknown_access_raises_by_name(size: Callable[[str], int], name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        size(name)


def test_cycles_of_a_step() -> None:
    machine = MACHINES["gfx942"]
    matrix = "v_mfma_f32_16x16x16_bf16"
    work = cost.Work(lds=48, matrix=Counter({matrix: 3}), vector=100)
    of = cost.cycles(machine, work, waves=8, moved=16384.0, from_memory=8192.0)
    assert tuple(of) == cost.BOUNDS
    assert of == pytest.approx(
        {
            "memory": 8192 * 304 * 2.1e9 / 5.3e12,
            "cache": 16384 * 304 / (128 * 128),
            "LDS": 48 * 64 * 8 / 128,
            # Eight waves are two of each of four SIMDs.
            "matrix": 3 * 16 * 2,
            "vector": 100 * 4 * 2,
        },
        rel=1e-4,
    )


@pytest.mark.parametrize(
    ("architecture", "name", "operands"),
    [
        ("gfx942", "v_mfma_f32_16x16x16_bf16", "a[0:3], v[0:1], v[2:3], a[0:3]"),
        ("gfx942", "v_mfma_f32_16x16x32_fp8_fp8", "a[0:3], v[0:1], v[2:3], a[0:3]"),
        ("gfx950", "v_mfma_f32_16x16x32_bf16", "a[0:3], v[0:3], v[4:7], a[0:3]"),
        (
            "gfx950",
            "v_mfma_scale_f32_16x16x128_f8f6f4",
            "a[0:3], v[0:3], v[4:7], a[0:3], v8, v9 cbsz:4 blgp:4",
        ),
    ],
)
def test_matrix_cycles_are_the_compilers(architecture: str, name: str, operands: str) -> None:
    """The peak rates of the data sheets against the passes, of four cycles, of the compiler's own model."""
    command = ["llvm-mca-22", "-mtriple=amdgcn", f"-mcpu={architecture}", "-instruction-info"]
    said = subprocess.run(
        command, input=f"{name} {operands}\n", capture_output=True, text=True, check=True
    ).stdout
    row = re.search(rf"^ *\d+ +\d+ +([\d.]+) .*{name}", said, re.MULTILINE)
    assert row is not None, said
    kind = cost.matrix_name(Instruction(0, f"{name} {operands}"))
    assert MACHINES[architecture].matrix_cycles(kind) == pytest.approx(4 * float(row[1]), rel=1e-3)


def test_rates_of_the_data_sheets() -> None:
    assert multiplications("v_mfma_scale_f32_16x16x128_f8f6f4") == 16 * 16 * 128
    assert MACHINES["gfx942"].memory_rate == pytest.approx(8.302, abs=1e-3)
    assert MACHINES["gfx950"].memory_rate == pytest.approx(13.021, abs=1e-3)
    # Codes of eight bits take twice as long as of four, which llvm-mca does not tell apart.
    assert MACHINES["gfx950"].matrix_cycles("v_mfma_scale_f32_16x16x128_f8f6f4") == pytest.approx(
        32, rel=1e-3
    )
    # The same chip: its instructions take as many cycles.
    codes = "v_mfma_scale_f32_16x16x128_f8f6f4"
    for name in ("v_mfma_f32_16x16x32_bf16", codes, f"{codes} cbsz:4 blgp:4"):
        assert MI350X.matrix_cycles(name) == pytest.approx(MACHINES["gfx950"].matrix_cycles(name), rel=1e-3)


def test_a_branchs_target_is_read_from_its_words() -> None:
    back = code_objects.instruction("\ts_cbranch_execz 65485     // 000000001BB8: BF88FFCD <kernel+0x2f0>")
    assert (back.name, back.address, back.target) == ("s_cbranch_execz", 0x1BB8, 0x1AF0)
    forth = code_objects.instruction("\ts_branch 28               // 000000001AEC: BF82001C <kernel+0x360>")
    assert forth.target == 0x1B60
    assert code_objects.instruction("\ts_endpgm          // 000000001F24: BF810000").target is None


def test_code_objects_are_compiled_once_a_version_of_their_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "csrc" / "empty"
    sources.mkdir(parents=True)
    (sources / "gpu_kernel.cc").write_text(
        '#include "empty/name.h"\n__attribute__((global)) void NAME() {}\n'
    )
    (sources / "name.h").write_text("#define NAME first_kernel\n")
    monkeypatch.setattr(code_objects, "ROOT", tmp_path)
    monkeypatch.setattr(code_objects, "BUILD", tmp_path / "build")
    first = code_objects._image("empty", "gfx942")
    made = first.stat().st_mtime_ns
    assert code_objects._image("empty", "gfx942") == first and first.stat().st_mtime_ns == made
    other = code_objects._image("empty", "gfx950")
    (sources / "name.h").write_text("#define NAME second_kernel\n")
    second = code_objects._image("empty", "gfx942")
    assert b"first_kernel" in other.read_bytes() and b"second_kernel" in second.read_bytes()
    # What an older version left is gone; the other architecture's is not.
    assert not first.exists() and other.exists()
