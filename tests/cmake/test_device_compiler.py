"""Which compiler the build takes of those that it finds, how it calls it, and what it says of the others."""

from pathlib import Path

import pytest
from device_compilers import ROOT, Ran, compiler, run

FIND = """
mla_find_device_compiler({platform})
set(MLA_BUILD_RECORD "{{}}")
mla_record_build({platform} "${{MLA_{platform}_VERSION}}" "" "${{MLA_{platform}_REASON}}" "${{MLA_{platform}_REFUSED}}")
file(WRITE record.json "${{MLA_BUILD_RECORD}}")
message("compiler: ${{MLA_{platform}_COMPILER}};")
"""
NONE = (
    "the build found none of amdclang++, hipcc, clang++-22, clang++-23; it takes ROCm 7, or Debian's clang-22, "
    "lld-22 and clang-tools-22"
)


def find(folder: Path, platform: str = "rocm", **environment: str) -> Ran:
    ran = run(folder, FIND.format(platform=platform), **environment)
    assert ran.status == 0, ran.said
    return Ran(ran.status, ran.said, ran.record[platform])


def test_there_is_none(tmp_path: Path) -> None:
    ran = find(tmp_path)
    assert ran.record == {"compiler": None, "architectures": [], "reason": NONE, "refused": []}
    assert "compiler: ;" in ran.said
    assert (
        find(tmp_path, "cuda").record["reason"] == "the build found none of nvcc; it takes CUDA 12 or newer"
    )


@pytest.mark.parametrize("name", ["amdclang++", "hipcc", "clang++-22", "clang++-23"])
def test_one_that_works(tmp_path: Path, name: str) -> None:
    compiler(tmp_path / "bin" / name)
    ran = find(tmp_path)
    assert ran.record == {
        "compiler": f"{name} (clang 22.1.8)",
        "architectures": [],
        "reason": None,
        "refused": [],
    }
    assert f"compiler: {tmp_path / 'bin' / name};" in ran.said


def test_how_it_is_called(tmp_path: Path) -> None:
    """hipcc too: its own defaults for the language, the architectures and -O would be others."""
    compiler(tmp_path / "bin" / "hipcc")
    find(tmp_path)
    work = tmp_path / "build folder"
    flags = "-x hip -std=c++17 -O3 -nogpuinc -nogpulib -Wall -Wextra".split()
    targets = "--offload-arch=gfx942 --offload-arch=gfx950 --cuda-device-only".split()
    files = ["-c", str(work / "check_rocm.cc"), "-o", str(work / "check_rocm.image")]
    call = (tmp_path / "bin" / "hipcc.call").read_text().splitlines()
    assert call == [*flags, f"-I{ROOT / 'csrc'}", *targets, *files]


def test_rocms_own_come_first(tmp_path: Path) -> None:
    for name in ("clang++-23", "clang++-22", "hipcc", "amdclang++"):
        compiler(tmp_path / "bin" / name)
        assert find(tmp_path).record["compiler"].startswith(f"{name} ")


@pytest.mark.parametrize("place", ["bin", "llvm/bin"])
def test_the_place_that_rocm_path_names_comes_before_path(tmp_path: Path, place: str) -> None:
    compiler(tmp_path / "bin" / "hipcc")
    compiler(tmp_path / "rocm" / place / "hipcc")
    assert (
        f"compiler: {tmp_path / 'rocm' / place / 'hipcc'};"
        in find(tmp_path, ROCM_PATH=str(tmp_path / "rocm")).said
    )
    assert f"compiler: {tmp_path / 'bin' / 'hipcc'};" in find(tmp_path).said


