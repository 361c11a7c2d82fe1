"""Proves the configuration product of `mla_jax.verify.product`, all of it or a pairwise covering part.

Usage: python tools/verify_all.py [--pairwise] [--jobs N]. Configurations that are the same program are proven once.
Prints a summary and every failure by name; the exit code is 1 if there is one.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import groupby

import jax

from mla_jax.verify import VerificationError
from mla_jax.verify.product import (
    ARCHITECTURES,
    OFFERS,
    Configuration,
    canonical,
    configurations,
    covering,
    prove,
)

_GROUPS_KEPT = 20
"""So many steps' programs stay in JAX's caches before they are dropped: thousands would take gigabytes."""

_groups_seen = 0


def groups(chosen: list[Configuration]) -> Iterator[list[Configuration]]:
    """Configurations that are traced alike, whose trace is then made once."""

    def traced(one: Configuration) -> str:
        first = next(name for name, other in ARCHITECTURES.items() if other.fp8 == one.codes)
        return str(replace(one, architecture=first, library=OFFERS[0]))

    for _, same in groupby(sorted(chosen, key=traced), key=traced):
        yield list(same)


def prove_group(group: list[Configuration]) -> list[tuple[Configuration, str, str]]:
    """(configuration, "proven", "refused" or "failed", why) of each."""
    global _groups_seen
    _groups_seen += 1
    if _groups_seen % _GROUPS_KEPT == 0:
        jax.clear_caches()
    results = []
    for one in group:
        try:
            refused = prove(one).refused
            results.append((one, "proven" if refused is None else "refused", refused or ""))
        except VerificationError as error:
            results.append((one, "failed", str(error)))
        except Exception as error:  # no step may fail to be traced or lowered either
            results.append((one, "failed", f"{one}: {type(error).__name__}: {error}"))
    return results


def run(chosen: list[Configuration], jobs: int) -> int:
    """Proves these configurations; prints the summary; returns the exit code."""
    start = time.monotonic()
    distinct = list(dict.fromkeys(map(canonical, chosen)))
    work = list(groups(distinct))
    print(f"{len(chosen)} configurations, {len(distinct)} distinct programs", flush=True)
    if jobs == 1:
        results = [result for group in work for result in prove_group(group)]
    else:
        # Spawned: JAX's threads do not survive a fork.
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as workers:
            results = [result for found in workers.map(prove_group, work, chunksize=4) for result in found]
    for _, outcome, why in results:
        if outcome == "failed":
            print(f"FAILED {why}")
    counted = Counter(outcome for _, outcome, _ in results)
    print(
        f"{counted['proven']} lowered and proven, {counted['refused']} refused as they must be, "
        f"{counted['failed']} failed, in {time.monotonic() - start:.0f} s"
    )
    return 1 if counted["failed"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--pairwise", action="store_true", help="the covering part only, seconds instead of minutes"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"argument --jobs: expected an integer >= 1, got {options.jobs}")
    return run(covering() if options.pairwise else list(configurations()), options.jobs)


if __name__ == "__main__":
    sys.exit(main())
