"""The calls of `mla-jax selftest`: every op at the widths of DeepSeek-V2-Lite, with a decode step's rows and more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.absorb import absorb
from custom_calls.expert_mlp import expert_mlp
from custom_calls.flatten_quantize import flatten_quantize
from custom_calls.fused_qk_rmsnorm import fused_qk_rmsnorm
from custom_calls.kv_cache_layout import KVCacheLayout, KVCacheSizes, kv_cache_shapes
from custom_calls.linear import linear
from custom_calls.linear_fp8 import GROUP, linear_fp8
from custom_calls.linear_mxfp4 import linear_mxfp4
from custom_calls.mla_attention import mla_attention
from custom_calls.mla_attention_expanded import mla_attention_expanded
from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import QuantizedTensor, dequantize, shuffle, to_fnuz, to_vnni
from custom_calls.registry import Kernels
from custom_calls.rmsnorm import rmsnorm, rmsnorm_residual
from custom_calls.rmsnorm_quantize import rmsnorm_quantize
from custom_calls.rope_append_kv import rope_append_kv
from custom_calls.rope_append_latent import rope_append_latent, rope_latent_rows
from mla_jax.quant import fp8_block, fp8_channel

Arrays = tuple[jax.Array, ...]

HIDDEN, HEADS, RANK, NOPE, ROPE, V = 2048, 16, 512, 128, 64, 128
EXPERTS, WIDTH, CHOSEN = 8, 1408, 2
HEAD_COUNTS = (8, 12, 16, 20, 32, 64, 128)
PAGES_OF_POOL = (1, 16, 64, 128, 1, 16, 64)
PAGES_OF_FP8_POOL = (16, 64, 128, 1, 16, 64, 128)
INT4_GROUP = 32
PAGE = 64
POSITIONS = 4096
EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes:
      op: the primitive's name.
      what: sizes and types, for people.
      call: (arguments, kernels) -> every result, quantised ones as their values.
      arguments: arrays (or `QuantizedTensor`s) by name.
      updated: results by the argument that they update in place: result index by name.
      coded: what results are codes of, by index: see `mla_jax.selftest.BOUNDS`.
    """

    op: str
    what: str
    call: Callable[..., Arrays]
    arguments: Mapping[str, Any]
    updated: Mapping[str, int] = field(default_factory=dict)
    coded: Mapping[int, str] = field(default_factory=dict)

    def run(self, arguments: Mapping[str, Any], kernels: Kernels) -> Arrays:
        """The call with these arguments, in the case's own order: JAX hands a dict back sorted."""
        return self.call({name: arguments[name] for name in self.arguments}, kernels)


def cases() -> list[Case]:
    """Every op of the library at least once."""
    make = _Maker(np.random.default_rng(0))
    return [
        *_norms(make),
        *_rope(make),
        *_quantisers(make),
        *_products(make),
        *_experts(make),
        *_attention(make),
    ]


@dataclass(frozen=True)
class _Maker:
    rng: np.random.Generator

    def normal(self, *shape: int, dtype: str = "bfloat16", scale: float = 1.0) -> jax.Array:
        return jnp.asarray(self.rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)

    def weight(self, *shape: int, dtype: str = "bfloat16") -> jax.Array:
        return self.normal(*shape, dtype=dtype, scale=shape[-1] ** -0.5)


def _norms(make: _Maker) -> list[Case]:
    found = []
    for rows, dtype in ((8, "bfloat16"), (3, "float32")):
        what = f"{rows} x {HIDDEN}, {dtype}"
        x, residual = make.normal(rows, HIDDEN, dtype=dtype), make.normal(rows, HIDDEN, dtype=dtype)
        weight = make.normal(HIDDEN, dtype=dtype)

        def norm(a: Any, kernels: Kernels) -> Arrays:
            return (rmsnorm(a["x"], a["weight"], eps=EPS, kernels=kernels),)

        def norm_residual(a: Any, kernels: Kernels) -> Arrays:
            return rmsnorm_residual(a["x"], a["residual"], a["weight"], eps=EPS, kernels=kernels)

        def both(a: Any, kernels: Kernels) -> Arrays:
            return fused_qk_rmsnorm(a["q"], a["kv"], a["q_w"], a["kv_w"], q_eps=EPS, kernels=kernels)

        found += [
            Case("mla_jax.rmsnorm", what, norm, {"x": x, "weight": weight}),
            Case(
                "mla_jax.rmsnorm_residual",
                what,
                norm_residual,
                {"x": x, "residual": residual, "weight": weight},
            ),
            Case(
                "mla_jax.fused_qk_rmsnorm",
                f"{rows} x (1536, {RANK} + {ROPE}), {dtype}",
                both,
                {
                    "q": make.normal(rows, 1536, dtype=dtype),
                    "kv": make.normal(rows, RANK + ROPE, dtype=dtype),
                    "q_w": make.normal(1536, dtype=dtype),
                    "kv_w": make.normal(RANK, dtype=dtype),
                },
            ),
        ]
    return found


