"""Which spellings of a number or a dtype are taken for what they stand for."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mla_jax.arguments import as_integer, dtype_name


class Indexed:
    def __index__(self):
        return 3


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), jnp.int32(3), Indexed()])
def test_integers(value):
    got = as_integer(value)
    assert (got, type(got)) == (3, int)


def test_large_and_negative_integers():
    assert as_integer(10**5000) == 10**5000
    assert as_integer(np.int8(-1)) == -1


@pytest.mark.parametrize(
    "value",
    [True, False, np.True_, np.array(True), 3.0, np.float32(3), "3", None, [3], np.array([3, 4]), int],
)
def test_what_is_no_integer(value):
    assert as_integer(value) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("auto", "auto"),
        ("anything", "anything"),
        (jnp.bfloat16, "bfloat16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        (jnp.float32, "float32"),
        (np.float32, "float32"),
        (np.dtype("float32"), "float32"),
        (jnp.float8_e4m3fn, "float8_e4m3fn"),
        (np.int8, "int8"),
    ],
)
def test_dtypes(value, name):
    assert dtype_name(value) == name


@pytest.mark.parametrize("value", [None, float, int, 32, ["float32"], np.float32(1), np.ones(3), np.floating])
def test_what_is_no_dtype(value):
    assert dtype_name(value) is None
