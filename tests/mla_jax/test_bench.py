"""The bench command: every key, counted figures that agree with each other, sentences for what cannot be."""

import json
from pathlib import Path

import jax
import pytest

from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax import bench as bench_module
from mla_jax import machine
from mla_jax.bench import WEIGHTS, bench, format_report
from mla_jax.cli import main
from mla_jax.errors import RequestError

CASE = Path(__file__).resolve().parents[1] / "goldens" / "deepseek_v2_lite_bf16"
KEYS = {
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "bytes_per_step",
    "flop_per_step",
    "flop_of_prefill",
    "product_gflop_per_s",
    "decode_share_of_floor",
    "prefill_share_of_floor",
    "read_gb_per_s",
    "share_of_read_rate",
    "load_s",
    "compile_s",
    "peak_rss_bytes",
}


@pytest.fixture(autouse=True)
def little_to_read(monkeypatch):
    monkeypatch.setattr(machine, "_HOST_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_HOST_PRODUCT", (48, 64, 64))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The golden's configuration with widths that MXFP4 can have."""
    settings = json.loads((CASE / "config.json").read_text())
    settings |= {"intermediate_size": 64, "moe_intermediate_size": 32}
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(settings))
    return path


def test_a_checkpoint(capsys):
    assert (
        main(["bench", str(CASE), "--prompt", "8", "--decode", "2", "--batch", "2", "--depth", "5", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= KEYS
    assert all(found[key] > 0 for key in KEYS)
    per_step = 2 / found["decode_tokens_per_s"]
    rate = found["bytes_per_step"] / per_step / 1e9
    assert found["share_of_read_rate"] == pytest.approx(rate / found["read_gb_per_s"], rel=1e-6)
    assert found["weights"] == "checkpoint"
    floor = (
        found["bytes_per_step"] / found["read_gb_per_s"]
        + found["flop_per_step"] / found["product_gflop_per_s"]
    )
    assert found["decode_share_of_floor"] == pytest.approx(floor / 1e9 / per_step, rel=1e-6)
    assert found["peak_device_bytes"] is None


@pytest.mark.parametrize("weights", [*WEIGHTS, None])
def test_random_weights(config, weights):
    found = bench(config=str(config), weights=weights, prompt=4, decode=1)
    assert found["weights"] == (weights or "bf16")
    assert found["decode_tokens_per_s"] > 0 and found["prefill_tokens_per_s"] > 0
    text = format_report(found)
    assert "tokens/s" in text and "GB/s" in text


def test_narrower_weights_are_fewer_bytes(config):
    sizes = {
        weights: bench(config=str(config), weights=weights, prompt=0, decode=0)["weight_bytes"]
        for weights in WEIGHTS
    }
    assert sizes["mxfp4-all"] < sizes["mxfp4"] < sizes["mxfp4-experts"] < sizes["fp8"] < sizes["bf16"]


def test_parts_may_be_left_out():
    found = bench(str(CASE), prompt=0, decode=1)
    assert found["prefill_tokens_per_s"] is None and found["decode_tokens_per_s"] > 0
    found = bench(str(CASE), prompt=3, decode=0)
    assert found["decode_tokens_per_s"] is None and found["share_of_read_rate"] is None
    assert found["decode_share_of_floor"] is None and found["prefill_share_of_floor"] > 0
    assert "decode" not in format_report(found)


def test_refusals(monkeypatch, config):
    with pytest.raises(RequestError, match="expected a MODEL or --config, and not both"):
        bench()
    with pytest.raises(RequestError, match="expected a MODEL or --config, and not both"):
        bench(str(CASE), config="deepseek-v3")
    with pytest.raises(RequestError, match="weights: a checkpoint has its own"):
        bench(str(CASE), weights="fp8")
    with pytest.raises(
        RequestError, match="weights: expected one of mxfp4, fp8, bf16, mxfp4-all, mxfp4-experts, got 'int2'"
    ):
        bench(config=str(config), weights="int2")
    with pytest.raises(
        RequestError, match=r"config: expected a config.json or one of deepseek-v2-lite, .*got 'gpt'"
    ):
        bench(config="gpt")
    with pytest.raises(RequestError, match="batch: expected at least 1, got 0"):
        bench(str(CASE), batch=0)
    with pytest.raises(RequestError, match="depth: expected at least 0, got -1"):
        bench(str(CASE), depth=-1)
    with pytest.raises(RequestError, match=r"bench: \d+ tokens of one sequence"):
        bench(str(CASE), depth=10**6)
    monkeypatch.setattr(bench_module, "available_bytes", lambda: 10**9)
    with pytest.raises(
        RequestError, match=r"deepseek-v3 with mxfp4 weights needs \d+\.\d GB, 1.0 GB are available"
    ):
        bench(config="deepseek-v3", weights="mxfp4")


def test_the_peak_is_the_models_and_not_the_ceilings(monkeypatch):
    order = []
    for name, answer in (("peak_bytes", (7, None)), ("read_rate", 1.0), ("product_rate", 1.0)):
        monkeypatch.setattr(
            bench_module, name, lambda *_, name=name, answer=answer: (order.append(name), answer)[1]
        )
    found = bench(str(CASE), prompt=0, decode=0)
    assert found["peak_rss_bytes"] == 7 and order[0] == "peak_bytes" and len(order) == 3


@pytest.mark.parametrize("layout", ["shuffled", "vnni"])
def test_random_weights_are_held_as_loaded_ones(config, layout, monkeypatch):
    monkeypatch.setattr(bench_module, "resolve_fp8_format", lambda _: "e4m3fnuz")
    monkeypatch.setattr(bench_module, "resolve_weight_layout", lambda *_: layout)

    def held(weights):
        params = bench_module.random_model(str(config), weights)[0].params
        leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, QuantizedTensor))
        return {(w.data.dtype.name, w.data_layout) for w in leaves if isinstance(w, QuantizedTensor)}

    # kv_b_proj is always in rows, and experts are if the others are shuffled.
    assert held("mxfp4-all") == {("uint8", layout), ("uint8", "row_major")}
    assert held("fp8") == {("float8_e4m3fnuz", "row_major")}
