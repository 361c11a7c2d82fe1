"""Which ways of storing weights can be loaded: for now, plain floating-point tensors."""

from mla_jax.config import ModelConfig
from mla_jax.errors import UnsupportedModelError


def require_supported_container(config: ModelConfig) -> None:
    """Refuses checkpoints whose weights are quantised.

    Raises:
      UnsupportedModelError: the configuration has a quantization_config.
    """
    if config.quantization is None:
        return
    shortened = config.quantization if len(config.quantization) <= 200 else config.quantization[:200] + "..."
    raise UnsupportedModelError(
        "quantised containers (fp8, mxfp4, compressed-tensors) are not supported yet: convert the"
        f" checkpoint to bfloat16 first. Its quantization_config is {shortened}"
    )
