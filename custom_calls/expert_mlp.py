"""`expert_mlp`: gate, up, SiLU and down of the chosen experts, which are all that is read."""

import jax
import jax.numpy as jnp

from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_shape
from custom_calls.errors import LayoutError, ShapeError
from custom_calls.expert_mlp_quantized import EXPERT_MLP_QUANTIZED, gpu_scratch
from custom_calls.op import Arrays, Native, Op, map_rows, varying_like
from custom_calls.quantized_tensor import TILE_ROWS, QuantizedTensor, check_weight
from custom_calls.registry import Kernels

TARGET = "mla_jax.expert_mlp.v1"
TARGET_WITH_SCRATCH = "mla_jax.expert_mlp.v2"

WHOLE_ROWS = 2 * TILE_ROWS
"""Of an expert's weights in the vnni layout: gate rows and up rows are whole tiles each."""


def expert_mlp(
    x: jax.Array,
    gate_up: jax.Array | QuantizedTensor,
    down: jax.Array | QuantizedTensor,
    topk_ids: jax.Array,
    topk_weights: jax.Array,
    *,
    kernels: Kernels = "auto",
) -> jax.Array:
    """y[t] = sum_j topk_weights[t,j] * down_e(silu(gate_e x_t) * up_e x_t), e = topk_ids[t,j].

    Args:
      x: (T, C) float32 or bfloat16.
      gate_up: (E, 2 I, C) of x's dtype, gate rows first, or a `QuantizedTensor`.
      down: (E, C, I) of x's dtype; a `QuantizedTensor`, of any container, where gate_up is one. Either of them may
        be vnni, which CPUs have a kernel for, if its rows are a multiple of `WHOLE_ROWS`.
      topk_ids: (T, k) int32; an id outside [0, E) contributes nothing (padded rows use E).
      topk_weights: (T, k) float32.

    Returns:
      (T, C) of x's dtype. The intermediate is rounded to x's dtype before `down`, as a stored
      activation would be; the sum over j runs in order in float32 and is rounded once.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "expert_mlp"
    check_shape(op, "x", x, ("T", "C"))
    check_dtype(op, "x", x, COMPUTE_DTYPES)
    check_shape(op, "gate_up", gate_up, ("E", "2 I", x.shape[1]))
    if gate_up.shape[1] % 2:
        raise ShapeError(f"{op}: argument 'gate_up': expected an even number of rows, got {gate_up.shape[1]}")
    check_shape(op, "down", down, (gate_up.shape[0], x.shape[1], gate_up.shape[1] // 2))
    check_shape(op, "topk_ids", topk_ids, (x.shape[0], "k"))
    check_dtype(op, "topk_ids", topk_ids, ("int32",))
    check_shape(op, "topk_weights", topk_weights, topk_ids.shape)
    check_dtype(op, "topk_weights", topk_weights, ("float32",))
    if isinstance(gate_up, QuantizedTensor) and isinstance(down, QuantizedTensor):
        return _quantized(x, gate_up, down, topk_ids, topk_weights, kernels)
    if isinstance(gate_up, QuantizedTensor) or isinstance(down, QuantizedTensor):
        raise LayoutError(f"{op}: arguments 'gate_up' and 'down': expected both or neither to be quantised")
    check_dtype(op, "gate_up", gate_up, (jnp.dtype(x.dtype).name,))
    check_dtype(op, "down", down, (jnp.dtype(x.dtype).name,))
    return EXPERT_MLP(x, gate_up, down, topk_ids, topk_weights, kernels=kernels)[0]


def _quantized(
    x: jax.Array,
    gate_up: QuantizedTensor,
    down: QuantizedTensor,
    topk_ids: jax.Array,
    topk_weights: jax.Array,
    kernels: Kernels,
) -> jax.Array:
    for name, weight in (("gate_up", gate_up), ("down", down)):
        check_weight("expert_mlp", name, weight, ("row_major", "vnni"))
        if weight.data_layout == "vnni" and weight.shape[1] % WHOLE_ROWS:
            raise LayoutError(
                f"expert_mlp: argument '{name}': expected a multiple of {WHOLE_ROWS} rows for data_layout 'vnni', "
                f"got {weight.shape[1]}"
            )
    return EXPERT_MLP_QUANTIZED(
        x,
        gate_up.data,
        gate_up.scale,
        down.data,
        down.scale,
        topk_ids,
        topk_weights,
        kernels=kernels,
        gate_up_layout=(gate_up.container, gate_up.block, gate_up.data_layout),
        down_layout=(down.container, down.block, down.data_layout),
    )[0]


def _abstract(x: jax.Array, *_: jax.Array) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(x.shape, x.dtype)]


def _reference(
    x: jax.Array, gate_up: jax.Array, down: jax.Array, topk_ids: jax.Array, topk_weights: jax.Array
) -> Arrays:
    width = down.shape[2]

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(
            a,
            b,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    def add_expert(
        total: jax.Array, expert: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        number, gate_up_e, down_e = expert
        both = dot(x, gate_up_e)
        hidden = (jax.nn.silu(both[:, :width]) * both[:, width:]).astype(x.dtype)
        weight = jnp.sum(jnp.where(topk_ids == number, topk_weights, jnp.float32(0)), axis=1)
        # Unchosen tokens are dropped by selection, not by a zero weight, so that their NaN cannot leak.
        chosen = jnp.any(topk_ids == number, axis=1)[:, None]
        return total + jnp.where(chosen, weight[:, None] * dot(hidden, down_e), jnp.float32(0)), None

    numbers = jnp.arange(gate_up.shape[0], dtype=jnp.int32)
    start = varying_like(jnp.zeros(x.shape, jnp.float32), x, gate_up, down, topk_ids, topk_weights)
    total, _ = jax.lax.scan(add_expert, start, (numbers, gate_up, down))
    return (total.astype(x.dtype),)


def _native(*arrays: jax.Array) -> Arrays:
    x = arrays[0]
    return (jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(x.shape, x.dtype))(*arrays),)


def _native_gpu(*arrays: jax.Array) -> Arrays:
    x, gate_up, _, topk_ids, _ = arrays
    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    outs += gpu_scratch(x, gate_up.shape[0], gate_up.shape[1] // 2, topk_ids)
    return tuple(jax.ffi.ffi_call(TARGET_WITH_SCRATCH, outs)(*arrays))[:1]


EXPERT_MLP: Op = Op(
    "mla_jax.expert_mlp",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    gpu=Native((TARGET_WITH_SCRATCH,), _native_gpu),
    batch=lambda arrays, batched, static: map_rows(EXPERT_MLP, arrays, batched, static),
)
