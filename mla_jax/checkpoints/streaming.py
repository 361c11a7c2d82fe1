from dataclasses import dataclass
import numpy as np, jax.numpy as jnp
@dataclass(frozen=True)
class Piece:
    name: str; index: tuple; rows: object
@dataclass(frozen=True)
class Target:
    shape: tuple; dtype: str; pieces: tuple
def stream(index, targets, *, ignore, progress):
    for t in targets:
        out=np.zeros(t.shape, jnp.dtype(t.dtype))
        for p in t.pieces:
            v=out[p.index]
            if p.rows: v[p.rows[0]:p.rows[1]]=index.where[p.name].read(p.name)
            else: out[p.index]=index.where[p.name].read(p.name)
        yield out
