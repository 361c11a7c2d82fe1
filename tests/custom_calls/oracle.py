"""Float64 oracles of every op, in plain loops over tokens and heads, written from the ops' docstrings.

An oracle returns one `Bounded` an output: the exact value, and how far float32 arithmetic may be from it
*before* the one final rounding. Rounding to a storage type is monotonic, so a result y is right if and
only if round(value - error) <= y <= round(value + error). That holds for float32, bfloat16 and float8
alike and needs no allowance for ties.

Where the errors come from (u = 2^-24, half a unit in the last place of float32):
- a sum of n products, in any order: (n + 4) u sum|terms|, and never more than 1e-5 sum|terms|, which is
  this project's bound for float32 (a sum of thousands must be cut into shorter chains to meet it);
- a product, quotient, square root or exponential: a few u of the result;
- subnormals: XLA may flush operands and results below 2^-126 to zero.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

U = 2.0**-24
FLUSHED = 2.0**-126
"""Magnitude below which float32 may be flushed to zero."""
BOUND_FLOAT32 = 1e-5
BFLOAT16_HALF_ULP = 2.0**-8
FP8_MAX = 448.0

Array = np.ndarray


@dataclass
class Bounded:
    """Exact values, the float32 error allowed before rounding, and the scale of the output.

    `scale` is the largest sum of absolute terms of any element: what "relative to the output" means.
    """

    value: Array
    error: Array
    scale: float


def relative(terms: int) -> float:
    """Relative error of a float32 sum of so many products."""
    return min((terms + 4) * U, BOUND_FLOAT32)


def f64(array: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        return np.asarray(array).astype(np.float64)


def round_to(values: Array, dtype: np.dtype) -> Array:
    """One rounding to nearest even from float64 to `dtype`, as float64; float8 saturates.

    ml_dtypes converts through float32, which would round twice: a value within float32's rounding of a
    tie would be taken for the tie. So the float32 is rounded to odd first, which keeps ties apart.
    """
    values = f64(values)
    dtype = np.dtype(dtype)
    if dtype == np.float64:
        return values
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if dtype == np.float32:
        return f64(single)
    if dtype == ml_dtypes.float8_e4m3fn:
        values = np.clip(values, -FP8_MAX, FP8_MAX)
        single = values.astype(np.float32)
    back = f64(single)
    bits = single.view(np.int32)
    inexact = (back != values) & np.isfinite(back)
    towards_zero = np.where(inexact & (np.abs(back) > np.abs(values)), bits - 1, bits)
    odd = np.where(inexact, towards_zero | 1, bits).astype(np.int32)
    return f64(odd.view(np.float32).astype(dtype))


def _empty(shape: tuple[int, ...], fill: float = 0.0) -> tuple[Array, Array]:
    return np.full(shape, fill, np.float64), np.zeros(shape, np.float64)


def _scale(magnitude: Array) -> float:
    finite = magnitude[np.isfinite(magnitude)]
    return float(finite.max()) if finite.size else 0.0


def _product(row: Array, matrix: Array) -> tuple[Array, Array, Array]:
    """row (K,) . matrix (N, K): value, sum of |terms|, float32 error; each (N,)."""
    value = matrix @ row
    magnitude = np.abs(matrix) @ np.abs(row)
    lost = FLUSHED * (np.abs(matrix).sum(axis=1) + np.abs(row).sum() + len(row))
    return value, magnitude, relative(len(row)) * magnitude + lost


def linear(
    x: Array, weight: Array, bias: Array | None = None, *, out_dtype: str | None = None
) -> tuple[Bounded]:
    del out_dtype
    x, weight = f64(x), f64(weight)
    shape = (x.shape[0], weight.shape[0])
    (value, error), magnitude = _empty(shape), np.zeros(shape)
    for m in range(shape[0]):
        value[m], magnitude[m], error[m] = _product(x[m], weight)
        if bias is not None:
            value[m] += f64(bias)
            magnitude[m] += np.abs(f64(bias))
            error[m] += 2 * U * magnitude[m]
    return (Bounded(value, error, _scale(magnitude)),)


def absorb(
    x: Array, weight: Array, *, contract: str, row_offset: int, rows: int, x_offset: int = 0
) -> tuple[Bounded]:
    x, weight = f64(x), f64(weight)
    tokens, heads, _ = x.shape
    width = weight.shape[2] if contract == "rows" else rows
    shape = (tokens, heads, width)
    (value, error), magnitude = _empty(shape), np.zeros(shape)
    for t in range(tokens):
        for h in range(heads):
            used = weight[h, row_offset : row_offset + rows]
            matrix = used.T if contract == "rows" else used
            part = x[t, h, x_offset : x_offset + matrix.shape[1]]
            value[t, h], magnitude[t, h], error[t, h] = _product(part, matrix)
    return (Bounded(value, error, _scale(magnitude)),)


def _norm_row(v: Array, v_error: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    inverse = 1.0 / np.sqrt(np.mean(v * v) + float(np.float32(eps)))
    value = v * inverse * weight
    # The mean of squares has positive terms only, and the root halves its relative error.
    error = (relative(len(v)) + 6 * U) * np.abs(value)
    error += (v_error + FLUSHED) * inverse * np.abs(weight) + FLUSHED
    return value, error


def rmsnorm(x: Array, weight: Array, *, eps: float, offset: int = 0) -> tuple[Bounded]:
    tokens, width = x.shape[0], weight.shape[0]
    value, error = _empty((tokens, width))
    for t in range(tokens):
        v = f64(x[t, offset : offset + width])
        value[t], error[t] = _norm_row(v, np.zeros(width), f64(weight), eps)
    return (Bounded(value, error, _scale(np.abs(value))),)


def rmsnorm_residual(
    x: Array, residual: Array, weight: Array, *, eps: float, offset: int = 0
) -> tuple[Bounded, Bounded]:
    tokens, width = residual.shape
    value, error = _empty((tokens, width))
    total, total_error = _empty((tokens, width))
    for t in range(tokens):
        v = f64(x[t, offset : offset + width])
        total[t] = v + f64(residual[t])
        total_error[t] = U * np.abs(total[t]) + 2 * FLUSHED
        value[t], error[t] = _norm_row(total[t], total_error[t], f64(weight), eps)
    # `total` itself is rounded once from the exact sum; a bfloat16 sum is exact in float32 only sometimes.
    return Bounded(value, error, _scale(np.abs(value))), Bounded(total, total_error, _scale(np.abs(total)))


def expert_mlp(x: Array, gate_up: Array, down: Array, topk_ids: Array, topk_weights: Array) -> tuple[Bounded]:
    dtype = x.dtype
    x, gate_up, down = f64(x), f64(gate_up), f64(down)
    experts, inner = gate_up.shape[0], down.shape[2]
    (value, error), magnitude = _empty(x.shape), np.zeros(x.shape)
    for t in range(x.shape[0]):
        for j in range(topk_ids.shape[1]):
            e = int(topk_ids[t, j])
            if not 0 <= e < experts:
                continue
            weight = float(topk_weights[t, j])
            both, _, both_error = _product(x[t], gate_up[e])
            gate, up = both[:inner], both[inner:]
            gate_error, up_error = both_error[:inner], both_error[inner:]
            silu = gate / (1.0 + np.exp(np.clip(-gate, -700, 700)))
            exact = silu * up
            # |silu'| <= 1.1 everywhere.
            exact_error = (
                1.1 * gate_error * np.abs(up) + np.abs(silu) * up_error + 1.1 * gate_error * up_error
            )
            exact_error += 8 * U * np.abs(exact) + 2 * FLUSHED
            hidden = round_to(exact, dtype)
            # A hidden value close to a tie may have been rounded to the other side.
            reach = [np.abs(round_to(exact + side * exact_error, dtype) - hidden) for side in (-1, 1)]
            hidden_error = np.maximum(*reach)
            part, part_magnitude, part_error = _product(hidden, down[e])
            value[t] += weight * part
            magnitude[t] += abs(weight) * part_magnitude
            error[t] += abs(weight) * (part_error + np.abs(down[e]) @ hidden_error) + FLUSHED
    error += relative(topk_ids.shape[1]) * magnitude
    return (Bounded(value, error, _scale(magnitude)),)


def _rotate(v: Array, cos: Array, sin: Array, layout: str) -> tuple[Array, Array]:
    """RoPE of one row: value and sum of |terms|."""
    half = len(v) // 2
    value, magnitude = np.zeros(len(v)), np.zeros(len(v))
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + half)
        value[a] = v[a] * cos[i] - v[b] * sin[i]
        value[b] = v[b] * cos[i] + v[a] * sin[i]
        magnitude[a] = abs(v[a] * cos[i]) + abs(v[b] * sin[i])
        magnitude[b] = abs(v[b] * cos[i]) + abs(v[a] * sin[i])
    return value, magnitude


def rope_latent_rows(
    q: Array, kv_a: Array, norm_weight: Array, cos: Array, sin: Array, positions: Array,
    *, eps: float, layout: str, q_offset: int, kv_offset: int = 0,
) -> tuple[Bounded, Bounded]:  # fmt: skip
    (tokens, heads, _), rank, rope = q.shape, norm_weight.shape[0], 2 * cos.shape[1]
    q_rope, q_error = _empty((tokens, heads, rope))
    rows, row_error = _empty((tokens, rank + rope))
    for t in range(tokens):
        position = min(max(int(positions[t]), 0), cos.shape[0] - 1)
        c, s = f64(cos[position]), f64(sin[position])
        for h in range(heads):
            q_rope[t, h], terms = _rotate(f64(q[t, h, q_offset : q_offset + rope]), c, s, layout)
            q_error[t, h] = 2 * U * terms + 3 * FLUSHED
        latent = f64(kv_a[t, kv_offset : kv_offset + rank])
        key = f64(kv_a[t, kv_offset + rank : kv_offset + rank + rope])
        rows[t, :rank], row_error[t, :rank] = _norm_row(latent, np.zeros(rank), f64(norm_weight), eps)
        rows[t, rank:], terms = _rotate(key, c, s, layout)
        row_error[t, rank:] = 2 * U * terms + 3 * FLUSHED
    return (
        Bounded(q_rope, q_error, _scale(np.abs(q_rope))),
        Bounded(rows, row_error, _scale(np.abs(rows))),
    )


def rope_append_latent(
    q: Array, kv_a: Array, norm_weight: Array, cos: Array, sin: Array, positions: Array,
    slots: Array, kv: Array, layer: Array, scales: Array,
    *, eps: float, layout: str, q_offset: int, kv_offset: int = 0,
) -> tuple[Bounded, Bounded]:  # fmt: skip
    q_rope, rows = rope_latent_rows(
        q,
        kv_a,
        norm_weight,
        cos,
        sin,
        positions,
        eps=eps,
        layout=layout,
        q_offset=q_offset,
        kv_offset=kv_offset,
    )
    layers, num_pages, page_size, width = kv.shape
    rank = norm_weight.shape[0]
    pool, pool_error = f64(kv), np.zeros(kv.shape)
    for t in range(len(slots)):
        slot = int(slots[t])
        if not (0 <= slot < num_pages * page_size and 0 <= int(layer) < layers):
            continue
        value, error = rows.value[t].copy(), rows.error[t].copy()
        if kv.dtype == ml_dtypes.float8_e4m3fn:
            per_column = np.where(np.arange(width) < rank, f64(scales[0]), f64(scales[1]))
            value /= per_column
            # The reciprocal of the scale and the product round once each.
            error = error / np.abs(per_column) + 2 * U * np.abs(value) + FLUSHED
        pool[int(layer), slot // page_size, slot % page_size] = value
        pool_error[int(layer), slot // page_size, slot % page_size] = error
    return q_rope, Bounded(pool, pool_error, _scale(np.abs(pool)))


def kv_rows(cache: Array, cache_layout: str, which: str) -> Array:
    """A copy of a key ("k") or value ("v") cache as (layers, pages, page_size, heads, width)."""
    if cache_layout == "flash":
        return cache.copy()
    if which == "v" and cache_layout == "split_k":
        return cache.transpose(0, 1, 4, 2, 3).copy()
    layers, pages, heads = cache.shape[:3]
    if which == "k":
        return cache.transpose(0, 1, 4, 2, 3, 5).reshape(layers, pages, cache.shape[4], heads, -1).copy()
    return cache.transpose(0, 1, 3, 5, 2, 4).reshape(layers, pages, -1, heads, cache.shape[4]).copy()


def kv_cache(rows: Array, cache_layout: str, which: str, x: int) -> Array:
    """The inverse of `kv_rows`; `x` elements are 16 bytes."""
    layers, pages, page_size, heads, width = rows.shape
    if cache_layout == "flash":
        return rows.copy()
    if which == "v" and cache_layout == "split_k":
        return rows.transpose(0, 1, 3, 4, 2).copy()
    if which == "k":
        return rows.reshape(layers, pages, page_size, heads, width // x, x).transpose(0, 1, 3, 4, 2, 5).copy()
    return rows.reshape(layers, pages, page_size // x, x, heads, width).transpose(0, 1, 4, 2, 5, 3).copy()


def live_slots(slots: Array, slot_map: Array | None, num_slots: int, layer: int, layers: int) -> list[int]:
    """The slot that every token is stored in, -1 for none."""
    live = []
    for slot in map(int, slots):
        if slot_map is not None:
            slot = int(slot_map[slot]) if 0 <= slot < len(slot_map) else -1
        live.append(slot if 0 <= slot < num_slots and 0 <= int(layer) < layers else -1)
    return live


def rope_append_kv(
    q: Array, k: Array, v: Array, cos: Array, sin: Array, positions: Array, slots: Array,
    k_cache: Array, v_cache: Array, layer: Array, k_scale: Array, v_scale: Array,
    slot_map: Array | None = None, *, layout: str, cache_layout: str,
) -> tuple[Bounded, Bounded, Bounded]:  # fmt: skip
    pools = {"k": kv_rows(k_cache, cache_layout, "k"), "v": kv_rows(v_cache, cache_layout, "v")}
    layers, num_pages, page_size, heads, width = pools["k"].shape
    tokens, rope = len(slots), 2 * cos.shape[1]

    def rotated(rows: Array) -> tuple[Array, Array]:
        value, error = f64(rows), np.zeros(rows.shape)
        for t in range(tokens):
            position = min(max(int(positions[t]), 0), cos.shape[0] - 1)
            for h in range(rows.shape[1]):
                value[t, h, :rope], terms = _rotate(
                    value[t, h, :rope], f64(cos[position]), f64(sin[position]), layout
                )
                error[t, h, :rope] = 2 * U * terms + 3 * FLUSHED
        return value, error

    # With its heads together an array has one axis less; T = 0 leaves no size to infer.
    query, query_error = rotated(q.reshape(tokens, q.size // max(tokens * width, 1), width))
    key, key_error = rotated(k.reshape(tokens, heads, width))
    value = f64(v).reshape(tokens, heads, pools["v"].shape[4])
    live = live_slots(slots, slot_map, num_pages * page_size, int(layer), layers)
    outputs = [Bounded(query.reshape(q.shape), query_error.reshape(q.shape), _scale(np.abs(query)))]
    for which, rows, errors, scale in (
        ("k", key, key_error, k_scale),
        ("v", value, np.zeros(value.shape), v_scale),
    ):
        pool = pools[which]
        is_float8 = pool.dtype == ml_dtypes.float8_e4m3fn
        x = 16 // pool.dtype.itemsize
        stored, stored_error = f64(pool), np.zeros(pool.shape)
        for t in (t for t in range(tokens) if live[t] >= 0):
            at = (int(layer), live[t] // page_size, live[t] % page_size)
            stored[at], stored_error[at] = rows[t], errors[t]
            if is_float8:
                divisor = float(scale.reshape(()))
                stored[at] = rows[t] / divisor
                # The reciprocal of the scale and the product round once each.
                stored_error[at] = errors[t] / abs(divisor) + 2 * U * np.abs(stored[at]) + FLUSHED
            elif pool.dtype != q.dtype:
                stored_error[at] += FLUSHED
        arrays = (kv_cache(array, cache_layout, which, x) for array in (stored, stored_error))
        outputs.append(Bounded(*arrays, _scale(np.abs(stored))))
    return outputs[0], outputs[1], outputs[2]


def _attend(
    scores: Array, score_errors: Array, values: Array, weight_rounding: float
) -> tuple[Array, Array, float, float]:
    """Softmax of one query row: value (v,), its error, logsumexp, its error.

    A score that is off by d makes its weight off by the factor e^d. Weights enter the result as
    sum p v / sum p, so a row is off by at most sum p_j (d_j + mean d) |v_j|. `weight_rounding` is the
    rounding of the weights themselves where the product with the values takes bfloat16 operands.
    """
    peak = scores.max()
    weights = np.exp(scores - peak)
    total = weights.sum()
    p = weights / total
    # u |score| for the subtraction of the peak, some u for exp and for rescaling between key blocks.
    off = np.expm1(score_errors + 2 * U * (np.abs(scores) + abs(peak)) + 16 * U)
    rounded = off + weight_rounding
    value = p @ values
    terms = p @ np.abs(values)
    error = (p * (rounded + p @ rounded)) @ np.abs(values) + 2 * relative(len(p)) * terms + FLUSHED
    logsumexp = float(peak + np.log(total))
    logsumexp_error = float(p @ off) + relative(len(p)) + 4 * U * abs(logsumexp)
    return value, error, logsumexp, logsumexp_error


def _weight_rounding(q: Array, stored: Array) -> float:
    return BFLOAT16_HALF_ULP if q.dtype == ml_dtypes.bfloat16 and stored.dtype != np.float32 else 0.0


def mla_attention(
    q_latent: Array, q_rope: Array, kv: Array, layer: Array, scales: Array,
    pages: Array, query_start_loc: Array, seq_lens: Array, *, softmax_scale: float, keys: str = "all",
) -> tuple[Bounded, Bounded]:  # fmt: skip
    tokens, heads, rank = q_latent.shape
    layers, num_pages, page_size, _ = kv.shape
    rounding = _weight_rounding(q_latent, kv)
    softmax_scale = float(np.float32(softmax_scale))
    out, error = _empty(q_latent.shape)
    logsumexp, logsumexp_error = _empty((tokens, heads), -np.inf)
    scale = 0.0
    for s in range(len(seq_lens)):
        first, last = int(query_start_loc[s]), int(query_start_loc[s + 1])
        length, n = last - first, int(seq_lens[s])
        for t in range(first, last):
            visible = n - length + (t - first) + 1 if keys == "all" else n - length
            if visible <= 0:
                continue
            numbers = [int(pages[s, j // page_size]) for j in range(visible)]
            if not 0 <= int(layer) < layers or not all(0 <= page < num_pages for page in numbers):
                out[t], logsumexp[t] = np.nan, np.nan
                continue
            rows = f64(kv[int(layer), numbers, np.arange(visible) % page_size])
            if kv.dtype == ml_dtypes.float8_e4m3fn:
                rows = rows * np.where(np.arange(rows.shape[1]) < rank, f64(scales[0]), f64(scales[1]))
            scale = max(scale, _scale(np.abs(rows[:, :rank])))
            for h in range(heads):
                query = np.concatenate([f64(q_latent[t, h]), f64(q_rope[t, h])])
                scores = rows @ query * softmax_scale
                # Three roundings more than the sum: the two scales and the latent and RoPE parts' addition.
                terms = np.abs(rows) @ np.abs(query) * abs(softmax_scale)
                off = (relative(len(query)) + 3 * U) * terms
                out[t, h], error[t, h], logsumexp[t, h], logsumexp_error[t, h] = _attend(
                    scores, off, rows[:, :rank], rounding
                )
    return Bounded(out, error, scale), Bounded(
        logsumexp, logsumexp_error, max(1.0, _scale(np.abs(logsumexp)))
    )


def gqa_attention(
    q: Array, k_cache: Array, v_cache: Array, layer: Array, k_scale: Array, v_scale: Array,
    pages: Array, query_start_loc: Array, seq_lens: Array,
    *, cache_layout: str, softmax_scale: float, sliding_window: int | None = None,
) -> tuple[Bounded, Bounded]:  # fmt: skip
    keys, values = kv_rows(k_cache, cache_layout, "k"), kv_rows(v_cache, cache_layout, "v")
    layers, num_pages, page_size, kv_heads, width = keys.shape
    tokens, heads, _ = q.shape
    softmax_scale = float(np.float32(softmax_scale))
    divisors = [float(scale.reshape(())) for scale in (k_scale, v_scale)]
    k_factor, v_factor = divisors if keys.dtype == ml_dtypes.float8_e4m3fn else (1.0, 1.0)
    out, error = _empty((tokens, heads, values.shape[4]))
    logsumexp, logsumexp_error = _empty((tokens, heads), -np.inf)
    scale = 0.0
    for s in range(len(seq_lens)):
        first, last = int(query_start_loc[s]), int(query_start_loc[s + 1])
        for t in range(first, last):
            position = int(seq_lens[s]) - (last - first) + (t - first)
            oldest = 0 if sliding_window is None else max(0, position - sliding_window + 1)
            seen = np.arange(oldest, position + 1)
            if int(seq_lens[s]) > pages.shape[1] * page_size:
                out[t], logsumexp[t] = np.nan, np.nan
                continue
            if len(seen) == 0:
                continue
            numbers = [int(pages[s, j // page_size]) for j in seen]
            if not 0 <= int(layer) < layers or not all(0 <= page < num_pages for page in numbers):
                out[t], logsumexp[t] = np.nan, np.nan
                continue
            for h in range(heads):
                at = (int(layer), numbers, seen % page_size, h // (heads // kv_heads))
                k, v, query = f64(keys[at]) * k_factor, f64(values[at]) * v_factor, f64(q[t, h])
                scale = max(scale, _scale(np.abs(v)))
                # Three roundings more than the sum: the two scales and the sum's own.
                off = (relative(width) + 3 * U) * (np.abs(k) @ np.abs(query)) * abs(softmax_scale)
                out[t, h], error[t, h], logsumexp[t, h], logsumexp_error[t, h] = _attend(
                    k @ query * softmax_scale, off, v, 0.0
                )
    return Bounded(out, error, scale), Bounded(
        logsumexp, logsumexp_error, max(1.0, _scale(np.abs(logsumexp)))
    )


def mla_attention_expanded(
    q: Array, q_rope: Array, kv: Array, rows: Array, query_start_loc: Array,
    *, nope: int, v: int, softmax_scale: float, uniform_length: int | None = None,
) -> tuple[Bounded, Bounded]:  # fmt: skip
    del uniform_length
    tokens, heads, _ = q.shape
    rope = q_rope.shape[2]
    rounding = _weight_rounding(q, kv)
    softmax_scale = float(np.float32(softmax_scale))
    out, error = _empty((tokens, heads, v))
    logsumexp, logsumexp_error = _empty((tokens, heads), -np.inf)
    expanded = f64(kv).reshape(tokens, heads, nope + v)
    scale = 0.0
    for s in range(len(query_start_loc) - 1):
        first, last = int(query_start_loc[s]), int(query_start_loc[s + 1])
        for t in range(first, last):
            key_rope = f64(rows[first : t + 1, rows.shape[1] - rope :])
            for h in range(heads):
                keys = np.concatenate([expanded[first : t + 1, h, :nope], key_rope], axis=1)
                values = expanded[first : t + 1, h, nope:]
                query = np.concatenate([f64(q[t, h, :nope]), f64(q_rope[t, h])])
                scores = keys @ query * softmax_scale
                off = (relative(len(query)) + 3 * U) * (np.abs(keys) @ np.abs(query)) * abs(softmax_scale)
                out[t, h], error[t, h], logsumexp[t, h], logsumexp_error[t, h] = _attend(
                    scores, off, values, rounding
                )
                scale = max(scale, _scale(np.abs(values)))
    return Bounded(out, error, scale), Bounded(
        logsumexp, logsumexp_error, max(1.0, _scale(np.abs(logsumexp)))
    )
