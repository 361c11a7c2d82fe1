"""The configuration product: its tables, the covering part of it proven, and each planted fault named."""

import inspect
import random
import re
from dataclasses import replace
from typing import get_args

import jax
import pytest

from custom_calls import registry
from custom_calls.architectures import ARCHITECTURES
from custom_calls.checks import CACHE_DTYPES, COMPUTE_DTYPES
from custom_calls.op import OPS
from custom_calls.quantized_tensor import CONTAINERS
from custom_calls.registry import Choice, Library
from mla_jax.config import RopePairing
from mla_jax.fp8_format import FP8_FORMATS
from mla_jax.models import functions
from mla_jax.verify import VerificationError, product
from mla_jax.verify.lowering import expected_calls
from mla_jax.verify.product import Configuration, axes, canonical, configurations, covering, prove

DECODE = Configuration("gfx942", "decode", "fp8_block", "bfloat16", 16, "interleaved", "auto", "all")
ALL = list(configurations())


@pytest.fixture(autouse=True)
def fresh_traces():
    """Faults are planted in what traces are made of."""
    yield
    product._traced.cache_clear()


# ---- the tables ----


def test_the_axes_are_the_tables():
    found = axes()
    assert found["architecture"] == tuple(ARCHITECTURES)
    assert {ARCHITECTURES[name].platform for name in found["architecture"]} == set(registry.LIBRARIES)
    assert {one.fp8 for one in ARCHITECTURES.values()} == set(FP8_FORMATS) - {"auto"}
    assert found["weights"] == (*COMPUTE_DTYPES, *CONTAINERS)
    assert found["cache_dtype"] == CACHE_DTYPES
    assert found["rope"] == (*get_args(RopePairing), product.NOPE)
    assert found["kernels"] == get_args(registry.Kernels)
    assert len(ALL) == len(set(ALL)) == 5 * 5 * 7 * 3 * 2 * 3 * 3 * 4


def test_every_step_function_has_a_phase():
    public = {
        value
        for name, value in inspect.getmembers(functions, inspect.isfunction)
        if value.__module__ == functions.__name__ and not name.startswith("_")
    }
    assert {phase.function for phase in product.PHASES.values()} == public


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_every_op_is_in_some_step_or_said_not_to_be(kernels):
    used = set()
    for phase in product.PHASES:
        for weights in axes()["weights"]:
            traced, _ = product._traced(phase, weights, "e4m3fn", "bfloat16", 16, "half", "auto")
            offer = {"auto": "all", "reference": "none"}[kernels]
            found = expected_calls(traced.jaxpr, product.declared_library("x86-64", offer))
            used |= found.native | found.lacking
    assert used | product.OUTSIDE_MODELS == set(OPS)
    assert not used & product.OUTSIDE_MODELS


def test_a_platform_without_an_architecture_fails_by_name(monkeypatch):
    monkeypatch.setitem(registry.LIBRARIES, "tpu", "custom_calls._tpu")
    with pytest.raises(VerificationError, match="platforms with a library and the tables .* differ: tpu$"):
        axes()


def test_an_architecture_without_a_library_fails_by_name(monkeypatch):
    monkeypatch.delitem(registry.LIBRARIES, "cuda")
    with pytest.raises(VerificationError, match="differ: cuda$"):
        list(configurations())


def test_a_container_without_a_storage_fails_by_name(monkeypatch):
    monkeypatch.setattr(product, "CONTAINERS", (*CONTAINERS, "fp3"))
    with pytest.raises(VerificationError, match="containers and the tables .* differ: fp3$"):
        covering()


def test_storages_are_of_their_own_container():
    assert all(name == storage.container for name, storage in product.STORAGES.items())


def test_offers():
    gpu = Library("rocm", None, frozenset(), "none", {})
    every = {target for op in OPS.values() for target in next(iter(op.forms(gpu)))}
    got = {offer: product.declared_library("gfx950", offer) for offer in product.OFFERS}
    assert got["all"].targets == every and got["none"].targets == set()
    assert got["some"].targets | got["others"].targets == every
    served = [target for op in OPS.values() for target in next(iter(op.forms(gpu)))]
    shared = {
        target for target in served if served.count(target) > 1
    }  # ops that are served by another's kernels
    assert got["some"].targets & got["others"].targets <= shared
    record = got["some"].abi
    assert (record["platform"], record["architectures"]) == ("rocm", ("gfx950",))
    assert {f"{op}.v{contract}" for op, contract in record["ops"].items()} == got["some"].targets


