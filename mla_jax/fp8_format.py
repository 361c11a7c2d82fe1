"""Which FP8 codes weights are held in: the load step from the checkpoint's format to the device's.

Checkpoints hold OCP's e4m3fn. The kernels read both formats everywhere; gfx942 converts e4m3fnuz in hardware and
e4m3fn in several instructions.
"""

from typing import Any, Literal, get_args

import jax

from custom_calls.architectures import Fp8Codes, architecture_of, fp8_codes
from custom_calls.quantized_tensor import QuantizedTensor, to_fnuz
from mla_jax.errors import ConfigError, shown

Fp8Format = Literal["auto", "e4m3fn", "e4m3fnuz"]
FP8_FORMATS: tuple[Fp8Format, ...] = get_args(Fp8Format)

# Compiled, so that one new array is made and not one an operation.
_recoded = jax.jit(to_fnuz)


def resolve_fp8_format(choice: Any, device: Any = None) -> Fp8Codes:
    """The format that `choice` means.

    Args:
      choice: one of `FP8_FORMATS`; "auto" is the device's.
      device: a `jax.Device`; default: the first one.

    Raises:
      ConfigError: another choice.
    """
    if not isinstance(choice, str) or choice not in FP8_FORMATS:
        raise ConfigError(f"fp8_format: expected one of {', '.join(FP8_FORMATS)}, got {shown(choice)}")
    if choice == "e4m3fn" or choice == "e4m3fnuz":
        return choice
    device = jax.devices()[0] if device is None else device
    return fp8_codes(architecture_of(device))


def in_fp8_format(weight: Any, fp8_format: Fp8Codes) -> Any:
    """A weight as it was loaded, or if it is FP8 and the format e4m3fnuz: recoded, with the scales doubled."""
    is_fp8 = isinstance(weight, QuantizedTensor) and weight.container.startswith("fp8")
    return _recoded(weight) if is_fp8 and fp8_format == "e4m3fnuz" else weight
