"""The emulator around the instructions: launches, bounds, poison, barriers, budgets, bundles, refusals."""

import ctypes
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from emulation import EmulatorError, Module, counters, library, loaded, poisoned
from hip_toolchain import ARCHITECTURES, assemble, compile_hip
from snippets import LANES, LDS_BYTES, assembly, run_pieces

KERNELS = Path(__file__).resolve().parent / "kernels"
BF16 = ml_dtypes.bfloat16


def source(name: str, **replaced: str) -> str:
    """A kernel of the folder with the device header in front; keywords are defined as macros."""
    macros = "".join(f"#define {key} {value}\n" for key, value in replaced.items())
    return macros + (KERNELS / "device.h").read_text() + (KERNELS / f"{name}.hip").read_text()


def run_norm(
    image: bytes, architecture: str, x: np.ndarray, weight: np.ndarray, **options: int
) -> np.ndarray:
    y = poisoned(x.shape, BF16)
    with loaded(image, architecture) as module:
        rows, columns = x.shape
        arguments = [x.view(np.uint16), weight.view(np.uint16), y.view(np.uint16), columns, 1e-5]
        module.launch("norm", [rows], [256], arguments, **options)
    return y


def norm_oracle(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide * wide).mean(1, keepdims=True) + 1e-5) * weight.astype(np.float64)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("columns", [1, 257])
def test_a_kernel_of_four_waves(
    architecture: str, columns: int, order: int, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((3, columns)).astype(BF16)
    weight = rng.standard_normal(columns).astype(BF16)
    y = run_norm(compile_hip(source("norm"), architecture), architecture, x, weight, order=order)
    # One rounding to bf16, 2^-9 relative, and float32's own errors far below it.
    np.testing.assert_allclose(y.astype(np.float64), norm_oracle(x, weight), rtol=2**-8, atol=1e-30)


def test_preloaded_arguments(architecture: str, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 70)).astype(BF16), np.ones(70, BF16)
    plain = run_norm(compile_hip(source("norm"), architecture), architecture, x, weight)
    flags = ("-mllvm", "-amdgpu-kernarg-preload-count=5")
    preloaded = run_norm(compile_hip(source("norm"), architecture, flags=flags), architecture, x, weight)
    # The scalar loads at the start, for firmware that preloads nothing, are skipped.
    assert not any(name.startswith("s_load") for name in counters().histogram)
    np.testing.assert_array_equal(preloaded.view(np.uint16), plain.view(np.uint16))


def test_a_bundle_holds_both_architectures(architecture: str, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 70)).astype(BF16), np.ones(70, BF16)
    bundle = compile_hip(source("norm"), *ARCHITECTURES)
    single = compile_hip(source("norm"), architecture)
    assert bundle.startswith(b"__CLANG_OFFLOAD_BUNDLE__") and single.startswith(b"\x7fELF")
    np.testing.assert_array_equal(
        run_norm(bundle, architecture, x, weight).view(np.uint16),
        run_norm(single, architecture, x, weight).view(np.uint16),
    )


def test_another_processor_is_refused(architecture: str) -> None:
    other = next(name for name in ARCHITECTURES if name != architecture)
    with pytest.raises(EmulatorError, match=f"another processor than {architecture}"):
        Module(compile_hip(source("norm"), other), architecture)


def launch_fault(architecture: str, kernel: str, grid: int, block: int, arguments: list, **options: int):
    with loaded(compile_hip(source("faults"), architecture), architecture) as module:
        return module.launch(kernel, [grid], [block], arguments, **options)


ILLEGAL_ADDRESS, TIME_OUT, LAUNCH_FAILURE, NOT_FOUND, INVALID_FUNCTION = 700, 702, 719, 500, 98


