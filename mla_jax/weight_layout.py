"""How the codes of MXFP4 weights lie in memory: the load step from the checkpoint's rows to what kernels read.

GPUs read a shuffled weight a tile at a time (`QuantizedTensor.data_layout`); the CPU's kernels read rows. Only
`linear` takes shuffled weights: kv_b_proj and stacks of experts stay as they are.
"""

import math
from typing import Any, Literal, cast, get_args

import jax

from custom_calls.quantized_tensor import QuantizedTensor, shuffle
from mla_jax.errors import ConfigError, shown
from mla_jax.parameters import ParamInfo

WeightLayout = Literal["auto", "row_major", "shuffled"]
WEIGHT_LAYOUTS: tuple[WeightLayout, ...] = get_args(WeightLayout)

LEAST_SHUFFLED = 1 << 26
"""Values from which "auto" shuffles a weight. On an H200 those of 2**27 gain a quarter to two fifths of a product's
time, while a whole DeepSeek-V2-Lite, whose weights have up to 2**24.5, gains nothing (docs/h200.md)."""

# Compiled, so that one new array is made and not one an operation.
_shuffled = jax.jit(shuffle)


def resolve_weight_layout(choice: Any, dtype: str, device: Any = None) -> WeightLayout:
    """`choice`, or "row_major" where "auto" never means anything else.

    Args:
      choice: one of `WEIGHT_LAYOUTS`; "auto" shuffles weights of at least `LEAST_SHUFFLED` values on a GPU that
        computes in bfloat16, which its kernels multiply.
      dtype: compute dtype.
      device: a `jax.Device`; default: the first one.

    Raises:
      ConfigError: another choice.
    """
    if not isinstance(choice, str) or choice not in WEIGHT_LAYOUTS:
        raise ConfigError(f"weight_layout: expected one of {', '.join(WEIGHT_LAYOUTS)}, got {shown(choice)}")
    if choice != "auto":
        return cast(WeightLayout, choice)
    device = jax.devices()[0] if device is None else device
    return "auto" if device.platform == "gpu" and dtype == "bfloat16" else "row_major"


def in_weight_layout(weight: Any, info: ParamInfo, layout: WeightLayout) -> Any:
    """A parameter as it was loaded, or if it is an MXFP4 weight of `linear` that `layout` wants shuffled: shuffled."""
    is_mxfp4 = isinstance(weight, QuantizedTensor) and weight.container == "mxfp4"
    if layout == "row_major" or not is_mxfp4 or info.absorbed or weight.ndim != 2:
        return weight
    if layout == "auto" and math.prod(weight.shape) < LEAST_SHUFFLED:
        return weight
    return _shuffled(weight)
