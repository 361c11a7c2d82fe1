"""Rates and memory of the machine: positive, in the right unit, and None where nothing can be known."""

import time

import jax.numpy as jnp
import pytest

from mla_jax import machine


@pytest.fixture(autouse=True)
def little_to_do(monkeypatch):
    monkeypatch.setattr(machine, "_HOST_BYTES", 1 << 22)
    monkeypatch.setattr(machine, "_HOST_PRODUCT", (48, 64, 64))


def test_rates_are_positive():
    assert machine.on_host()
    assert machine.read_rate() > 0
    assert machine.product_rate("bfloat16") > 0
    assert machine.product_rate("float32") > 0


def test_the_reduction_of_a_device_reads_all_bytes(monkeypatch):
    monkeypatch.setattr(machine, "_DEVICE_BYTES", 1 << 22)
    monkeypatch.setattr(machine, "seconds_of", lambda call, times: int(call()) + 1)
    assert machine._device_read_rate() == (1 << 22) / 2


@pytest.mark.parametrize("host", [True, False])
def test_seconds_are_of_one_call(monkeypatch, host):
    monkeypatch.setattr(machine, "on_host", lambda: host)
    calls = []

    def call():
        calls.append(1)
        time.sleep(0.02)
        return jnp.zeros(())

    taken = machine.seconds_of(call, 4)
    assert len(calls) == 5
    assert 0.02 <= taken < 0.08


def test_memory(monkeypatch):
    free = machine.available_bytes()
    assert free is not None and free > 1 << 20
    host, device = machine.peak_bytes()
    assert host > 1 << 20 and device is None

    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    monkeypatch.setattr(machine, "on_host", lambda: False)
    monkeypatch.setattr(machine.jax, "local_devices", lambda: [Device(None)])
    assert machine.available_bytes() is None and machine.peak_bytes()[1] is None
    stats = {"bytes_limit": 100, "bytes_in_use": 30, "peak_bytes_in_use": 70}
    monkeypatch.setattr(machine.jax, "local_devices", lambda: [Device(stats)])
    assert machine.available_bytes() == 70 and machine.peak_bytes()[1] == 70
