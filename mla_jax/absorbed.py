"""What kv_b_proj is stored as, once a model is loaded: the choice `absorb_weights`.

The kernels decode MXFP4, FP8 and int4 across groups as well as along them, so both products of `absorb` read
the checkpoint's own bytes: "auto" keeps those and with them the checkpoint's accuracy. (Kernels that contract
along the groups only would have to requantise the key half along qk_nope_head_dim.) The other choices trade
accuracy for bytes, or bytes for accuracy.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.errors import ConfigError, shown
from mla_jax.quant import fp8_channel

AbsorbWeights = Literal["auto", "bfloat16", "mxfp4", "fp8"]
ABSORB_WEIGHTS: tuple[AbsorbWeights, ...] = get_args(AbsorbWeights)


def check_absorb_weights(choice: object) -> None:
    """Raises `ConfigError` unless `choice` is one of `ABSORB_WEIGHTS`."""
    if choice not in ABSORB_WEIGHTS:
        raise ConfigError(f"absorb_weights: expected one of {', '.join(ABSORB_WEIGHTS)}, got {shown(choice)}")


def absorbed_weight(
    weight: jax.Array | QuantizedTensor, choice: AbsorbWeights, dtype: str
) -> jax.Array | QuantizedTensor:
    """kv_b_proj (heads * rows, kv_lora_rank) as `choice` says.

    Args:
      weight: as the checkpoint stores it.
      choice: "auto": unchanged; "bfloat16": plain numbers of the compute dtype; "mxfp4": groups of 32 along
        kv_lora_rank, rounding "even"; "fp8": e4m3fn with one scale a row.
      dtype: compute dtype, of plain numbers.

    Raises:
      ConfigError: kv_lora_rank is no multiple of 32 and the choice is "mxfp4".
    """
    if choice == "auto":
        return weight
    if choice == "mxfp4" and isinstance(weight, QuantizedTensor) and weight.container == "mxfp4":
        return weight
    values = dequantize(weight) if isinstance(weight, QuantizedTensor) else weight
    if choice == "bfloat16":
        return values.astype(dtype)
    if choice == "mxfp4":
        if weight.shape[-1] % 32:
            raise ConfigError(
                f"absorb_weights: 'mxfp4' needs kv_lora_rank to be a multiple of 32, got {weight.shape[-1]}"
            )
        return mxfp4_quantize(values.astype(jnp.float32), rounding="even")
    return fp8_channel(values)
