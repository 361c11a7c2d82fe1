"""Every instruction set of the CPU library passes the tests of the native products, attention and quantisers.

The level is chosen once a process, so each runs in one of its own; one that this processor lacks is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from custom_calls.registry import library

HERE = Path(__file__).parent
LEVELS = ("baseline", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx")

TESTS = (
    "test_linear.py::TestLinear::test_matches_oracle",
    "test_expert_mlp.py::TestExpertMlp::test_matches_oracle",
    "test_mla_attention.py::TestMlaAttention::test_matches_oracle",
    "test_mla_attention_expanded.py::TestMlaAttentionExpanded::test_matches_oracle",
    "test_mxfp4_quantize.py::test_vectors",
    "test_mxfp4_quantize.py::TestMxfp4Quantize::test_matches_oracle",
    "test_flatten_quantize.py::TestFlattenQuantize::test_matches_oracle",
    "test_rmsnorm_quantize.py::TestRmsNormQuantize::test_matches_oracle",
    "test_linear_quantized.py::test_every_mxfp4_value_reaches_the_product_exactly",
    "test_linear_quantized.py::test_every_code_reaches_the_product_rounded_once",
    "test_linear_quantized.py::TestLinearQuantized::test_matches_oracle",
    "test_linear_quantized.py::test_a_row_is_the_same_alone_and_in_any_batch",
    "test_linear_quantized.py::test_a_broken_weight_row_stays_in_its_column",
    "test_linear_quantized.py::test_recoded_weights_give_the_same_bits",
    "test_linear_quantized.py::test_native_sums_before_their_scale_do_not_overflow",
    "test_linear_quantized.py::test_native_products_of_other_blocks_are_the_same_in_any_batch",
    "test_linear_quantized.py::test_native_rows_of_tiny_and_huge_numbers_are_the_same_in_any_batch",
    "test_linear_quantized.py::test_long_rows_are_the_same_alone_and_in_any_batch",
    "test_linear_vnni.py::test_every_mxfp4_value_reaches_the_product_exactly",
    "test_linear_vnni.py::TestLinearVnni::test_matches_oracle",
    "test_linear_vnni.py::test_a_row_is_the_same_alone_and_in_any_batch",
    "test_linear_vnni.py::test_extreme_values_meet_the_oracle_and_their_rows_alone",
    "test_absorb_quantized.py::TestAbsorbQuantized::test_matches_oracle",
    "test_expert_mlp_quantized.py::TestExpertMlpQuantized::test_matches_oracle",
    "test_expert_mlp_vnni.py::TestExpertMlpVnni::test_matches_oracle",
    "test_expert_mlp_vnni.py::test_a_row_is_the_same_alone_and_among_others_of_its_expert",
    "test_expert_mlp_vnni.py::test_unchosen_experts_are_not_read",
)


@pytest.mark.parametrize("level", LEVELS)
def test_native_kernels(level: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    environment = {**os.environ, "MLA_JAX_CPU_ISA": level}
    command = "from custom_calls.registry import library; print(library('cpu').abi['isa'])"
    asked = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if asked.stdout.strip() != level:
        pytest.skip(f"this processor or this build has no {level}")
    if level == library("cpu").abi["isa"]:
        pytest.skip("the other tests have run this level")
    # From an empty folder: what is installed is what is tested.
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
            "-c", str(request.config.inipath), f"--rootdir={request.config.rootpath}",
            "-k", "(native and not bfloat16-float32) or ((a_row_is or rows_are) and bfloat16)",
            *(str(HERE / test) for test in TESTS),
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
