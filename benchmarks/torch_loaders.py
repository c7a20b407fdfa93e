"""PyTorch's DataLoader over the images of a prepared folder, in a process without JAX: the peer of `loader.py`.

`loader.py` starts it. It reads a line of JSON from standard input for each measurement
and answers with images a second. It has a process of its own because PyTorch's workers
are forked from it by default, and forking a process that runs JAX is unsafe.
"""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler


class Raw(Dataset):
    """Images in one file, memory-mapped."""

    def __init__(self, file: str, labels: str, size: int):
        self._labels = np.load(labels)
        # "c": an array that may be written to, which PyTorch asks for; the file stays as it is.
        self._images = np.memmap(file, np.uint8, "c").reshape(-1, size, size, 3)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], int(self._labels[index])


class Jpeg(Dataset):
    """JPEG images one after another in one file, memory-mapped, decoded by Pillow."""

    def __init__(self, file: str, labels: str, sizes: str):
        self._labels = np.load(labels)
        self._content = np.memmap(file, np.uint8, "r")
        self._ends = np.cumsum(np.load(sizes), dtype=np.int64)
        self._starts = np.concatenate([[0], self._ends[:-1]])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        content = self._content[self._starts[index] : self._ends[index]].tobytes()
        return np.array(Image.open(io.BytesIO(content)).convert("RGB")), int(self._labels[index])


class Loader:
    """A DataLoader that runs on for ever; its workers are started once."""

    def __init__(self, dataset: Any, batch_size: int, workers: int):
        sampler = RandomSampler(dataset, num_samples=10**9)
        self._ahead = 2 * workers + 1  # batches that were made while nobody measured
        self._loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
        self._batches = iter(self._loader)

    def rate(self, batches: int) -> float:
        """Images a second over so many batches."""
        for _ in range(self._ahead):
            next(self._batches)
        start, count = time.perf_counter(), 0
        for _ in range(batches):
            count += len(next(self._batches)[1])
        return count / (time.perf_counter() - start)


def main() -> None:
    """Measures what it is asked for, until the input ends."""
    datasets: dict[str, Any] = {}
    loaders: dict[tuple[str, int], Loader] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        kind, workers = asked["kind"], asked["workers"]
        if kind not in datasets:
            datasets[kind] = {"raw": Raw, "jpeg": Jpeg}[kind](*asked["arguments"])
        key = (kind, workers)
        if key not in loaders:
            loaders.clear()  # ends the workers of the one before
            loaders[key] = Loader(datasets[kind], asked["batch_size"], workers)
        print(json.dumps(loaders[key].rate(asked["batches"])), flush=True)


if __name__ == "__main__":
    main()