@pytest.mark.parametrize(
    ("kernel", "arguments", "block", "code", "message"),
    [
        (
            "past_the_end",
            [64, 1],
            64,
            ILLEGAL_ADDRESS,
            r"past_the_end.*global_store_dword.*lane 63 at address 0x\w+ is outside",
        ),
        ("past_the_end", [64, -1], 64, ILLEGAL_ADDRESS, "global store access of 4 bytes by lane 0"),
        (
            "lds_outside",
            [64, 1],
            64,
            ILLEGAL_ADDRESS,
            "lds_outside.*ds_read.*LDS access of 4 bytes by lane 63.*256 bytes",
        ),
        ("endless", [64], 64, TIME_OUT, "endless.*more than 20000 instructions"),
        ("one_wave_leaves", [128], 128, LAUNCH_FAILURE, "one_wave_leaves.*1 of 2 waves wait at a barrier"),
        ("two_barriers", [128], 128, LAUNCH_FAILURE, "two_barriers.*wait at different barriers"),
        ("traps", [64], 64, LAUNCH_FAILURE, "traps.*reached a trap"),
    ],
)
def test_a_fault_is_named(
    architecture: str, kernel: str, arguments: list[int], block: int, code: int, message: str
) -> None:
    out = poisoned(arguments[0], np.uint32)
    with pytest.raises(EmulatorError, match=message) as caught:
        launch_fault(architecture, kernel, 1, block, [out, *arguments[1:]], budget=20_000)
    assert caught.value.code == code
    assert "lane" in message or "workgroup 0,0,0, wave" in str(caught.value) or "barrier" in message


def test_a_load_outside_is_named(architecture: str) -> None:
    values, out = np.arange(64, dtype=np.uint32), poisoned(64, np.uint32)
    launch_fault(architecture, "reads_outside", 1, 64, [values, out, 0])
    np.testing.assert_array_equal(out, values)
    with pytest.raises(
        EmulatorError, match=r"reads_outside.*global_load_dword.*lane 56 .*outside every registered"
    ):
        launch_fault(architecture, "reads_outside", 1, 64, [values, out, 8])


def test_unwritten_lds_is_poison(architecture: str) -> None:
    out = np.zeros(64, np.float32)
    launch_fault(architecture, "lds_unwritten", 1, 64, [out])
    assert np.isnan(out).all()


def test_dynamic_lds_has_its_size(architecture: str) -> None:
    out = poisoned(64, np.uint32)
    launch_fault(architecture, "dynamic_lds", 1, 64, [out], lds_bytes=256)
    np.testing.assert_array_equal(out, 3 * np.arange(63, -1, -1))
    with pytest.raises(EmulatorError, match="outside the workgroup's 252 bytes"):
        launch_fault(architecture, "dynamic_lds", 1, 64, [out], lds_bytes=252)


def test_private_memory_and_constants(architecture: str, rng: np.random.Generator) -> None:
    index = rng.integers(0, 32, 64).astype(np.int32)
    out = poisoned(64, np.int32)
    launch_fault(architecture, "private_array", 1, 64, [index, out])
    local = 5 * np.arange(32, dtype=np.int64)[None] + np.arange(64)[:, None]
    local[np.arange(64), index] += 100000
    total = np.zeros(64, np.int64)
    for i in range(32):
        total = (total * 3 + local[np.arange(64), (i + index) % 32]) & 0xFFFFFFFF
    np.testing.assert_array_equal(out.view(np.uint32), total)
    launch_fault(architecture, "reads_constants", 1, 64, [index, out])
    np.testing.assert_array_equal(out, (index % 8) ** 2)


def test_variables_of_the_code_object_live_as_long_as_it(architecture: str) -> None:
    out = poisoned(1, np.uint32)
    image = compile_hip(source("faults"), architecture)
    for _ in range(2):
        with loaded(image, architecture) as module:
            for expected in (40, 41):
                module.launch("counts_calls", [1], [64], [out])
                assert out[0] == expected


def test_the_arguments_are_not_writable(architecture: str) -> None:
    piece = (
        "v_mov_b32_e32 v60, 0\nglobal_load_dword v40, v60, s[0:1]\nglobal_store_dword v60, v10, s[0:1]",
        1,
    )
    with pytest.raises(EmulatorError, match="global_store_dword.*global store access of 4 bytes by lane 0"):
        run_pieces(architecture, [piece], np.zeros((1, 4, LANES), np.uint32))


