"""When anything is compiled: nothing once a model is warm, and nothing at a second start that finds JAX's cache.

JAX's own events are counted, so that the operations between the engine's programs count as well.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter

import jax
import pytest
from llm_case import GREEDY, MAX_MODEL_LEN, PROMPTS, SIZES

from mla_jax import LLM, SamplingParams

COMPILED = "/jax/core/compile/backend_compile_duration"

START = """
import json, sys
from collections import Counter
import jax
seen = Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name.rsplit("/", 1)[-1]]))
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.update([name.rsplit("/", 1)[-1]]))
from mla_jax import LLM, SamplingParams
llm = LLM(sys.argv[1], kernels="native", **json.loads(sys.argv[2]))
answer = llm.generate(["import", "a = b"], SamplingParams(max_tokens=5, temperature=0.0), progress=False)
print(json.dumps([seen, [one.token_ids for one in answer]]))
"""


@contextlib.contextmanager
def events():
    """Counts JAX's events with a duration inside the block."""
    seen = Counter()

    def listen(name, *_, **__):
        seen[name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def ids(length, start=0):
    return [(start + 7 * i) % 250 for i in range(length)]


@pytest.fixture(scope="module")
def warm(folder):
    """An `LLM` that has served one request of every bucket, and two samples of one prompt."""
    llm = LLM(folder, **SIZES)
    for length in llm.engine.prefill_buckets:
        llm.generate(ids(min(length, MAX_MODEL_LEN - 4)), GREEDY, progress=False)
    for rows in llm.engine.decode_buckets:
        llm.generate([ids(3, row) for row in range(rows)], GREEDY, progress=False)
    llm.generate(PROMPTS[0], SamplingParams(max_tokens=3, n=2, seed=1), progress=False)
    return llm


def test_the_events_are_jaxs_own():
    with events() as seen:
        jax.jit(lambda x: x * 3 + 11)(5.0).block_until_ready()
    assert seen[COMPILED] == 1


def test_a_warm_model_compiles_nothing(warm):
    assert len(warm.engine.decode_buckets) == len(warm.engine.prefill_buckets) == 3
    with events() as seen:
        for length in (1, 2, 13, 17, 31, 40, 61):
            warm.generate(ids(length, 5), GREEDY, progress=False)
        for batch in (
            PROMPTS[:3],
            PROMPTS[:2],
            PROMPTS,
        ):  # the last waits its turn, and runs at every batch size
            warm.generate(
                batch, SamplingParams(max_tokens=7, temperature=0.8, top_p=0.9, seed=3), progress=False
            )
        warm.generate(PROMPTS[2], SamplingParams(max_tokens=9, n=3, seed=2, top_k=5), progress=False)
        for _ in warm.stream(PROMPTS[4], SamplingParams(max_tokens=6, min_p=0.1, seed=4)):
            pass
    assert seen[COMPILED] == 0


def test_a_second_start_compiles_nothing(folder, tmp_path):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    starts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", START, str(folder), json.dumps(SIZES)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seen, answer = json.loads(done.stdout)
        # Every program asks the cache.
        assert seen["compile_requests_use_cache"] == seen["backend_compile_duration"] > 0
        starts.append((seen, answer))
    (first, answer), (second, again) = starts
    assert first["cache_misses"] > 0
    assert second["cache_hits"] == second["compile_requests_use_cache"] == first["compile_requests_use_cache"]
    assert "cache_misses" not in second
    assert again == answer
