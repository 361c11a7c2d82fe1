"""FP8 formats: which one a device gets, every code's value after the load step, and models that hold them."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import mla_jax
from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.errors import CheckpointError, ConfigError
from mla_jax.fp8_format import in_fp8_format, resolve_fp8_format
from mla_jax.models import freeze

GOLDENS = Path(__file__).resolve().parents[1] / "goldens_quantized"
TOKENS = jnp.arange(9, dtype=jnp.int32)[None]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("gfx942", "e4m3fnuz"),
        ("gfx942:sramecc+:xnack-", "e4m3fnuz"),
        ("gfx940", "e4m3fn"),
        ("gfx941", "e4m3fn"),
        ("gfx950", "e4m3fn"),
        ("gfx950:sramecc+:xnack-", "e4m3fn"),
        ("gfx9420", "e4m3fn"),
        ("9.0", "e4m3fn"),
        (None, "e4m3fn"),
    ],
)
@pytest.mark.bug("sgl-project/sglang#27972", "test")
def test_auto_is_the_devices(architecture, expected):
    device = SimpleNamespace() if architecture is None else SimpleNamespace(compute_capability=architecture)
    assert resolve_fp8_format("auto", device) == expected
    for choice in ("e4m3fn", "e4m3fnuz"):
        assert resolve_fp8_format(choice, device) == choice


def test_auto_here():
    assert resolve_fp8_format("auto") == "e4m3fn"


@pytest.mark.parametrize("choice", ["", "ocp", "float8_e4m3fnuz", None, 1, ["auto"], jnp.float8_e4m3fn])
def test_bad_choices(choice):
    with pytest.raises(ConfigError, match="fp8_format: expected one of auto, e4m3fn, e4m3fnuz, got "):
        resolve_fp8_format(choice)
    with pytest.raises(ConfigError, match="fp8_format: "):
        mla_jax.load(GOLDENS / "fp8_block", fp8_format=choice)


@pytest.mark.bug("vllm-project/vllm#45681", "test")
def test_every_code_keeps_its_value():
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).reshape(2, 128)
    tensor = QuantizedTensor(jnp.asarray(codes), jnp.full((1, 1), 0.75, jnp.float32), "fp8_block", (128, 128))
    made = in_fp8_format(tensor, "e4m3fnuz")
    assert made.data.dtype == jnp.float8_e4m3fnuz
    np.testing.assert_array_equal(made.scale, 1.5)
    # Minus zero becomes zero: FNUZ has one zero. NaN stays NaN.
    np.testing.assert_array_equal(np.asarray(dequantize(made)), np.asarray(dequantize(tensor)))
    assert np.asarray(made.data).view(np.uint8)[1, 0] == 0
    assert in_fp8_format(tensor, "e4m3fn") is tensor


def test_a_checkpoint_of_fnuz_codes_is_refused(tmp_path):
    """Its +-240 has no OCP code of twice the value: nothing here reads such bytes as if they were OCP's."""
    shutil.copytree(GOLDENS / "fp8_block", tmp_path, dirs_exist_ok=True)
    file = next(path for path in sorted(tmp_path.glob("*.safetensors")) if b'"F8_E4M3"' in path.read_bytes())
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"F8_E4M3"', b'"F8_E4M3FNUZ"', 1)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    with pytest.raises(CheckpointError, match=r"tensor '\S+': dtype: expected one of .*got 'F8_E4M3FNUZ'"):
        mla_jax.load(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, "float32") for case in ("fp8_block", "fp8_ue8m0", "fp8_tensor", "quark_mixed", "ct_int4")),
        ("fp8_block", "bfloat16"),
    ],
)
def test_models_answer_the_same(case, dtype):
    plain, recoded = (
        freeze(mla_jax.load(GOLDENS / case, dtype=dtype, fp8_format=kind, progress=False)[0])
        for kind in ("e4m3fn", "e4m3fnuz")
    )
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(recoded.params)}
    assert "float8_e4m3fn" not in kinds
    assert ("float8_e4m3fnuz" in kinds) == (case != "ct_int4")
    wanted, got = (np.asarray(jax.jit(mla_jax.forward)(model, TOKENS)) for model in (plain, recoded))
    # Half the code under twice the scale: the same kernels sum the same numbers in the same order.
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("absorb_weights", ["auto", "bfloat16", "mxfp4", "fp8"])
@pytest.mark.parametrize("fp8_format", ["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("case", ["quark_mixed", "quark_mxfp4_attention"])
def test_described_and_loaded_models_agree(case, absorb_weights, fp8_format):
    options = {"absorb_weights": absorb_weights, "fp8_format": fp8_format}
    described = freeze(mla_jax.load(GOLDENS / case, abstract=True, **options)[0]).params
    loaded = freeze(mla_jax.load(GOLDENS / case, progress=False, **options)[0]).params
    assert jax.tree.structure(described) == jax.tree.structure(loaded)
    for one, other in zip(jax.tree.leaves(described), jax.tree.leaves(loaded), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
