"""`linear`: x (M,K) times a weight stored (N,K), as checkpoints store it."""

from typing import Literal

import jax
import jax.numpy as jnp

from custom_calls.checks import COMPUTE_DTYPES, check_choice, check_dtype, check_shape
from custom_calls.errors import LayoutError
from custom_calls.linear_mxfp4 import linear_mxfp4
from custom_calls.linear_quantized import LINEAR_QUANTIZED
from custom_calls.linear_shuffled import LINEAR_SHUFFLED
from custom_calls.linear_vnni import LINEAR_VNNI
from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.op import Arrays, Native, Op, join_rows
from custom_calls.quantized_tensor import QuantizedTensor, check_weight
from custom_calls.registry import Kernels

TARGET = "mla_jax.linear.v1"
TARGET_BIAS = "mla_jax.linear_bias.v1"

Activations = Literal["bf16", "mxfp4"]
ACTIVATIONS: tuple[Activations, ...] = ("bf16", "mxfp4")

INVARIANT_ROWS = 64
"""On CPUs a row's result is the same (bitwise) in every call of at most so many rows, and in every one of more; between
the two the order of its sums differs."""


def linear(
    x: jax.Array,
    weight: jax.Array | QuantizedTensor,
    bias: jax.Array | None = None,
    *,
    out_dtype: str | None = None,
    activations: Activations = "bf16",
    kernels: Kernels = "auto",
) -> jax.Array:
    """y[m,n] = sum_k x[m,k] * weight[n,k] (+ bias[n]), accumulated in float32, rounded once.

    Args:
      x: (M, K) float32 or bfloat16; M may be 0.
      weight: (N, K) of x's dtype, or bfloat16 with float32 x and result; or a `QuantizedTensor` (N, K) of
        any container, with row-major scales; MXFP4 may be shuffled, which GPUs have a kernel for, or vnni, which
        CPUs have one for.
      bias: (N,) float32 or bfloat16, or None.
      out_dtype: "float32" or "bfloat16"; x's dtype by default. A bfloat16 result needs bfloat16 x.
      activations: "bf16": x as it is (weight-only quantisation); "mxfp4": x is first quantised to MXFP4 with
        rounding "even", as the AMD runtimes do for MXFP4 weights, and only for those, in rows.
      kernels: see `custom_calls.registry.choose`.

    Returns:
      (M, N) of `out_dtype`. With the CPU's kernels a row does not depend on the other rows (bitwise), only on whether
      they are more than `INVARIANT_ROWS`. With a GPU's kernels for quantised weights it does not depend on their
      values, but on how many they are.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    out = jnp.dtype(out_dtype or x.dtype).name
    check_shape("linear", "x", x, ("M", "K"))
    check_dtype("linear", "x", x, COMPUTE_DTYPES)
    check_choice("linear", "activations", activations, ACTIVATIONS)
    if isinstance(weight, QuantizedTensor):
        return _quantized(x, weight, bias, out, activations, kernels)
    if activations != "bf16":
        raise LayoutError(f"linear: activations={activations!r} needs an MXFP4 weight, got {weight.dtype}")
    check_shape("linear", "weight", weight, ("N", x.shape[1]))
    check_dtype("linear", "weight", weight, COMPUTE_DTYPES if x.dtype == jnp.float32 else ("bfloat16",))
    check_dtype("linear", "out_dtype", jax.ShapeDtypeStruct((), out), _results(x, weight))
    arrays: Arrays = (x, weight)
    if bias is not None:
        check_shape("linear", "bias", bias, (weight.shape[0],))
        check_dtype("linear", "bias", bias, COMPUTE_DTYPES)
        arrays += (bias,)
    return LINEAR(*arrays, kernels=kernels, out_dtype=out)[0]


def _quantized(
    x: jax.Array,
    weight: QuantizedTensor,
    bias: jax.Array | None,
    out: str,
    activations: Activations,
    kernels: Kernels,
) -> jax.Array:
    check_shape("linear", "weight", weight, ("N", x.shape[1]))
    check_weight("linear", "weight", weight, ("row_major", "shuffled", "vnni"))
    allowed = COMPUTE_DTYPES if x.dtype == jnp.bfloat16 else ("float32",)
    check_dtype("linear", "out_dtype", jax.ShapeDtypeStruct((), out), allowed)
    if activations == "mxfp4":
        if weight.container != "mxfp4":
            raise LayoutError(f"linear: activations='mxfp4' needs an MXFP4 weight, got {weight.container!r}")
        check_weight("linear, activations='mxfp4'", "weight", weight)
        rows = mxfp4_quantize(x, rounding="even", kernels=kernels)
        return linear_mxfp4(rows, weight, bias, out_dtype=out, kernels=kernels)
    arrays: Arrays = (x, weight.data, weight.scale)
    if bias is not None:
        check_shape("linear", "bias", bias, (weight.shape[0],))
        check_dtype("linear", "bias", bias, COMPUTE_DTYPES)
        arrays += (bias,)
    if weight.data_layout != "row_major":
        op = LINEAR_SHUFFLED if weight.data_layout == "shuffled" else LINEAR_VNNI
        return op(*arrays, kernels=kernels, out_dtype=out, outputs=weight.shape[0])[0]
    static = {"out_dtype": out, "container": weight.container, "block": weight.block}
    return LINEAR_QUANTIZED(*arrays, kernels=kernels, **static)[0]


def _results(x: jax.Array, weight: jax.Array) -> tuple[str, ...]:
    both_bfloat16 = x.dtype == jnp.bfloat16 and weight.dtype == jnp.bfloat16
    return COMPUTE_DTYPES if both_bfloat16 else ("float32",)


def _abstract(x: jax.Array, weight: jax.Array, *_: jax.Array, out_dtype: str) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), out_dtype)]


def _reference(x: jax.Array, weight: jax.Array, *bias: jax.Array, out_dtype: str) -> Arrays:
    if weight.dtype != x.dtype:
        weight = weight.astype(x.dtype)
    # float32 accumulation is also XLA:CPU's fast path for bfloat16; HIGHEST keeps TF32 out on NVIDIA.
    y = jax.lax.dot_general(
        x,
        weight,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    if bias:
        y = y + bias[0].astype(jnp.float32)[None, :]
    return (y.astype(out_dtype),)


def _native(x: jax.Array, weight: jax.Array, *bias: jax.Array, out_dtype: str) -> Arrays:
    result = jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), out_dtype)
    return (jax.ffi.ffi_call(TARGET_BIAS if bias else TARGET, result)(x, weight, *bias),)


LINEAR: Op = Op(
    "mla_jax.linear",
    targets=(TARGET, TARGET_BIAS),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: join_rows(LINEAR, arrays, batched, static),
    gpu=Native((), _reference, "it is XLA's own dot there"),
)
