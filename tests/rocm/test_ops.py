"""The shared tests of every op, run on gfx942 and gfx950 code objects in the emulator."""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulated_cpu
import pytest

SHARED = Path(__file__).resolve().parents[1] / "custom_calls"

# Test file: the ops whose native form it runs.
OPS = {
    "test_rope_append_latent.py": ("mla_jax.rope_append_latent", "mla_jax.rope_latent_rows"),
    "test_mla_attention.py": ("mla_jax.mla_attention",),
    "test_mla_attention_expanded.py": ("mla_jax.mla_attention_expanded",),
    "test_mxfp4_quantize.py": ("mla_jax.mxfp4_quantize",),
    "test_linear_quantized.py": (
        "mla_jax.linear_quantized",
        "mla_jax.linear_quantized_bias",
        "mla_jax.mxfp4_dequantize",
    ),
    "test_linear_mxfp4.py": ("mla_jax.linear_mxfp4",),
    "test_absorb_quantized.py": ("mla_jax.absorb_quantized",),
    "test_expert_mlp.py": ("mla_jax.expert_mlp",),
    "test_expert_mlp_quantized.py": ("mla_jax.expert_mlp_quantized",),
    "test_rmsnorm.py": ("mla_jax.rmsnorm", "mla_jax.rmsnorm_residual"),
    "test_rmsnorm_quantize.py": ("mla_jax.rmsnorm_quantize",),
    "test_flatten_quantize.py": ("mla_jax.flatten_quantize",),
    "test_fused_qk_rmsnorm.py": ("mla_jax.fused_qk_rmsnorm",),
    "test_rope_append_kv.py": ("mla_jax.rope_append_kv", "mla_jax.rope_append_kv_mapped"),
}


def test_every_op_of_the_library_is_run() -> None:
    served = {target.rsplit(".", 1)[0] for target in emulated_cpu.module().registrations()}
    assert served == {op for ops in OPS.values() for op in ops}


@pytest.mark.parametrize("file", OPS)
def test_shared_tests(file: str, architecture: str) -> None:
    # Another platform's lowering is not what this process has a library for.
    chosen = "native and not refused_where_there_is_none"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "emulated_cpu",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
    ]
    environment = {
        **os.environ,
        "MLA_JAX_EMULATED_ARCH": architecture,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [*command, str(SHARED / file)], capture_output=True, text=True, env=environment, cwd=SHARED.parents[1]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\n\d+ passed, \d+ deselected in", done.stdout), done.stdout[-2000:]
    instructions = re.search(r"last emulated kernel: (\d+) wave-instructions", done.stdout)
    assert instructions is not None and int(instructions[1]) > 0, done.stdout[-2000:]
