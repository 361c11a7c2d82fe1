"""Which folder is meant, and how each failure of the hub's client reads. There is no network here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from mla_jax.checkpoints.hub import SETTINGS, WEIGHTS, Source, locate
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


def refused(name: Any, revision: Any = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        locate(name, revision=revision)
    return str(caught.value)


def test_an_existing_folder_wins(tmp_path, monkeypatch, hub):
    folder = tmp_path / "deepseek-ai" / "DeepSeek-V3"
    folder.mkdir(parents=True)
    assert locate(folder) == Source(folder)
    assert locate(str(folder)) == Source(folder)
    monkeypatch.chdir(tmp_path)
    assert locate("deepseek-ai/DeepSeek-V3") == Source(Path("deepseek-ai/DeepSeek-V3"))
    assert locate("deepseek-ai") == Source(Path("deepseek-ai"))
    (tmp_path / "link").symlink_to(folder)
    assert locate("link") == Source(Path("link"))
    assert hub.calls == []


def test_home_folder(tmp_path, monkeypatch, hub):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model") == Source(tmp_path / "model")
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


@pytest.mark.parametrize("name", ["", "a\0b", "owner/na\0me", "~\0", None, 123, b"folder", ["folder"]])
def test_names_that_nothing_can_have(hub, name):
    assert "expected a folder or a hub id, got " in refused(name)
    assert hub.calls == []


def test_hub_id(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    hub.outcome = tmp_path
    found = locate("deepseek-ai/DeepSeek-V3")
    assert found == Source(tmp_path, "deepseek-ai/DeepSeek-V3", None)
    assert found.with_weights() == tmp_path
    assert locate("deepseek-ai/DeepSeek-V3", revision="abc123").revision == "abc123"
    (args, kwargs), (_, with_weights), (_, with_revision) = hub.calls
    assert args == ("deepseek-ai/DeepSeek-V3",)
    assert kwargs == {"revision": None, "allow_patterns": list(SETTINGS), "ignore_patterns": ["*/*"]}
    assert with_weights == kwargs | {"allow_patterns": list(SETTINGS + WEIGHTS)}
    assert with_revision["revision"] == "abc123"


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("asked", [None, "main", "v1.0", "f" * 40])
def test_a_branch_is_looked_up_once(tmp_path, monkeypatch, hub, asked):
    """A branch may move between settings and weights: what it stood for first is what counts."""
    monkeypatch.chdir(tmp_path)
    hub.outcome = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    found = locate("owner/name", revision=asked)
    assert found == Source(hub.outcome, "owner/name", COMMIT)
    found.with_weights()
    assert [kwargs["revision"] for _, kwargs in hub.calls] == [asked, COMMIT]


@pytest.mark.parametrize("place", [f"snapshots/{COMMIT[1:]}", f"other/{COMMIT}", "snapshots/main"])
def test_other_folders_name_no_commit(tmp_path, monkeypatch, hub, place):
    monkeypatch.chdir(tmp_path)
    hub.outcome = tmp_path / place
    assert locate("owner/name", revision="main").revision == "main"


def offline(code: str, folder: Path) -> str:
    """What code prints with the real client, which is told to stay offline; its cache is folder/home."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def cached_snapshot(home: Path, *files: str) -> Path:
    """What huggingface_hub leaves behind when it has fetched `files` of the branch main."""
    storage = home / "hub" / "models--owner--name"
    snapshot = storage / "snapshots" / COMMIT
    for folder in (snapshot, storage / "refs", storage / "blobs"):
        folder.mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    for number, name in enumerate(files):
        (storage / "blobs" / str(number)).write_text("{}")
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    return snapshot


def test_the_real_cache_names_folders_after_commits(tmp_path):
    """Offline, a branch and the commit that it is pinned to are the same folder."""
    snapshot = cached_snapshot(tmp_path / "home", "config.json", "model.safetensors")
    code = (
        "from mla_jax.checkpoints.hub import locate\n"
        "for revision in (None, 'main', REVISION):\n"
        "    found = locate('owner/name', revision)\n"
        "    assert found.revision == REVISION, found\n"
        "    assert found.with_weights() == found.folder\n"
        "print(found.folder)\n"
    )
    assert offline(code.replace("REVISION", repr(COMMIT)), tmp_path).strip() == str(snapshot)


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


@pytest.mark.parametrize("revision", ["", 5, b"main", ["main"]])
def test_revisions_that_nothing_can_have(tmp_path, monkeypatch, hub, revision):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", tmp_path):
        assert f"revision: expected a branch, tag or commit, got {revision!r}" in refused(name, revision)
    assert hub.calls == []


def test_a_path_in_bytes_is_refused(tmp_path, hub):
    class Bytes(os.PathLike):
        def __fspath__(self):
            return bytes(tmp_path)

    assert "expected a folder or a hub id, got " in refused(Bytes())


def test_a_folder_has_no_revision(tmp_path, hub):
    assert "revision 'main' was given, but a folder has none" in refused(tmp_path, revision="main")
    assert locate(tmp_path).with_weights() == tmp_path
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
            "not completely in the local hub cache, and the hub cannot be reached",
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
            locate("owner/name", revision=revision)
        assert caught.value.__cause__ is outcome


def test_an_interrupt_is_not_swallowed(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    hub.outcome = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        locate("owner/name")


@pytest.mark.parametrize("name", ["owner/a--b", "own er/name", "owner/.git", "owner/" + "x" * 200, "-/-"])
def test_names_that_the_client_refuses(tmp_path, monkeypatch, name):
    """The client's own validation, which runs before any request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "it is no hub id" in refused(name)


def test_offline(tmp_path):
    """The real client, told to stay offline, with an empty cache: its error and the one sentence of ours."""
    code = (
        "from mla_jax.checkpoints.hub import locate\n"
        "from mla_jax.errors import CheckpointError\n"
        "try: locate('owner/name')\n"
        "except CheckpointError as error: print(error)\n"
    )
    said = offline(code, tmp_path)
    assert said.startswith("owner/name: there is no such folder, it is not completely in the local hub cache")
    assert "HF_HUB_OFFLINE is set" in said
