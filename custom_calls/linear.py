"""`linear`: x (M,K) times a weight stored (N,K), as checkpoints store it."""

from typing import Literal

import jax
import jax.numpy as jnp

from custom_calls.checks import COMPUTE_DTYPES, check_choice, check_dtype, check_shape
from custom_calls.errors import LayoutError
from custom_calls.flatten_quantize import flatten_quantize
from custom_calls.linear_fp8 import GROUP, linear_fp8
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

Activations = Literal["bf16", "mxfp4", "fp8"]
ACTIVATIONS: tuple[Activations, ...] = ("bf16", "mxfp4", "fp8")

_NEEDED = {"mxfp4": "an MXFP4 weight", "fp8": f"an FP8 weight in blocks of {GROUP} columns"}

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
        CPUs have one for. On AVX-512 VNNI bfloat16 x meets vnni weights as whole numbers of 24 bits: exact down to
        2^-14 of the largest of their 32 columns, smaller values rounded to 2^-22 of it, float32 where that is coarse.
      bias: (N,) float32 or bfloat16, or None.
      out_dtype: "float32" or "bfloat16"; x's dtype by default. A bfloat16 result needs bfloat16 x.
      activations: "bf16": x as it is (weight-only quantisation); "mxfp4": x is first quantised to MXFP4 with
        rounding "even", as the AMD runtimes do for MXFP4 weights, and only for those, in rows; "fp8": x is first
        quantised to e4m3fn in groups of 128 columns, by `flatten_quantize`, as DeepSeek's own inference does for
        FP8 weights in blocks of 128 columns, and only for those.
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
        raise _not_for(activations, str(weight.dtype))
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
            raise _not_for(activations, repr(weight.container))
        check_weight("linear, activations='mxfp4'", "weight", weight)
        rows = mxfp4_quantize(x, rounding="even", kernels=kernels)
        return linear_mxfp4(rows, weight, bias, out_dtype=out, kernels=kernels)
    if activations == "fp8":
        if weight.container != "fp8_block" or weight.block[1] != GROUP:
            raise _not_for(activations, f"{weight.container!r} in blocks of {weight.block}")
        rows = flatten_quantize(
            x[:, None, :], format="fp8", group_size=GROUP, scale_layout="row_major", kernels=kernels
        )
        return linear_fp8(rows, weight, bias, out_dtype=out, kernels=kernels)
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


def _not_for(activations: Activations, got: str) -> LayoutError:
    return LayoutError(f"linear: activations={activations!r} needs {_NEEDED[activations]}, got {got}")


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