def test_the_next_one_is_taken_where_one_fails(tmp_path: Path) -> None:
    old = "AMD clang version 18.0.0git (https://github.com/RadeonOpenCompute/llvm-project roc-6.3.0)"
    place = tmp_path / "build folder" / "check_rocm.cc"
    unknown = f'In file included from x\\n{place}:2:10: error: invalid target "gfx950"\\nmore'
    compiler(tmp_path / "bin" / "amdclang++", says=unknown, status=1, writes=False, version=old)
    compiler(
        tmp_path / "bin" / "hipcc",
        says="hipcc: a, b; c\\\\d",
        status=127,
        writes=False,
        version="HIP version: 7",
    )
    compiler(tmp_path / "bin" / "clang++-22")
    ran = find(tmp_path)
    assert ran.record == {
        "compiler": "clang++-22 (clang 22.1.8)",
        "architectures": [],
        "reason": None,
        "refused": [
            "amdclang++ (AMD clang 18.0.0) does not compile for gfx942, gfx950: "
            'check_rocm.cc:2:10: error: invalid target "gfx950"',
            "hipcc of unknown version does not compile for gfx942, gfx950: hipcc: a, b; c\\d",
        ],
    }
    assert f"compiler: {tmp_path / 'bin' / 'clang++-22'};" in ran.said


@pytest.mark.parametrize(
    ("failing", "sentence"),
    [
        ({"writes": False}, "it fails and says nothing"),
        ({"writes": False, "status": 3}, "it fails and says nothing"),
        ({"status": 1, "says": "warning: odd\\nerror: wrong"}, "error: wrong"),
        (
            {"status": 1, "says": "error: cannot open '/usr/lib/x.bc' (/opt/rocm/y.h): and/or"},
            "error: cannot open 'x.bc' (y.h): and/or",
        ),
    ],
)
def test_one_that_does_not_work(tmp_path: Path, failing: dict[str, object], sentence: str) -> None:
    """Its exit status is not all that counts: hipcc hands on what a shell made of its clang's."""
    compiler(tmp_path / "bin" / "clang++-22", **failing)  # type: ignore[arg-type]
    record = find(tmp_path).record
    assert record["compiler"] is None
    assert record["reason"] == NONE.replace("found none of", "found nothing that works among")
    assert record["refused"] == [f"clang++-22 (clang 22.1.8) does not compile for gfx942, gfx950: {sentence}"]


def test_what_an_earlier_one_wrote_does_not_count(tmp_path: Path) -> None:
    compiler(tmp_path / "bin" / "hipcc", status=1)
    compiler(tmp_path / "bin" / "clang++-22", writes=False)
    record = find(tmp_path).record
    assert record["compiler"] is None and len(record["refused"]) == 2


def test_nvcc(tmp_path: Path) -> None:
    release = "Built on Wed\\nCuda compilation tools, release 13.0, V13.0.88"
    compiler(tmp_path / "cuda" / "bin" / "nvcc", version=release)
    record = find(tmp_path, "cuda", CUDA_HOME=str(tmp_path / "cuda")).record
    assert record["compiler"] == "nvcc (CUDA 13.0.88)"
    call = (tmp_path / "cuda" / "bin" / "nvcc.call").read_text()
    assert "-gencode\narch=compute_90a,code=sm_90a\n" in call and "-fatbin\n" in call


REQUIRE = 'mla_find_device_compiler(rocm)\nmla_require_device_compiler(rocm "MLA_JAX_BACKENDS names rocm")'


def test_a_build_that_was_asked_for_ends_with_every_reason(tmp_path: Path) -> None:
    ran = run(tmp_path, REQUIRE)
    assert ran.status != 0
    assert f"MLA_JAX_BACKENDS names rocm, but {NONE}." in " ".join(ran.said.split())
    for name in ("hipcc", "clang++-22"):
        compiler(tmp_path / "bin" / name, says=f"error: {name} it is", status=1)
    ran = run(tmp_path, REQUIRE)
    assert ran.status != 0
    for name in ("hipcc", "clang++-22"):
        assert (
            f"  {name} (clang 22.1.8) does not compile for gfx942, gfx950: error: {name} it is\n" in ran.said
        )
    compiler(tmp_path / "bin" / "clang++-23")
    assert run(tmp_path, REQUIRE).status == 0
