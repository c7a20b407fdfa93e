"""Batches from a prepared split, in the background: a pure function of the step's number.

Grain reads at the level of batches, so a resumed run starts at its step without
replaying, and the order is that of `keys.permutation`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from alexnet_jax import keys
from alexnet_jax.data.prepared import Split


class Batch(NamedTuple):
    """Images (N, S, S, 3) uint8 with their labels (N,) int32, on the host.

    `mask` (N,) bool tells the images from what fills up an evaluation's last batch.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


def steps_per_epoch(count: int, batch_size: int, last_batch: str) -> int:
    """How many batches an epoch of `count` images has; `last_batch` is "drop" or "keep"."""
    return count // batch_size if last_batch == "drop" else -(-count // batch_size)


def training_batches(
    split: Split, batch_size: int, *, seed: int, last_batch: str, first_step: int, num_steps: int
) -> Iterator[Batch]:
    """The batches of the steps from `first_step` up to `num_steps`, epoch after epoch.

    Every epoch visits the images in an order of its own, drawn from (seed, epoch).
    "drop" leaves an epoch's incomplete last batch out, "keep" makes it a smaller one.
    """
    per_epoch = steps_per_epoch(len(split), batch_size, last_batch)
    order = functools.lru_cache(maxsize=2)(functools.partial(keys.permutation, seed, count=len(split)))

    def gather(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        chosen = order(epoch)[place * batch_size : (place + 1) * batch_size]
        return Batch(split.images[chosen], split.labels[chosen], np.ones(len(chosen), bool))

    steps = grain.MapDataset.range(first_step, num_steps).map(gather)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with masked copies of its first image."""

    def gather(start: int) -> Batch:
        chosen = np.arange(start, start + batch_size)
        mask = chosen < len(split)
        chosen = np.where(mask, chosen, start)
        return Batch(split.images[chosen], split.labels[chosen], mask)

    starts = grain.MapDataset.range(0, len(split), batch_size).map(gather)
    return iter(starts.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
