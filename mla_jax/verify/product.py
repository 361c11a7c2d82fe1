"""The configuration product: every way to run a model's step, lowered on any host and proven one by one.

    architecture x phase x weights x cache dtype x page size x RoPE x kernels x what the library offers

The axes are the tables that dispatcher and loader read, so that a new backend, format or op is part of it or fails
by name. Of each configuration is shown, on descriptions of a small model and without running anything:

- every query and key is rotated once, NoPE's by the identity table, and every row stored once (`verify.check`);
- lowered for the platform with a library that offers all, some or no ops, exactly the custom calls are there that
  the library's record and the step's equations imply; with kernels="auto" exactly the lacking ops fall back, each
  with a warning, and with kernels="native" the step is refused with the name of a lacking op.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product
from typing import Any

import jax

from custom_calls import registry
from custom_calls.abi import PROJECT_ABI, contract_of, runtime_ffi_version
from custom_calls.architectures import ARCHITECTURES, Fp8Codes
from custom_calls.checks import CACHE_DTYPES, COMPUTE_DTYPES
from custom_calls.errors import KernelFallbackWarning, KernelUnavailableError
from custom_calls.op import OPS
from custom_calls.quantized_tensor import CONTAINERS, QuantizedTensor
from custom_calls.registry import KERNELS, Kernels, Library
from custom_calls.rope_contract import LAYOUT_CODE
from mla_jax.config import ModelConfig, RopeConfig, RouterConfig
from mla_jax.fp8_format import in_fp8_format
from mla_jax.models import FrozenModel, MLAForCausalLM, decode_step, forward, freeze, prefill
from mla_jax.parameters import abstract_parameters, parameter_table, with_storage
from mla_jax.quant import MXFP4, Storage
from mla_jax.rope import RopeTable
from mla_jax.verify import AttentionReport, VerificationError, check
from mla_jax.verify.lowering import Calls, calls_in, expected_calls
from mla_jax.verify.pairwise import pairwise
from mla_jax.verify.steps import int32, paged_arguments, paged_step

NOPE = "nope"
"""Layers without RoPE: the identity table in the same op."""


@dataclass(frozen=True)
class Phase:
    """A kind of step: which function, how many sequences and how many rows of them together."""

    function: Callable[..., Any]
    num_seqs: int
    num_tokens: int


PHASES = {
    "forward": Phase(forward, 2, 10),
    # So many rows a sequence that the expanded form is cheaper; the step has both, for sequences with a past.
    "prefill": Phase(prefill, 1, 32),
    "extend": Phase(prefill, 1, 4),
    "decode": Phase(decode_step, 3, 3),
    "mixed": Phase(prefill, 3, 20),
}
"""Prefill, extend and mixed are one function: whole prompts, a few tokens after cached ones, and several sequences
of any number of rows each in one step."""

STORAGES = {
    "mxfp4": MXFP4,
    "fp8_block": Storage("fp8_block", (24, 16)),
    "fp8_channel": Storage("fp8_channel", (1, 0)),
    "fp8_tensor": Storage("fp8_tensor", (0, 0)),
    "int4_group": Storage("int4_group", (1, 32), "bfloat16"),
}
"""One storage for each container of quantised weights."""

OFFERS = ("all", "some", "others", "none")
"""What a library serves: "some" is every second op, "others" the rest."""

OUTSIDE_MODELS = frozenset(
    {
        "mla_jax.flatten_quantize",
        "mla_jax.fused_qk_rmsnorm",
        "mla_jax.linear_fp8",
        "mla_jax.linear_mxfp4",
        "mla_jax.linear_shuffled",
        "mla_jax.linear_vnni",
        "mla_jax.mxfp4_quantize",
        "mla_jax.rmsnorm_quantize",
        "mla_jax.rope_append_kv",
    }
)
"""Ops that no step of a model with row-major weights contains; their own tests lower them for every platform."""

PAGE_SIZES = (1, 16)

_MAX_LEN = 64
_HEADS, _RANK, _WIDTH = 4, 32, 8


@dataclass(frozen=True)
class Configuration:
    """One point of the product; see `axes` for the values."""

    architecture: str
    phase: str
    weights: str
    cache_dtype: str
    page_size: int
    rope: str
    kernels: Kernels
    library: str

    @property
    def platform(self) -> str:
        return ARCHITECTURES[self.architecture].platform

    @property
    def codes(self) -> Fp8Codes:
        """Of FP8 weights."""
        return ARCHITECTURES[self.architecture].fp8

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


@dataclass(frozen=True)
class Proven:
    """What was shown of a configuration.

    Attributes:
      attentions: reports of its attention equations.
      native: ops that run natively; fallen_back: ops that run their reference because the library lacks them.
      refused: why kernels="native" cannot be lowered, or None.
    """

    attentions: tuple[AttentionReport, ...]
    native: frozenset[str]
    fallen_back: frozenset[str]
    refused: str | None


def axes() -> dict[str, tuple[Any, ...]]:
    """The values of every field of `Configuration`.

    Raises:
      VerificationError: a platform has a library and no architecture, or a container no storage here.
    """
    _same("platforms with a library", registry.LIBRARIES, {one.platform for one in ARCHITECTURES.values()})
    _same("containers", CONTAINERS, STORAGES)
    return {
        "architecture": tuple(ARCHITECTURES),
        "phase": tuple(PHASES),
        "weights": (*COMPUTE_DTYPES, *CONTAINERS),
        "cache_dtype": CACHE_DTYPES,
        "page_size": PAGE_SIZES,
        "rope": (*LAYOUT_CODE, NOPE),
        "kernels": KERNELS,
        "library": OFFERS,
    }


def _same(what: str, expected: Any, covered: Any) -> None:
    if set(expected) != set(covered):
        odd = ", ".join(sorted(set(expected) ^ set(covered)))
        raise VerificationError(f"verify: {what} and the tables of the configuration product differ: {odd}")


def configurations() -> Iterator[Configuration]:
    """All of them."""
    values = axes()
    for row in product(*values.values()):
        yield Configuration(**dict(zip(values, row, strict=True)))


def covering() -> list[Configuration]:
    """Few configurations in which every two values of two axes meet; those that must be refused twice, so that what
    is refused with kernels="native" is lowered with "auto" as well.
    """
    rows = [Configuration(**row) for row in pairwise(axes())]
    native = [one for one in rows if one.kernels == "native" and one.library != "all"]
    return list(dict.fromkeys([*rows, *(replace(one, kernels="auto") for one in native)]))


def canonical(one: Configuration) -> Configuration:
    """The first configuration that is lowered from the same program with the same library.

    An architecture only says which platform is lowered for and which codes FP8 weights have; `forward` has no pool;
    kernels="reference" asks no library.
    """
    quantised = STORAGES.get(one.weights)
    fp8 = quantised is not None and quantised.data_dtype.startswith("float8")
    same = (
        name
        for name, other in ARCHITECTURES.items()
        if other.platform == one.platform and (other.fp8 == one.codes or not fp8)
    )
    changes: dict[str, Any] = {"architecture": next(same)}
    if PHASES[one.phase].function is forward:
        changes |= {"cache_dtype": CACHE_DTYPES[0], "page_size": PAGE_SIZES[0]}
    if one.kernels == "reference":
        changes |= {"library": OFFERS[0]}
    return replace(one, **changes)


def declared_library(architecture: str, offer: str) -> Library:
    """A library as `registry.probe` would find it, without handlers: enough to lower with."""
    names = sorted(OPS)
    offered = {"all": names, "some": names[::2], "others": names[1::2], "none": []}[offer]
    platform = ARCHITECTURES[architecture].platform
    bare = Library(platform, "declared", frozenset(), "declared", {})
    # The preferred form of each op there.
    targets = frozenset(target for name in offered for target in next(iter(OPS[name].forms(bare))))
    abi = {
        "project_abi": PROJECT_ABI,
        "platform": platform,
        "ffi_api": runtime_ffi_version(),
        "architectures": (architecture,),
        "ops": dict(map(contract_of, sorted(targets))),
    }
    return Library(platform, "declared", targets, f"declared for {architecture}: {offer} of the ops", abi)


def prove(one: Configuration) -> Proven:
    """Proves one configuration.

    Raises:
      VerificationError: naming it and what is not so.
    """
    try:
        return _prove(one)
    except VerificationError as error:
        raise VerificationError(f"{one}: {error}") from error


def _prove(one: Configuration) -> Proven:
    traced, attentions = _traced(
        one.phase, one.weights, one.codes, one.cache_dtype, one.page_size, one.rope, one.kernels
    )
    _check_rotation(one, attentions)
    library = declared_library(one.architecture, one.library)
    expected = expected_calls(traced.jaxpr, library)
    refused = None
    with warnings.catch_warnings(record=True) as seen, registry.declared(library):
        warnings.simplefilter("always")
        try:
            text = traced.lower(lowering_platforms=(one.platform,)).as_text()
        except KernelUnavailableError as error:
            refused = str(error)
    if refused is None:
        _check_lowered(one, text, expected)
    else:
        _check_refusal(one, refused, expected)
    _check_warnings(one, seen, expected)
    return Proven(tuple(attentions), expected.native, expected.lacking, refused)


def _check_rotation(one: Configuration, attentions: list[AttentionReport]) -> None:
    layout = one.rope if one.rope in LAYOUT_CODE else "interleaved"
    table = "constants" if one.rope == NOPE else "model.rope_"
    for found in attentions:
        if found.layouts != {layout} or not all(source.startswith(table) for source in found.tables):
            raise VerificationError(
                f"expected {layout} rotation by {table!r}, got {sorted(found.layouts)} by {sorted(found.tables)}"
            )
    if PHASES[one.phase].function is forward:
        return
    layers = {found.layer for found in attentions if found.store_count}
    if layers != set(range(_config(one.weights, layout).num_hidden_layers)):
        raise VerificationError(f"expected attention to the pool in every layer, got layers {layers}")


def _check_lowered(one: Configuration, text: str, expected: Calls) -> None:
    if one.kernels == "native" and expected.lacking:
        raise VerificationError(f"kernels='native' was lowered without {', '.join(sorted(expected.lacking))}")
    found = calls_in(text)
    if found != expected.targets:
        raise VerificationError(
            f"expected custom calls of {sorted(expected.targets)}, got {sorted(found)} in the lowered text"
        )


def _check_refusal(one: Configuration, refused: str, expected: Calls) -> None:
    named = [op for op in expected.lacking if refused.startswith(f"{op} has no native kernel on platform ")]
    if one.kernels != "native" or not named or repr(one.platform) not in refused:
        raise VerificationError(f"refused, with {sorted(expected.lacking)} lacking: {refused}")


def _check_warnings(one: Configuration, seen: list[warnings.WarningMessage], expected: Calls) -> None:
    warned = sorted(str(each.message).partition(" falls back ")[0] for each in seen)
    wanted = sorted(expected.lacking) if one.kernels == "auto" else []
    if warned != wanted or not all(each.category is KernelFallbackWarning for each in seen):
        raise VerificationError(f"expected to be warned of {wanted}, got {warned}")


@lru_cache(maxsize=64)
def _traced(
    phase: str, weights: str, codes: Fp8Codes, cache_dtype: str, page_size: int, rope: str, kernels: Kernels
) -> tuple[Any, list[AttentionReport]]:
    """The step's trace, and the proof of its rotations and writes."""
    own = PHASES[phase]
    config = _config(weights, rope if rope in LAYOUT_CODE else "interleaved")
    step, arguments = _step(own, config, cache_dtype, page_size)
    jitted = jax.jit(_without_rope(step, config) if rope == NOPE else step)
    model = _model(config, weights, codes, kernels)
    return jitted.trace(model, *arguments), check(jitted, model, *arguments, strict=True)