def test_geometry_and_arguments_by_value(architecture: str) -> None:
    """Three axes of groups and threads, a struct with padding, a byte, the hidden argument of the block's size."""
    out = poisoned(30 * 24, np.uint32)
    three = np.array([(5, 700, 9 << 32)], np.dtype([("a", "u1"), ("b", "u2"), ("c", "u8")], align=True))[0]
    with loaded(compile_hip(source("faults"), architecture), architecture) as module:
        module.launch("geometry", [3, 5, 2], [4, 3, 2], [out, three, np.uint8(200)])
    block, thread = np.divmod(np.arange(30 * 24), 24)
    expected = 5 + 700_000 + 9 + 1400 + 100 * block + thread + 400_000
    np.testing.assert_array_equal(out, expected)


def test_counters_name_what_ran(architecture: str) -> None:
    values, out = np.arange(64, dtype=np.uint32), poisoned(64, np.uint32)
    counted = launch_fault(architecture, "reads_outside", 1, 64, [values, out, 0])
    assert counted.histogram["global_load_dword"] == counted.histogram["global_store_dword"] == 1
    assert counted.histogram["s_endpgm"] == 1
    assert counted.instructions == sum(counted.histogram.values())
    # 64 lanes load and store a word; the rest are the arguments.
    assert counted.global_bytes - 512 in (20, 24, 32) and counted.lds_bytes == 0


def test_a_block_beyond_the_declared_size_is_refused(architecture: str) -> None:
    out = poisoned(512, np.uint32)
    with pytest.raises(EmulatorError, match="a block of 512 threads, at most 256"):
        launch_fault(architecture, "past_the_end", 1, 512, [out, 0])
    with pytest.raises(EmulatorError, match="grid or block extent is 0"):
        launch_fault(architecture, "past_the_end", 0, 64, [out, 0])


def test_too_much_lds_is_refused(architecture: str) -> None:
    limit = {"gfx942": 64, "gfx950": 160}[architecture] * 1024
    out = poisoned(64, np.uint32)
    launch_fault(architecture, "dynamic_lds", 1, 64, [out], lds_bytes=limit)
    with pytest.raises(EmulatorError, match=f"{limit + 4} bytes of LDS, a workgroup has {limit}"):
        launch_fault(architecture, "dynamic_lds", 1, 64, [out], lds_bytes=limit + 4)


