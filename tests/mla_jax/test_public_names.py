"""The package's surface: every public name imports, and importing the package costs nothing."""

import ast
import pathlib
import subprocess
import sys

import pytest

import mla_jax


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(mla_jax.__all__))
def test_public_name_is_importable(name):
    assert getattr(mla_jax, name) is not None
    assert name in dir(mla_jax)


def test_names_are_the_objects_of_their_home():
    for name, home in mla_jax._HOMES.items():
        found = getattr(mla_jax, name)
        assert found is getattr(sys.modules[home], name), name


def test_all_has_no_duplicates():
    assert len(set(mla_jax.__all__)) == len(mla_jax.__all__)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(pathlib.Path(mla_jax.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {(alias.name, node.module) for node in block.body for alias in node.names}
    assert seen == set(mla_jax._HOMES.items())


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'rotate'"):
        mla_jax.rotate  # noqa: B018


def test_importing_the_package_does_not_import_jax():
    heavy = "('jax', 'jaxlib', 'flax', 'numpy', 'custom_calls', 'tokenizers', 'huggingface_hub')"
    out = run(f"import sys, mla_jax; print([m for m in {heavy} if m in sys.modules], mla_jax.__version__)")
    assert out.split() == ["[]", mla_jax.__version__]


def test_listing_the_names_does_not_import_jax():
    assert run("import sys, mla_jax; dir(mla_jax); print('jax' in sys.modules)").strip() == "False"


def test_a_lazy_name_is_loaded_once():
    out = run(
        "import mla_jax; a = mla_jax.RopeTable; print('RopeTable' in vars(mla_jax), a is mla_jax.RopeTable)"
    )
    assert out.split() == ["True", "True"]