def _step(
    phase: Phase, config: ModelConfig, cache_dtype: str, page_size: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if phase.function is forward:
        return forward, (int32(phase.num_seqs, phase.num_tokens // phase.num_seqs),)
    arguments = paged_arguments(
        config,
        num_seqs=phase.num_seqs,
        num_tokens=phase.num_tokens,
        max_len=_MAX_LEN,
        page_size=page_size,
        dtype=cache_dtype,
    )
    return paged_step(phase.function, phase.num_tokens), arguments


def _without_rope(step: Callable[..., Any], config: ModelConfig) -> Callable[..., Any]:
    """The same step of a model whose table is the identity."""

    def without(model: FrozenModel, *arguments: Any) -> Any:
        table = RopeTable.identity(config.rope.dim)
        return step(replace(model, rope_cos=table.cos, rope_sin=table.sin), *arguments)

    return without


def _model(config: ModelConfig, weights: str, codes: Fp8Codes, kernels: Kernels) -> FrozenModel:
    """Descriptions of a model's weights, as `mla_jax.load` holds them for an architecture with these codes."""
    table = parameter_table(config)
    if weights in STORAGES:
        table = with_storage(table, lambda info: STORAGES[weights])
    is_weight = lambda node: isinstance(node, QuantizedTensor)  # noqa: E731
    params = jax.eval_shape(
        lambda tree: jax.tree.map(lambda leaf: in_fp8_format(leaf, codes), tree, is_leaf=is_weight),
        abstract_parameters(table, config.dtype),
    )
    rope = RopeTable.abstract(config.rope, config.max_position_embeddings)
    return freeze(MLAForCausalLM(config, params, rope, kernels=kernels))


@lru_cache
def _config(weights: str, layout: Any) -> ModelConfig:
    """A model of one dense and one sparse layer, its dimensions the smallest that every storage divides."""
    return ModelConfig(
        model_type="deepseek_v3",
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        q_lora_rank=_RANK,
        kv_lora_rank=_RANK,
        qk_nope_head_dim=_WIDTH,
        qk_rope_head_dim=_WIDTH,
        v_head_dim=_WIDTH,
        intermediate_size=64,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        mlp_layer_types=("dense", "sparse"),
        router=RouterConfig("sigmoid", "noaux_tc", 2, 1, True, 2.5),
        rope=RopeConfig(theta=10000.0, dim=_WIDTH, layout=layout),
        rms_norm_eps=1e-6,
        latent_norm_eps=1e-6,
        max_position_embeddings=4 * _MAX_LEN,
        dtype=weights if weights in COMPUTE_DTYPES else "bfloat16",
    )