def test_unknown_instructions_are_all_named_when_the_kernel_is_looked_up(architecture: str) -> None:
    text = "v_cubeid_f32 v40, v10, v11, v12\nv_trig_preop_f64 v[40:41], v[10:11], v12\nv_add_f32_e32 v40, v10, v10"
    image = assemble(assembly([(text, 2)], 4, architecture), architecture)
    with loaded(image, architecture) as module, pytest.raises(EmulatorError) as caught:
        module.function("pieces")
    message = str(caught.value)
    assert caught.value.code == INVALID_FUNCTION and "kernel pieces cannot be emulated" in message
    assert "v_cubeid_f32" in message and "v_trig_preop_f64" in message and "v_add_f32" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v_add_u16_e64 v40, v10, v11 clamp", "v_add_u16_e64.*clamp is not known"),
        ("v_add_u32_e32 v200, v10, v11", "names a register that the kernel does not declare"),
        ("v_accvgpr_write_b32 a200, v10", "names a register that the kernel does not declare"),
        ("s_mov_b64 s[20:21], exec\ns_cbranch_g_fork s[20:21], 0", "s_cbranch_g_fork"),
        ("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 0, 2), 1", "rounding or denormal mode"),
        ("ds_swizzle_b32 v40, v10 offset:swizzle(ROTATE,0,3)", "swizzle"),
        ("buffer_load_dword v40, v10, s[20:23], 0 idxen", "indexed buffers"),
        ("s_mov_b32 s20, s6\ns_mov_b32 s21, 0x100000\ns_mov_b32 s22, 64\ns_mov_b32 s23, 0\n"
         "buffer_load_dword v40, v1, s[20:23], 0 offen", "only raw buffers"),
        ("s_load_dword s20, s[6:7], 0x2", "not aligned to four bytes"),
        ("s_branch 20000", "s_branch"),
        ("s_mov_b32 m0, 0\nglobal_load_lds_dword v1, s[6:7]", "global_load_lds.*one wait state must lie behind"),
        ("s_mov_b32 m0, 0\ns_nop 0\nscratch_load_lds_dword v1, off", "scratch_load_lds_dword.*no such instruction"),
    ],
)  # fmt: skip
def test_refused_forms(architecture: str, text: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        run_pieces(architecture, [(text, 1)], np.zeros((1, 4, LANES), np.uint32))


def test_flushed_denormals_follow_the_descriptor(architecture: str) -> None:
    tiny = np.full((1, 4, LANES), 3, np.uint32)
    piece = ("v_add_f32_e32 v40, v10, v11", 1)
    kept, flushed = (run_pieces(architecture, [piece], tiny, denormals=mode)[0] for mode in (3, 0))
    assert (kept == 6).all() and (flushed == 0).all()
    with pytest.raises(EmulatorError, match="flushes 32-bit denormals"):
        run_pieces(architecture, [("v_add_f64 v[40:41], v[10:11], v[12:13]", 2)], tiny, denormals=0)
    with pytest.raises(EmulatorError, match="denormals must be kept, or flushed on both sides"):
        run_pieces(architecture, [piece], tiny, denormals=1)


def test_lds_of_another_workgroup_is_not_seen(architecture: str) -> None:
    piece = (
        f"v_mov_b32_e32 v60, {LDS_BYTES - 256}\n"
        f"v_add_u32_e32 v60, v60, v1\nds_read_b32 v40, v60\nds_write_b32 v60, v10"
    )
    (out,) = run_pieces(architecture, [(piece, 1)], np.zeros((3, 4, LANES), np.uint32))
    assert (out == 0xFFFFFFFF).all()


def test_reversed_order_reverses_colliding_stores(architecture: str) -> None:
    piece = (
        "v_mov_b32_e32 v60, 0\nglobal_store_dword v60, v0, s[4:5]\nglobal_load_dword v40, v60, s[4:5]",
        1,
    )
    zeros = np.zeros((1, 4, LANES), np.uint32)
    assert (run_pieces(architecture, [piece], zeros, order=0)[0] == 63).all()
    assert (run_pieces(architecture, [piece], zeros, order=1)[0] == 0).all()


def test_the_order_of_waves_and_workgroups(architecture: str) -> None:
    came = {}
    for order in (0, 1, 2):
        count, came[order] = np.zeros(1, np.uint32), poisoned(12, np.uint32)
        launch_fault(architecture, "tickets", 3, 256, [count, came[order]], order=order)
    np.testing.assert_array_equal(came[0], np.arange(12))
    np.testing.assert_array_equal(came[1], np.arange(11, -1, -1))
    # A seeded interleaving keeps the workgroups in order, but not the waves of each.
    np.testing.assert_array_equal(np.sort(came[2].reshape(3, 4)), np.arange(12).reshape(3, 4))
    assert not np.array_equal(came[2], came[0])


def test_the_hip_entry_points_refuse_by_code() -> None:
    hip = library()
    handle = ctypes.c_void_p()
    assert hip.hipModuleLoadData(ctypes.byref(handle), b"not a code object at all" + bytes(64)) == 200
    assert b"neither an ELF file nor an offload bundle" in hip.emu_last_error()
    assert hip.hipModuleLoadData(ctypes.byref(handle), b"CCOB" + bytes(64)) == 200
    assert hip.hipModuleUnload(ctypes.c_void_p(0x1234)) == 400
    assert hip.hipModuleGetFunction(ctypes.byref(handle), ctypes.c_void_p(0x1234), b"x") == 400
    assert hip.hipFuncSetAttribute(None, 8, 65536) == 400
    assert hip.emu_set_arch(b"gfx1100") == 1
    assert b"expected gfx942 or gfx950, got gfx1100" in hip.emu_last_error()
    assert hip.emu_set_wave_order(-1) == 1
    device = ctypes.c_int(5)
    assert hip.hipGetDevice(ctypes.byref(device)) == 0 and device.value == 0
    assert hip.hipGetErrorString(700) == b"an illegal memory access was encountered"
    assert hip.hipGetErrorString(0) == b"no error"
    with loaded(compile_hip(source("norm"), "gfx942"), "gfx942") as module:
        with pytest.raises(
            EmulatorError, match=r"no kernel absent in the code object \(it has: norm\)"
        ) as caught:
            module.function("absent")
        assert caught.value.code == NOT_FOUND
        function = module.function("norm")
        assert hip.hipModuleLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, None, None, None) == 1
        extra = (ctypes.c_void_p * 1)()
        assert hip.hipModuleLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, None, None, extra) == 1


