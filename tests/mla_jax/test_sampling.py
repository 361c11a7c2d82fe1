"""Sampling: the exact set that each limit keeps, the frequencies inside it, and independent rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.errors import RequestError, ShapeError
from mla_jax.sampling import sample

DRAWS = 20_000

run = jax.jit(sample)


def logits_of(probabilities):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, np.float64)).astype(np.float32)


def counts(logits, *, seed=0, **limits):
    """How often each token is drawn in DRAWS rows of the same logits."""
    rows = jnp.tile(jnp.asarray(logits)[None], (DRAWS, 1))
    drawn = np.asarray(run(rows, jax.random.key(seed), **limits))
    assert drawn.dtype == np.int32
    return np.bincount(drawn, minlength=len(logits))


def check_frequencies(counted, probabilities):
    """Chi-square: fixed keys, so it passes or fails the same way everywhere. 5 sigma of its distribution."""
    probabilities = np.asarray(probabilities, np.float64) / np.sum(probabilities)
    assert set(np.flatnonzero(counted)) == set(np.flatnonzero(probabilities))
    kept = probabilities > 0
    expected = probabilities[kept] * counted.sum()
    assert expected.min() > 20
    chi = ((counted[kept] - expected) ** 2 / expected).sum()
    freedom = kept.sum() - 1
    assert chi < freedom + 5 * np.sqrt(2 * max(freedom, 1))


P = [0.3, 0.05, 0.2, 0.25, 0.1, 0.1]


def test_temperature_one_draws_the_distribution():
    check_frequencies(counts(logits_of(P), temperature=1.0), P)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_applied_to_the_logits(temperature):
    check_frequencies(counts(logits_of(P), temperature=temperature), np.array(P) ** (1 / temperature))


def test_adding_a_constant_to_the_logits_changes_nothing():
    np.testing.assert_array_equal(
        counts(logits_of(P), temperature=0.7), counts(logits_of(P) + 64, temperature=0.7)
    )


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"top_k": 0}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 1}, [0]),
        ({"top_k": 3}, [0, 2, 3]),
        ({"top_k": 4}, [0, 2, 3, 4]),  # of two equal tokens the lower id stays
        ({"top_k": 6}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 2**31 - 1}, [0, 1, 2, 3, 4, 5]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4, 5]),
        ({"top_p": 0.29}, [0]),
        ({"top_p": 0.31}, [0, 3]),
        ({"top_p": 0.54}, [0, 3]),
        ({"top_p": 0.56}, [0, 2, 3]),
        ({"top_p": 0.8}, [0, 2, 3, 4]),
        ({"top_p": 1e-9}, [0]),
        ({"min_p": 0.0}, [0, 1, 2, 3, 4, 5]),
        ({"min_p": 0.3}, [0, 2, 3, 4, 5]),
        ({"min_p": 0.34}, [0, 2, 3]),
        ({"min_p": 0.8}, [0, 3]),
        ({"min_p": 1.0}, [0]),
        # In order: top_k renormalises before min_p and top_p look. 0.3, 0.25, 0.2 become 0.4, 0.333, 0.267.
        ({"top_k": 3, "top_p": 0.72}, [0, 3]),
        ({"top_k": 3, "top_p": 0.75}, [0, 2, 3]),
        ({"top_k": 3, "min_p": 0.7}, [0, 3]),
        # min_p keeps 0.3, 0.25: 0.545 and 0.4545 of what is left.
        ({"min_p": 0.8, "top_p": 0.54}, [0]),
        ({"min_p": 0.8, "top_p": 0.55}, [0, 3]),
    ],
    ids=str,
)
def test_limits_keep_exactly_this_set_and_its_proportions(limits, kept):
    expected = np.where(np.isin(np.arange(6), kept), P, 0.0)
    check_frequencies(counts(logits_of(P), temperature=1.0, **limits), expected)


def test_top_p_that_is_reached_exactly_keeps_no_more():
    assert np.flatnonzero(counts(np.zeros(4, np.float32), temperature=1.0, top_p=0.5)).tolist() == [0, 1]


def test_limits_act_after_temperature():
    # At temperature 2 the square roots: 0.221 0.090 0.180 0.202 0.128 0.128 (normalised).
    check_frequencies(
        counts(logits_of(P), temperature=2.0, top_p=0.41),
        np.where(np.isin(np.arange(6), [0, 3]), np.sqrt(P), 0),
    )


def test_greedy_takes_the_lowest_id_among_equals_and_ignores_the_key():
    logits = jnp.array([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -2.0, -0.5, -0.5]], jnp.float32)
    for seed in range(5):
        drawn = run(logits, jax.random.key(seed), temperature=0.0, top_k=2, top_p=0.1, min_p=0.9)
        assert drawn.tolist() == [1, 0, 2]


def test_impossible_tokens_are_never_drawn():
    probabilities = [0.0, 0.5, 0.0, 0.25, 0.25, 0.0]
    check_frequencies(counts(logits_of(probabilities), temperature=1.0), probabilities)
    check_frequencies(counts(logits_of(probabilities), temperature=1.0, top_k=5, top_p=1.0), probabilities)
    assert counts(logits_of([0.0, 0.0, 1.0]), temperature=3.0).tolist() == [0, 0, DRAWS]


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-37, 1e-40])
def test_tiny_temperatures_are_greedy(temperature):
    logits = np.array([300.0, -5.0, 310.0, 309.0], np.float32)
    assert counts(logits, temperature=temperature).tolist() == [0, 0, DRAWS, 0]


def test_each_row_has_its_own_limits():
    rows = jnp.tile(jnp.asarray(logits_of(P))[None], (DRAWS, 1))
    third = np.arange(DRAWS) % 3
    drawn = np.asarray(
        run(
            rows,
            jax.random.key(7),
            temperature=jnp.asarray(np.where(third == 0, 0.0, np.where(third == 1, 1.0, 2.0)), jnp.float32),
            top_k=jnp.asarray(np.where(third == 1, 2, 0), jnp.int32),
            top_p=jnp.asarray(np.where(third == 2, 0.41, 1.0), jnp.float32),
            min_p=jnp.zeros(DRAWS, jnp.float32),
        )
    )
    assert set(drawn[third == 0]) == {0}
    check_frequencies(np.bincount(drawn[third == 1], minlength=6), [0.3, 0, 0, 0.25, 0, 0])
    expected = np.where(np.isin(np.arange(6), [0, 3]), np.sqrt(P), 0)
    check_frequencies(np.bincount(drawn[third == 2], minlength=6), expected)


def test_rows_with_their_own_keys_do_not_depend_on_their_neighbours(rng):
    logits = jnp.asarray(rng.standard_normal((50, 33)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 50)
    together = np.asarray(run(logits, keys, temperature=1.0))
    order = rng.permutation(50)
    np.testing.assert_array_equal(run(logits[order], keys[order], temperature=1.0), together[order])
    np.testing.assert_array_equal(run(logits[:7], keys[:7], temperature=1.0), together[:7])
    # A neighbour of NaN does not matter either.
    np.testing.assert_array_equal(run(logits.at[9].set(jnp.nan), keys, temperature=1.0)[:9], together[:9])
    assert len(set(together.tolist())) > 10


def test_rows_of_one_key_differ_and_the_same_key_repeats():
    logits = jnp.zeros((64, 50), jnp.float32)
    first = run(logits, jax.random.key(1), temperature=1.0)
    np.testing.assert_array_equal(run(logits, jax.random.key(1), temperature=1.0), first)
    assert len(set(first.tolist())) > 20
    assert (np.asarray(run(logits, jax.random.key(2), temperature=1.0)) != np.asarray(first)).any()


def test_old_style_keys_draw_the_same(rng):
    logits = jnp.asarray(rng.standard_normal((9, 20)), jnp.float32)
    new, old = jax.random.key(5), jax.random.PRNGKey(5)
    np.testing.assert_array_equal(run(logits, old, temperature=1.0), run(logits, new, temperature=1.0))
    split = jax.random.split(new, 9)
    np.testing.assert_array_equal(
        run(logits, jax.random.key_data(split), temperature=1.0), run(logits, split, temperature=1.0)
    )


def test_a_row_without_limits_does_not_depend_on_limited_neighbours(rng):
    logits = jnp.asarray(rng.standard_normal((40, 33)), jnp.float32)
    alone = run(
        logits, jax.random.key(4), temperature=1.0, top_p=jnp.ones(40), top_k=jnp.zeros(40, jnp.int32)
    )
    top_k = jnp.zeros(40, jnp.int32).at[::2].set(1)
    mixed = run(logits, jax.random.key(4), temperature=1.0, top_p=jnp.ones(40), top_k=top_k)
    np.testing.assert_array_equal(mixed[1::2], alone[1::2])
    np.testing.assert_array_equal(mixed[::2], jnp.argmax(logits, axis=-1)[::2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_rows_without_an_answer_are_minus_one(temperature, limits):
    nan, inf = np.nan, np.inf
    logits = jnp.array(
        [[1, nan, 3], [-inf, -inf, -inf], [0, inf, 1], [nan, nan, nan], [0, -inf, 9]], jnp.float32
    )
    drawn = run(logits, jax.random.key(0), temperature=temperature, **limits).tolist()
    assert drawn[:4] == [-1, -1, -1, -1]
    assert drawn[4] in (0, 2)


def test_low_precision_logits_are_sampled_in_float32():
    low = jnp.asarray(logits_of(P)).astype(jnp.bfloat16)
    exact = np.exp(np.asarray(low, np.float64))
    check_frequencies(counts(low, temperature=1.0), exact)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4), ()])
def test_logits_have_two_axes(shape):
    with pytest.raises(ShapeError, match=r"argument 'logits': expected floats of shape \(rows, vocab\)"):
        sample(jnp.zeros(shape, jnp.float32), jax.random.key(0), temperature=1.0)


def test_integer_logits_are_refused():
    with pytest.raises(ShapeError, match=r"argument 'logits': expected floats .* got int32"):
        sample(jnp.zeros((2, 3), jnp.int32), jax.random.key(0), temperature=1.0)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p"])
@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1)])
def test_limits_are_numbers_or_one_a_row(name, shape):
    limits = {"temperature": 1.0, name: jnp.ones(shape, jnp.int32 if name == "top_k" else jnp.float32)}
    with pytest.raises(ShapeError, match=rf"argument '{name}': expected a number or shape \(2,\)"):
        sample(jnp.zeros((2, 5), jnp.float32), jax.random.key(0), **limits)


def test_a_wrong_number_of_keys_is_refused():
    with pytest.raises(ShapeError, match=r"argument 'key': expected one key or 2 keys, got shape \(3,\)"):
        sample(jnp.zeros((2, 5), jnp.float32), jax.random.split(jax.random.key(0), 3), temperature=1.0)


NAN, INF = float("nan"), float("inf")
RANGES = {
    "temperature": ("finite numbers >= 0", (0, 0.0, 1, 1e30), (-0.5, -1, NAN, INF, -INF)),
    "top_p": (r"numbers in \(0, 1\]", (1, 1.0, 1e-6), (0, 0.0, -0.1, 1.1, 2, NAN, INF)),
    "top_k": ("integers >= 0", (0, 1, 5, 6, 2**31 - 1, 2**40), (-1, -(2**31))),
    "min_p": (r"numbers in \[0, 1\]", (0, 0.0, 1, 1.0), (-0.1, 1.1, NAN, INF)),
}
PAIRS = [(name, value) for name in RANGES for value in RANGES[name][2]]


@pytest.mark.parametrize(("name", "value"), PAIRS)
@pytest.mark.parametrize(
    "form",
    [lambda x: x, lambda x: np.array([1, x]), lambda x: jnp.array([1, x])],
    ids=["number", "numpy", "jax"],
)
def test_a_limit_outside_its_range_is_refused_where_it_is_known(name, value, form):
    logits = jnp.zeros((2, 5), jnp.float32)
    with pytest.raises(RequestError, match=f"sample: argument '{name}': expected {RANGES[name][0]}, got"):
        sample(logits, jax.random.key(0), **{"temperature": 1.0, name: form(value)})

    @jax.jit
    def closed_over(logits):
        return sample(logits, jax.random.key(0), **{"temperature": 1.0, name: value})

    with pytest.raises(RequestError, match=f"argument '{name}'"):
        closed_over(logits)


@pytest.mark.parametrize(("name", "value"), PAIRS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_limit_outside_its_range_inside_jit_is_no_token(name, value, temperature):
    logits = jnp.asarray(np.tile(logits_of(P), (3, 1)))
    limits = {"temperature": temperature, "top_p": 0.9, "top_k": 5, "min_p": 0.01}
    kinds = {"top_k": jnp.int32}
    rows = {k: jnp.full((3,), v, kinds.get(k, jnp.float32)) for k, v in limits.items()}
    clean = run(logits, jax.random.key(3), **rows)
    assert min(clean.tolist()) >= 0
    rows[name] = rows[name].at[1].set(value)
    assert run(logits, jax.random.key(3), **rows).tolist() == [clean[0], -1, clean[2]]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in RANGES for value in RANGES[name][1]])
def test_the_ends_of_every_range_are_in_it(name, value):
    logits = jnp.asarray(np.tile(logits_of(P), (2, 1)))
    for form in (value, np.array([value, value])):
        assert min(sample(logits, jax.random.key(0), **{"temperature": 1.0, name: form}).tolist()) >= 0


def test_a_known_top_k_of_the_whole_vocabulary_is_off():
    logits, key = jnp.zeros((300, 6), jnp.float32), jax.random.key(2)
    free = sample(logits, key, temperature=1.0)
    assert set(free.tolist()) == set(range(6))
    for top_k in (6, 2**40):
        np.testing.assert_array_equal(sample(logits, key, temperature=1.0, top_k=top_k), free)


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 1.0), ("top_k", True), ("top_p", "1"), ("temperature", 1j)]
)
def test_a_limit_of_another_kind_is_refused(name, value):
    with pytest.raises(ShapeError, match=f"argument '{name}': expected .*, got dtype"):
        sample(jnp.zeros((2, 5), jnp.float32), jax.random.key(0), **{"temperature": 1.0, name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", 1e39), ("top_p", 1e-60)])
def test_a_limit_that_float32_rounds_out_of_its_range_is_refused(name, value):
    with pytest.raises(RequestError, match=rf"argument '{name}': expected .*, got 1e[+-]\d\d$"):
        sample(jnp.zeros((2, 5), jnp.float32), jax.random.key(0), **{"temperature": 1.0, name: value})


# Vocabularies wider than a group, and the three ways of a limited draw -------------------------------------


WIDE = 700  # two groups of tokens and a part of a third


@pytest.mark.parametrize("vocab", [1, 2, 255, 256, 257, WIDE])
def test_greedy_is_the_first_of_the_largest_wherever_it_is(rng, vocab):
    logits = rng.integers(-3, 3, (40, vocab)).astype(np.float32)
    logits[0] = -np.inf
    logits[0, -1] = -7
    logits[1] = 2.5
    np.testing.assert_array_equal(run(logits, jax.random.key(0), temperature=0.0), logits.argmax(-1))


def kept_by(probabilities, top_p, top_k, min_p):
    """The set that limits keep, one token after the other."""
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))
    order = order[:top_k] if top_k else order
    order = [i for i in order if probabilities[i] >= min_p * probabilities[order[0]]]
    total, before, kept = sum(probabilities[i] for i in order), 0.0, []
    for i in order:
        if kept and before >= top_p * total:
            break
        kept.append(i)
        before += probabilities[i]
    return kept


@pytest.mark.parametrize(
    ("top_p", "top_k", "min_p"),
    [
        (1.0, 0, 0.0),
        (0.7, 0, 0.0),  # by trial
        (0.9, 0, 0.15),
        (0.02, 0, 0.0),  # so few that most rows lose every trial and are sorted
        (1.0, 20, 0.0),  # among few
        (0.6, 64, 0.1),
        (1.0, 65, 0.0),  # sorted
        (0.5, 300, 0.05),
    ],
)
def test_wide_rows_keep_the_set_and_its_proportions(top_p, top_k, min_p):
    """A distribution in which no two tokens are alike; tokens in no order, so that every group has likely ones."""
    weights = np.exp(-3 * np.random.default_rng(5).permutation(WIDE) / WIDE)
    probabilities = weights / weights.sum()
    kept = kept_by(probabilities, top_p, top_k, min_p)
    drawn = counts(logits_of(probabilities), temperature=1.0, top_p=top_p, top_k=top_k, min_p=min_p)
    assert set(np.flatnonzero(drawn)) <= set(kept)
    expected = probabilities[kept] / probabilities[kept].sum() * DRAWS
    # Sets are of hundreds of tokens: in parts with at least 100 draws each.
    part = np.minimum(np.cumsum(expected) // 100, max(DRAWS // 100 - 1, 0)).astype(int)
    _, part = np.unique(part, return_inverse=True)
    seen, wanted = np.bincount(part, drawn[kept]), np.bincount(part, expected)
    wanted_chi = ((seen - wanted) ** 2 / wanted).sum()
    assert wanted_chi < len(wanted) - 1 + 5 * np.sqrt(2 * max(len(wanted) - 1, 1))


def test_the_way_of_a_row_does_not_depend_on_its_neighbours(rng):
    """Rows of all three ways and greedy ones, each by itself and all together."""
    logits = rng.standard_normal((12, WIDE)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 12)
    limits = {
        "temperature": np.tile([1.0, 0.0, 0.7, 2.0], 3).astype(np.float32),
        "top_p": np.tile([1.0, 0.9, 0.01], 4).astype(np.float32),
        "top_k": np.repeat([0, 0, 20, 100], 3).astype(np.int32),
        "min_p": np.tile([0.0, 0.1], 6).astype(np.float32),
    }
    together = np.asarray(run(logits, keys, **limits))
    assert len(set(together.tolist())) > 6
    for i in range(12):
        own = {name: value[i : i + 1] for name, value in limits.items()}
        assert run(logits[i : i + 1], keys[i : i + 1], **own)[0] == together[i]


def test_only_rows_that_need_it_are_sorted():
    """The vocabulary's sort stands in a branch, and greedy rows take none of the random numbers."""
    text = run.lower(jnp.zeros((2, WIDE)), jax.random.key(0), temperature=jnp.zeros(2)).as_text()
    main = text[text.index("func.func public @main") :]
    depth_zero = [
        line for line in main.split("func.func private")[0].splitlines() if line.startswith("    %")
    ]
    assert depth_zero
    assert not any("sort" in line or "threefry" in line or "rng" in line for line in depth_zero)
