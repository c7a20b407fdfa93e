"""Files as torch.save writes them, without PyTorch; test_parity_torch.py reads PyTorch's own."""

from __future__ import annotations

import dataclasses
import io
import pickle
import zipfile
from typing import ClassVar

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
KINDS = {"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}


@dataclasses.dataclass(frozen=True)
class Name:
    """What a pickle names, whether or not it can be imported here."""

    module: str
    name: str

    def __call__(self):
        raise AssertionError("only written, never called")


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that a pickle makes."""

    what: Name
    arguments: tuple


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage as pickles refer to it."""

    key: str
    kind: str
    count: int


class Pickler(pickle._Pickler):
    """Writes names that are not there, calls, and arrays in PyTorch's way."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol, old, changes):
        super().__init__(file, protocol)
        self.old, self.changes, self.storages = old, changes, {}

    def save_name(self, name):
        self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    dispatch[Name] = save_name

    def reducer_override(self, thing):
        if isinstance(thing, Call):
            return thing.what, thing.arguments
        if not isinstance(thing, np.ndarray):
            return NotImplemented
        key = str(len(self.storages))
        self.storages[key] = thing
        found = {
            "storage": Storage(key, f"{KINDS[thing.dtype.name]}Storage", thing.size),
            "offset": 0,
            "shape": thing.shape,
            "strides": tuple(step // thing.itemsize for step in thing.strides),
            **self.changes,
        }
        hooks = Call(Name("collections", "OrderedDict"), ())
        return Name("torch._utils", "_rebuild_tensor_v2"), (*found.values(), False, hooks)

    def persistent_id(self, thing):
        if not isinstance(thing, Storage):
            return None
        view = (None,) if self.old else ()
        return ("storage", Name("torch", thing.kind), thing.key, "cpu", thing.count, *view)


def pickled(thing, protocol=2, *, old=False, **changes):
    """The bytes of a pickle, and the arrays in it by their storages' keys."""
    file = io.BytesIO()
    pickler = Pickler(file, protocol, old, changes)
    pickler.dump(thing)
    return file.getvalue(), pickler.storages


def zip_records(thing, protocol=2, **changes):
    """The records of the zip form, by name."""
    pickle_bytes, storages = pickled(thing, protocol, **changes)
    data = {f"net/data/{key}": array.tobytes() for key, array in storages.items()}
    return {"net/data.pkl": pickle_bytes, "net/byteorder": b"little", **data, "net/version": b"3\n"}


def save_records(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def save_zip(path, thing, protocol=2, **changes):
    return save_records(path, zip_records(thing, protocol, **changes))


def save_old(path, thing, protocol=2, *, machine=MACHINE, **changes):
    pickle_bytes, storages = pickled(thing, protocol, old=True, **changes)
    with path.open("wb") as file:
        for head in (MAGIC, PROTOCOL, machine):
            pickle.dump(head, file, protocol)
        file.write(pickle_bytes)
        pickle.dump(list(storages), file, protocol)
        for array in storages.values():
            file.write(array.size.to_bytes(8, "little") + array.tobytes())
    return path


FORMS = {"zip": save_zip, "old": save_old}
