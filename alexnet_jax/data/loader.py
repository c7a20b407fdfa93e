"""Batches from a prepared split, in the background: a pure function of the step's number.

Grain reads at the level of batches, so a resumed run starts at its step without
replaying, and the order is that of `keys.permutation`. The position of a run in its data
is its step; nothing else need be saved.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import keys
from alexnet_jax.data.images import BATCHES_AT_ONCE, Memory, PartImages, cores
from alexnet_jax.data.prepared import Split


class Batch(NamedTuple):
    """Images (N, S, S, 3) uint8 with their labels (N,) int32, on the host or on the device.

    `mask` (N,) bool tells the images from what fills a batch up.
    """

    images: Any
    labels: Any
    mask: Any


@dataclasses.dataclass(frozen=True)
class Share:
    """Which rows of each global batch a process reads: the `index`-th of `count` equal blocks.

    A batch is filled up with masked copies of its first image to a multiple of `multiple`,
    the number of devices over all processes; 0 is one device a process.
    """

    index: int = 0
    count: int = 1
    multiple: int = 0


WHOLE = Share()


def steps_per_epoch(count: int, batch_size: int, last_batch: str) -> int:
    """How many batches an epoch of `count` images has; `last_batch` is "drop" or "keep"."""
    return count // batch_size if last_batch == "drop" else -(-count // batch_size)


def rest(count: int, batch_size: int, last_batch: str) -> int:
    """The images of an epoch's incomplete last batch, if it is one to train on; else 0."""
    return 0 if last_batch == "drop" else count % batch_size


def training_batches(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    last_batch: str,
    first_step: int,
    num_steps: int,
    share: Share = WHOLE,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> Iterator[Batch]:
    """The batches of the steps from `first_step` up to `num_steps`, epoch after epoch.

    Every epoch visits the images in an order of its own, drawn from (seed, epoch).
    "drop" leaves an epoch's incomplete last batch out (each epoch is a prefix of its
    permutation), "keep" makes it a smaller one.

    Args:
      split: the images; `resident` keeps them on the device.
      batch_size: images in a global batch.
      seed: of the order.
      last_batch: "drop" or "keep".
      first_step: the step to begin with, at no cost wherever it is.
      num_steps: the step before which to end.
      share: the rows of the global batches that this process reads.
      place: called in the background with each batch, to move it to the device ahead of
        the step.
    """
    per_epoch = steps_per_epoch(len(split), batch_size, last_batch)
    order = functools.lru_cache(maxsize=2)(functools.partial(keys.permutation, seed, count=len(split)))
    memory = Memory()

    def gather(step: int) -> Batch:
        epoch, position = divmod(step, per_epoch)
        chosen = order(epoch)[position * batch_size : (position + 1) * batch_size]
        return place(_rows(split, chosen, share, memory))

    return _ahead(grain.MapDataset.range(first_step, num_steps).map(gather))


def evaluation_batches(
    split: Split,
    batch_size: int,
    *,
    share: Share = WHOLE,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with masked copies of its first image.

    Args:
      split: the images.
      batch_size: images in a global batch, the last one included.
      share: as in `training_batches`.
      place: as in `training_batches`.
    """
    memory = Memory()

    def gather(start: int) -> Batch:
        chosen = np.arange(start, min(start + batch_size, len(split)))
        return place(_rows(split, chosen, share, memory, size=batch_size))

    return _ahead(grain.MapDataset.range(0, len(split), batch_size).map(gather))


def _ahead(batches: Any) -> Iterator[Batch]:
    """Made ahead by up to four threads, so that up to five batches are in memory."""
    threads = min(BATCHES_AT_ONCE, cores())
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)))


def _rows(split: Split, chosen: np.ndarray, share: Share, memory: Memory, size: int = 0) -> Batch:
    """A process's rows of the global batch of the chosen images, filled up to `size` at least."""
    multiple = share.multiple or share.count
    filled = -(-max(len(chosen), size) // multiple) * multiple
    each = filled // share.count
    rows = np.arange(share.index * each, (share.index + 1) * each)
    mask = rows < len(chosen)
    mine = chosen[np.where(mask, rows, 0)]
    if isinstance(split.images, PartImages):
        images: Any = split.images.read(mine, memory)
    else:
        images = _take(split.images, mine) if isinstance(split.images, jax.Array) else split.images[mine]
    return Batch(images, split.labels[mine], mask)


@jax.jit
def _take(images: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.take(images, rows, axis=0, mode="clip")


def resident(split: Split) -> Split:
    """The split with all its images on the device: the same batches, made there.

    For sets that are small beside the device's memory.
    """
    return Split(jax.device_put(split.images[:]), split.labels)
