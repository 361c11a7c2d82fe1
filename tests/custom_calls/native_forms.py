"""Which file tests which ops' native forms: what runs on a GPU, or on its code objects in an emulator."""

# Test file: the ops whose native form it runs.
OPS: dict[str, tuple[str, ...]] = {
    "test_rope_append_latent.py": ("mla_jax.rope_append_latent", "mla_jax.rope_latent_rows"),
    "test_mla_attention.py": ("mla_jax.mla_attention",),
    "test_mla_attention_expanded.py": ("mla_jax.mla_attention_expanded",),
    "test_mxfp4_quantize.py": ("mla_jax.mxfp4_quantize",),
    "test_linear_quantized.py": (
        "mla_jax.linear_quantized",
        "mla_jax.linear_quantized_bias",
        "mla_jax.mxfp4_dequantize",
    ),
    "test_linear_fp8.py": ("mla_jax.linear_fp8",),
    "test_linear_mxfp4.py": ("mla_jax.linear_mxfp4",),
    "test_linear_shuffled.py": (
        "mla_jax.linear_shuffled",
        "mla_jax.linear_shuffled_bias",
        "mla_jax.shuffled_dequantize",
    ),
    "test_absorb_quantized.py": ("mla_jax.absorb_quantized",),
    "test_expert_mlp.py": ("mla_jax.expert_mlp",),
    "test_expert_mlp_quantized.py": ("mla_jax.expert_mlp_quantized",),
    "test_rmsnorm.py": ("mla_jax.rmsnorm", "mla_jax.rmsnorm_residual"),
    "test_rmsnorm_quantize.py": ("mla_jax.rmsnorm_quantize",),
    "test_flatten_quantize.py": ("mla_jax.flatten_quantize",),
    "test_fused_qk_rmsnorm.py": ("mla_jax.fused_qk_rmsnorm",),
    "test_rope_append_kv.py": ("mla_jax.rope_append_kv", "mla_jax.rope_append_kv_mapped"),
}

CHOSEN = "native and not refused_where_there_is_none"
"""pytest's -k: another platform's lowering is not what a process with one library has."""

EVERYWHERE_ON_A_GPU = ("test_two_threads_at_once",)
ALSO_ON_A_GPU: dict[str, tuple[str, ...]] = {
    "test_rope_append_latent.py": ("test_rows_do_not_depend_on_the_batch",),
    "test_mla_attention.py": ("test_bfloat16_weights_may_round_but_the_logsumexp_does_not",),
    "test_mla_attention_expanded.py": ("test_rows_do_not_depend_on_the_batch",),
    "test_mxfp4_quantize.py": ("test_rows_do_not_depend_on_the_batch",),
    "test_linear_quantized.py": (
        "test_kernels_that_a_gpu_takes_for_large_products_only",
        "test_many_rows_meet_blocks_of_odd_width",
        "test_one_jitted_function_takes_every_container",
    ),
    "test_linear_shuffled.py": ("test_kernels_that_a_gpu_takes_for_large_products_only",),
    "test_absorb_quantized.py": ("test_the_weight_is_read_whole_by_both_products",),
    "test_expert_mlp_quantized.py": ("test_many_experts_and_more_pairs_than_a_tile",),
    "test_rmsnorm.py": ("test_rows_do_not_depend_on_the_batch",),
    "test_rmsnorm_quantize.py": ("test_rows_do_not_depend_on_the_batch",),
    "test_flatten_quantize.py": ("test_rows_do_not_depend_on_the_batch", "test_integers_are_exact"),
    "test_fused_qk_rmsnorm.py": ("test_rows_do_not_depend_on_the_batch",),
    "test_rope_append_kv.py": (
        "test_rows_do_not_depend_on_the_batch",
        "test_the_caches_are_updated_in_place",
        "test_the_kernel_keeps_subnormals",
    ),
}
"""Test file: its tests without "native" in their ids that a GPU runs too; an emulator's time is limited.

Not among them: what reads the module that XLA:CPU compiles, what only traces, lowers, refuses arguments or asks for a
CPU's library, and bits that CPUs alone promise. A GPU chooses the kernels of `linear`, `absorb` and `expert_mlp` by how
many rows there are, and splits the keys of `mla_attention` by what the page table has room for: other calls and other
page sizes add up in another order.
"""


def chosen_on_a_gpu(file: str) -> str:
    """pytest's -k for a test file on a GPU."""
    names = (*EVERYWHERE_ON_A_GPU, *ALSO_ON_A_GPU.get(file, ()))
    return " or ".join((f"({CHOSEN})", *names))