# ---- the proof ----


def test_every_pair_of_values_is_in_the_covering_part():
    rows = covering()
    assert len(rows) == len(set(rows)) <= 60
    # A refused configuration is lowered by nobody: of the others alone are the pairs counted.
    lowered = [row for row in rows if row.kernels != "native" or row.library == "all"]
    values = axes()
    for one in values:
        for other in values:
            pairs = {(getattr(row, one), getattr(row, other)) for row in lowered}
            want = {(a, b) for a in values[one] for b in values[other] if one != other or a == b}
            want -= {(a, b) for a, b in want if {one, other} == {"kernels", "library"}}
            assert want - {pair for pair in want if "native" in pair} <= pairs, (one, other)


@pytest.mark.parametrize("one", covering(), ids=str)
@pytest.mark.bug("sgl-project/sglang#24148", "verifier")
@pytest.mark.bug("sgl-project/sglang#18242", "verifier")
@pytest.mark.bug("sgl-project/sglang#27972", "verifier")
@pytest.mark.bug("vllm-project/vllm#56314", "verifier")
def test_the_covering_part_is_proven(one):
    found = prove(one)
    for attention in found.attentions:
        assert attention.rope_count == attention.key_rope_count == {1}
        assert attention.store_count in ({1}, frozenset())
    assert (found.refused is None) == (one.kernels != "native" or not found.fallen_back)
    if one.kernels == "reference":
        assert not found.native and not found.fallen_back
    if one.library == "none":
        # What GPUs run as XLA's own computation needs no library.
        bare = Library(one.platform, None, frozenset(), "none", {})
        assert all(() in OPS[op].forms(bare) for op in found.native)
    if one.library == "all":
        assert not found.fallen_back


@pytest.mark.parametrize("phase", list(product.PHASES))
def test_what_a_phase_contains(phase):
    found = prove(replace(DECODE, phase=phase))
    ops = {one.op.removeprefix("mla_jax.") for one in found.attentions}
    pool, own = {"mla_attention"}, {"mla_attention_expanded"}
    assert ops == {"forward": own, "prefill": pool | own}.get(phase, pool)
    layers = [one.layer for one in found.attentions if one.store_count]
    assert set(layers) == (set() if phase == "forward" else {0, 1})


def test_gpu_codes_are_the_architectures():
    for architecture, dtype in (("gfx942", "f8E4M3FNUZ"), ("gfx950", "f8E4M3FN"), ("sm_90", "f8E4M3FN")):
        one = replace(DECODE, architecture=architecture)
        traced, _ = product._traced(
            one.phase, one.weights, one.codes, one.cache_dtype, one.page_size, one.rope, one.kernels
        )
        text = traced.lower(lowering_platforms=("cpu",)).as_text()
        assert set(re.findall(r"f8E4M3\w+", text)) == {dtype}


@pytest.mark.parametrize("axis", ["phase", "weights", "cache_dtype", "page_size", "rope", "kernels"])
def test_every_value_of_an_axis_is_another_program(axis):
    programs = set()
    for value in axes()[axis]:
        one = replace(DECODE, **{axis: value})
        traced, _ = product._traced(
            one.phase, one.weights, one.codes, one.cache_dtype, one.page_size, one.rope, one.kernels
        )
        programs.add(str(traced.jaxpr))
    assert len(programs) == len(axes()[axis])


def test_canonical_configurations_are_few_and_their_own():
    distinct = {canonical(one) for one in ALL}
    assert all(canonical(one) == one for one in distinct)
    assert len(distinct) == 16200


def test_canonical_configurations_are_the_same_program(rng):
    def text(one):
        traced, _ = product._traced(
            one.phase, one.weights, one.codes, one.cache_dtype, one.page_size, one.rope, one.kernels
        )
        with registry.declared(product.declared_library(one.architecture, one.library)):
            return traced.lower(lowering_platforms=(one.platform,)).as_text()

    others = [one for one in ALL if canonical(one) != one and one.library == "all"]
    assert {one.architecture for one in others} >= {"aarch64", "gfx950"}
    for one in random.Random(int(rng.integers(1 << 30))).sample(others, 6):
        assert text(one) == text(canonical(one)), one


# ---- planted faults ----


def fails(one, message):
    with pytest.raises(VerificationError, match=message) as raised:
        prove(one)
    assert str(raised.value).startswith(f"{one}: ")


