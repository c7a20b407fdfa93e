"""CIFAR-10, binary version: 60,000 colour images of 32 × 32 pixels, ten classes (Krizhevsky 2009).

A record is a byte of label and 3,072 of image, channel by channel (red, green, blue), each
row by row: www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax.data.prepared import DataError, file_checksum
from alexnet_jax.data.sources import Examples, Source
from alexnet_jax.data.sources._files import check_classes, existing_folder, split_by_hash

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
NAMES = "batches.meta.txt"
_GET = "cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html has it"


class _Records:
    """`Examples` in files of records, mapped from disk."""

    def __init__(self, files: Sequence[str], records: Sequence[np.ndarray]):
        self._files, self._records = files, records
        self._starts = np.cumsum([0, *map(len, records)])
        self.labels = np.concatenate([part[:, 0] for part in records]).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return part, index - int(self._starts[part])

    def name(self, index: int) -> str:
        part, row = self._place(index)
        return f"{self._files[part]}/{row}"

    def load(self, index: int) -> tuple[np.ndarray, int]:
        part, row = self._place(index)
        planes = np.asarray(self._records[part][row, 1:]).reshape(3, SIDE, SIDE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0)), int(self.labels[index])


def open_cifar10(directory: str, *, val_fraction: float | None = None) -> Source:
    """CIFAR-10's binary version, unpacked.

    Args:
      directory: where data_batch_1.bin is, or the folder above cifar-10-batches-bin.
      val_fraction: the share of the training images that becomes validation, drawn by a hash
        of their places; the test batch is "test" then. None: the test batch is "val".

    Raises:
      DataError: a file is missing or damaged, or this is the Python version.
    """
    source = f"cifar10:{directory}"
    root = existing_folder(source, directory)
    if (root / "cifar-10-batches-bin").is_dir():
        root = root / "cifar-10-batches-bin"
    if not (root / TRAIN[0]).exists() and ((root / "data_batch_1").exists() or (root / "cifar-10-batches-py").exists()):
        raise DataError(
            f"{root} holds CIFAR-10's Python version, which is a pickle and could run any code: "
            "get the binary version, cifar-10-binary.tar.gz, from www.cs.toronto.edu/~kriz/cifar.html"
        )
    for name in (*TRAIN, *TEST, NAMES):
        if not (root / name).is_file():
            raise DataError(f"{root} lacks {name}: {_GET}")
    try:
        classes = tuple((root / NAMES).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{root / NAMES} can't be read ({error}): {_GET}") from None
    check_classes(source, classes)
    train = _Records(TRAIN, [_records(root / name, len(classes)) for name in TRAIN])
    test = _Records(TEST, [_records(root / name, len(classes)) for name in TEST])
    digest = "".join(file_checksum(root / name) for name in (*TRAIN, *TEST))
    splits: dict[str, Examples]
    if val_fraction is None:
        notes = ["Validation is the test batch: choose nothing by it, or give a val_fraction such as 0.1."]
        splits = {"train": train, "val": test}
    else:
        names = (train.name(index) for index in range(len(train)))
        part, val, notes = split_by_hash(source, train, names, train.labels, classes, val_fraction)
        splits = {"train": part, "val": val, "test": test}
    return Source(source, classes, splits, digest, tuple(notes))


def _records(path: pathlib.Path, classes: int) -> np.ndarray:
    """The records of a file, (N, 3073) uint8, mapped from disk."""
    size = path.stat().st_size
    if not size or size % RECORD:
        raise DataError(f"{path} has {size} bytes, not a multiple of {RECORD}: it is cut off or no batch; {_GET}")
    try:
        records = np.memmap(path, np.uint8, "r").reshape(-1, RECORD)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): check its permissions") from None
    if (highest := int(records[:, 0].max())) >= classes:
        raise DataError(f"{path} has the label {highest}, but {NAMES} has {classes} names: it is damaged; {_GET}")
    return records
