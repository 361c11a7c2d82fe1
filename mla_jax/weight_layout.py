"""How the codes of MXFP4 weights lie in memory: the load step from the checkpoint's rows to what kernels read.

GPUs read a shuffled weight a tile at a time (`QuantizedTensor.data_layout`); the CPU's kernels read rows. Only
`linear` takes shuffled weights: kv_b_proj and stacks of experts stay as they are.
"""

from typing import Any, Literal, get_args

import jax

from custom_calls.quantized_tensor import DataLayout, QuantizedTensor, shuffle
from mla_jax.errors import ConfigError, shown
from mla_jax.parameters import ParamInfo

WeightLayout = Literal["auto", "row_major", "shuffled"]
WEIGHT_LAYOUTS: tuple[WeightLayout, ...] = get_args(WeightLayout)

# Compiled, so that one new array is made and not one an operation.
_shuffled = jax.jit(shuffle)


def resolve_weight_layout(choice: Any, dtype: str, device: Any = None) -> DataLayout:
    """The layout that `choice` means.

    Args:
      choice: one of `WEIGHT_LAYOUTS`; "auto" is "shuffled" on a GPU that computes in bfloat16, which its kernels
        multiply, else "row_major".
      dtype: compute dtype.
      device: a `jax.Device`; default: the first one.

    Raises:
      ConfigError: another choice.
    """
    if not isinstance(choice, str) or choice not in WEIGHT_LAYOUTS:
        raise ConfigError(f"weight_layout: expected one of {', '.join(WEIGHT_LAYOUTS)}, got {shown(choice)}")
    if choice == "row_major" or choice == "shuffled":
        return choice
    device = jax.devices()[0] if device is None else device
    return "shuffled" if device.platform == "gpu" and dtype == "bfloat16" else "row_major"


def in_weight_layout(weight: Any, info: ParamInfo, layout: DataLayout) -> Any:
    """A parameter as it was loaded, or if it is an MXFP4 weight of `linear` and the layout "shuffled": shuffled."""
    is_mxfp4 = isinstance(weight, QuantizedTensor) and weight.container == "mxfp4"
    if layout == "row_major" or not is_mxfp4 or info.absorbed or weight.ndim != 2:
        return weight
    return _shuffled(weight)
