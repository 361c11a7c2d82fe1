"""These tests need a GPU that JAX uses. Where there is none one test says so, and the others need not say it again."""

from pathlib import Path

import jax


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if jax.default_backend() != "gpu" and collection_path.name.startswith("test_"):
        return collection_path.name != "test_gpu.py"
    return None
