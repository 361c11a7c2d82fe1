"""What this machine can do at most, measured: bytes read and products computed a second, and the memory that it has."""

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.linear import linear
from mla_jax.quant import MXFP4, random_scale

_HOST_BYTES = 1 << 28
_DEVICE_BYTES = 1 << 32
_READS = 5
_PRODUCTS = 5

# Rows, outputs and inputs of the product whose rate stands for all.
_HOST_PRODUCT = (512, 4096, 2048)
_DEVICE_PRODUCT = (8192, 8192, 8192)


def on_host() -> bool:
    """Whether JAX computes on the CPU."""
    return jax.default_backend() == "cpu"


def read_rate() -> float:
    """Bytes per second at which the device reads memory that no cache holds; the best of a few rounds.

    On a CPU all cores together, with NumPy; on a GPU one reduction of a large array.
    """
    return _host_read_rate() if on_host() else _device_read_rate()


def product_rate(dtype: str) -> float:
    """FLOP per second of the fastest product of large matrices that the library has: plain, or with MXFP4 weights.

    Args:
      dtype: of the activations and of plain weights, "float32" or "bfloat16".
    """
    flop, calls = large_products(dtype)
    return flop / min(seconds_of(call, _PRODUCTS) for call in calls)


def large_products(dtype: str) -> tuple[float, list[Callable[[], jax.Array]]]:
    """The FLOP of a product of large matrices, and a call for each kind of weights that computes it.

    Args:
      dtype: as of `product_rate`.
    """
    rows, outputs, inputs = _HOST_PRODUCT if on_host() else _DEVICE_PRODUCT
    x = jnp.ones((rows, inputs), dtype)
    codes = jnp.full(MXFP4.data_shape((outputs, inputs)), 0x22, MXFP4.data_dtype)
    weights: tuple[Any, ...] = (
        jnp.ones((outputs, inputs), dtype),
        MXFP4.tensor(codes, random_scale(MXFP4, (outputs, inputs), 1.0)),
    )
    product = jax.jit(linear)
    return 2.0 * rows * outputs * inputs, [partial(product, x, weight) for weight in weights]


def seconds_of(call: Callable[[], Any], times: int) -> float:
    """Seconds of one call: the fastest of `times` on a CPU; on a GPU, where calls queue up, their mean."""
    jax.block_until_ready(call())
    if on_host():
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - started)
        return min(taken)
    started = time.perf_counter()
    jax.block_until_ready([call() for _ in range(times)])
    return (time.perf_counter() - started) / times


def available_bytes() -> int | None:
    """Memory for weights that is free: the device's, or on a CPU the system's; None where it cannot be known."""
    if not on_host():
        stats = jax.local_devices()[0].memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def peak_bytes() -> tuple[int, int | None]:
    """The most memory that this process ever held: the system's, and the device's or None on a CPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = peak if sys.platform == "darwin" else peak * 1024
    stats = {} if on_host() else jax.local_devices()[0].memory_stats() or {}
    return host, stats.get("peak_bytes_in_use")


def _host_read_rate() -> float:
    parts = [np.ones(_HOST_BYTES // 8, np.uint64) for _ in range(os.cpu_count() or 1)]
    best = 0.0
    for _ in range(_READS):
        workers = [threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - started))
    return best


def _device_read_rate() -> float:
    words = jnp.ones(_DEVICE_BYTES // 4, jnp.uint32)
    largest = jax.jit(jnp.max)
    return _DEVICE_BYTES / seconds_of(partial(largest, words), 4 * _READS)
