"""The tensors of a checkpoint folder: one safetensors file, or shards and the index that names them."""

import os
from collections import defaultdict
from pathlib import Path
from types import TracebackType

from mla_jax.checkpoints.json_files import read_json_object
from mla_jax.checkpoints.safetensors import SafetensorsFile
from mla_jax.checkpoints.safetensors_header import TensorInfo
from mla_jax.errors import CheckpointError, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_NAMED = 20


class TensorIndex:
    """All tensors of a folder, each with the open file that holds it.

    A single `model.safetensors` decides where there is one, even beside an index, as in transformers.
    Otherwise the index does; it must name every tensor of every shard it lists, and nothing else. Shards
    lie in the folder itself.

    Args:
      folder: of the checkpoint.

    Raises:
      CheckpointError: files are missing, malformed or contradict each other; names file and tensor.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._files: list[SafetensorsFile] = []
        self._where: dict[str, SafetensorsFile] = {}
        try:
            index = self.folder / INDEX_FILE
            if os.path.exists(self.folder / SINGLE_FILE):  # Path.exists raises for names that are too long
                self._take(SINGLE_FILE)
            elif os.path.exists(index):
                self._open_shards(index)
            else:
                raise CheckpointError(_why_nothing(self.folder))
        except BaseException:
            self.close()
            raise

    def names(self) -> tuple[str, ...]:
        """Every tensor's name."""
        return tuple(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size of a tensor."""
        return self.file(name).tensors[name]

    def file(self, name: str) -> SafetensorsFile:
        """The open file that holds a tensor."""
        try:
            return self._where[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: there is no tensor {shown(name)}") from None

    def close(self) -> None:
        """Closes every file."""
        for file in self._files:
            file.close()

    def __enter__(self) -> "TensorIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, name: str) -> None:
        file = SafetensorsFile(self.folder / name)
        self._files.append(file)
        for tensor in file.tensors:
            other = self._where.setdefault(tensor, file)
            if other is not file:
                raise CheckpointError(f"tensor {shown(tensor)} is both in {other.path} and in {file.path}")

    def _open_shards(self, index: Path) -> None:
        by_shard: dict[str, set[str]] = defaultdict(set)
        for tensor, shard in _weight_map(index).items():
            by_shard[shard].add(tensor)
        missing = [name for name in sorted(by_shard) if not os.path.exists(self.folder / name)]
        if missing:
            raise CheckpointError(
                f"{index}: {len(missing)} of {len(by_shard)} shards are missing: {_list(missing)}"
            )
        for name in sorted(by_shard):
            self._take(name)
            held = set(self._files[-1].tensors)
            absent, unknown = by_shard[name] - held, held - by_shard[name]
            if absent:
                raise CheckpointError(
                    f"{index}: {name} does not hold {len(absent)} of its tensors: {_list(absent)}"
                )
            if unknown:
                raise CheckpointError(
                    f"{index}: {name} holds {len(unknown)} tensors that are not listed: {_list(unknown)}"
                )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map: expected an object with tensor names, got {shown(weight_map)}"
        )
    for tensor, shard in weight_map.items():
        # The index is content of the checkpoint: a path in it would read files that are not part of one.
        # Links are another matter. The hub's cache consists of links to blobs in another folder, and a link
        # that a user places is the user's business, so they are followed wherever they lead. What an
        # unpacked checkpoint could do with one is bounded by `SafetensorsFile`: only a regular file is
        # opened (never a device, nor a pipe that would block), and only one that is a whole safetensors
        # file with this model's tensors is read beyond its header.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor {shown(tensor)}: expected the name of a .safetensors file in the same folder, "
                f"got {shown(shard)}"
            )
    return weight_map


def _why_nothing(folder: Path) -> str:
    try:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    except OSError as error:
        return f"{folder}: cannot be read: {error}"
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return (
            f"{folder}: holds no safetensors, only {_list(pickles)}; pickle checkpoints are never opened, as "
            "opening one runs its code: convert it to safetensors"
        )
    return f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, got neither"


def _list(names: "list[str] | set[str]") -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MOST_NAMED} more" if len(ordered) > _MOST_NAMED else ""
    return ", ".join(shown(name) for name in ordered[:_MOST_NAMED]) + more
