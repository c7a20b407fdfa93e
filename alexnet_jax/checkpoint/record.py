"""A checkpoint's own record: format version, metadata, and a checksum of each array.

Two lines: a header, {"format": …, "sha256": …}, and the content, whose checksum (with the
format) the header holds. Later formats keep the header, so that any version of the program
tells a newer checkpoint from a damaged one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.checkpoint.errors import CheckpointError, DamagedError

FORMAT = 2
ITEM = "metadata"  # the item's folder, and the file in it


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What an array is, and the SHA-256 of its bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype}{self.shape}"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself.

    Attributes:
      step: its number.
      score: the lower the better, or None.
      metadata: what the caller gave.
      arrays: every array by name.
    """

    step: int
    score: float | None
    metadata: dict[str, Any]
    arrays: dict[str, Stamp]


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name, "state.params.conv1.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def stamp(array: np.ndarray) -> Stamp:
    """The stamp of an array on the host; takes the interpreter's lock for no longer than a moment."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # hashlib knows no bfloat16
    return Stamp(str(array.dtype), array.shape, hashlib.sha256(flat.data).hexdigest())


def encode(record: Record) -> bytes:
    """A record as the bytes of its file."""
    content = json.dumps(dataclasses.asdict(record)).encode()
    return json.dumps({"format": FORMAT, "sha256": _checksum(FORMAT, content)}).encode() + b"\n" + content


def decode(data: bytes, step: int) -> Record:
    """The record in the bytes of a file, for the checkpoint that is to have this number.

    Raises:
      DamagedError: they are not what `encode` gave, or were given for another number.
      CheckpointError: a newer program wrote them, or one too old.
    """
    head, _, content = data.partition(b"\n")
    header = _json(head)
    if isinstance(header, dict) and "sha256" not in header and not content:
        raise CheckpointError(
            f"checkpoint {step} was written before checkpoints had checksums, by an earlier development version, and "
            f"this program reads format {FORMAT} only: take a new workdir, or the version that wrote it"
        )
    if not isinstance(header, dict) or header.get("sha256") != _checksum(header.get("format"), content):
        raise DamagedError(f"checkpoint {step} is damaged (its record is not what was saved)")
    if header["format"] != FORMAT:
        newer = header["format"] > FORMAT
        remedy = "update alexnet-jax" if newer else "take the version that wrote it"
        raise CheckpointError(
            f"checkpoint {step} has format {header['format']}, this program reads "
            f"{'up to' if newer else 'from'} {FORMAT}: {remedy}"
        )
    found = json.loads(content)
    if found["step"] != step:
        raise DamagedError(f"checkpoint {step} is damaged (its record is that of checkpoint {found['step']})")
    arrays = {name: Stamp(**{**made, "shape": tuple(made["shape"])}) for name, made in found["arrays"].items()}
    return Record(step, found["score"], found["metadata"], arrays)


def _checksum(version: Any, content: bytes) -> str:
    return hashlib.sha256(f"{version}\n".encode() + content).hexdigest()


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


class Handler(ocp.AsyncCheckpointHandler):
    """Writes a record beside Orbax's arrays, in the same atomic folder; hashes in the background."""

    async def async_save(self, directory: Any, args: Save) -> list[Any]:
        """Begins to hash and write."""
        return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(directory, args), name="record")]

    async def _write(self, directory: Any, args: Save) -> None:
        self.save(directory, args)

    def save(self, directory: Any, args: Save) -> None:
        """Hashes and writes at once."""
        (directory / ITEM).write_bytes(encode(args.record()))

    def restore(self, directory: Any, args: Any = None) -> bytes:
        """The file as it is; `decode` is the way to read it."""
        return (directory / ITEM).read_bytes()


@ocp.args.register_with_handler(Handler, for_save=True)
@dataclasses.dataclass
class Save(ocp.args.CheckpointArgs):
    """What a record is made of: the arrays are on the host, and nobody changes them."""

    step: int
    score: float | None
    metadata: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    def record(self) -> Record:
        """The record, with every array hashed."""
        arrays = {name: stamp(array) for name, array in self.arrays.items()}
        return Record(self.step, self.score, dict(self.metadata), arrays)


@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclasses.dataclass
class Restore(ocp.args.CheckpointArgs):
    """Nothing is to be said; Orbax asks for the class."""
