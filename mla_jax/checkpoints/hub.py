"""Where a checkpoint is: a folder, or a hub id that huggingface_hub has or can get."""

import os
from pathlib import Path

from mla_jax.errors import CheckpointError, shown

SETTINGS = ("*.json", "*.jinja", "tiktoken.model")
WEIGHTS = ("*.safetensors",)
"""What is fetched, from the repository's top folder: never code and never pickles, whatever it holds."""


def resolve(path_or_id: str | os.PathLike[str], revision: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of a checkpoint.

    An existing folder wins. Anything that can only be a path (absolute, beginning with "." or "~", or
    with more than one slash) is not looked up on the hub. A hub id is taken from the local cache where
    the network is off (`HF_HUB_OFFLINE=1`) or out of reach.

    Args:
      path_or_id: a folder, or "owner/name".
      revision: branch, tag or commit of a hub id; refused for a folder.
      weights: False fetches only configuration and tokenizer, so that a model which cannot be run is
        refused before its weights are downloaded.

    Raises:
      CheckpointError: one sentence: no such folder, no such repository, no access, or not in the cache.
    """
    text = os.fspath(path_or_id)
    if "\0" in text or not text:
        raise CheckpointError(f"checkpoint: expected a folder or a hub id, got {shown(text)}")
    # Not the methods of Path: they raise for unknown users and for names that are too long.
    folder = Path(os.path.expanduser(text))
    if os.path.isdir(folder):
        if revision is not None:
            raise CheckpointError(f"{folder}: revision {shown(revision)} was given, but a folder has none")
        return folder
    if os.path.exists(folder):
        raise CheckpointError(f"{folder}: expected a checkpoint folder, got a file")
    if isinstance(path_or_id, os.PathLike) or _is_path(text):
        raise CheckpointError(f"{folder}: there is no such folder")
    return _from_hub(text, revision, SETTINGS + WEIGHTS if weights else SETTINGS)


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
            f"{where}: there is no such folder, it is not in the local hub cache, and the hub cannot be "
            "reached (or HF_HUB_OFFLINE is set)"
        ) from error
    except Exception as error:  # of the HTTP client, of the transfer library: it has no common root
        raise CheckpointError(f"{where}: cannot be fetched from the hub: {error}") from error


def _snapshot(hub: object, name: str, revision: str | None, patterns: tuple[str, ...]) -> str:
    # snapshot_download itself falls back to the cache when the hub is out of reach.
    path: str = hub.snapshot_download(  # type: ignore[attr-defined]
        name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
    )
    return path
