"""One small checkpoint and one `LLM` around it for every test that asks for them.

The checkpoint is the example's, made smaller: what it says is noise, so what is expected is taken from a
greedy continuation, or from `mla_jax.forward`.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

# Plain modules beside the tests, at the end of the path, as in tests/conftest.py.
HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE / "checkpoints"), str(HERE / "properties")]
pytest.register_assert_rewrite("llm_case", "paging_case", "published_configs", "paged_model", "properties_of")

from llm_case import GREEDY, PROMPTS, ROOT, SIZES  # noqa: E402


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "examples" / "make_demo_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.CONFIG |= {"num_hidden_layers": 2, "max_position_embeddings": 256}
    demo.CONFIG["rope_scaling"]["original_max_position_embeddings"] = 64
    path = tmp_path_factory.mktemp("demo") / "checkpoint"
    # A tokenizer of this repository's own words would change with every one of them; this text never does.
    (path.parent / "mla_jax").mkdir()
    shutil.copy(ROOT / "LICENSE", path.parent / "mla_jax" / "words.py")
    demo.__file__ = str(path.parent / "examples" / "script.py")
    demo.main(path)
    return path


@pytest.fixture(scope="session")
def llm(folder):
    # Imported here: most folders of tests below this one have no use for it.
    from mla_jax import LLM

    return LLM(folder, **SIZES)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request):
    yield
    if "llm" in request.fixturenames:
        engine = request.getfixturevalue("llm").engine
        assert not engine.has_work
        assert engine._free_pages == engine._num_pages


@pytest.fixture(scope="session")
def alone(llm):
    """Every prompt's greedy completion when it has the engine for itself."""
    return [llm.generate(prompt, GREEDY, progress=False)[0] for prompt in PROMPTS]


@pytest.fixture(scope="session")
def variant(folder, tmp_path_factory):
    """variant(name={...} or None): a copy of the checkpoint with JSON files replaced, merged or left out."""

    def make(**files):
        copy = tmp_path_factory.mktemp("variant")
        for path in folder.iterdir():
            if path.suffix == ".safetensors":
                (copy / path.name).symlink_to(path)
            else:
                shutil.copy(path, copy / path.name)
        for stem, change in files.items():
            path = copy / f"{stem}.json"
            if change is None:
                path.unlink()
            elif isinstance(change, str):
                path.write_text(change)
            else:
                path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return copy

    return make