def _rope(make: _Maker) -> list[Case]:
    angles = np.arange(POSITIONS)[:, None] * 10000.0 ** (-np.arange(0, ROPE, 2) / ROPE)
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    found = []
    for rows, pool_type in ((8, "bfloat16"), (40, "float8_e4m3fn")):
        pages = 4
        slots = make.rng.permutation(pages * PAGE)[:rows].astype(np.int32)
        slots[-1] = -1
        arguments = {
            "q": make.normal(rows, HEADS, NOPE + ROPE),
            "kv_a": make.normal(rows, RANK + ROPE),
            "weight": make.normal(RANK),
            "cos": cos,
            "sin": sin,
            "positions": jnp.asarray(make.rng.integers(0, POSITIONS, rows), jnp.int32),
            "slots": jnp.asarray(slots),
            "pool": jnp.zeros((2, pages, PAGE, RANK + ROPE), pool_type),
            "layer": jnp.int32(1),
            "scales": jnp.asarray([0.5, 0.25], jnp.float32),
        }

        def append(a: Any, kernels: Kernels) -> Arrays:
            return rope_append_latent(
                *a.values(), eps=EPS, layout="interleaved", q_offset=NOPE, kernels=kernels
            )

        found.append(
            Case(
                "mla_jax.rope_append_latent",
                f"{rows} tokens, {HEADS} heads, {pool_type} pool",
                append,
                arguments,
                {"pool": 1},
                {1: pool_type},
            )
        )
        names = ("q", "kv_a", "weight", "cos", "sin", "positions")

        def rotate(a: Any, kernels: Kernels) -> Arrays:
            return rope_latent_rows(*a.values(), eps=EPS, layout="half", q_offset=NOPE, kernels=kernels)

        found.append(
            Case(
                "mla_jax.rope_latent_rows",
                f"{rows} tokens, {HEADS} heads, half layout",
                rotate,
                {name: arguments[name] for name in names},
            )
        )
    layouts: tuple[tuple[KVCacheLayout, str], ...] = (("flash", "bfloat16"), ("split_kv", "float8_e4m3fn"))
    return found + [_append_kv(make, cos, sin, layout, dtype) for layout, dtype in layouts]


def _append_kv(make: _Maker, cos: jax.Array, sin: jax.Array, cache_layout: KVCacheLayout, dtype: str) -> Case:
    rows, q_heads, kv_heads, width, pages = 8, 16, 4, 128, 4
    shapes = kv_cache_shapes(KVCacheSizes(2, pages, PAGE, kv_heads, width, width), dtype, cache_layout)
    arguments = {
        "q": make.normal(rows, q_heads, width),
        "k": make.normal(rows, kv_heads, width),
        "v": make.normal(rows, kv_heads, width),
        "cos": cos,
        "sin": sin,
        "positions": jnp.asarray(make.rng.integers(0, POSITIONS, rows), jnp.int32),
        "slots": jnp.asarray(make.rng.permutation(pages * PAGE)[:rows], jnp.int32),
        "k_cache": jnp.zeros(shapes[0], dtype),
        "v_cache": jnp.zeros(shapes[1], dtype),
        "layer": jnp.int32(1),
        "k_scale": jnp.float32(0.5),
        "v_scale": jnp.float32(0.25),
    }

    def append(a: Any, kernels: Kernels) -> Arrays:
        return rope_append_kv(*a.values(), layout="half", cache_layout=cache_layout, kernels=kernels)

    what = f"{rows} tokens, {q_heads} and {kv_heads} heads, {cache_layout}, {dtype}"
    updated = {"k_cache": 1, "v_cache": 2}
    return Case("mla_jax.rope_append_kv", what, append, arguments, updated, {1: dtype, 2: dtype})


def _quantisers(make: _Maker) -> list[Case]:
    x = make.normal(8, HIDDEN)
    heads = make.normal(8, HEADS, V)
    weight = make.normal(HIDDEN)

    def quantise(a: Any, kernels: Kernels) -> Arrays:
        return _parts(mxfp4_quantize(a["x"], kernels=kernels))

    found = [
        Case("mla_jax.mxfp4_quantize", f"8 x {HIDDEN}", quantise, {"x": x}, coded={0: "exact", 1: "exact"})
    ]
    for form, group in (("mxfp4", 32), ("fp8", 128)):
        how: dict[str, Any] = {"format": form, "group_size": group, "scale_layout": "row_major"}

        def flatten(a: Any, kernels: Kernels, how: dict[str, Any] = how) -> Arrays:
            return _parts(flatten_quantize(a["x"], **how, kernels=kernels))

        def normed(a: Any, kernels: Kernels, how: dict[str, Any] = how) -> Arrays:
            found = rmsnorm_quantize(a["x"], a["weight"], eps=EPS, **how, kernels=kernels)
            return (dequantize(found.quantized),)

        found += [
            Case(
                "mla_jax.flatten_quantize",
                f"8 x {HEADS} x {V}, {form}",
                flatten,
                {"x": heads},
                # XLA's division on a GPU is not correctly rounded, which FP8 codes may show.
                coded={0: "exact", 1: "exact"} if form == "mxfp4" else {0: "fp8"},
            ),
            Case(
                "mla_jax.rmsnorm_quantize",
                f"8 x {HIDDEN}, {form}",
                normed,
                {"x": x, "weight": weight},
                coded={0: form},
            ),
        ]
    return found