def test_a_bundle_without_the_architecture_names_what_it_has() -> None:
    bundle = compile_hip(source("norm"), "gfx942", "gfx90a")
    with pytest.raises(EmulatorError, match=r"no entry for gfx950 \(it has: .*gfx90a.*gfx942") as caught:
        Module(bundle, "gfx950")
    assert caught.value.code == 209


def test_a_failing_disassembler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLA_JAX_LLVM_OBJDUMP", "/nonexistent/objdump")
    # A source of its own: what was decoded once is not disassembled again.
    image = compile_hip(source("norm").replace("value * value", "value * value * 3"), "gfx942")
    with pytest.raises(EmulatorError, match="/nonexistent/objdump failed"):
        Module(image, "gfx942")


# Mutated kernels: what the emulator is for.


def matrices(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return tuple(rng.integers(-4, 5, shape).astype(BF16) for shape in ((32, 48), (64, 48)))


def run_gemm(architecture: str, a: np.ndarray, b: np.ndarray, order: int, **replaced: str) -> np.ndarray:
    out = poisoned((32, 64), np.float32)
    with loaded(compile_hip(source("gemm", **replaced), architecture), architecture) as module:
        module.launch("gemm", [2], [256], [a.view(np.uint16), b.view(np.uint16), out, 64, 48], order=order)
    return out


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_matrix_product(architecture: str, order: int, rng: np.random.Generator) -> None:
    a, b = matrices(rng)
    got = run_gemm(architecture, a, b, order)
    np.testing.assert_array_equal(got, a.astype(np.float32) @ b.astype(np.float32).T)


def test_a_dropped_barrier_is_caught(architecture: str, rng: np.random.Generator) -> None:
    """In a product by stale tiles or poison; in a norm by poison of the partial sums that are not there yet."""
    a, b = matrices(rng)
    expected = a.astype(np.float32) @ b.astype(np.float32).T
    for order in (0, 1, 2):
        assert not np.array_equal(run_gemm(architecture, a, b, order, BARRIER=""), expected)
    x, weight = rng.standard_normal((2, 300)).astype(BF16), np.ones(300, BF16)
    image = compile_hip(source("norm", BARRIER=""), architecture)
    for order in (0, 1):
        assert np.isnan(run_norm(image, architecture, x, weight, order=order).astype(np.float32)).any()


def test_a_wrong_lane_map_is_caught(architecture: str, rng: np.random.Generator) -> None:
    a, b = matrices(rng)
    expected = a.astype(np.float32) @ b.astype(np.float32).T
    got = run_gemm(architecture, a, b, 0, **{"ROW(lane, i)": "((lane) / 16 + 4 * (i))"})
    assert not np.array_equal(got, expected)


def test_a_page_mix_up_is_caught(architecture: str, rng: np.random.Generator) -> None:
    pool = rng.integers(0, 2**32, (24, 5), np.uint32)
    table = np.array([5, 0, 3], np.int32)
    expected = pool.reshape(6, 4, 5)[table].reshape(12, 5)

    def run(**replaced: str) -> np.ndarray:
        out = poisoned((12, 5), np.uint32)
        with loaded(compile_hip(source("paged", **replaced), architecture), architecture) as module:
            module.launch("gather", [12], [64], [pool, table, out, 4, 5])
        return out

    np.testing.assert_array_equal(run(), expected)
    with pytest.raises(EmulatorError, match="gather.*outside every registered buffer"):
        run(**{"PAGE(position, size)": "(position)"})


def test_a_wrong_op_sel_is_caught(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 2**32, 128, np.uint32)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    nibbles = (codes[:, None] >> (4 * np.arange(8, dtype=np.uint32))) & np.uint32(15)

    def run(**replaced: str) -> np.ndarray:
        out = poisoned((128, 8), np.float32)
        with loaded(compile_hip(source("dequantize", **replaced), "gfx950"), "gfx950") as module:
            module.launch("dequantize", [2], [64], [codes, 0.25, out])
        return out

    np.testing.assert_array_equal(run(), values[nibbles] / 4)
    assert not np.array_equal(run(**{"SELECT(i)": "((i) ^ 2)"}), values[nibbles] / 4)
