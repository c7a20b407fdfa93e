"""PyTorch's files (`.pth`, `.pt`) read without PyTorch, in the zip form and in the one before it.

The zip form (since PyTorch 1.6) is an archive, not compressed, of `data.pkl` and one record a
storage, `data/0` and so on. The older form is five pickles (a number that marks it, a protocol,
the machine's sizes, the object, the storages' keys) and then each storage: its count of elements,
8 bytes, and their bytes. In both, the pickle of a tensor names a storage, an offset, a shape and
strides. See `torch.serialization` and `torch._utils`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from alexnet_jax.weights.errors import WeightsError
from alexnet_jax.weights.pickles import Call, fill, load
from alexnet_jax.weights.source import Entry, Source

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
OLD_START = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")  # in the pickle of MAGIC
# An AlexNet's pickle has about 2 kB; with an optimizer's state, some 10.
LONGEST_PICKLE = 4 << 20
_DEEPEST = 8  # dimensions

_TYPES = (
    *(("Double", np.float64), ("Float", np.float32), ("Half", np.float16), ("BFloat16", ml_dtypes.bfloat16)),
    *(("Long", np.int64), ("Int", np.int32), ("Short", np.int16), ("Char", np.int8), ("Byte", np.uint8)),
    ("Bool", np.bool_),
)
# Where training programs keep the state dict among other things.
_INSIDE = ("state_dict", "model_state_dict", "model")


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


def _counts(values: Any) -> tuple[int, ...]:
    if (
        not isinstance(values, tuple)
        or len(values) > _DEEPEST
        or any(type(n) is not int or not 0 <= n < 1 << 48 for n in values)
    ):
        raise WeightsError("one of its tensors has sizes or strides that make no sense: the file is damaged")
    return values


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """A tensor that lies inside its storage and is no larger than it."""
    if not isinstance(storage, _Storage):
        raise TypeError
    (offset,), shape, strides = _counts((offset,)), _counts(shape), _counts(strides)
    if len(shape) != len(strides):
        raise TypeError
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if (count and last >= storage.count) or count > storage.count:
        raise WeightsError(
            f"one of its tensors has shape {shape}, and its storage only {storage.count:,} elements: "
            "the file is damaged, or the tensor was expanded; save tensor.clone()"
        )
    return _Tensor(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise TypeError
    return data


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    return fill({}, pairs)


_NAMES: dict[str, Any] = {
    "collections OrderedDict": Call(_ordered),
    "torch._utils _rebuild_tensor": Call(_tensor),
    "torch._utils _rebuild_tensor_v2": Call(_tensor),
    "torch._utils _rebuild_parameter": Call(_parameter),
    **{f"torch {name}Storage": np.dtype(kind) for name, kind in _TYPES},
}


def _storage(identifier: Any) -> _Storage:
    """From ("storage", type, key, device, count), and in the older form also a view, which must be None."""
    word, kind, key, _, count, *view = identifier
    if word not in ("storage", b"storage") or not isinstance(kind, np.dtype) or view not in ([], [None]):
        raise TypeError
    (count,) = _counts((count,))
    return _Storage(key if isinstance(key, str) else str(int(key)), kind, count)


def _entries(found: Any, values: Callable[[_Storage], np.ndarray], check: Callable[[_Storage], None]) -> dict:
    """The state dict in an object, with a way to its values."""
    if isinstance(found, dict) and not any(isinstance(value, _Tensor) for value in found.values()):
        found = next((found[name] for name in _INSIDE if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict) or not any(isinstance(value, _Tensor) for value in found.values()):
        raise WeightsError("it holds no state dict: save one with torch.save(model.state_dict(), path)")
    entries = {}
    # DataParallel's prefix.
    prefix = "module." if all(isinstance(name, str) and name.startswith("module.") for name in found) else ""
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise WeightsError(f"its entry {str(name)[:100]!r} is no tensor: save model.state_dict() alone")
        check(tensor.storage)
        read = functools.partial(_values, tensor, values)
        entries[name.removeprefix(prefix)] = Entry(tensor.shape, tensor.storage.dtype.name, read)
    return entries


def _values(tensor: _Tensor, values: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    flat = values(tensor.storage)[tensor.offset :]
    strides = tuple(step * flat.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def read_zip(path: pathlib.Path) -> Source:
    """Opens a file of the zip form.

    Raises:
      WeightsError: it is damaged, compressed, of another machine's byte order, or holds anything but
        tensors and plain data. Nothing in it is run, and nothing is unpacked.
    """
    with _archive(path) as archive:
        members = archive.infolist()
        records = {member.filename: member for member in members}
        if len(records) != len(members):
            raise WeightsError("two of its records have the same name: it is damaged or made to mislead")
        roots = [name.removesuffix("data.pkl") for name in records if name.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise WeightsError("this zip archive has no data.pkl: it is not what torch.save writes")
        root = roots[0]
        order = records.get(f"{root}byteorder")
        if order is not None and _record(archive, order, 16) != b"little":
            raise WeightsError("it was written by a big-endian machine: save it anew on a little-endian one")
        pickle = _record(archive, records[f"{root}data.pkl"], LONGEST_PICKLE)

    def check(storage: _Storage) -> None:
        member = records.get(f"{root}data/{storage.key}")
        if member is None or member.file_size != storage.count * storage.dtype.itemsize:
            raise WeightsError(f"its storage {storage.key[:20]!r} is not there in full: copy or download it again")

    def values(storage: _Storage) -> np.ndarray:
        member = records[f"{root}data/{storage.key}"]
        with _archive(path) as archive:
            return np.frombuffer(_record(archive, member, member.file_size), storage.dtype)

    return Source("PyTorch's zip form", _entries(load(io.BytesIO(pickle), _NAMES, _storage), values, check))


@contextlib.contextmanager
def _archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever the library stumbles over is damage, in words."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except WeightsError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"the archive is cut off or damaged ({error}): copy or download it again") from None


def _record(archive: zipfile.ZipFile, member: zipfile.ZipInfo, longest: int) -> bytes:
    """A record that lies in the file as it is, so that it can't be larger than the file."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise WeightsError("its records are compressed, as torch.save never writes them: it might unpack to any size")
    if member.file_size > longest:
        raise WeightsError(
            f"its record {member.filename[:100]!r} has {member.file_size:,} bytes: no AlexNet needs that"
        )
    return archive.read(member)


