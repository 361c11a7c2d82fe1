"""Log-probabilities of one step, on the host.

In float64 from the row's own logits: a compiled program would sum a row in another order for every number of
rows beside it, and the last bit of a result would tell who else is being served.
"""

import numpy as np

TOP_LOGPROBS = 20
"""Most likely tokens that a step can report."""


def top_logprobs(logits: np.ndarray, token: int, count: int) -> dict[int, float]:
    """Token id -> natural-log probability of the `count` most likely tokens, in descending order, and of `token`.

    Args:
      logits: (vocab,) floats; -inf is a token that cannot be drawn, and is not reported among the likely ones.
      token: the chosen id.
      count: 0 or more; among equal tokens the lower id counts as more likely.
    """
    values = logits.astype(np.float64)
    peak = values.max()
    total = peak + np.log(np.exp(values - peak).sum())
    best = np.flatnonzero(values > -np.inf)
    if 0 < count < best.size:
        best = best[values[best] >= np.partition(values, -count)[-count]]
    likely = best[np.argsort(-values[best], kind="stable")][:count]
    return {int(i): float(values[i] - total) for i in (*likely, token)}
