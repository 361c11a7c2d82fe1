"""Loading a synthetic checkpoint of about a gigabyte: bytes per second beside a plain read, and peak memory.

DeepSeek-V2-Lite's layers with random codes, written once in the named container; each measurement then runs in
a fresh process. The plain read takes the same file into memory that is as new as a model's (`numpy.fromfile`),
and into one small buffer that is used again and again; the file is in the page cache for all three.

Usage: python benchmarks/load_rate.py [mxfp4 | fp8 | int4 | bf16 ...]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mla_jax import load
from mla_jax.checkpoints.index import SINGLE_FILE
from mla_jax.checkpoints.safetensors_writer import LazyTensor, write_safetensors
from mla_jax.config import ModelConfig
from mla_jax.models import freeze
from mla_jax.parameters import ParamInfo, Source, parameter_table
from mla_jax.presets import preset_file
from mla_jax.quant import FP8, MXFP4, Storage

INT4 = Storage("int4_group", (1, 32), "bfloat16")
CONTAINERS: dict[str, tuple[Storage | None, int, dict[str, Any] | None]] = {
    "mxfp4": (MXFP4, 4, {"quant_method": "mxfp4"}),
    "fp8": (FP8, 2, {"quant_method": "fp8", "weight_block_size": list(FP8.block)}),
    "int4": (
        INT4,
        4,
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "strategy": "group",
                        "group_size": INT4.block[1],
                    }
                }
            },
        },
    ),
    "bf16": (None, 1, None),
}
"""Storage, layers, and quantization_config of each container."""

ROUNDS = 5
BUFFER_BYTES = 8 << 20


def write_checkpoint(folder: Path, container: str) -> None:
    """A folder that `load` reads, with random codes and scales."""
    storage, layers, quantization = CONTAINERS[container]
    settings = json.loads(preset_file("deepseek-v2-lite").read_text(encoding="utf-8"))
    settings |= {"num_hidden_layers": layers, "vocab_size": 16_384}
    if quantization is not None:
        settings["quantization_config"] = quantization
    if layers == 1:
        settings["first_k_dense_replace"] = 0
    rng = np.random.default_rng(0)
    tensors: dict[str, LazyTensor] = {}

    def add(name: str, shape: tuple[int, ...], dtype: Any) -> None:
        kind = np.dtype(dtype)

        def make() -> np.ndarray:
            if kind.kind == "f" or kind == ml_dtypes.bfloat16:
                return np.full(shape, 0.01, kind)
            size = int(np.prod(shape)) * kind.itemsize
            # Codes without the sign of their exponent's top bit: no FP8 is a NaN.
            codes = np.frombuffer(rng.bytes(size), np.uint8) & np.uint8(0xBF)
            return codes.view(kind).reshape(shape)

        tensors[name] = LazyTensor(shape, kind, make)

    def leaf(info: ParamInfo, source: Source) -> None:
        shape = info.source_shape(source)
        module = source.name.removesuffix(".weight")
        if storage is None or not info.quantizable or module.endswith("lm_head"):
            add(source.name, shape, info.dtype or ml_dtypes.bfloat16)
        elif storage is INT4:
            add(f"{module}.weight_packed", (shape[0], shape[1] // 8), np.int32)
            add(f"{module}.weight_scale", storage.scale_shape(shape), ml_dtypes.bfloat16)
        else:
            add(source.name, storage.data_shape(shape), jnp.dtype(storage.data_dtype))
            add(f"{module}.weight_scale", storage.scale_shape(shape), jnp.dtype(storage.scale_dtype))

    for info in jax.tree.leaves(
        parameter_table(ModelConfig.from_hf(settings)), is_leaf=lambda node: isinstance(node, ParamInfo)
    ):
        for source in info.sources:
            leaf(info, source)
    write_safetensors(folder / SINGLE_FILE, tensors)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def measure_load(folder: Path) -> dict[str, float]:
    """Seconds, and bytes of memory; to be called once in a process."""
    jax.block_until_ready(jnp.zeros(1))
    before = _status("VmRSS")
    started = time.perf_counter()
    model, _ = load(folder, progress=False)
    params = jax.block_until_ready(freeze(model).params)
    seconds = time.perf_counter() - started
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    peak = _status("VmHWM") - before
    return {"load_s": seconds, "peak": peak, "weights": sum(sizes), "largest": max(sizes)}


def measure_new(folder: Path) -> dict[str, float]:
    """Seconds of a plain read into new memory."""
    started = time.perf_counter()
    np.fromfile(folder / SINGLE_FILE, np.uint8)
    return {"new_s": time.perf_counter() - started}


def measure_reused(folder: Path) -> dict[str, float]:
    """Seconds of a plain read, piece after piece into the same memory."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    started = time.perf_counter()
    with open(folder / SINGLE_FILE, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    return {"reused_s": time.perf_counter() - started}


MEASUREMENTS = {"load": measure_load, "new": measure_new, "reused": measure_reused}


def _status(key: str) -> int:
    """Of this process, in bytes. VmHWM is its own, while ru_maxrss would begin with that of its parent."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(containers: list[str]) -> None:
    """Prints one line a container, medians of `ROUNDS` processes."""
    for container in containers:
        if container not in CONTAINERS:
            sys.exit(f"expected {', '.join(CONTAINERS)}, got {container!r}")
    print("GB/s are of the whole file; memory is above what the process held before, in MB")
    for container in containers:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), container)
            size = (Path(folder) / SINGLE_FILE).stat().st_size
            found: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                for kind in MEASUREMENTS:
                    command = [sys.executable, __file__, f"--{kind}", folder]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    for key, value in json.loads(done.stdout).items():
                        found.setdefault(key, []).append(value)
        load_s, new_s, reused_s = (statistics.median(found[key]) for key in ("load_s", "new_s", "reused_s"))
        print(
            f"{container:5} {size / 1e9:.2f} GB: load {size / load_s / 1e9:.2f} GB/s; plain read into new memory "
            f"{size / new_s / 1e9:.2f} (ratio {new_s / load_s:.2f}), into reused memory "
            f"{size / reused_s / 1e9:.2f} ({reused_s / load_s:.2f}); peak {max(found['peak']) / 1e6:.0f}, weights "
            f"{found['weights'][0] / 1e6:.0f}, largest array {found['largest'][0] / 1e6:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].removeprefix("--") in MEASUREMENTS:
        print(json.dumps(MEASUREMENTS[sys.argv[1].removeprefix("--")](Path(sys.argv[2]))))
    else:
        main(sys.argv[1:] or list(CONTAINERS))
