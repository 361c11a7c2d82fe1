"""Op: transformations, caching and lowering of the machinery itself, on ops made for the purpose."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import custom_calls
from custom_calls import registry
from custom_calls.abi import contract_of
from custom_calls.architectures import PLATFORMS
from custom_calls.errors import (
    KernelFallbackWarning,
    KernelUnavailableError,
    ShapeError,
    UnsupportedTransformError,
)
from custom_calls.linear import linear
from custom_calls.op import OPS, Native, Op, map_rows
from custom_calls.registry import Library
from custom_calls.rmsnorm import rmsnorm

MakeOp = Callable[..., Op]


@pytest.fixture
def make_op() -> Iterator[MakeOp]:
    """Makes ops y = scale * x, x + 1 that are forgotten after the test."""
    before = dict(OPS)

    def make(name: str, **changes: Any) -> Op:
        def abstract(x: Any, *, scale: float) -> list[jax.ShapeDtypeStruct]:
            del scale
            return [jax.ShapeDtypeStruct(x.shape, x.dtype)] * 2

        def reference(x: Any, *, scale: float) -> Any:
            traced.append(scale)
            return x * np.float32(scale), x + np.float32(1)

        def native(x: Any, *, scale: float) -> Any:
            return x * np.float32(-scale), x

        settings = {
            "targets": ("missing.v1",),
            "abstract": abstract,
            "reference": reference,
            "native": native,
        }
        op = Op(name, **{**settings, **changes})
        op.traced = traced = []  # type: ignore[attr-defined]
        return op

    yield make
    for name in set(OPS) - set(before):
        del OPS[name]


def test_every_module_registers_its_ops() -> None:
    assert set(OPS) == {
        "mla_jax.absorb",
        "mla_jax.absorb_quantized",
        "mla_jax.expert_mlp",
        "mla_jax.expert_mlp_quantized",
        "mla_jax.flatten_quantize",
        "mla_jax.fused_qk_rmsnorm",
        "mla_jax.linear",
        "mla_jax.linear_fp8",
        "mla_jax.linear_mxfp4",
        "mla_jax.linear_quantized",
        "mla_jax.linear_shuffled",
        "mla_jax.linear_vnni",
        "mla_jax.mla_attention",
        "mla_jax.mla_attention_expanded",
        "mla_jax.mxfp4_quantize",
        "mla_jax.rmsnorm",
        "mla_jax.rmsnorm_quantize",
        "mla_jax.rmsnorm_residual",
        "mla_jax.rope_append_kv",
        "mla_jax.rope_append_latent",
        "mla_jax.rope_latent_rows",
    }
    assert all(hasattr(custom_calls, name) for name in custom_calls.__all__)
    targets = [target for op in OPS.values() for contract in op.natives for target in contract]
    # On a CPU rows in MXFP4 and FP8 are decoded, and shuffled weights brought into rows, for the kernels of plain ones.
    shared = {target for target in targets if targets.count(target) > 1}
    assert shared == {"mla_jax.linear_quantized.v2", "mla_jax.linear_quantized_bias.v2"}
    for name, contract in map(contract_of, targets):
        assert name.startswith("mla_jax.") and contract >= 1


def test_results_of_every_form(make_op: MakeOp) -> None:
    op = make_op("test.forms")
    x = jnp.arange(3.0)
    for run in (op, jax.jit(op, static_argnames=("kernels", "scale"))):
        y, z = run(x, kernels="reference", scale=2.0)
        assert np.array_equal(y, [0, 2, 4])
        assert np.array_equal(z, [1, 2, 3])


def test_eager_calls_compile_once(make_op: MakeOp) -> None:
    op = make_op("test.cached")
    for _ in range(3):
        op(jnp.ones(5), kernels="reference", scale=2.0)
    assert op.traced == [2.0]  # type: ignore[attr-defined]
    op(jnp.ones(5), kernels="reference", scale=3.0)
    assert op.traced == [2.0, 3.0]  # type: ignore[attr-defined]


def test_a_complete_library_is_used_and_an_incomplete_one_is_not(
    make_op: MakeOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = make_op("test.choice", targets=("a.v1", "b.v1"))
    monkeypatch.setattr(registry, "_warned", set())

    def offer(*targets: str) -> None:
        found = registry.Library("cpu", "fake", frozenset(targets), "fake", {})
        monkeypatch.setattr(registry, "library", lambda _: found)

    offer("a.v1")
    with pytest.warns(KernelFallbackWarning, match="test.choice falls back .* fake has no target b.v1"):
        y, _ = jax.jit(lambda x: op(x, kernels="auto", scale=2.0))(jnp.ones(2))
    assert np.array_equal(y, [2, 2])
    offer("a.v1", "b.v1")
    y, _ = jax.jit(lambda x: op(x, kernels="auto", scale=2.0))(jnp.ones(2))
    assert np.array_equal(y, [-2, -2])


def test_the_choice_is_made_for_the_platform_that_is_lowered_for(
    make_op: MakeOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def library(platform: str) -> registry.Library:
        asked.append(platform)
        return registry.Library(platform, "fake", frozenset({"missing.v1"}), "fake", {})

    monkeypatch.setattr(registry, "library", library)
    op = make_op("test.platforms")
    traced = jax.jit(lambda x: op(x, kernels="auto", scale=2.0)).trace(jnp.ones(2))
    assert asked == [], "tracing must not decide"
    traced.lower(lowering_platforms=PLATFORMS)
    assert set(asked) == set(PLATFORMS)


def test_a_form_for_gpus_may_ask_what_work_is_spread_over(make_op: MakeOp) -> None:
    def spread(x: Any, *, scale: float, processors: int) -> Any:
        return x * np.float32(scale), x + np.float32(processors)

    op = make_op("mla_jax.test_spread", gpu=Native(("there.v1",), spread, spread=True))
    call = jax.jit(lambda x: op(x, kernels="native", scale=3.0))
    for said, processors in (({"processors": 256}, 256.0), ({}, 132.0)):
        library = Library("cpu", "declared", frozenset({"there.v1"}), "", {"emulates": "rocm", **said})
        with registry.declared(library):
            assert [y.tolist() for y in call(jnp.ones(2))] == [[3, 3], [1 + processors] * 2]
            assert op.forms(library) == op.forms(replace(library)), "traced anew for every call"


def test_a_platform_that_nobody_heard_of_runs_the_reference() -> None:
    arrays = (jnp.ones((2, 3)), jnp.ones((4, 3)))
    traced = jax.jit(lambda x, w: linear(x, w)).trace(*arrays)
    assert "dot_general" in traced.lower(lowering_platforms=("tpu",)).as_text()
    traced = jax.jit(lambda x, w: linear(x, w, kernels="native")).trace(*arrays)
    with pytest.raises(KernelUnavailableError, match="has no native kernel on platform"):
        traced.lower(lowering_platforms=("tpu",))


def test_an_unknown_kernels_value_is_refused() -> None:
    with pytest.raises(
        KernelUnavailableError, match="kernels: expected one of auto, native, reference, got 'gpu'"
    ):
        linear(jnp.ones((1, 2)), jnp.ones((1, 2)), kernels="gpu")  # type: ignore[arg-type]


def test_vmap_without_a_rule_is_refused(make_op: MakeOp) -> None:
    op = make_op("test.no_batch")
    with pytest.raises(
        UnsupportedTransformError, match=r"test\.no_batch has no vmap rule; batch its rows instead"
    ):
        jax.vmap(lambda x: op(x, kernels="reference", scale=2.0))(jnp.ones((2, 3)))


@pytest.mark.parametrize("in_axis", [0, 1, -1])
@pytest.mark.parametrize("out_axis", [0, 1])
def test_vmap_moves_axes(make_op: MakeOp, in_axis: int, out_axis: int) -> None:
    op = make_op("test.batch", batch=lambda *args: map_rows(op, *args))
    x = jnp.arange(6.0).reshape(2, 3)
    y, z = jax.vmap(lambda x: op(x, kernels="reference", scale=2.0), in_axis, out_axis)(x)
    want = jax.vmap(lambda x: (x * 2, x + 1), in_axis, out_axis)(x)
    assert np.array_equal(y, want[0])
    assert np.array_equal(z, want[1])


def test_derivatives_come_from_the_reference(make_op: MakeOp) -> None:
    op = make_op("test.grad")

    def loss(x: Any) -> Any:
        y, z = op(x, kernels="reference", scale=3.0)
        return jnp.sum(y) + jnp.sum(z * z)

    assert np.array_equal(jax.grad(loss)(jnp.arange(3.0)), 3 + 2 * (np.arange(3.0) + 1))
    primal, tangent = jax.jvp(loss, (jnp.ones(2),), (jnp.ones(2),))
    assert (float(primal), float(tangent)) == (14.0, 14.0)
    hessian = jax.jacfwd(jax.grad(loss))(jnp.ones(2))
    assert np.array_equal(hessian, 2 * np.eye(2))


def test_a_refused_derivative_says_why(make_op: MakeOp) -> None:
    op = make_op("test.no_grad", not_differentiable="it counts")
    with pytest.raises(UnsupportedTransformError, match=r"test\.no_grad cannot be differentiated: it counts"):
        jax.grad(lambda x: jnp.sum(op(x, kernels="reference", scale=1.0)[0]))(jnp.ones(2))


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_ops_work_in_control_flow(kernels: Any) -> None:
    weight = jnp.full((3, 3), 0.5)

    def step(x: Any, _: Any) -> Any:
        y = linear(rmsnorm(x, jnp.ones(3), eps=1e-6, kernels=kernels), weight, kernels=kernels)
        return y, jnp.sum(y)

    def run(x: Any) -> Any:
        carried, sums = jax.lax.scan(step, x, None, length=4)
        chosen = jax.lax.cond(sums[0] > 0, lambda x: linear(x, weight, kernels=kernels), lambda x: x, carried)
        return jax.lax.while_loop(
            lambda state: state[1] < 3,
            lambda state: (step(state[0], None)[0], state[1] + 1),
            (chosen, jnp.int32(0)),
        )[0]

    x = jnp.arange(1.0, 7.0).reshape(2, 3)
    got = jax.jit(run)(x)
    np.testing.assert_allclose(got, np.full((2, 3), 1.5), rtol=1e-5)
    text = str(jax.make_jaxpr(run)(x))
    assert text.count("mla_jax.linear[") == 3
    assert text.count("mla_jax.rmsnorm[") == 2


def test_rematerialisation_and_shape_evaluation() -> None:
    x, weight = jnp.ones((2, 3)), jnp.ones((4, 3))
    shape = jax.eval_shape(lambda x: linear(x, weight), x)
    assert (shape.shape, shape.dtype) == ((2, 4), jnp.float32)
    grad = jax.grad(lambda w: jnp.sum(jax.checkpoint(lambda w: linear(x, w))(w) ** 2))(weight)
    assert np.array_equal(grad, np.full((4, 3), 12.0))


def test_shape_errors_are_value_errors_at_trace_time() -> None:
    with pytest.raises(ShapeError, match="linear: argument 'weight'") as raised:
        jax.make_jaxpr(lambda x, w: linear(x, w))(jnp.ones((2, 3)), jnp.ones((4, 5)))
    assert isinstance(raised.value, ValueError)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, warnings
from functools import partial
from jax.sharding import AxisType, PartitionSpec as P
warnings.simplefilter("error")
warnings.filterwarnings("default", "Error reading persistent compilation cache entry")  # see pyproject.toml
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
from custom_calls.expert_mlp import expert_mlp
from custom_calls.linear import linear
from custom_calls.mla_attention import mla_attention
from custom_calls.mla_attention_expanded import mla_attention_expanded
from custom_calls.rope_append_latent import rope_append_latent
assert jax.device_count() == 2
mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
def normal(*shape): return jnp.asarray(rng.standard_normal(shape), jnp.float32)
def sharded(f, ins, outs): return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=ins, out_specs=outs))
def same(a, b): return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
def close(a, b): np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
x, w = normal(5, 8), normal(6, 8)
pool, scales, layer = normal(1, 4, 4, 10), jnp.ones(2), jnp.int32(0)
pages, start = jnp.array([[2, 0], [1, 3]], jnp.int32), jnp.array([0, 3, 4], jnp.int32)
lens = jnp.array([7, 8], jnp.int32)
q, q_rope = normal(4, 6, 8), normal(4, 6, 2)
HEADS = P(None, "model", None)
for kernels in ("reference", "native"):
    dense = partial(linear, kernels=kernels)
    # Columns: every device has some outputs. Rows: every device has a part of each sum.
    columns = sharded(dense, (P(), P("model", None)), P(None, "model"))
    assert same(columns(x, w), dense(x, w)) or kernels == "reference"
    close(columns(x, w), dense(x, w))
    rows = sharded(lambda x, w: jax.lax.psum(dense(x, w), "model"), (P(None, "model"), P(None, "model")), P())
    close(rows(x, w), dense(x, w))
    loss = lambda f: lambda x, w: jnp.sum(f(x, w) ** 2)
    for f in (columns, rows):
        got, want = (jax.jit(jax.grad(loss(g), argnums=(0, 1)))(x, w) for g in (f, dense))
        for a, b in zip(got, want, strict=True): close(a, b)
    attend = lambda q, q_rope, pool: mla_attention(
        q, q_rope, pool, layer, scales, pages, start, lens, softmax_scale=0.3, kernels=kernels)
    heads = sharded(attend, (HEADS, HEADS, P()), (HEADS, P(None, "model")))
    got, want = heads(q, q_rope, pool), attend(q, q_rope, pool)
    if kernels == "native": assert same(got, want)
    for a, b in zip(got, want, strict=True): close(a, b)
    # Each device holds the whole pool (MLA's rows have no heads); all of them write the same rows.
    append = lambda q, kv_a, pool: rope_append_latent(
        q, kv_a, jnp.ones(8), jnp.zeros((9, 1)), jnp.ones((9, 1)), jnp.arange(4, dtype=jnp.int32),
        jnp.array([3, 1, -1, 9], jnp.int32), pool, layer, scales, eps=1e-6, layout="half", q_offset=0, kernels=kernels)
    kv_a = normal(4, 10)
    varied = lambda *a: (lambda out: (out[0], jax.lax.pmax(out[1], "model")))(append(*a))
    got, want = sharded(varied, (HEADS, P(), P()), (HEADS, P()))(q_rope, kv_a, pool), append(q_rope, kv_a, pool)
    for a, b in zip(got, want, strict=True): close(a, b)
    wide = partial(mla_attention_expanded, nope=8, v=4, softmax_scale=0.3, kernels=kernels)
    operands = (q, q_rope, normal(4, 6 * 12), normal(4, 10), start)
    total = lambda f: lambda *a: jnp.sum(f(*a)[0] ** 2)
    form = sharded(wide, (HEADS, HEADS, P(None, "model"), P(), P()), (HEADS, P(None, "model")))
    for a, b in zip(form(*operands), wide(*operands), strict=True): close(a, b)
    got, want = (jax.jit(jax.grad(total(f), argnums=(0, 1, 2, 3)))(*operands) for f in (form, wide))
    for a, b in zip(got, want, strict=True): close(a, b)
    # Experts split by their inner width: the gate rows and the up rows of a device belong together.
    gate, up, down = normal(3, 4, 8), normal(3, 4, 8), normal(3, 8, 4)
    ids, chances = jnp.array([[0, 2], [1, 3], [2, 1], [0, 1], [-1, 3]], jnp.int32), jnp.abs(normal(5, 2))
    def part(x, gate, up, down):
        return expert_mlp(x, jnp.concatenate([gate, up], 1), down, ids, chances, kernels=kernels)
    inner = P(None, "model", None)
    split = sharded(lambda *a: jax.lax.psum(part(*a), "model"), (P(), inner, inner, P(None, None, "model")), P())
    operands = (x, gate, up, down)
    close(split(*operands), part(*operands))
    squares = lambda f: lambda *a: jnp.sum(f(*a) ** 2)
    got, want = (jax.jit(jax.grad(squares(f), argnums=(0, 1, 2, 3)))(*operands) for f in (split, part))
    for a, b in zip(got, want, strict=True): close(a, b)
    # A result of a sharded operand varies over its axis: claiming otherwise is refused at trace time.
    try: sharded(dense, (P(), P("model", None)), P())(x, w)
    except ValueError as error: assert "model" in str(error)
    else: raise AssertionError("a varying result passed for a replicated one")
print("same")
"""


def test_ops_inside_shard_map(tmp_path: Path) -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "same\n"
