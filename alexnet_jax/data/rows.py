"""Arrays written row by row, however many there are: .npy, .npz and safetensors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from alexnet_jax.data.atomic import replacing

SUFFIXES = (".npz", ".npy", ".safetensors")
_NAMES = 1 << 16  # names that are written at a time
_HEADER = 100_000_000  # bytes that readers of safetensors accept


class Rows:
    """What `writing` gives: takes rows and their names."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...]):
        self._file, self._shape = file, shape
        self.names: list[str] = []

    def add(self, names: Sequence[str], rows: np.ndarray) -> None:
        """Appends rows (n, …), float32, each with its name."""
        if rows.shape != (len(names), *self._shape):
            raise ValueError(f"rows are {rows.shape}, not {(len(names), *self._shape)}")
        self._file.write(np.ascontiguousarray(rows, "<f4").data)
        self.names += names

    def write_header(self) -> None:
        """NumPy's header for the rows so far, at the file's start."""
        self._file.seek(0)
        self._file.write(_npy_header((len(self.names), *self._shape)))


@contextlib.contextmanager
def writing(path: pathlib.Path, shape: Sequence[int], key: str, metadata: Mapping[str, str]) -> Iterator[Rows]:
    """Writes an array (N, …), float32, with N unknown until the end; only the names stay in memory.

    - `.npz`: the array under `key`, `names` (N,) and the metadata as strings;
    - `.npy`: the array alone; the names lie beside it, in FILE.names.txt, a JSON string a line;
    - `.safetensors`: the array under `key`, the metadata with the names as a JSON list.

    The file takes its place at the end; on an error nothing is left.

    Args:
      path: the file; its suffix says its form.
      shape: of one row.
      key: the array's name.
      metadata: what else the file says, by names that are neither `key` nor "names".

    Raises:
      ValueError: another suffix; more names than safetensors' metadata may hold.
    """
    suffix = check_suffix(path)
    with replacing(path) as partial:
        place = partial if suffix == ".npy" else partial.with_name(f"{partial.name}.rows")
        try:
            with place.open("w+b") as file:
                rows = Rows(file, tuple(shape))
                rows.write_header()
                yield rows
                rows.write_header()
            if suffix == ".npz":
                _npz(partial, place, key, rows.names, metadata)
            elif suffix == ".safetensors":
                _safetensors(partial, place, key, (len(rows.names), *shape), {**metadata, "names": rows.names})
            else:
                with replacing(names_of(path)) as beside:
                    beside.write_text("".join(f"{json.dumps(name)}\n" for name in rows.names), encoding="utf-8")
        finally:
            if place != partial:
                place.unlink(missing_ok=True)


def _npz(partial: pathlib.Path, rows: pathlib.Path, key: str, names: list[str], metadata: Mapping[str, str]) -> None:
    dtype = np.dtype(f"<U{max(map(len, names), default=1)}")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.write(rows, f"{key}.npy")
        with archive.open("names.npy", "w", force_zip64=True) as file:
            file.write(_npy_header((len(names),), dtype))
            for start in range(0, len(names), _NAMES):
                file.write(np.array(names[start : start + _NAMES], dtype).tobytes())
        for name, text in metadata.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.array(text), allow_pickle=False)


def _safetensors(
    partial: pathlib.Path, rows: pathlib.Path, key: str, shape: tuple[int, ...], metadata: Mapping[str, str | list[str]]
) -> None:
    before = len(_npy_header(shape))
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, os.path.getsize(rows) - before]}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    header = json.dumps({"__metadata__": texts, key: entry}).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _HEADER:
        raise ValueError(f"{shape[0]:,} names are more than safetensors' metadata may hold: write .npz")
    with partial.open("wb") as file, rows.open("rb") as values:
        file.write(len(header).to_bytes(8, "little") + header)
        values.seek(before)
        shutil.copyfileobj(values, file, 1 << 20)


def check_suffix(path: pathlib.Path) -> str:
    """The suffix, in lower case.

    Raises:
      ValueError: it is none of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out {path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return path.suffix.lower()


def names_of(path: pathlib.Path) -> pathlib.Path:
    """Where the names of a `.npy` file's rows lie."""
    return path.with_name(f"{path.name}.names.txt")


def _npy_header(shape: tuple[int, ...], dtype: np.dtype | str = "<f4") -> bytes:
    """NumPy's header, of the same length whatever the number of rows: it leaves room for it to grow."""
    buffer = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()
