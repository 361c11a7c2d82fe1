"""Every GPU benchmark on this machine, into one JSON file, with floors from ceilings of the same run.

    python benchmarks/gpu/run.py [--out FILE] [--picture FILE] [--only NAME ...] [--arch sm_90a]

Needs an NVIDIA GPU, nvcc, and a JAX that uses the GPU. Programs in CUDA time their op in a CUDA graph, those in Python
in a jit whose calls XLA records as a command buffer. Each row has op, its sizes, us, bytes and flop; a floor_us =
max(bytes / read rate, flop / matrix rate) and a share = floor_us / us are added here. Rows with a floor of their own
(of a layer) keep it. --picture draws them with ../roofline.py (needs matplotlib) once FILE of --out is written.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = ("quantized_products", "decode_layer")

# In a process of its own, which gives the device's memory back.
DEVICE = """
import json, jax
from mla_jax.machine import product_rate
if jax.default_backend() != "gpu":
    raise SystemExit(f"run.py: needs a GPU that JAX can use, got the backend {jax.default_backend()!r}")
print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "product": product_rate("bfloat16")}))
"""


def library_path() -> str:
    """LD_LIBRARY_PATH with the folders of NVIDIA's Python packages, where a peer of an op may lie."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    found = [str(folder) for root in roots or () for folder in sorted(Path(root).glob("*/lib"))]
    return ":".join([*found, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


def rows_of(command: list[str], cwd: Path = ROOT, **environment: str) -> list[dict[str, Any]]:
    """The JSON rows that a program prints; its errors end this one."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=cwd, check=False, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"run.py: {command[0]} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def cuda_rows(name: str, folder: Path, arch: str) -> list[dict[str, Any]]:
    program = folder / name
    source = HERE / f"{name}.cu"
    # nvcc's -arch=sm_90a compiles for sm_90, which has no wgmma.
    target = f"arch={arch.replace('sm_', 'compute_')},code={arch}"
    command = ["nvcc", "-std=c++17", "-O3", "-gencode", target, "-Icsrc", str(source), "-o", str(program)]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(f"run.py: {source.name} does not compile")
    return rows_of([str(program)], LD_LIBRARY_PATH=library_path())


def with_floors(rows: list[dict[str, Any]], read: float, product: float) -> list[dict[str, Any]]:
    """Adds floor_us and share; `read` in bytes and `product` in FLOP a second."""
    found = []
    for row in rows:
        if "floor_us" not in row and row.get("us") and (row.get("bytes") or row.get("flop")):
            floor = max(row["bytes"] / read, row["flop"] / product) * 1e6
            row = {**row, "floor_us": round(floor, 2), "share": round(floor / row["us"], 3)}
        found.append(row)
    return found


def main() -> None:
    cuda = sorted(
        path.stem
        for path in HERE.glob("*.cu")
        if path.stem != "ceilings" and not path.stem.endswith("_check")
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu_benchmarks.json"))
    parser.add_argument("--picture", type=Path, help="a PNG of the rows under the roofline of this machine")
    parser.add_argument("--only", nargs="*", choices=[*cuda, *PROGRAMS], default=[*cuda, *PROGRAMS])
    parser.add_argument("--arch", default="sm_90a")
    arguments = parser.parse_args()

    (device,) = rows_of([sys.executable, "-c", DEVICE])
    product = device["product"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = cuda_rows("ceilings", folder, arguments.arch)
        read = next(row["bytes"] / row["us"] * 1e6 for row in rows if row["op"] == "read")
        for one in arguments.only:
            rows += (
                rows_of([sys.executable, str(HERE / f"{one}.py")])
                if one in PROGRAMS
                else cuda_rows(one, folder, arguments.arch)
            )
    report = {
        "device": device["device"],
        "jax": device["jax"],
        "read_bytes_per_s": read,
        "matrix_flop_per_s": product,
        "rows": with_floors(rows, read, product),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(report['rows'])} rows in {arguments.out}", flush=True)
    if arguments.picture is not None:
        draw = [str(HERE.parent / "roofline.py"), str(arguments.out), str(arguments.picture)]
        if subprocess.run([sys.executable, *draw], check=False).returncode:
            sys.exit(f"run.py: no picture; the rows are in {arguments.out}")


if __name__ == "__main__":
    main()
