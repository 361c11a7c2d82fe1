"""What the tests of `expert_mlp` and of its quantised forms change in a call."""

import numpy as np
from op_base import Builder, Call, Rng
from oracle_quantized import NAN_CODES, NAN_SCALE

WEIGHTS = ("gate_up", "down")


def with_ids(base: Builder, *pool: int) -> Builder:
    """Ids drawn with repetition from `pool`."""

    def build(rng: Rng, dtype: str) -> Call:
        call = base(rng, dtype)
        return call.changed(topk_ids=rng.choice(np.array(pool, np.int32), call.arrays["topk_ids"].shape))

    return build


def spoiled(call: Call, *experts: int) -> Call:
    """Every byte and every scale of these experts is NaN, where the container knows one."""
    changes = {}
    for name in WEIGHTS:
        data, scale = call.arrays[name].copy(), call.arrays[f"{name}_scale"].copy()
        for expert in experts:
            if data.dtype in NAN_CODES:
                data.view(np.uint8)[expert] = NAN_CODES[data.dtype]
            scale[expert] = NAN_SCALE if scale.dtype == np.uint8 else np.nan
        changes |= {name: data, f"{name}_scale": scale}
    return call.changed(**changes)
