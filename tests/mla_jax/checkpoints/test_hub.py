"""Which folder is meant, and how each failure of the hub's client reads. There is no network here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from mla_jax.checkpoints.hub import SETTINGS, WEIGHTS, resolve
from mla_jax.errors import CheckpointError


class Hub:
    """Stands for `snapshot_download`: records calls, then returns or raises what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.outcome: Path | BaseException = AssertionError("the hub must not be asked")

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        self.calls.append((args, kwargs))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return str(self.outcome)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    double = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", double)
    return double


def response_error(kind: type[Exception]) -> Exception:
    """The client's HTTP errors want a response of the HTTP library, which differs between versions."""
    error = kind.__new__(kind)
    error.args = ("404 Client Error",)
    return error


def refused(name: str | Path, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(name, revision=revision)
    return str(caught.value)


def test_an_existing_folder_wins(tmp_path, monkeypatch, hub):
    folder = tmp_path / "deepseek-ai" / "DeepSeek-V3"
    folder.mkdir(parents=True)
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve("deepseek-ai/DeepSeek-V3") == Path("deepseek-ai/DeepSeek-V3")
    assert resolve("deepseek-ai") == Path("deepseek-ai")
    (tmp_path / "link").symlink_to(folder)
    assert resolve("link") == Path("link")
    assert hub.calls == []


def test_home_folder(tmp_path, monkeypatch, hub):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"
    assert "there is no such folder" in refused("~/none")
    assert "there is no such folder" in refused("~no-such-user-here/model")
    assert hub.calls == []


def test_file_instead_of_a_folder(tmp_path, monkeypatch, hub):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model.safetensors").touch()
    assert "expected a checkpoint folder, got a file" in refused(tmp_path / "owner" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert "expected a checkpoint folder, got a file" in refused("owner/model.safetensors")
    assert hub.calls == []


@pytest.mark.parametrize(
    "name",
    [
        "/none",
        "/none/model",
        "./owner/name",
        "../name",
        ".",
        "~/none",
        "a/b/c",
        "owner/name/",
        "C:\\models\\v3",
        "owner\\name",
        "gpt2",
        "x" * 300,
        Path("owner/name"),
    ],
    ids=repr,
)
def test_paths_are_not_looked_up(tmp_path, monkeypatch, hub, name):
    if name == ".":
        name = tmp_path / "."
        tmp_path.rmdir()
    else:
        monkeypatch.chdir(tmp_path)
    assert "there is no such folder" in refused(name)
    assert hub.calls == []


@pytest.mark.parametrize("name", ["", "a\0b", "owner/na\0me", "~\0"])
def test_names_that_nothing_can_have(hub, name):
    assert "expected a folder or a hub id, got " in refused(name)
    assert hub.calls == []


def test_hub_id(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    hub.outcome = tmp_path
    assert resolve("deepseek-ai/DeepSeek-V3") == tmp_path
    assert resolve("deepseek-ai/DeepSeek-V3", revision="abc123") == tmp_path
    assert resolve("deepseek-ai/DeepSeek-V3", weights=False) == tmp_path
    (args, kwargs), (_, with_revision), (_, without_weights) = hub.calls
    assert args == ("deepseek-ai/DeepSeek-V3",)
    both = list(SETTINGS + WEIGHTS)
    assert kwargs == {"revision": None, "allow_patterns": both, "ignore_patterns": ["*/*"]}
    assert with_revision["revision"] == "abc123"
    assert without_weights["allow_patterns"] == list(SETTINGS)


def test_neither_code_nor_pickles_are_fetched():
    wanted = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-00001-of-000163.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    never = ["modeling_deepseek.py", "configuration_deepseek.py", "pytorch_model.bin", "model.pt", "x.pth"]
    never += ["weights.pkl", "model.ckpt", "model.gguf", "rust_model.ot", "lib.so", "setup.sh", "x.pyc"]
    never += ["tokenization_kimi.py", "inference/model.py", "tokenizer.pkl", "tokenizer/evil.py"]
    never += ["original/consolidated.safetensors", "onnx/config.json"]
    filter_files = huggingface_hub.utils.filter_repo_objects
    kept = list(
        filter_files(wanted + never, allow_patterns=list(SETTINGS + WEIGHTS), ignore_patterns=["*/*"])
    )
    assert kept == wanted
    weights = [name for name in wanted if name.endswith(".safetensors")]
    assert list(filter_files(wanted, allow_patterns=list(SETTINGS))) == [
        n for n in wanted if n not in weights
    ]


def test_a_folder_has_no_revision(tmp_path, hub):
    assert "revision 'main' was given, but a folder has none" in refused(tmp_path, revision="main")
    assert hub.calls == []


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (
            errors.HFValidationError("Repo id must be ..."),
            "there is no such folder, and it is no hub id: Repo id",
        ),
        (response_error(errors.RepositoryNotFoundError), "no such repository on the hub"),
        (response_error(errors.GatedRepoError), "access on the hub has to be granted first"),
        (response_error(errors.RevisionNotFoundError), "the repository has no such revision"),
        (
            errors.LocalEntryNotFoundError("no cache"),
            "not in the local hub cache, and the hub cannot be reached",
        ),
        (errors.OfflineModeIsEnabled("offline"), "cannot be fetched from the hub: offline"),
        (response_error(errors.HfHubHTTPError), "cannot be fetched from the hub: "),
        (OSError(28, "No space left on device"), "cannot be fetched from the hub: .*No space left"),
        (ConnectionError("reset"), "cannot be fetched from the hub: reset"),
        (RuntimeError("Data processing error: CAS"), "cannot be fetched from the hub: Data processing"),
        (type("ReadError", (Exception,), {})("peer closed"), "cannot be fetched from the hub: peer closed"),
        (ValueError("bad answer"), "cannot be fetched from the hub: bad answer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failures_of_the_hub(tmp_path, monkeypatch, hub, outcome, message):
    monkeypatch.chdir(tmp_path)
    hub.outcome = outcome
    for revision, where in ((None, "owner/name: "), ("v9", "owner/name at revision v9: ")):
        with pytest.raises(CheckpointError, match=f"^{where}.*{message}") as caught:
            resolve("owner/name", revision=revision)
        assert caught.value.__cause__ is outcome


def test_an_interrupt_is_not_swallowed(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    hub.outcome = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        resolve("owner/name")


@pytest.mark.parametrize("name", ["owner/a--b", "own er/name", "owner/.git", "owner/" + "x" * 200, "-/-"])
def test_names_that_the_client_refuses(tmp_path, monkeypatch, name):
    """The client's own validation, which runs before any request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "it is no hub id" in refused(name)


def test_offline(tmp_path):
    """The real client, told to stay offline, with an empty cache: its error and the one sentence of ours."""
    code = (
        "from mla_jax.checkpoints.hub import resolve\n"
        "from mla_jax.errors import CheckpointError\n"
        "try: resolve('owner/name')\n"
        "except CheckpointError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("owner/name: there is no such folder, it is not in the local hub cache")
    assert "HF_HUB_OFFLINE is set" in done.stdout
