"""Photographs to measure with: random crops of the two that scikit-learn ships, so that JPEG sizes are realistic."""

from __future__ import annotations

import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg
from sklearn.datasets import load_sample_images

from alexnet_jax.data.sources import Source

CLASSES = ("left", "right")


class Crops:
    """`Examples` made when they are asked for: crops (height, width, 3), the same at every call.

    Args:
      count: how many.
      height: of each, at most 427.
      width: of each, at most 640.
      seed: of the places of the crops.
    """

    def __init__(self, count: int, height: int, width: int, seed: int):
        self._photos = load_sample_images().images
        draw = np.random.default_rng(seed)
        rows, columns = (self._photos[0].shape[axis] - side for axis, side in ((0, height), (1, width)))
        self._places = np.stack([draw.integers(0, 2, count), draw.integers(0, rows + 1, count)], 1)
        self._places = np.column_stack([self._places, draw.integers(0, columns + 1, count), draw.integers(0, 2, count)])
        self._height, self._width = height, width

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """Its number."""
        return str(index)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """The crop and a label."""
        photo, row, column, mirrored = self._places[index].tolist()
        crop = self._photos[photo][row : row + self._height, column : column + self._width]
        return np.ascontiguousarray(crop[:, ::-1] if mirrored else crop), index % len(CLASSES)


class Files:
    """`Examples` that lie on the disk as files, in a folder a class."""

    def __init__(self, paths: list[pathlib.Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Its path below the folder of the classes."""
        return "/".join(self.paths[index].parts[-2:])

    def load(self, index: int) -> tuple[bytes, int]:
        """The file's bytes and the class it lies in."""
        path = self.paths[index]
        return path.read_bytes(), CLASSES.index(path.parent.name)


def crops(count: int, size: int) -> Source:
    """A source of `count` square crops for training and a few to validate, without a file."""
    return Source("crops", CLASSES, {"train": Crops(count, size, size, 1), "val": Crops(16, size, size, 2)}, str(count))


def write_files(folder: pathlib.Path, count: int, height: int, width: int, quality: int) -> list[pathlib.Path]:
    """Writes crops as JPEG files into class folders, and returns their paths in order."""
    examples = Crops(count, height, width, 3)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)

    def write(index: int) -> pathlib.Path:
        image, label = examples.load(index)
        path = folder / CLASSES[label] / f"{index:06d}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(image, quality, "RGB", "420"))
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(count)))
