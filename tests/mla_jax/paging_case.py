"""Small pools and index arrays for the tests of paging and metadata."""

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.cache import LatentCache
from mla_jax.paging import AttentionMetadata, PageTable, advance

PAGE_SIZES = [1, 3, 16, 64]

JITTED = {
    function: jax.jit(function) for function in (PageTable.append, PageTable.free, PageTable.fork, advance)
}
FORK, ADVANCE = JITTED[PageTable.fork], JITTED[advance]
EXTEND = jax.jit(AttentionMetadata.extend, static_argnames="num_tokens")


def pool(num_pages: int, page_size: int, layers: int = 1, fill: float = np.nan) -> LatentCache:
    """A pool of rows of width 2, poisoned."""
    kv = jnp.full((layers, num_pages, page_size, 2), fill, jnp.float32)
    return LatentCache(kv, jnp.ones((layers, 2), jnp.float32), 1, "half")


def ints(*values: int) -> jax.Array:
    return jnp.array(values, jnp.int32)