def changed_choice(monkeypatch, change):
    """A dispatcher that decides otherwise: change(op, right decision) -> decision."""
    choose = registry.choose

    def wrong(op, targets, platform, kernels, warn=True, adapted=()):
        return change(
            op, targets, lambda kernels=kernels: choose(op, targets, platform, kernels, warn, adapted)
        )

    monkeypatch.setattr(registry, "choose", wrong)


def test_a_kernel_that_the_library_lacks(monkeypatch):
    changed_choice(monkeypatch, lambda op, targets, right: Choice("native", "it imports", targets))
    fails(replace(DECODE, library="none"), "expected custom calls of .* got .*mla_jax.mla_attention.v2")


def test_a_kernel_that_is_not_used(monkeypatch):
    def change(op, targets, right):
        return right("reference") if op == "mla_jax.mla_attention" else right()

    changed_choice(monkeypatch, change)
    fails(DECODE, "expected custom calls of .*'mla_jax.mla_attention.v2'.* got ")


def test_a_silent_fallback(monkeypatch):
    monkeypatch.setattr(registry, "_warn_once", lambda *_: None)
    fails(replace(DECODE, library="some"), r"expected to be warned of \['mla_jax.+\], got \[\]")


def test_a_warning_for_an_op_that_is_there(monkeypatch):
    def change(op, targets, right):
        registry._warn_once(op, "rocm", "just so")
        return right()

    changed_choice(monkeypatch, change)
    fails(DECODE, r"expected to be warned of \[\], got \['mla_jax")


def test_native_that_falls_back(monkeypatch):
    changed_choice(monkeypatch, lambda op, targets, right: right("reference"))
    fails(
        replace(DECODE, kernels="native", library="none"),
        "kernels='native' was lowered without mla_jax.absorb",
    )


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (DECODE, "mla_jax.rmsnorm has no native kernel on platform 'rocm': it is Sunday"),
        (
            replace(DECODE, library="none"),
            "mla_jax.rmsnorm has no native kernel on platform 'rocm': auto had better fall back",
        ),
        (replace(DECODE, kernels="native", library="some"), "no kernel on platform 'rocm'"),
        (
            replace(DECODE, kernels="native", library="none"),
            "mla_jax.rmsnorm has no native kernel on platform 'cpu'",
        ),
    ],
    ids=["complete", "auto", "unnamed", "another-platform"],
)
def test_a_refusal_that_is_not_right(monkeypatch, one, text):
    def change(op, targets, right):
        raise registry.KernelUnavailableError(text)

    changed_choice(monkeypatch, change)
    fails(one, "refused, with .* lacking: ")


def test_nope_with_a_real_table(monkeypatch):
    monkeypatch.setattr(product, "_without_rope", lambda step, config: step)
    fails(replace(DECODE, rope="nope"), "expected interleaved rotation by 'constants', got .*model.rope_cos")


def test_rope_with_another_layout(monkeypatch):
    config = product._config
    monkeypatch.setattr(product, "_config", lambda weights, layout: config(weights, "interleaved"))
    fails(replace(DECODE, rope="half"), r"expected half rotation by 'model.rope_', got \['interleaved'\]")


def test_rope_with_the_identity(monkeypatch):
    step = product._step
    monkeypatch.setattr(
        product,
        "_step",
        lambda phase, config, *rest: (
            product._without_rope(step(phase, config, *rest)[0], config),
            step(phase, config, *rest)[1],
        ),
    )
    fails(DECODE, "expected interleaved rotation by 'model.rope_', got .*constants")


def test_a_step_without_a_pool_is_no_decode(monkeypatch):
    phase = product.PHASES["forward"]
    monkeypatch.setattr(product, "_step", lambda *_: (phase.function, (product.int32(2, 5),)))
    fails(DECODE, "expected attention to the pool in every layer, got layers set()")


def test_a_step_that_rotates_twice(monkeypatch):
    from mla_jax import latent

    op = latent._append_op

    def twice(q, *rest, **static):
        q_rope, _ = op(q, *rest, **static)
        width = q_rope.shape[-1]
        return op(jax.lax.dynamic_update_slice_in_dim(q, q_rope, q.shape[-1] - width, 2), *rest, **static)

    monkeypatch.setattr(latent, "_append_op", twice)
    fails(DECODE, "layer 0 mla_attention: queries are rotated once or twice")