def _parts(tensor: QuantizedTensor) -> Arrays:
    return tensor.data, tensor.scale


def _quantised(values: jax.Array) -> dict[str, QuantizedTensor]:
    return {
        "mxfp4": mxfp4_quantize(values, kernels="reference"),
        "fp8_block": fp8_block(values),
        "fp8_block_fnuz": to_fnuz(fp8_block(values)),
        "fp8_channel": fp8_channel(values),
        "int4_group": _int4_group(values),
    }


def _int4_group(values: jax.Array) -> QuantizedTensor:
    """Values (..., K), no group all zeros: scale = largest magnitude of 32 / 7 in bfloat16, codes -7 to 7, plus 8."""
    groups = np.asarray(values, np.float32).reshape(*values.shape[:-1], -1, INT4_GROUP)
    scale = jnp.asarray(np.abs(groups).max(-1) / 7).astype(jnp.bfloat16)
    codes = np.rint(groups / np.asarray(scale, np.float32)[..., None]).clip(-7, 7).astype(np.int8) + 8
    pairs = codes.astype(np.uint8).reshape(*values.shape[:-1], -1, 2)
    return QuantizedTensor(
        jnp.asarray(pairs[..., 0] | pairs[..., 1] << 4), scale, "int4_group", (1, INT4_GROUP)
    )


def _products(make: _Maker) -> list[Case]:
    def product(a: Any, kernels: Kernels) -> Arrays:
        return (linear(a["x"], a["weight"], kernels=kernels),)

    def both_mxfp4(a: Any, kernels: Kernels) -> Arrays:
        return (linear_mxfp4(a["x"], a["weight"], kernels=kernels),)

    def both_fp8(a: Any, kernels: Kernels) -> Arrays:
        return (linear_fp8(a["x"], a["weight"], kernels=kernels),)

    plain, outputs = make.weight(1408, HIDDEN), 1408
    quantised = _quantised(plain)
    found = []
    for rows in (1, 8, 64):
        x = make.normal(rows, HIDDEN)
        found.append(
            Case(
                "mla_jax.linear",
                f"{rows} x {HIDDEN} x {outputs}, bfloat16",
                product,
                {"x": x, "weight": plain},
            )
        )
        found += [
            Case(
                "mla_jax.linear_quantized",
                f"{rows} x {HIDDEN} x {outputs}, {name}",
                product,
                {"x": x, "weight": weight},
            )
            for name, weight in quantised.items()
        ]
        found += [
            Case(op, f"{rows} x {HIDDEN} x {outputs}", product, {"x": x, "weight": weight})
            for op, weight in (
                ("mla_jax.linear_shuffled", shuffle(quantised["mxfp4"])),
                ("mla_jax.linear_vnni", to_vnni(quantised["mxfp4"])),
            )
        ]
        found.append(
            Case(
                "mla_jax.linear_mxfp4",
                f"{rows} x {HIDDEN} x {outputs}",
                both_mxfp4,
                {"x": mxfp4_quantize(x, kernels="reference"), "weight": quantised["mxfp4"]},
            )
        )
        groups = flatten_quantize(
            x[:, None, :], format="fp8", group_size=GROUP, scale_layout="row_major", kernels="reference"
        )
        found += [
            Case(
                "mla_jax.linear_fp8",
                f"{rows} x {HIDDEN} x {outputs}, {name}",
                both_fp8,
                {"x": groups, "weight": quantised[name]},
            )
            for name in ("fp8_block", "fp8_block_fnuz")
        ]
    kv_b = make.weight(HEADS * (NOPE + V), RANK)
    into = {"contract": "rows", "row_offset": 0, "rows": NOPE}
    out = {"contract": "columns", "row_offset": NOPE, "rows": V}
    stored: dict[str, Any] = {"bfloat16": kv_b.reshape(HEADS, NOPE + V, RANK), **_quantised(kv_b)}
    del stored["fp8_block"]
    for rows in (8, 64):
        for name, weight in stored.items():
            op = "mla_jax.absorb" if name == "bfloat16" else "mla_jax.absorb_quantized"
            for how, width in ((into, NOPE), (out, RANK)):
                found.append(
                    Case(
                        op,
                        f"{rows} x {HEADS} x {width}, {name}",
                        partial(_absorb, how),
                        {"x": make.normal(rows, HEADS, width), "weight": weight},
                    )
                )
    return found


