"""Damages small checkpoints and loads them: each has to load or to be refused with one sentence.

Usage: python tools/fuzz_checkpoints.py FOLDER ... [--cases N] [--seed N]

FOLDER are checkpoints to start from. A case copies one of them (weights by link), damages one file (bytes of the
safetensors header, the shard index, or config.json as text or as JSON), and loads it. Only `MlaJaxError` may come
out. A failure prints the seed of its case; --cases 1 --seed THAT runs it alone. Exit code 1 if any case failed.
"""

import argparse
import copy
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mla_jax import MlaJaxError, load
from mla_jax.checkpoints.index import INDEX_FILE, SINGLE_FILE

SECONDS = 30
"""What one case may take."""

MEMORY_BYTES = 16 << 30
"""Address space of the process: a file that asks for more must not get it."""

# What JSON can hold at all, most of it wrong wherever it is put.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 31, 32, 33, 64, 127, 128, 1 << 31, 1 << 53, 1 << 63, 1 << 64, 10**30, 0.0,
    0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), "", "x", "0", "silu", "fp8", "e4m3", "\x00", "\ud800",
    "é" * 300, "re:(", "re:.*", "*", "model.safetensors", "../model.safetensors", "/dev/zero", "F32", "F8_E4M3", "U8",
    [], [0], [1, 1], [0, 0], [-1, 2], [128, 128], [[]], ["x"], {}, {"a": 1}, {"": {}},
)  # fmt: skip

Damage = Callable[[np.random.Generator, bytes], bytes]


def flip_bytes(rng: np.random.Generator, blob: bytes) -> bytes:
    """One to four bits anywhere."""
    out = bytearray(blob)
    for at in rng.integers(0, len(out), int(rng.integers(1, 5))):
        out[int(at)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def cut_or_repeat(rng: np.random.Generator, blob: bytes) -> bytes:
    """A range is left out, repeated, or put elsewhere."""
    one, two = sorted(int(at) for at in rng.integers(0, len(blob) + 1, 2))
    two = min(two, one + 64) if rng.random() < 0.7 else two
    kind = int(rng.integers(3))
    if kind == 0:
        return blob[:one] + blob[two:]
    if kind == 1:
        return blob[:two] + blob[one:]
    at = int(rng.integers(len(blob) + 1))
    return blob[:at] + blob[one:two] + blob[at:]


def change_json(rng: np.random.Generator, blob: bytes) -> bytes:
    """One value, seldom more, replaced, dropped, renamed, exchanged or given a second time."""
    tree = json.loads(blob)
    for _ in range(int(rng.geometric(0.7))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(6))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[key + "x" if rng.random() < 0.5 else key[:-1]] = holder.pop(key)
        elif kind == 2:
            other, name = places[int(rng.integers(len(places)))]
            holder[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(holder[key])
        elif kind == 3 and type(holder[key]) in (int, float):
            holder[key] = _near(rng, holder[key])
        elif kind == 4 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    text = json.dumps(tree)
    if rng.random() < 0.05:
        text = text.replace("{", '{"x": 1, "x": 2, ', 1)
    return text.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _near(rng: np.random.Generator, value: float) -> float:
    changes = (value + 1, value - 1, -value, value * 2, value // 2, value * 1000, value + 0.5, float(value))
    return changes[int(rng.integers(len(changes)))]


def in_header(damage: Damage) -> Damage:
    """The same for the JSON header of a safetensors file, whose length is mostly written anew."""

    def damaged(rng: np.random.Generator, blob: bytes) -> bytes:
        length = int.from_bytes(blob[:8], "little")
        header = damage(rng, blob[8 : 8 + length])
        size = len(header) if rng.random() < 0.9 else int(rng.integers(0, 1 << int(rng.integers(1, 64))))
        return size.to_bytes(8, "little") + header + blob[8 + length :]

    return damaged


DAMAGES: tuple[Damage, ...] = (flip_bytes, cut_or_repeat, *[change_json] * 6)


def run_case(folders: list[Path], seed: int, scratch: Path) -> str:
    """Makes and loads one damaged checkpoint.

    Returns:
      "loaded" or "refused".

    Raises:
      Exception: whatever else the load raised.
    """
    rng = np.random.default_rng(seed)
    source = folders[int(rng.integers(len(folders)))]
    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    weights = sorted(path.name for path in source.glob("*.safetensors"))
    names = ["config.json"] + [name for name in (INDEX_FILE,) if (source / name).exists()]
    names += [weights[int(rng.integers(len(weights)))]]
    name = names[int(rng.integers(len(names)))]
    damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
    if name.endswith(".safetensors"):
        damage = in_header(damage)
    blob = damage(rng, (source / name).read_bytes())
    (folder / name).unlink()
    (folder / name).write_bytes(blob)
    try:
        load(folder, kernels="reference", progress=False)
    except MlaJaxError as error:
        if not str(error).strip() or "\n" in str(error):
            raise AssertionError(f"expected one sentence, got {str(error)!r}") from error
        return "refused"
    return "loaded"


def main() -> int:
    """Runs the cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for folder in options.folders:
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            parser.error(f"{folder}: expected a folder with config.json and {SINGLE_FILE} or shards")

    def too_long(signum: int, frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    counts: Counter[str] = Counter()
    failed: list[int] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seed, options.seed + options.cases):
            signal.alarm(SECONDS)
            try:
                counts[run_case(options.folders, seed, Path(scratch))] += 1
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            finally:
                signal.alarm(0)
    print(
        f"{options.cases} cases from seed {options.seed} in {time.monotonic() - started:.0f} s: {counts['loaded']} "
        f"loaded, {counts['refused']} refused, {len(failed)} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
