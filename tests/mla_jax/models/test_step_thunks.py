"""How much XLA:CPU has to run for a decode step: nothing between the custom calls that was not there before."""

from collections import Counter

import pytest
from step_thunks import LAYERS, compiled_step, thunks

OTHER_DENSE, OTHER_SPARSE, OTHER_STEP = 2, 9, 23
"""SiLU and the residual; beside them the router's softmax and choice; metadata, embedding and the greedy draw."""


def calls_of(product: str, suffix: str, sparse: bool) -> Counter[str]:
    attention = Counter(
        {
            "rmsnorm": 1,
            "rope_append_latent": 1,
            "mla_attention": 1,
            "rmsnorm_residual": 1,
            f"absorb{suffix}": 2,
        }
    )
    # q, kv_a, o; gate, up and down; the router is plain.
    products = Counter({product: 6}) + Counter({"linear": 1, f"expert_mlp{suffix}": 1} if sparse else {})
    return attention + products


@pytest.mark.parametrize(
    ("weights", "batch"), [("mxfp4-all", 1), ("mxfp4-all", 8), ("mxfp4-experts", 1), ("bf16", 8)]
)
def test_a_layers_custom_calls_and_what_is_between_them(weights, batch):
    product, suffix = ("linear", "") if weights == "bf16" else ("linear_quantized", "_quantized")
    found = thunks(compiled_step(weights, batch))
    for layer in range(LAYERS):
        calls, other = found[f"layer_{layer}"]
        assert calls == calls_of(product, suffix, sparse=layer > 0), f"layer {layer}"
        assert other.total() <= (OTHER_SPARSE if layer else OTHER_DENSE), f"layer {layer}: {other}"
    calls, other = found[""]
    assert calls == {"rmsnorm": 1, product: 1}
    assert other.total() <= OTHER_STEP, other
    # What moves data and computes nothing; loops and sorts would cost more than any of these.
    everything = sum((other for _, other in found.values()), Counter())
    assert set(everything) <= {"fusion", "TopK", "copy", "conditional"}
    assert set(found) == {"", *(f"layer_{layer}" for layer in range(LAYERS))}