def _absorb(how: dict[str, Any], a: Any, kernels: Kernels) -> Arrays:
    return (absorb(a["x"], a["weight"], **how, kernels=kernels),)


def _experts(make: _Maker) -> list[Case]:
    gate_up, down = make.weight(EXPERTS, 2 * WIDTH, HIDDEN), make.weight(EXPERTS, HIDDEN, WIDTH)
    stored = {
        "bfloat16": (gate_up, down),
        "mxfp4": (mxfp4_quantize(gate_up, kernels="reference"), mxfp4_quantize(down, kernels="reference")),
        "fp8_block": (jax.vmap(fp8_block)(gate_up), jax.vmap(fp8_block)(down)),
        "int4_group": (_int4_group(gate_up), _int4_group(down)),
    }

    def run(a: Any, kernels: Kernels) -> Arrays:
        return (expert_mlp(a["x"], a["gate_up"], a["down"], a["ids"], a["weights"], kernels=kernels),)

    found = []
    for rows in (1, 16):
        ids = np.stack([make.rng.permutation(EXPERTS)[:CHOSEN] for _ in range(rows)])
        for name, (first, second) in stored.items():
            arguments = {
                "x": make.normal(rows, HIDDEN),
                "gate_up": first,
                "down": second,
                "ids": jnp.asarray(ids, jnp.int32),
                "weights": jnp.asarray(make.rng.random((rows, CHOSEN)), jnp.float32),
            }
            op = "mla_jax.expert_mlp" if name == "bfloat16" else "mla_jax.expert_mlp_quantized"
            found.append(
                Case(op, f"{rows} tokens, {CHOSEN} of {EXPERTS} experts of {WIDTH}, {name}", run, arguments)
            )
    return found


def _attention(make: _Maker) -> list[Case]:
    # Every number of heads and every page size with both types of the pool: decode steps, then chunks of a prompt.
    decode, chunks = ((700, 64, 1, 333), (1, 1, 1, 1)), ((200, 90), (40, 7))
    found = []
    for heads, page, pool_type, (lengths, new) in (
        *((heads, page, "bfloat16", decode) for heads, page in zip(HEAD_COUNTS, PAGES_OF_POOL, strict=True)),
        *(
            (heads, page, "float8_e4m3fn", decode)
            for heads, page in zip(HEAD_COUNTS, PAGES_OF_FP8_POOL, strict=True)
        ),
        (HEADS, 64, "bfloat16", chunks),
        (HEADS, 16, "float8_e4m3fn", chunks),
    ):
        width = -(-max(lengths) // page)
        pages = make.rng.permutation(len(lengths) * width).reshape(len(lengths), width)
        rows = sum(new)
        arguments = {
            "q_latent": make.normal(rows, heads, RANK),
            "q_rope": make.normal(rows, heads, ROPE),
            "kv": make.normal(2, pages.size, page, RANK + ROPE, dtype=pool_type),
            "layer": jnp.int32(1),
            "scales": jnp.asarray([0.5, 0.25], jnp.float32),
            "pages": jnp.asarray(pages, jnp.int32),
            "starts": jnp.asarray(np.cumsum([0, *new]), jnp.int32),
            "lengths": jnp.asarray(lengths, jnp.int32),
        }

        def paged(a: Any, kernels: Kernels) -> Arrays:
            return mla_attention(*a.values(), softmax_scale=(NOPE + ROPE) ** -0.5, kernels=kernels)

        what = f"{rows} rows, up to {max(lengths)} keys in pages of {page}, {heads} heads, {pool_type}"
        found.append(Case("mla_jax.mla_attention", what, paged, arguments))

    def expanded(a: Any, kernels: Kernels) -> Arrays:
        return mla_attention_expanded(
            *a.values(), nope=NOPE, v=V, softmax_scale=(NOPE + ROPE) ** -0.5, kernels=kernels
        )

    rows = 200
    arguments = {
        "q": make.normal(rows, HEADS, NOPE + ROPE),
        "q_rope": make.normal(rows, HEADS, ROPE),
        "kv": make.normal(rows, HEADS * (NOPE + V)),
        "rows": make.normal(rows, RANK + ROPE),
        "starts": jnp.asarray([0, 130, rows], jnp.int32),
    }
    what = f"{rows} rows of 2 sequences, {HEADS} heads, bfloat16"
    return [*found, Case("mla_jax.mla_attention_expanded", what, expanded, arguments)]
