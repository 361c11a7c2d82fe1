"""tests/rocm runs where it is named: `make test-rocm`, or pytest with a path inside. It needs clang-22."""

from pathlib import Path

import hip_toolchain
import pytest

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = [
        Path(config.invocation_params.dir, str(argument).split("::")[0]).resolve() for argument in config.args
    ]
    if not any(path.is_relative_to(HERE) for path in named) and collection_path.is_relative_to(HERE):
        return True
    # Without the compiler one test says so, and the others need not say it again.
    if hip_toolchain.missing() and collection_path.name.startswith("test_"):
        return collection_path.name != "test_hip_toolchain.py"
    return None


@pytest.fixture(params=hip_toolchain.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param
