"""The dense feed-forward block: down(silu(gate(x)) * up(x))."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from custom_calls.registry import Kernels
from mla_jax.layers.basic import Linear


class MLP(nnx.Module):
    """Gated MLP with SiLU; also the shared experts of a sparse layer."""

    def __init__(self, params: Mapping[str, Any], *, kernels: Kernels = "auto") -> None:
        self.gate_proj = Linear(params["gate_proj"], kernels=kernels)
        self.up_proj = Linear(params["up_proj"], kernels=kernels)
        self.down_proj = Linear(params["down_proj"], kernels=kernels)

    def __call__(self, x: Float[Array, "tokens hidden"]) -> Float[Array, "tokens hidden"]:
        with jax.named_scope("mlp"):
            # The product is formed in float32 and rounded once, as in expert_mlp.
            gate, up = self.gate_proj(x, "float32"), self.up_proj(x, "float32")
            return self.down_proj((jax.nn.silu(gate) * up).astype(x.dtype))
