"""Where a checkpoint is: a folder, or a hub id that huggingface_hub has or can get."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_jax.errors import CheckpointError, shown

SETTINGS = ("*.json", "*.jinja", "tiktoken.model")
WEIGHTS = ("*.safetensors",)
"""What is fetched, from the repository's top folder: never code and never pickles, whatever it holds."""


_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been found.

    Attributes:
      folder: its configuration and tokenizer are here; its weights too, unless it has a `hub_id`.
      hub_id: "owner/name", or None for a folder.
      revision: of the hub id: the commit that `folder` is of, so that nothing later is of another one,
        even if the branch that was asked for moves meanwhile.
    """

    folder: Path
    hub_id: str | None = None
    revision: str | None = None

    def with_weights(self) -> Path:
        """The folder with the weights, which are fetched now if need be. Raises `CheckpointError`."""
        if self.hub_id is None:
            return self.folder
        return _from_hub(self.hub_id, self.revision, SETTINGS + WEIGHTS)


def locate(path_or_id: str | os.PathLike[str], revision: str | None = None) -> Source:
    """Finds a checkpoint, and fetches what is not weights where it is on the hub.

    A model that cannot be run is thus refused before its weights are downloaded.

    An existing folder wins. Anything that can only be a path (absolute, beginning with "." or "~", or
    with more than one slash) is not looked up on the hub. A hub id is taken from the local cache where
    the network is off (`HF_HUB_OFFLINE=1`) or out of reach.

    Args:
      path_or_id: a folder, or "owner/name".
      revision: branch, tag or commit of a hub id; refused for a folder.

    Raises:
      CheckpointError: one sentence: no such folder, no such repository, no access, or not in the cache.
    """
    text = _text(path_or_id)
    if "\0" in text or not text:
        raise CheckpointError(f"checkpoint: expected a folder or a hub id, got {shown(text)}")
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise CheckpointError(f"revision: expected a branch, tag or commit, got {shown(revision)}")
    # Not the methods of Path: they raise for unknown users and for names that are too long.
    folder = Path(os.path.expanduser(text))
    if os.path.isdir(folder):
        if revision is not None:
            raise CheckpointError(f"{folder}: revision {shown(revision)} was given, but a folder has none")
        return Source(folder)
    if os.path.exists(folder):
        raise CheckpointError(f"{folder}: expected a checkpoint folder, got a file")
    if isinstance(path_or_id, os.PathLike) or _is_path(text):
        raise CheckpointError(f"{folder}: there is no such folder")
    snapshot = _from_hub(text, revision, SETTINGS)
    return Source(snapshot, text, _commit_of(snapshot) or revision)


def _text(path_or_id: Any) -> str:
    text = os.fspath(path_or_id) if isinstance(path_or_id, str | os.PathLike) else None
    if not isinstance(text, str):  # os.fspath of a path in bytes is bytes
        raise CheckpointError(f"checkpoint: expected a folder or a hub id, got {shown(path_or_id)}")
    return text


def _commit_of(snapshot: Path) -> str | None:
    """huggingface_hub names a snapshot's folder after its commit; it asks nobody what a commit stands for."""
    is_commit = snapshot.parent.name == "snapshots" and _COMMIT.fullmatch(snapshot.name)
    return snapshot.name if is_commit else None


def _is_path(text: str) -> bool:
    return text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text or "/" not in text


def _from_hub(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{name}" if revision is None else f"{name} at revision {revision}"
    try:
        return Path(_snapshot(huggingface_hub, name, revision, patterns))
    except errors.HFValidationError as error:
        raise CheckpointError(f"{where}: there is no such folder, and it is no hub id: {error}") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: access on the hub has to be granted first; accept its terms and log in"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{where}: there is no such folder, and no such repository on the hub"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where}: there is no such folder, it is not completely in the local hub cache, and the hub "
            "cannot be reached (or HF_HUB_OFFLINE is set)"
        ) from error
    except Exception as error:  # of the HTTP client, of the transfer library: it has no common root
        raise CheckpointError(f"{where}: cannot be fetched from the hub: {error}") from error


def _snapshot(hub: object, name: str, revision: str | None, patterns: tuple[str, ...]) -> str:
    # snapshot_download itself falls back to the cache when the hub is out of reach.
    path: str = hub.snapshot_download(  # type: ignore[attr-defined]
        name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
    )
    return path
