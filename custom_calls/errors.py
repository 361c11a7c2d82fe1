"""Errors and warnings of the op layer. `mla_jax.errors` re-exports them under its own root."""


class MlaJaxError(Exception):
    """Root of every error that this project raises on purpose."""


class ShapeError(MlaJaxError, ValueError):
    """An array argument has a shape or dtype that the op's contract does not allow."""


class LayoutError(MlaJaxError, TypeError):
    """Two operands disagree about a static layout (RoPE pairing, page size, number of slots)."""


class KernelUnavailableError(MlaJaxError, RuntimeError):
    """`kernels="native"` was asked for and no native kernel can serve the op on that platform."""


class UnsupportedTransformError(MlaJaxError, NotImplementedError):
    """A JAX transformation (vmap, grad) has no rule for the op in this form."""


class KernelFallbackWarning(UserWarning):
    """An op runs its pure-JAX reference because its native kernel is not available."""
