"""`expert_mlp_quantized`: `expert_mlp` over quantised experts, of which only the chosen are read."""

from typing import Any

import jax
import jax.numpy as jnp

from custom_calls.op import Arrays, Native, Op, map_rows, varying_like
from custom_calls.quantized_tensor import (
    Container,
    DataLayout,
    QuantizedTensor,
    dequantize,
    in_rows,
    native_attributes,
)

TARGET = "mla_jax.expert_mlp_quantized.v3"
TARGET_WITH_SCRATCH = "mla_jax.expert_mlp_quantized.v4"

Layout = tuple[Container, tuple[int, int], DataLayout]
"""Container, block and data layout of one weight."""


def _weight(data: jax.Array, scale: jax.Array, layout: Layout) -> QuantizedTensor:
    container, block, data_layout = layout
    return QuantizedTensor(data, scale, container, block, data_layout=data_layout)


def _abstract(x: jax.Array, *_: jax.Array, **__: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(x.shape, x.dtype)]


def _reference(
    x: jax.Array,
    gate_up: jax.Array,
    gate_up_scale: jax.Array,
    down: jax.Array,
    down_scale: jax.Array,
    topk_ids: jax.Array,
    topk_weights: jax.Array,
    *,
    gate_up_layout: Layout,
    down_layout: Layout,
) -> Arrays:
    wide = x.astype(jnp.float32)

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)

    def add_expert(total: jax.Array, expert: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        # One expert is dequantised at a time: all of them would be eight times the checkpoint.
        number, *parts = expert
        both = dot(wide, dequantize(_weight(parts[0], parts[1], gate_up_layout)))
        down_e = dequantize(_weight(parts[2], parts[3], down_layout))
        width = down_e.shape[1]
        hidden = (jax.nn.silu(both[:, :width]) * both[:, width:]).astype(x.dtype).astype(jnp.float32)
        weight = jnp.sum(jnp.where(topk_ids == number, topk_weights, jnp.float32(0)), axis=1)
        # Unchosen tokens are dropped by selection, not by a zero weight, so that their NaN cannot leak.
        chosen = jnp.any(topk_ids == number, axis=1)[:, None]
        return total + jnp.where(chosen, weight[:, None] * dot(hidden, down_e), jnp.float32(0)), None

    arrays = (gate_up, gate_up_scale, down, down_scale)
    numbers = jnp.arange(gate_up.shape[0], dtype=jnp.int32)
    start = varying_like(jnp.zeros(x.shape, jnp.float32), x, *arrays, topk_ids, topk_weights)
    total, _ = jax.lax.scan(add_expert, start, (numbers, *arrays))
    return (total.astype(x.dtype),)


def _native(
    x: jax.Array, *rest: jax.Array, gate_up_layout: Layout, down_layout: Layout, scratch: bool = False
) -> Arrays:
    attributes = {
        **native_attributes(rest[0], *gate_up_layout, prefix="gate_up_"),
        **native_attributes(rest[2], *down_layout, prefix="down_"),
    }
    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    if scratch:
        outs += gpu_scratch(x, rest[0].shape[0], rest[0].shape[1] // 2, rest[4])
    target = TARGET_WITH_SCRATCH if scratch else TARGET
    return tuple(jax.ffi.ffi_call(target, outs)(x, *rest, **attributes))[:1]


def _native_gpu(
    x: jax.Array,
    gate_up: jax.Array,
    gate_up_scale: jax.Array,
    down: jax.Array,
    down_scale: jax.Array,
    *routed: jax.Array,
    gate_up_layout: Layout,
    down_layout: Layout,
) -> Arrays:
    into = in_rows(_weight(gate_up, gate_up_scale, gate_up_layout))
    out = in_rows(_weight(down, down_scale, down_layout))
    return _native(
        x,
        into.data,
        into.scale,
        out.data,
        out.scale,
        *routed,
        gate_up_layout=(into.container, into.block, "row_major"),
        down_layout=(out.container, out.block, "row_major"),
        scratch=True,
    )


def gpu_scratch(
    x: jax.Array, num_experts: int, inner: int, topk_ids: jax.Array
) -> list[jax.ShapeDtypeStruct]:
    """What the GPU kernels need besides the result: a plan of who goes where, gated activations, products."""
    pairs = topk_ids.shape[0] * topk_ids.shape[1]
    tiles = pairs // 8 + min(num_experts, pairs)
    return [
        jax.ShapeDtypeStruct((num_experts + 1 + 4 * tiles + 2 * pairs,), jnp.int32),
        jax.ShapeDtypeStruct((pairs, inner), x.dtype),
        jax.ShapeDtypeStruct((pairs, x.shape[1]), jnp.float32),
    ]


EXPERT_MLP_QUANTIZED: Op = Op(
    "mla_jax.expert_mlp_quantized",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    gpu=Native(
        (TARGET_WITH_SCRATCH,), _native_gpu, "weights in the vnni layout are brought into rows at every call"
    ),
    batch=lambda arrays, batched, static: map_rows(EXPERT_MLP_QUANTIZED, arrays, batched, static),
)
