"""How a finding becomes an error: at once, or through `checked`; and what turns checked mode on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from paging_case import ints, pool

import mla_jax
from mla_jax.checking import VARIABLE, checked, checks_asked, first_wrong, known, require
from mla_jax.errors import CheckError, ConfigError, MlaJaxError
from mla_jax.paging import AttentionMetadata, PageTable, advance


def small(values, limit=5):
    require(
        first_wrong(
            values >= limit,
            f"value {{value}} at {{row}}, {{column}}: expected < {limit}",
            lambda row, column: {"value": values[row, column], "row": row, "column": column},
        )
    )
    return values + 1


GRID = jnp.array([[1, 2, 3], [4, 5, 6]], jnp.int32)
SENTENCE = "^value 5 at 1, 1: expected < 5$"


def test_the_first_mistake_is_described():
    for run in (small, checked(small)):
        with pytest.raises(CheckError, match=SENTENCE):
            run(GRID)
        np.testing.assert_array_equal(run(GRID - 2), GRID - 1)


def test_nothing_is_wrong_with_nothing():
    finding = first_wrong(jnp.zeros((0, 3), bool), "never", lambda *_: {"x": 1 / 0})
    assert bool(finding.holds)
    require(finding)


def test_an_error_of_checked_mode_is_one_of_the_librarys():
    assert issubclass(CheckError, MlaJaxError)
    assert mla_jax.CheckError is CheckError


def test_under_plain_jit_a_check_has_nowhere_to_go():
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(small)(GRID)


@pytest.mark.parametrize("loop", ["scan", "while_loop", "cond", "jit"])
def test_checks_inside_control_flow(loop):
    def scan(values):
        return jax.lax.scan(lambda carry, _: (small(carry), None), values, None, length=3)[0]

    def while_loop(values):
        return jax.lax.while_loop(lambda one: one[0, 0] < 4, small, values)

    def cond(values):
        return jax.lax.cond(values[0, 0] > 0, small, lambda same: same, values)

    body = {"scan": scan, "while_loop": while_loop, "cond": cond, "jit": jax.jit(small)}[loop]
    run = checked(body)
    fine = jnp.zeros_like(GRID)
    np.testing.assert_array_equal(run(fine), fine + {"scan": 3, "while_loop": 4, "cond": 0, "jit": 1}[loop])
    with pytest.raises(CheckError, match=SENTENCE):
        run(GRID)
    if loop in ("scan", "while_loop"):
        with pytest.raises(CheckError, match="^value 5 at 1, 2: expected < 5$"):  # in the loop's second round
            run(GRID - 2)


def test_a_checked_step_is_called_as_the_step():
    @partial(checked, donate_argnames="pool", static_argnames="times")
    def step(tokens, pool, *, times=1):
        """What it does."""
        small(tokens)
        return {"tokens": tokens * times, "pool": pool + 1}

    assert (step.__name__, step.__doc__) == ("step", "What it does.")
    given = jnp.ones((2, 2))
    found = step(GRID - 2, pool=given, times=3)
    np.testing.assert_array_equal(found["tokens"], (GRID - 2) * 3)
    np.testing.assert_array_equal(found["pool"], np.full((2, 2), 2))
    assert given.is_deleted()
    assert step._cache_size() == 1
    assert "stablehlo" in step.lower(GRID, jnp.ones((2, 2))).as_text()


def test_a_users_own_checks_are_raised_too():
    @checked
    def step(x):
        checkify.check(x > 0, "x is {x}", x=x)
        return x

    assert float(step(jnp.float32(1))) == 1
    with pytest.raises(CheckError, match="^x is -1.0$"):
        step(jnp.float32(-1))


def test_other_errors_of_a_step_stay_what_they_are():
    @checked
    def step(x):
        return small(x).reshape(5)

    with pytest.raises(TypeError, match="reshape"):
        step(GRID)


def test_known_is_outside_jit():
    seen = []
    jax.jit(lambda x: seen.append(known(x)))(1)
    assert [*seen, known(GRID), known(np.ones(2)), known(3)] == [False, True, True, True]


# What turns it on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "on"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_decides_where_nobody_asked(monkeypatch, value, on):
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    assert checks_asked() is on
    assert checks_asked(True) is True
    assert checks_asked(False) is False


@pytest.mark.parametrize("value", ["2", "true", "on", " 1", "01"])
def test_another_value_of_the_environment_is_refused(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(
        ConfigError, match=f"environment variable MLA_JAX_CHECK: expected 0 or 1, got '{value}'"
    ):
        checks_asked()
    assert checks_asked(False) is False


@pytest.mark.parametrize("value", [1, 0, "1", "yes", np.bool_(True)])
def test_checks_are_asked_for_with_a_bool(value):
    message = "checks: expected True or False, got"
    table = PageTable.allocate(pool(4, 2), 2, 4)
    with pytest.raises(ConfigError, match=message):
        checks_asked(value)
    with pytest.raises(ConfigError, match=message):
        AttentionMetadata.extend(table, [0, 0], [1, 1], checks=value)


def test_a_traced_choice_is_refused():
    table = PageTable.allocate(pool(4, 2), 2, 4)
    with pytest.raises(ConfigError, match="checks: expected True or False, got"):
        jax.jit(lambda on: AttentionMetadata.extend(table, [0, 0], [1, 1], num_tokens=2, checks=on).seq_lens)(
            True
        )


# Metadata ----------------------------------------------------------------------------------------------


def test_metadata_is_unchecked_until_somebody_asks_and_passes_it_on():
    table = PageTable.allocate(pool(4, 2), 2, 4)
    plain = AttentionMetadata.extend(table, [0, 0], [1, 1])
    asked = AttentionMetadata.extend(table, [0, 0], [1, 1], checks=True)
    assert (plain.checks, asked.checks, AttentionMetadata.dense(1, 2).checks) == (False, True, False)
    assert (advance(plain).checks, advance(asked).checks) == (False, True)
    for inside, on in ((plain, False), (asked, True)):
        assert jax.jit(lambda meta: meta)(inside).checks is on
    assert jax.tree.structure(plain) != jax.tree.structure(asked)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(asked), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pool_that_runs_dry_inside_jit_is_named():
    """Outside jit `PageTable.append` refuses; inside it the entry stays empty, which only these two can see."""
    table = PageTable.empty(pool(3, 2), 3, 4)

    @checked
    def prompt(table, new):
        table = table.append(ints(0, 0, 0), new)
        return AttentionMetadata.extend(table, ints(0, 0, 0), new, num_tokens=8, checks=True)

    meta = prompt(table, ints(2, 1, 2))
    sentence = "sequence 2: no page at entry {} for the new token at position {}"
    with pytest.raises(CheckError, match="AttentionMetadata.extend: " + sentence.format(1, 2)):
        prompt(table, ints(2, 1, 3))
    with pytest.raises(CheckError, match="AttentionMetadata.extend: " + sentence.format(0, 0)):
        prompt(table, ints(4, 1, 1))
    grow = checked(advance)
    meta = grow(meta, jnp.array([False, True, False]))
    with pytest.raises(CheckError, match="advance: " + sentence.format(1, 2)):
        grow(meta, jnp.array([False, False, True]))
    jax.jit(advance)(AttentionMetadata.extend(table, ints(2, 2, 2), ints(0, 0, 0), num_tokens=1))
