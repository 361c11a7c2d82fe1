"""Linear, RMSNorm and Embedding over weights stored as in the checkpoint."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from custom_calls.linear import linear
from custom_calls.registry import Kernels
from custom_calls.rmsnorm import rmsnorm, rmsnorm_residual


class Linear(nnx.Module):
    """y = x weight^T (+ bias) with `weight` (out, in), an array or a `QuantizedTensor`."""

    def __init__(self, params: Mapping[str, Any], *, kernels: Kernels = "auto") -> None:
        self.weight = nnx.Param(params["weight"])
        self.bias = nnx.Param(params["bias"]) if "bias" in params else None
        self.kernels = kernels

    def __call__(
        self, x: Float[Array, "tokens in"], out_dtype: str | None = None
    ) -> Float[Array, "tokens out"]:
        bias = None if self.bias is None else self.bias[...]
        return linear(x, self.weight.get_value(), bias, out_dtype=out_dtype, kernels=self.kernels)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned weight."""

    def __init__(self, params: Mapping[str, Any], *, eps: float, kernels: Kernels = "auto") -> None:
        self.weight = nnx.Param(params["weight"])
        self.eps = eps
        self.kernels = kernels

    def __call__(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        return rmsnorm(x, self.weight[...], eps=self.eps, kernels=self.kernels)

    def add(
        self, x: Float[Array, "tokens width"], residual: Float[Array, "tokens width"]
    ) -> tuple[Float[Array, "tokens width"], Float[Array, "tokens width"]]:
        """(norm of x + residual, x + residual)."""
        return rmsnorm_residual(x, residual, self.weight[...], eps=self.eps, kernels=self.kernels)


class Embedding(nnx.Module):
    """Rows of `weight` (vocab, hidden) by token id; also the output head of tied models."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.weight = nnx.Param(params["weight"])

    def __call__(self, tokens: Int[Array, " tokens"]) -> Float[Array, "tokens hidden"]:
        # An id outside the vocabulary gives NaN: it cannot pass for a token.
        rows: jax.Array = (
            self.weight[...].at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        )
        return rows
