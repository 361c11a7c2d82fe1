"""The training step: it learns, resumes to the bit, ignores padding, and exports what it has computed."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import Batch, Encoder, make_batch
from training import (
    BIAS,
    Settings,
    Trainer,
    as_mxfp4,
    load_state,
    rows_of,
    save_state,
    sparse_layers,
    with_fast_products,
    write_model,
)

import mla_jax
from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.convert import convert

ROWS, LENGTH, STEPS = 4, 152, 12
SETTINGS = Settings(learning_rate=1e-2, mxfp4_from=0.5)


@pytest.fixture(scope="module", autouse=True)
def _optax_promotes():
    """Optax multiplies Python floats and int32 counts, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def trainer(config):
    return Trainer(config, SETTINGS)


@pytest.fixture(scope="module")
def batches(tokenizer):
    encoder = Encoder(tokenizer)
    return [make_batch(encoder, 0, index, ROWS, LENGTH) for index in range(STEPS)]


def run(trainer, state, batches, first):
    reports = []
    for step, batch in enumerate(batches, first):
        state, report = trainer.run_step(state, batch, step, step / STEPS)
        reports.append(jax.device_get(report))
    return state, reports


@pytest.fixture(scope="module")
def trained(trainer, batches, tmp_path_factory):
    """(state at the end, reports, file of the state half-way)."""
    half = tmp_path_factory.mktemp("state") / "half.safetensors"
    state, first = run(trainer, trainer.init(0), batches[: STEPS // 2], 0)
    save_state(half, state, STEPS // 2, 12.5)
    state, second = run(trainer, state, batches[STEPS // 2 :], STEPS // 2)
    return state, first + second, half


def test_the_loss_falls(trained, config):
    _, reports, _ = trained
    losses = [float(report.loss) for report in reports]
    # At first nothing is known: every token is as likely, give or take what random logits add.
    assert losses[0] == pytest.approx(np.log(config.vocab_size), abs=1.0)
    # A few steps teach which tokens solutions are made of: those that occur are a sixth of all.
    assert np.mean(losses[-3:]) < losses[0] - np.log(6)
    assert all(np.isfinite(report.gradient_norm) and report.gradient_norm > 0 for report in reports)
    # One sparse layer; the largest of four experts has between an even part and, of two choices, one half.
    assert all(report.imbalance.shape == (1,) for report in reports)
    assert all(1 <= float(report.imbalance[0]) <= 2 for report in reports)


def test_resuming_is_bit_equal(trainer, trained, batches):
    end, reports, half = trained
    state, step, seconds = load_state(half, trainer.init(1))
    assert (step, seconds) == (STEPS // 2, 12.5)
    state, again = run(trainer, state, batches[STEPS // 2 :], STEPS // 2)
    for one, two in zip(jax.tree.leaves(end), jax.tree.leaves(state), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert [float(report.loss) for report in again] == [float(r.loss) for r in reports[STEPS // 2 :]]


def test_padding_contributes_nothing(trainer, batches, rng):
    step = lambda batch: trainer.run_step(trainer.init(0), batch, 1, 0.9)  # noqa: E731
    batch = batches[0]
    tokens = batch.tokens.copy()
    padding = np.arange(LENGTH + 1)[None, :] >= batch.used[:, None]
    assert padding.sum() > ROWS
    tokens[padding] = rng.integers(4, 1024, padding.sum())
    plain, other = step(batch), step(batch._replace(tokens=tokens))
    for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)
    # What is not padding does count.
    tokens[0, batch.used[0] - 2] += 1
    assert float(step(batch._replace(tokens=tokens))[1].loss) != float(plain[1].loss)


def test_the_loss_is_that_of_the_solution(trainer, trained, batches):
    """Against the logits of `forward` on each problem alone, in NumPy."""
    params = trained[0].params
    batch = batches[0]
    total, number = 0.0, 0
    model, forward = trainer.frozen(params), jax.jit(mla_jax.forward)
    for tokens, prompt, used in zip(*batch, strict=True):
        row = np.full((1, LENGTH), 7, np.int32)
        row[0, : used - 1] = tokens[: used - 1]
        logits = np.asarray(forward(model, row))[0].astype(np.float64)
        for position in range(int(prompt), int(used)):
            line = logits[position - 1]
            total += np.log(np.exp(line - line.max()).sum()) + line.max() - line[tokens[position]]
            number += 1
    loss, counts = jax.jit(trainer.loss)(params, batch, np.bool_(False))
    assert float(loss) == pytest.approx(total / number, rel=2e-3)  # bfloat16 rounds where programs differ
    assert counts.shape == (1, 4)
    # Every token that is no padding chooses two experts; the last one is a target only.
    assert float(counts.sum()) == 2 * float((batch.used.astype(int) - 1).clip(max=LENGTH).sum() + ROWS)


def test_an_expert_that_is_chosen_too_often_gets_a_lower_bias(trainer, batches):
    state = trainer.init(0)
    (layer,) = sparse_layers(state.params)
    # Copied: a step takes the memory of its state.
    favoured = np.asarray([0.0, 9.0, 0.0, 0.0], np.float32)
    layer["mlp"]["gate"][BIAS] = jnp.asarray(favoured)
    after, report = trainer.run_step(state, batches[0], 0, 0.5)
    (layer,) = sparse_layers(after.params)
    change = np.asarray(layer["mlp"]["gate"][BIAS]) - favoured
    assert float(report.imbalance[0]) == 2.0  # half of all choices
    assert change[1] == pytest.approx(-SETTINGS.bias_rate, rel=1e-3)
    assert change.max() == pytest.approx(SETTINGS.bias_rate, rel=1e-3)
    settled, _ = trainer.run_step(after, batches[0], 0, 0.95)
    (layer,) = sparse_layers(settled.params)
    np.testing.assert_array_equal(np.asarray(layer["mlp"]["gate"][BIAS]) - favoured, change)


def test_the_learning_rate():
    settings = Settings(learning_rate=1.0, warmup=0.1, decay=0.5)
    rates = [settings.rate(progress) for progress in (0.0, 0.05, 0.1, 0.3, 0.5, 0.75, 1.0)]
    np.testing.assert_allclose(rates, [0, 0.5, 1, 1, 1, 0.5, 0], atol=1e-12)
    assert Settings(learning_rate=1.0, warmup=0.0, decay=0.0).rate(0.0) == 1.0


@pytest.fixture(scope="module")
def exported(trained, tiny, config, shipped, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    write_model(folder / "model.safetensors", trained[0].params, config)
    (folder / "config.json").write_text(json.dumps(tiny))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped / name, folder)
    return folder


def test_the_export_has_equal_logits(trainer, trained, exported, batches):
    model, config = mla_jax.load(exported, kernels="reference")
    tokens = batches[0].tokens[:, :-1].astype(np.int32)
    assert config == trainer.config
    forward = jax.jit(mla_jax.forward)
    expected = forward(trainer.frozen(trained[0].params), tokens)
    np.testing.assert_array_equal(forward(mla_jax.freeze(model), tokens), expected)


def test_training_sees_what_convert_writes(trainer, trained, exported, tmp_path):
    """`as_mxfp4` on the weights in their compute dtype is `mla-jax convert --weights mxfp4`, value for value."""
    convert(exported, tmp_path / "mxfp4", weights="mxfp4")
    quantised = mla_jax.freeze(mla_jax.load(tmp_path / "mxfp4", kernels="reference")[0]).params
    seen = jax.jit(lambda params: trainer.frozen(params, mxfp4=True).params)(trained[0].params)
    plain = trainer.frozen(trained[0].params).params
    same = lambda one, two: bool(jnp.array_equal(one, two))  # noqa: E731
    for layer, (found, expected, before) in enumerate(
        zip(quantised["model"]["layers"], seen["model"]["layers"], plain["model"]["layers"], strict=True)
    ):
        assert jax.tree.all(jax.tree.map(same, expected["self_attn"], before["self_attn"]))
        values = jax.tree.map(
            lambda leaf: jax.jit(dequantize)(leaf) if isinstance(leaf, QuantizedTensor) else leaf,
            found["mlp"],
            is_leaf=lambda leaf: isinstance(leaf, QuantizedTensor),
        )
        assert jax.tree.structure(values) == jax.tree.structure(expected["mlp"])
        cast = jax.tree.map(lambda one, two: one.astype(two.dtype), values, expected["mlp"])
        assert jax.tree.all(jax.tree.map(same, cast, expected["mlp"])), layer
        assert not jax.tree.all(jax.tree.map(same, before["mlp"], expected["mlp"])), layer


def test_as_mxfp4_leaves_the_rest_alone(trainer, trained):
    params = trained[0].params
    rounded = jax.jit(lambda tree: as_mxfp4(tree, trainer.table))(params)
    changed = {
        jax.tree_util.keystr(path)
        for (path, one), two in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(rounded), strict=True
        )
        if not jnp.array_equal(one, two)
    }
    assert changed
    assert all("'mlp'" in name and "'gate'" not in name for name in changed), changed


def test_rows_of_has_the_gradient_of_a_gather(rng):
    weight = jnp.asarray(rng.standard_normal((16, 8)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 16, 60), jnp.int32)
    change = jnp.asarray(rng.integers(-8, 8, (60, 8)), jnp.float32)  # sums of integers are exact
    gradients = [
        jax.grad(lambda table, read=read: jnp.sum(read(table, tokens) * change))(weight)
        for read in (rows_of, lambda table, ids: table[ids])
    ]
    np.testing.assert_array_equal(*gradients)
    np.testing.assert_array_equal(rows_of(weight, tokens), weight[tokens])


def test_fast_products_change_the_precision_alone(rng):
    x = jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)

    def products(x):
        exact = jnp.dot(x, x, precision=jax.lax.Precision.HIGHEST)
        return jax.jit(lambda y: jnp.dot(y, x, precision=jax.lax.Precision.HIGHEST))(exact)

    assert "HIGHEST" in str(jax.make_jaxpr(products)(x))
    fast = jax.make_jaxpr(with_fast_products(products))(x)
    assert "HIGHEST" not in str(fast)
    assert str(fast).count("dot_general") == 2
    np.testing.assert_array_equal(with_fast_products(products)(x), products(x))


def test_a_batch_is_a_pytree():
    assert len(jax.tree.leaves(Batch(*(np.zeros(2, np.uint16) for _ in range(3))))) == 3
