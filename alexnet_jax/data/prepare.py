"""From a source to a prepared folder."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile

import numpy as np

from alexnet_jax.data.prepared import FORMAT, DataError, Prepared, Statistics, file_sha256, open_prepared
from alexnet_jax.data.sources import SOURCES, Source, open_source
from alexnet_jax.models import resize


def prepare(source: Source, out: pathlib.Path, *, size: int, rule: str) -> None:
    """Writes a prepared folder, complete or not at all.

    Args:
      source: what to prepare.
      out: the folder; must not exist.
      size: pixels of the images' sides.
      rule: how images are scaled, see `alexnet_jax.models.resize`.

    Raises:
      DataError: the folder exists.
    """
    if out.exists():
        raise DataError(f"{out} exists: delete it to prepare it anew, or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        about = {}
        for name, examples in source.splits.items():
            images = np.lib.format.open_memmap(
                partial / f"{name}_images.npy", mode="w+", dtype=np.uint8, shape=(len(examples), size, size, 3)
            )
            labels = np.empty(len(examples), np.int32)
            moments = _Moments(size)
            for index in range(len(examples)):
                image, labels[index] = examples[index]
                images[index] = resize(image, size, rule)
                if name == "train":
                    moments.add(images[index])
            images.flush()
            np.save(partial / f"{name}_labels.npy", labels)
            if name == "train":
                np.savez(partial / "stats.npz", **vars(moments.statistics()))
            about[name] = {"count": len(examples)}
        (partial / "classes.txt").write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "source": source.name,
            "image_size": size,
            "resize_rule": rule,
            "splits": about,
            "skipped": [],
            "sha256": {path.name: file_sha256(path) for path in sorted(partial.iterdir())},
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.chmod(partial, 0o755)
        try:
            os.rename(partial, out)
        except OSError:
            if not out.is_dir():  # otherwise another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Moments:
    """The statistics of a stream of images, accumulated in float64."""

    def __init__(self, size: int):
        self._count = 0
        self._sum = np.zeros((size, size, 3))
        self._products = np.zeros((3, 3))

    def add(self, image: np.ndarray) -> None:
        wide = image.astype(np.float64)
        self._count += 1
        self._sum += wide
        pixels = wide.reshape(-1, 3)
        self._products += pixels.T @ pixels

    def statistics(self) -> Statistics:
        mean_image = self._sum / self._count
        mean = mean_image.mean((0, 1))
        pixels = self._count * self._sum[..., 0].size
        covariance = self._products / pixels - np.outer(mean, mean)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        return Statistics(mean_image, mean, covariance, eigenvalues, eigenvectors)


def prepared(source: str, *, size: int, rule: str, cache_dir: pathlib.Path | None = None) -> Prepared:
    """The prepared form of a source: an existing folder, or one made once and kept in the user's cache.

    Args:
      source: the name of a source, or the folder of a prepared data set.
      size: pixels of the images' sides.
      rule: how images are scaled.
      cache_dir: where made folders are kept.

    Raises:
      DataError: there is no such source or folder, or a folder of another size or rule.
    """
    if source in SOURCES:
        root = cache_dir or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexnet-jax"
        directory = root / "prepared" / f"{source}-{size}-{rule}-v{FORMAT}"
        if not directory.is_dir():
            try:
                prepare(open_source(source), directory, size=size, rule=rule)
            except OSError as error:
                raise DataError(f"{directory} can't be written ({error}): set config.data.cache_dir") from None
    else:
        directory = pathlib.Path(source)
        if not directory.is_dir():
            raise DataError(
                f"config.data.source={source!r}: neither a source ({', '.join(SOURCES)}) nor an existing folder"
            )
    found = open_prepared(directory)
    for key, wanted in (("image_size", size), ("resize_rule", rule)):
        if found.manifest[key] != wanted:
            raise DataError(f"{directory} was prepared with {key}={found.manifest[key]!r}, this run needs {wanted!r}")
    return found
