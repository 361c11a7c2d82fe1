"""`RopeState`: the RoPE table as an NNX variable that all layers share and no optimiser trains."""

from flax import nnx

from mla_jax.rope import RopeTable


class RopeState(nnx.Variable[RopeTable]):
    """Holds one `RopeTable`. It is not an `nnx.Param`, so filters on parameters leave it alone."""
