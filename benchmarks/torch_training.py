"""A training loop as people write it in PyTorch, over the images of a prepared folder: the peer of `train.py`.

The networks and their step are those of `torch_networks.py`, the images come through a DataLoader from the
data sets of `torch_loaders.py`. It runs in a process without JAX, see `workers.py`.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch_loaders
import torch_networks
from torch.utils.data import DataLoader, Dataset, RandomSampler


class Views(Dataset):
    """Random crops of a data set's images, half of them mirrored: (3, crop, crop) uint8 with a label.

    Args:
      images: a data set of images (S, S, 3) uint8 with labels.
      crop: pixels of their sides.
      flip: mirror half of them.
    """

    def __init__(self, images: Any, crop: int, flip: bool):
        self._images, self._crop, self._flip = images, crop, flip

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image, label = self._images[index]
        top, left = torch.randint(image.shape[0] - self._crop + 1, (2,)).tolist()
        view = image[top : top + self._crop, left : left + self._crop]
        if self._flip and torch.rand(()) < 0.5:
            view = view[:, ::-1]
        return np.ascontiguousarray(view.transpose(2, 0, 1)), label


class Case:
    """Training steps on shuffled batches of a prepared folder, less its mean colour.

    Args:
      folder: prepared, with training images in one part.
      image_size: pixels of their sides.
      batch_size: images.
      form: see `torch_networks.FORMS`.
      encoding: of the folder, "raw" or "jpeg".
      workers: of the DataLoader.
      flip: mirror half of the images.
      network, size, options: of `torch_networks.Case`; size is also that of the crops.
    """

    def __init__(
        self,
        folder: str,
        image_size: int,
        batch_size: int,
        form: str = "eager",
        *,
        encoding: str = "raw",
        workers: int = 0,
        flip: bool = True,
        network: str = "paper",
        size: int = 224,
        **options: Any,
    ):
        self._case = torch_networks.Case(network, batch_size, form, size=size, **options)
        self.form, self._batch_size = self._case.form, batch_size
        (part,) = pathlib.Path(folder).glob("train-*.bin")
        labels = str(pathlib.Path(folder) / "train_labels.npy")
        images: Any
        if encoding == "raw":
            images = torch_loaders.Raw(str(part), labels, image_size)
        else:
            images = torch_loaders.Jpeg(str(part), labels, str(pathlib.Path(folder) / "train_sizes.npy"))
        views = Views(images, size, flip)
        sampler = RandomSampler(views, num_samples=10**9)
        loader = DataLoader(views, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
        self._batches: Iterator[Any] = iter(loader)
        self._ahead = 2 * workers  # batches that were made while nobody measured
        with np.load(pathlib.Path(folder) / "stats.npz") as stats:
            self._mean = torch.tensor(stats["mean"], dtype=torch.float32)[:, None, None]
        # The zeros that conv1 of `paper` needs at the bottom and right.
        self._high = torch_networks.padded(size) - size if network == "paper" else 0

    def run(self, count: int) -> float:
        """Images a second over so many steps, the loading of their images included."""
        for _ in range(self._ahead if count > 1 else 0):
            next(self._batches)
        start = time.perf_counter()
        for _ in range(count):
            images, labels = next(self._batches)
            images = torch.nn.functional.pad(images.float() - self._mean, (0, self._high, 0, self._high))
            self._case.step(images.contiguous(memory_format=self._case.layout), labels)
        return count * self._batch_size / (time.perf_counter() - start)
