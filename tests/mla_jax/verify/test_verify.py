"""The proof: right steps pass in every form that JAX can give them, and each planted fault is named."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mla_jax
from custom_calls.fused_qk_rmsnorm import fused_qk_rmsnorm
from custom_calls.linear import linear
from custom_calls.mla_attention import mla_attention
from custom_calls.mla_attention_expanded import mla_attention_expanded
from custom_calls.rmsnorm import rmsnorm
from custom_calls.rope_append_latent import rope_append_latent, rope_latent_rows
from mla_jax import verify
from mla_jax.verify import VerificationError

TOKENS, HEADS, NOPE, ROPE, RANK, V, HIDDEN = 3, 2, 4, 4, 8, 4, 16
PAGES, PAGE, LAYERS = 4, 2, 3
GOLDENS = Path(__file__).resolve().parents[2] / "goldens"


def described(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


STEP = {
    "x": described(TOKENS, HIDDEN),
    "w_q": described(HEADS * (NOPE + ROPE), HIDDEN),
    "w_kv": described(RANK + ROPE, HIDDEN),
    "norm": described(RANK),
    "cos": described(16, ROPE // 2),
    "sin": described(16, ROPE // 2),
    "positions": described(TOKENS, dtype=jnp.int32),
    "slots": described(TOKENS, dtype=jnp.int32),
    "pool": described(LAYERS, PAGES, PAGE, RANK + ROPE),
    "scales": described(2),
    "pages": described(1, PAGES, dtype=jnp.int32),
    "query_start_loc": described(2, dtype=jnp.int32),
    "seq_lens": described(1, dtype=jnp.int32),
}


class Layer:
    """One layer in untyped ops, so that everything can be done wrong."""

    def __init__(self, **arrays):
        self.__dict__.update(arrays)

    def queries(self):
        return linear(self.x, self.w_q).reshape(TOKENS, HEADS, NOPE + ROPE)

    def kv_a(self):
        return linear(self.x, self.w_kv)

    def append(self, q, kv_a, pool, layer=1, layout="interleaved", positions=None, slots=None):
        return rope_append_latent(
            q, kv_a, self.norm, self.cos, self.sin,
            self.positions if positions is None else positions,
            self.slots if slots is None else slots,
            pool, jnp.asarray(layer, jnp.int32), self.scales,
            eps=1e-6, layout=layout, q_offset=NOPE,
        )  # fmt: skip

    def rows(self, q, kv_a, layout="interleaved", positions=None):
        positions = self.positions if positions is None else positions
        return rope_latent_rows(
            q, kv_a, self.norm, self.cos, self.sin, positions, eps=1e-6, layout=layout, q_offset=NOPE
        )

    def attend(self, q_rope, pool, layer=1):
        q_latent = jnp.zeros((TOKENS, HEADS, RANK))
        return mla_attention(
            q_latent, q_rope, pool, jnp.asarray(layer, jnp.int32), self.scales, self.pages,
            self.query_start_loc, self.seq_lens, softmax_scale=0.5, keys="all",
        )[0]  # fmt: skip

    def attend_own(self, q, q_rope, rows):
        kv = linear(rows[:, :RANK], jnp.zeros((HEADS * (NOPE + V), RANK)))
        return mla_attention_expanded(
            q, q_rope, kv, rows, self.query_start_loc, nope=NOPE, v=V, softmax_scale=0.5, uniform_length=None
        )[0]


def step_of(body):
    def step(**arrays):
        return body(Layer(**arrays))

    return step


def findings(body, kind=None):
    found = verify.report(step_of(body), **STEP)
    assert found
    return [one for report in found for one in report.findings if kind in (None, one.kind)]


def proven(body):
    """The reports of a step that must pass, strictly."""
    return verify.check(step_of(body), strict=True, **STEP)


def refused(body, message):
    with pytest.raises(VerificationError, match=message) as caught:
        verify.check(step_of(body), **STEP)
    assert "test_verify.py" in str(caught.value), "expected the line of the program"


def right(own):
    q = own.queries()
    q_rope, pool = own.append(q, own.kv_a(), own.pool)
    return own.attend(q_rope, pool), pool


# Right steps


def test_a_right_step():
    (found,) = proven(right)
    assert (found.op, found.layer, found.where) == ("mla_jax.mla_attention", 1, ())
    assert found.rope_count == found.key_rope_count == found.store_count == {1}
    assert found.layouts == {"interleaved"}
    assert found.positions == {"positions"} and found.slots == {"slots"}
    assert set(found.path) == {"mla_jax.rope_append_latent", "mla_jax.linear"}
    assert "test_verify.py" in found.source and "attend" in found.source


def test_a_right_step_without_a_pool():
    def body(own):
        q = own.queries()
        q_rope, rows = own.rows(q, own.kv_a())
        return own.attend_own(q, q_rope, rows)

    (found,) = proven(body)
    assert found.rope_count == found.key_rope_count == {1}
    assert found.store_count == frozenset()


def test_many_layers_and_rows_read_back():
    def body(own):
        pool, outs = own.pool, []
        for layer in range(LAYERS):
            q = own.queries()
            q_rope, pool = own.append(q, own.kv_a(), pool, layer)
            rows = pool.reshape(LAYERS, PAGES * PAGE, -1).at[layer, own.slots].get(mode="fill", fill_value=0)
            outs += [own.attend(q_rope, pool, layer), own.attend_own(q, q_rope, rows)]
        return outs

    found = proven(body)
    assert [(one.op, one.layer) for one in found] == [
        (op, layer)
        for layer in range(LAYERS)
        for op in ("mla_jax.mla_attention", "mla_jax.mla_attention_expanded")
    ]
    assert all(one.store_count == {1} for one in found)


def wrapped_jit(own):
    return jax.jit(lambda pool: jax.jit(lambda p: right(Layer(**own.__dict__ | {"pool": p})))(pool))(own.pool)


def wrapped_remat(own):
    return jax.checkpoint(lambda x: right(Layer(**own.__dict__ | {"x": x})))(own.x)


def wrapped_scan_of_layers(own):
    def layer(pool, index):
        q_rope, pool = own.append(own.queries(), own.kv_a(), pool, index)
        return pool, own.attend(q_rope, pool, index)

    return jax.lax.scan(layer, own.pool, jnp.arange(LAYERS, dtype=jnp.int32))


def wrapped_fori_of_layers(own):
    def layer(index, pool):
        q_rope, pool = own.append(own.queries(), own.kv_a(), pool, index)
        return pool.at[:].set(pool) if False else own.attend(q_rope, pool, index)[0, 0, 0] * 0 + pool

    return jax.lax.fori_loop(0, LAYERS, layer, own.pool)


def wrapped_while_of_steps(own):
    def step(carry):
        count, positions, pool = carry
        q_rope, pool = own.append(own.queries(), own.kv_a(), pool, 1, positions=positions)
        out = own.attend(q_rope, pool)
        return count + jnp.int32(out[0, 0, 0] > 0), positions + 1, pool

    return jax.lax.while_loop(lambda carry: carry[0] < 5, step, (jnp.int32(0), own.positions, own.pool))


def wrapped_cond(own):
    return jax.lax.cond(own.seq_lens[0] > 2, lambda: right(own), lambda: right(own))


def wrapped_platform(own):
    return jax.lax.platform_dependent(own.x, cpu=lambda x: right(own), default=lambda x: right(own))


def wrapped_shard_map(own):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()

    def body(arrays):
        return right(Layer(**arrays))

    return jax.shard_map(body, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=False)(own.__dict__)


def wrapped_gradient(own):
    def loss(x):
        inner = Layer(**own.__dict__ | {"x": x})
        q = inner.queries()
        q_rope, rows = inner.rows(q, inner.kv_a())
        return inner.attend_own(q, q_rope, rows).sum()

    return jax.value_and_grad(loss)(own.x)


WRAPPED = {
    name.removeprefix("wrapped_"): body for name, body in globals().items() if name.startswith("wrapped_")
}


@pytest.mark.parametrize("form", [form for form in WRAPPED if form != "gradient"])
def test_through_everything_that_holds_a_program(form):
    found = proven(WRAPPED[form])
    assert len(found) == (2 if form in ("cond", "platform") else 1)
    for one in found:
        assert one.rope_count == one.key_rope_count == one.store_count == {1}
        kind = {"cond": "branch", "platform": "platform", "scan_of_layers": "scan body"}.get(form, "")
        assert not kind or one.where[0].startswith(kind)


def test_the_forward_half_of_a_gradient():
    assert all(one.rope_count == {1} for one in verify.check(step_of(wrapped_gradient), **STEP))


@pytest.mark.parametrize("case", ["deepseek_v3", "deepseek_v2_lite", "glm4_moe_lite", "kimi_k2"])
@pytest.mark.parametrize("cache_dtype", ["auto", "fp8"])
def test_this_librarys_own_steps(case, cache_dtype):
    model, config = mla_jax.load(GOLDENS / case, abstract=True)
    frozen = mla_jax.freeze(model)
    pool = lambda: mla_jax.init_cache(config, num_tokens=256, page_size=16, dtype=cache_dtype)  # noqa: E731
    cache = jax.eval_shape(pool)
    table = jax.eval_shape(lambda: mla_jax.PageTable.empty(pool(), 2, 64))
    lengths, ids = described(2, dtype=jnp.int32), described(2, dtype=jnp.int32)
    wide = described(64, dtype=jnp.int32)

    def prefill(frozen, ids, cache, table, held, new):
        meta = mla_jax.AttentionMetadata.extend(table, held, new, num_tokens=64)
        return mla_jax.prefill(frozen, ids, cache, meta)

    def loop(frozen, ids, cache, table, held):
        meta = mla_jax.AttentionMetadata.extend(table, held, jnp.ones_like(held), num_tokens=2)

        def one(carry):
            ids, cache, meta = carry
            logits, cache = mla_jax.decode_step(frozen, ids, cache, meta)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache, mla_jax.advance(meta)

        return jax.lax.fori_loop(0, 8, lambda _, carry: one(carry), (ids, cache, meta))

    layers = list(range(config.num_hidden_layers))
    for step, arguments in (
        (prefill, (frozen, wide, cache, table, lengths, lengths)),
        (loop, (frozen, ids, cache, table, lengths)),
    ):
        found = verify.check(step, *arguments, strict=True)
        assert sorted({one.layer for one in found}) == layers
        assert all(one.store_count == {1} for one in found)
        assert {one.layouts for one in found} == {frozenset({config.rope.layout})}
    found = verify.check(mla_jax.forward, frozen, described(2, 5, dtype=jnp.int32), strict=True)
    assert len(found) == len(layers)


# Faults, one at a time


def test_never_rotated():
    def body(own):
        q = own.queries()
        _, pool = own.append(q, own.kv_a(), own.pool)
        return own.attend(q[..., NOPE:], pool)

    refused(body, "layer 1 mla_attention: queries are rotated never")


def test_never_rotated_and_never_projected():
    """A query that is an argument of the step."""

    def body(own):
        _, pool = own.append(own.queries(), own.kv_a(), own.pool)
        return own.attend(jnp.broadcast_to(own.x[:, None, :ROPE], (TOKENS, HEADS, ROPE)), pool)

    refused(body, "queries are rotated never")


@pytest.mark.bug("sgl-project/sglang#24148", "verifier")
@pytest.mark.bug("sgl-project/sglang#21315", "verifier")
def test_rotated_twice():
    def body(own):
        q = own.queries()
        q_rope, _ = own.rows(q, own.kv_a())
        q_rope, pool = own.append(jnp.concatenate([q[..., :NOPE], q_rope], -1), own.kv_a(), own.pool)
        return own.attend(q_rope, pool)

    # The first columns have only been rotated by the last op, which does not rotate them.
    refused(body, "queries are rotated once or twice")


def test_keys_rotated_twice():
    def body(own):
        q, kv_a = own.queries(), own.kv_a()
        _, rows = own.rows(q, kv_a)
        q_rope, pool = own.append(q, rows, own.pool)
        return own.attend(q_rope, pool)

    refused(body, "keys are rotated twice")


@pytest.mark.parametrize("layer", [0, 1])
def test_keys_rotated_twice_and_read_back(layer):
    """Whatever layer of the pool: which rows are read is not followed."""

    def body(own):
        q, kv_a = own.queries(), own.kv_a()
        _, rows = own.rows(q, kv_a)
        q_rope, pool = own.append(q, rows if layer == 0 else kv_a, own.pool, 0)
        q_rope, pool = own.append(q, rows if layer == 1 else kv_a, pool, 1)
        read = pool.reshape(LAYERS, PAGES * PAGE, -1).at[1, own.slots].get(mode="fill", fill_value=0)
        return own.attend_own(q, q_rope, read)

    refused(body, "keys are rotated once or twice")


@pytest.mark.parametrize("loop", ["scan", "while"])
def test_each_iteration_counts_on_its_own(loop):
    """A prefill, then decode steps in a loop: what was stored before the loop are other rows."""

    def body(own):
        out, pool = right(own)

        def one(pool):
            q_rope, pool = own.append(own.queries(), own.kv_a(), pool)
            return own.attend(q_rope, pool)[0, 0, 0], pool

        if loop == "scan":
            return out, jax.lax.scan(lambda pool, _: one(pool)[::-1], pool, length=3)
        return out, jax.lax.while_loop(lambda pool: pool[0, 0, 0, 0] < 1, lambda pool: one(pool)[1], pool)

    found = proven(body)
    assert [one.where for one in found] == [(), (f"{loop} body",)]


def test_factors_that_come_out_of_attention_pass():
    """Earlier layers know positions; what they make of them is no rotation."""

    def body(own):
        out, pool = right(own)
        q = own.queries() * out.mean(axis=(1, 2))[:, None, None]
        q_rope, pool = own.append(q, own.kv_a(), pool, 2)
        return own.attend(q_rope, pool, 2)

    assert len(proven(body)) == 2


def test_rotated_in_one_branch_only():
    def body(own):
        q = own.queries()
        q_rope, pool = own.append(q, own.kv_a(), own.pool)
        q_rope = jax.lax.cond(own.seq_lens[0] > 2, lambda: q_rope, lambda: q[..., NOPE:])
        return own.attend(q_rope, pool)

    refused(body, "queries are rotated never or once")


@pytest.mark.bug("sgl-project/sglang#18242", "verifier")
def test_rotated_on_one_platform_only():
    def body(own):
        q = own.queries()
        q_rope, pool = own.append(q, own.kv_a(), own.pool)
        q_rope = jax.lax.platform_dependent(
            q, q_rope, rocm=lambda q, q_rope: q_rope, default=lambda q, q_rope: q[..., NOPE:]
        )
        return own.attend(q_rope, pool)

    refused(body, "queries are rotated never or once")


@pytest.mark.parametrize("source", ["projection", "argument"])
@pytest.mark.parametrize("merge", ["where", "concatenate", "update", "scatter", "add"])
def test_a_mixture_of_rotated_and_not(merge, source):
    def body(own):
        q = own.queries()
        q_rope, pool = own.append(q, own.kv_a(), own.pool)
        raw = q[..., NOPE:]
        if source == "argument":
            raw = jnp.broadcast_to(own.x[:, None, :ROPE], raw.shape)
        if merge == "where":
            q_rope = jnp.where(own.positions[:, None, None] > 1, q_rope, raw)
        elif merge == "concatenate":
            q_rope = jnp.concatenate([q_rope[:1], raw[1:]])
        elif merge == "update":
            q_rope = jax.lax.dynamic_update_slice(q_rope, raw[:1], (0, 0, 0))
        elif merge == "scatter":
            q_rope = q_rope.at[own.slots].set(raw)
        else:
            q_rope = q_rope + raw
        return own.attend(q_rope, pool)

    if (merge, source) == ("add", "argument"):
        # Nothing tells such an argument from a bias.
        verify.check(step_of(body), **STEP)
    else:
        refused(body, "queries are rotated never or once")


def test_never_stored():
    def body(own):
        q_rope, _ = own.append(own.queries(), own.kv_a(), own.pool)
        return own.attend(q_rope, own.pool)

    refused(body, "rows are stored never before they are read")


def test_stored_after_being_read():
    def body(own):
        q_rope, _ = own.rows(own.queries(), own.kv_a())
        out = own.attend(q_rope, own.pool)
        return out, own.append(own.queries(), own.kv_a(), own.pool)[1]

    refused(body, "rows are stored never")


def test_stored_in_another_layer():
    def body(own):
        q_rope, pool = own.append(own.queries(), own.kv_a(), own.pool, layer=2)
        return own.attend(q_rope, pool, layer=1)

    refused(body, "layer 1 mla_attention: .*rows are stored never")


@pytest.mark.bug("sgl-project/sglang#21315", "verifier")
def test_stored_twice():
    def body(own):
        _, pool = own.append(own.queries(), own.kv_a(), own.pool)
        q_rope, pool = own.append(own.queries(), own.kv_a(), pool)
        return own.attend(q_rope, pool)

    refused(body, "rows are stored twice")


def test_stored_in_one_branch_only():
    def body(own):
        q_rope, pool = own.append(own.queries(), own.kv_a(), own.pool)
        pool = jax.lax.cond(own.seq_lens[0] > 2, lambda: pool, lambda: own.pool)
        return own.attend(q_rope, pool)

    refused(body, "rows are stored never or once")


def test_a_layer_that_cannot_be_compared():
    def body(own):
        q_rope, pool = own.append(own.queries(), own.kv_a(), own.pool, layer=own.seq_lens[0])
        return own.attend(q_rope, pool, layer=own.slots[0])

    refused(body, "rows are stored never or once")
    assert "layers cannot be compared" in str(findings(body, "warning")[0])

    def in_branches(own):
        before = jax.lax.cond(own.seq_lens[0] > 2, lambda: own.pool, lambda: own.pool * 1)
        return body(Layer(**own.__dict__ | {"pool": before}))

    refused(in_branches, "rows are stored never or once")


def test_rows_written_by_hand():
    def body(own):
        q_rope, rows = own.rows(own.queries(), own.kv_a())
        pool = own.pool.at[1, 0, 0].set(rows[0])
        return own.attend(q_rope, pool)

    refused(body, "rows are stored never")
    assert any("'scatter' changes the pool" in str(one) for one in findings(body, "warning"))


def test_a_pool_that_is_changed_on_the_way():
    def body(own):
        q_rope, pool = own.append(own.queries(), own.kv_a(), own.pool)
        return own.attend(q_rope, pool.at[1, 0, 0].set(0.0))

    assert any("changes the pool" in str(one) for one in findings(body, "warning"))
    with pytest.raises(VerificationError, match="changes the pool"):
        verify.check(step_of(body), strict=True, **STEP)


def test_different_layouts():
    def body(own):
        q, kv_a = own.queries(), own.kv_a()
        q_rope, _ = own.rows(q, kv_a, layout="half")
        _, rows = own.rows(q, kv_a)
        return own.attend_own(q, q_rope, rows)

    refused(body, "queries and keys are rotated in different layouts")


def test_different_positions():
    def body(own):
        q, kv_a = own.queries(), own.kv_a()
        q_rope, _ = own.rows(q, kv_a, positions=own.positions + 1)
        _, rows = own.rows(q, kv_a)
        return own.attend_own(q, q_rope, rows)

    refused(body, "queries and keys are rotated at different positions")


def rotated_by_hand(own, q):
    angles = own.positions[:, None].astype(jnp.float32) * jnp.asarray([1.0, 0.1])[None]
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    even, odd = q[..., NOPE::2], q[..., NOPE + 1 :: 2]
    pair = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(*q.shape[:2], ROPE)
    return jnp.concatenate([q[..., :NOPE], pair], axis=-1)


def rotated_by_table(own, q):
    factor = jnp.repeat(own.cos[own.positions], 2, axis=-1)[:, None, :]
    return jnp.concatenate([q[..., :NOPE], q[..., NOPE:] * factor], axis=-1)


def rotated_by_rows_of_the_table(own, q):
    factor = jnp.repeat(own.cos[:TOKENS], 2, axis=-1)[:, None, :]
    return jnp.concatenate([q[..., :NOPE], q[..., NOPE:] * factor], axis=-1)


@pytest.mark.parametrize("rotate", [rotated_by_hand, rotated_by_table, rotated_by_rows_of_the_table])
@pytest.mark.parametrize("side", ["queries", "keys", "after"])
def test_rotation_by_hand_is_a_warning(rotate, side):
    def body(own):
        q, kv_a = own.queries(), own.kv_a()
        if side == "queries":
            q = rotate(own, q)
        if side == "keys":
            key = jnp.concatenate([jnp.zeros((TOKENS, 1, NOPE)), kv_a[:, None, RANK:]], -1)
            kv_a = jnp.concatenate([kv_a[:, :RANK], rotate(own, key)[:, 0, NOPE:]], -1)
        q_rope, pool = own.append(q, kv_a, own.pool)
        if side == "after":
            q_rope = rotate(own, jnp.concatenate([q[..., :NOPE], q_rope], -1))[..., NOPE:]
        return own.attend(q_rope, pool)

    warnings = findings(body, "warning")
    assert any("depends on positions on the way to attention" in str(one) for one in warnings)
    assert all("test_verify.py" in one.source for one in warnings)
    with pytest.raises(VerificationError, match="depends on positions"):
        verify.check(step_of(body), strict=True, **STEP)


def test_an_unknown_equation_is_a_warning():
    def body(own):
        q_rope, pool = own.append(jnp.tanh(own.queries()), own.kv_a(), own.pool)
        return own.attend(q_rope, pool)

    assert [one.message for one in findings(body)] == ["'tanh' on the way to attention"]


def test_scalings_biases_and_norms_pass():
    def body(own):
        q = rmsnorm(linear(own.x, own.w_q), own.w_q[:, 0], eps=1e-6).reshape(TOKENS, HEADS, NOPE + ROPE)
        q = q * 0.5 + own.w_q.reshape(HEADS, NOPE + ROPE, HIDDEN)[None, :, :, 0]
        q = q * jax.lax.rsqrt(jnp.mean(q * q, axis=-1, keepdims=True))
        q_rope, pool = own.append(q, own.kv_a() * own.scales[0], own.pool)
        return own.attend(-q_rope * 2.0, pool)

    (found,) = proven(body)
    assert "mla_jax.rmsnorm" in found.path and "mul" in found.path


def test_nothing_to_prove():
    with pytest.raises(VerificationError, match="no attention of mla_jax"):
        verify.check(lambda x: x + 1, described(3))


def test_every_problem_is_in_the_message():
    def body(own):
        _, pool = own.append(own.queries(), own.kv_a(), own.pool, layer=0)
        return own.attend(own.queries()[..., NOPE:], pool, 1), own.attend(
            own.queries()[..., NOPE:], own.pool, 2
        )

    with pytest.raises(VerificationError) as caught:
        verify.check(step_of(body), **STEP)
    assert str(caught.value).count("queries are rotated never") == 2
    assert str(caught.value).count("rows are stored never") == 2
    assert "layer 1 " in str(caught.value) and "layer 2 " in str(caught.value)


def test_report_as_text():
    def body(own):
        q_rope, pool = own.append(jnp.tanh(own.queries()), own.kv_a(), own.pool)
        return own.attend(q_rope, pool), own.attend(q_rope, own.pool, 2)

    text = verify.format_report(verify.report(step_of(body), **STEP))
    lines = text.splitlines()
    assert lines[1].split()[:5] == ["layer", "1", "mla_attention", "1", "1"]
    assert "interleaved at positions" in lines[1]
    assert "warning: 'tanh'" in text and "error: rows are stored never" in text


def test_nothing_is_run_and_concrete_arrays_do_as_well():
    arrays = {name: np.zeros(one.shape, one.dtype) for name, one in STEP.items()}
    assert verify.check(step_of(right), strict=True, **arrays)[0].layer == 1


def test_arguments_have_their_own_names():
    def step(z, a, *rest, m, b):
        own = Layer(**z | {"positions": a, "slots": rest[0], "pool": m, "seq_lens": b["lens"]})
        return right(own)

    names = {
        name: one for name, one in STEP.items() if name not in ("positions", "slots", "pool", "seq_lens")
    }
    (found,) = verify.check(
        step, names, STEP["positions"], STEP["slots"], m=STEP["pool"], b={"lens": STEP["seq_lens"]}
    )
    assert (found.positions, found.slots) == ({"a"}, {"argument 2"})


def test_the_table_that_rotated_is_named():
    def body(own):
        return own.attend(*own.append(own.queries(), own.kv_a(), own.pool))

    assert verify.report(step_of(body), **STEP)[0].tables == {"cos", "sin"}

    def with_constants(own):
        own.cos, own.sin = jnp.ones(STEP["cos"].shape), jnp.zeros(STEP["sin"].shape)
        return body(own)

    assert verify.report(step_of(with_constants), **STEP)[0].tables == {"constants"}


def test_a_norm_of_two_keeps_them_apart():
    def normed(own, q, kv_a):
        flat = q.reshape(TOKENS, HEADS * (NOPE + ROPE))
        weights = jnp.ones(flat.shape[1:]), jnp.ones((RANK,))
        flat, kv_a = fused_qk_rmsnorm(flat, kv_a, *weights, q_eps=1e-6)
        return flat.reshape(q.shape), kv_a

    def once(own):
        return own.attend(*own.append(*normed(own, own.queries(), own.kv_a()), own.pool))

    assert proven(once)[0].rope_count == {1}

    def queries_twice(own):
        q = own.queries()
        q_rope, _ = own.rows(q, own.kv_a())
        rotated = jnp.concatenate([q_rope, q_rope], axis=-1)
        return own.attend(*own.append(*normed(own, rotated, own.kv_a()), own.pool))

    (found,) = verify.report(step_of(queries_twice), **STEP)
    assert (found.rope_count, found.key_rope_count) == ({2}, {1})
