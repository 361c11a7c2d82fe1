"""RoPE tables: YaRN frequencies and mscale against published values and an independent evaluation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.config import ModelConfig, RopeConfig, YarnConfig
from mla_jax.errors import LayoutError, MlaJaxError, ShapeError
from mla_jax.rope import RopeTable, attention_multiplier, inverse_frequencies, mscale, softmax_scale

V3 = RopeConfig(1e4, 64, "interleaved", YarnConfig(40.0, 4096, 32.0, 1.0, mscale=1.0, mscale_all_dim=1.0))
V2_LITE = RopeConfig(
    1e4, 64, "interleaved", YarnConfig(40.0, 4096, 32.0, 1.0, mscale=0.707, mscale_all_dim=0.707)
)
K2 = RopeConfig(5e4, 64, "interleaved", YarnConfig(32.0, 4096, 1.0, 1.0, mscale=1.0, mscale_all_dim=1.0))
PLAIN = RopeConfig(1.6e6, 8, "half")
TINY = RopeConfig(1e4, 8, "half", YarnConfig(40.0, 32, 32.0, 1.0, mscale=1.0, mscale_all_dim=0.707))


def yarn_float64(rope: RopeConfig) -> list[float]:
    """Peng et al. 2023, equations 19 to 22, one dimension at a time."""
    frequencies = [rope.theta ** (-2 * i / rope.dim) for i in range(rope.dim // 2)]
    yarn = rope.scaling
    if yarn is None:
        return frequencies

    def edge(turns: float) -> float:
        """The dimension whose frequency makes `turns` full turns over the original context."""
        period = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return rope.dim * math.log(period) / (2 * math.log(rope.theta))

    low = max(math.floor(edge(yarn.beta_fast)), 0)
    high = min(math.ceil(edge(yarn.beta_slow)), rope.dim - 1)
    width = high - low or 0.001
    shares = [min(max((i - low) / width, 0.0), 1.0) for i in range(rope.dim // 2)]
    return [f / yarn.factor * share + f * (1 - share) for f, share in zip(frequencies, shares, strict=True)]


def test_deepseek_v3_frequencies():
    got = inverse_frequencies(V3)
    assert got.shape == (32,)
    assert got.dtype == np.float32
    expected = {
        0: 1.0,
        9: 0.074989421,
        10: 0.056234133,
        11: 0.039006927,
        16: 0.0055,
        22: 1.7782794e-4,
        23: 3.3338036e-5,
        24: 2.5e-5,
        31: 3.3338036e-6,
    }
    for index, value in expected.items():
        assert got[index] == pytest.approx(value, rel=3e-7), index


@pytest.mark.parametrize("rope", [V3, V2_LITE, K2, PLAIN, TINY], ids=["v3", "v2_lite", "k2", "plain", "tiny"])
def test_frequencies_match_the_paper(rope):
    np.testing.assert_allclose(inverse_frequencies(rope), yarn_float64(rope), rtol=1e-6)


def test_ramp_edges_are_clamped_to_the_dimensions():
    # beta_fast so large that the ramp would start below dimension 0, beta_slow beyond the last one.
    wide = RopeConfig(1e4, 8, "half", YarnConfig(4.0, 16, 1000.0, 1e-9))
    np.testing.assert_allclose(inverse_frequencies(wide), yarn_float64(wide), rtol=1e-6)
    assert inverse_frequencies(wide)[0] == 1.0


def test_a_ramp_of_no_width_is_a_step():
    frequencies = inverse_frequencies(K2)
    plain = inverse_frequencies(dataclasses.replace(K2, scaling=None))
    ratio = plain / frequencies
    assert set(np.round(ratio, 4).tolist()) == {1.0, 32.0}


@pytest.mark.parametrize(
    ("factor", "weight", "expected"),
    [
        (40.0, 1.0, 1.3688879),
        (40.0, 0.707, 1.2608038),
        (32.0, 1.0, 1.3465736),
        (1.0, 1.0, 1.0),
        (0.5, 1.0, 1.0),
        (40.0, 0.0, 1.0),
    ],
)
def test_mscale(factor, weight, expected):
    assert mscale(factor, weight) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("yarn", "expected"),
    [
        (None, 1.0),
        (YarnConfig(40.0, 4096, mscale=1.0, mscale_all_dim=1.0), 1.0),
        (YarnConfig(40.0, 4096, mscale=1.0, mscale_all_dim=0.707), 1.3688879 / 1.2608038),
        (YarnConfig(40.0, 4096), 1.3688879),
        (YarnConfig(40.0, 4096, mscale=0.707), 1.3688879),
        (YarnConfig(40.0, 4096, mscale_all_dim=0.707), 1.3688879),
        (YarnConfig(40.0, 4096, mscale=1.0, mscale_all_dim=0.707, attention_factor=0.9), 0.9),
        (YarnConfig(1.0, 4096), 1.0),
    ],
)
def test_attention_multiplier(yarn, expected):
    assert attention_multiplier(yarn) == pytest.approx(expected, rel=1e-7)


def model_config(rope: RopeConfig, nope: int = 128) -> ModelConfig:
    return ModelConfig(
        model_type="deepseek_v3",
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope.dim,
        v_head_dim=8,
        intermediate_size=8,
        moe_intermediate_size=0,
        n_routed_experts=0,
        num_experts_per_tok=0,
        n_shared_experts=0,
        mlp_layer_types=("dense",),
        router=None,
        rope=rope,
        rms_norm_eps=1e-6,
        latent_norm_eps=1e-6,
        max_position_embeddings=64,
    )


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (V3, 0.1352337789),
        (V2_LITE, 192**-0.5 * 1.2608038**2),
        (K2, 192**-0.5 * 1.3465736**2),
        (dataclasses.replace(V3, scaling=None), 192**-0.5),
        # Without mscale_all_dim the temperature is in cos and sin, not in the scale.
        (dataclasses.replace(V3, scaling=YarnConfig(40.0, 4096)), 192**-0.5),
    ],
    ids=["v3", "v2_lite", "k2", "no_yarn", "no_mscale_all_dim"],
)
def test_softmax_scale(rope, expected):
    assert softmax_scale(model_config(rope)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("rope", [V3, TINY, PLAIN], ids=["v3", "tiny", "plain"])
def test_table_holds_cos_and_sin_of_float32_angles(rope):
    table = RopeTable.from_config(rope, 301)
    assert table.layout == rope.layout
    assert table.cos.shape == table.sin.shape == (301, rope.dim // 2)
    assert table.cos.dtype == table.sin.dtype == jnp.float32
    multiplier = attention_multiplier(rope.scaling)
    for position in (0, 1, 17, 300):
        for i, frequency in enumerate(inverse_frequencies(rope)):
            angle = float(np.float32(position) * frequency)
            assert float(table.cos[position, i]) == pytest.approx(
                math.cos(angle) * multiplier, rel=1e-6, abs=1e-7
            )
            assert float(table.sin[position, i]) == pytest.approx(
                math.sin(angle) * multiplier, rel=1e-6, abs=1e-7
            )


def test_cos_and_sin_carry_the_multiplier():
    table = RopeTable.from_config(TINY, 3)
    np.testing.assert_allclose(table.cos[0], 1.3688879 / 1.2608038, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(table.cos, table.sin), 1.3688879 / 1.2608038, rtol=1e-6)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_identity_table_rotates_by_zero(layout):
    table = RopeTable.identity(6, 5, layout)
    assert table.layout == layout
    assert table.cos.dtype == table.sin.dtype == jnp.float32
    np.testing.assert_array_equal(table.cos, np.ones((5, 3)))
    np.testing.assert_array_equal(table.sin, np.zeros((5, 3)))


@pytest.mark.parametrize("dim", [0, 1, 3, -2])
def test_identity_names_a_bad_width(dim):
    with pytest.raises(ShapeError, match=rf"argument 'dim': expected an even number >= 2, got {dim}"):
        RopeTable.identity(dim)


@pytest.mark.parametrize("layout", ["neox", "", None, "Interleaved"])
def test_bad_layout_is_refused(layout):
    ones = jnp.ones((1, 2), jnp.float32)
    with pytest.raises(LayoutError, match="expected 'interleaved' or 'half'"):
        RopeTable(ones, ones, layout)
    with pytest.raises(LayoutError):
        RopeTable.identity(4, layout=layout)
    assert issubclass(LayoutError, (MlaJaxError, TypeError))


def test_abstract_table_has_the_shape_of_the_real_one():
    real, abstract = RopeTable.from_config(TINY, 9), RopeTable.abstract(TINY, 9)
    assert jax.tree.structure(real) == jax.tree.structure(abstract)
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(abstract), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_layout_is_static_under_jit():
    seen = []

    @jax.jit
    def first(table: RopeTable) -> jax.Array:
        seen.append(table.layout)
        return table.cos[0]

    first(RopeTable.identity(4, layout="half"))
    first(RopeTable.identity(4, layout="interleaved"))
    first(RopeTable.identity(4, layout="half"))
    assert seen == ["half", "interleaved"]