def read_old(path: pathlib.Path) -> Source:
    """Opens a file of the form before PyTorch 1.6.

    Raises:
      WeightsError: as `read_zip`.
    """
    with path.open("rb") as file:
        head = io.BytesIO(file.read(LONGEST_PICKLE))
    known: dict[str, _Storage] = {}

    def persistent(identifier: Any) -> _Storage:
        storage = _storage(identifier)
        if known.setdefault(storage.key, storage) != storage:
            raise TypeError
        return storage

    magic, protocol, machine, found, keys = [load(head, _NAMES, persistent) for _ in range(5)]
    if magic != MAGIC or protocol != PROTOCOL or not isinstance(machine, dict) or not isinstance(keys, list):
        raise WeightsError("it begins like a file of PyTorch's older form, but is none")
    if machine.get("little_endian") is not True:
        raise WeightsError("it was written by a big-endian machine: save it anew on a little-endian one")
    data = np.memmap(path, np.uint8, "r")
    places: dict[str, tuple[int, int]] = {}
    position = head.tell()
    for key in map(str, keys):
        if key not in known or position + 8 > data.size:
            break
        count = int.from_bytes(data[position : position + 8].tobytes(), "little")
        places[key] = position + 8, count
        position += 8 + count * known[key].dtype.itemsize

    def check(storage: _Storage) -> None:
        start, count = places.get(storage.key, (data.size, -1))
        if count != storage.count or start + count * storage.dtype.itemsize > data.size:
            raise WeightsError(f"its storage {storage.key[:20]!r} is not there in full: copy or download it again")

    def values(storage: _Storage) -> np.ndarray:
        start, count = places[storage.key]
        return np.asarray(data[start : start + count * storage.dtype.itemsize]).view(storage.dtype)

    return Source("PyTorch's form before 1.6", _entries(found, values, check))
