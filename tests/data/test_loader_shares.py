"""Batches divided among processes and devices, and images that stay on the device."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax import keys
from alexnet_jax.data.loader import (
    Share,
    evaluation_batches,
    resident,
    steps_per_epoch,
    training_batches,
)
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.prepared import open_prepared
from alexnet_jax.parallel import Layout

from .conftest import pictures, toy_source
from .test_loader import split_of


@st.composite
def shared(draw):
    """A set, a batch size, a rule for the last batch, a number of processes, devices in each, steps."""
    last_batch = draw(st.sampled_from(("drop", "keep")))
    count = draw(st.integers(1, 40))
    batch_size = draw(st.integers(1, count if last_batch == "drop" else 50))
    processes, devices = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    per_epoch = steps_per_epoch(count, batch_size, last_batch)
    num_steps = draw(st.integers(1, 2 * per_epoch + 1))
    return count, batch_size, last_batch, processes, devices, draw(st.integers(0, num_steps - 1)), num_steps


@settings(max_examples=40, deadline=None)
@given(shared(), st.integers(0, 2**32))
def test_shares_make_up_each_batch(case, seed):
    count, batch_size, last_batch, processes, devices, first_step, num_steps = case
    options = {"seed": seed, "last_batch": last_batch, "first_step": first_step, "num_steps": num_steps}
    multiple = processes * devices
    of_process = [
        list(training_batches(split_of(count), batch_size, share=Share(index, processes, multiple), **options))
        for index in range(processes)
    ]
    assert [len(batches) for batches in of_process] == [num_steps - first_step] * processes
    per_epoch = steps_per_epoch(count, batch_size, last_batch)
    for step, pieces in zip(range(first_step, num_steps), zip(*of_process, strict=True), strict=True):
        labels = np.concatenate([piece.labels for piece in pieces])
        mask = np.concatenate([piece.mask for piece in pieces])
        epoch, place = divmod(step, per_epoch)
        wanted = keys.permutation(seed, epoch, count)[place * batch_size : (place + 1) * batch_size]
        np.testing.assert_array_equal(labels[mask], wanted)
        # What fills up comes last, and the least that makes every device's share equal.
        assert mask.tolist() == [True] * len(wanted) + [False] * (len(labels) - len(wanted))
        assert len(labels) == -(-len(wanted) // multiple) * multiple
        assert {len(piece.labels) for piece in pieces} == {len(labels) // processes}
        for piece in pieces:
            assert (piece.images[:, 0, 0, 0] == piece.labels % 256).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 5), st.integers(1, 3))
def test_evaluation_in_shares_shows_every_image_once(count, batch_size, processes, devices):
    of_process = [
        list(evaluation_batches(split_of(count), batch_size, share=Share(index, processes, processes * devices)))
        for index in range(processes)
    ]
    seen, sizes = [], set()
    for pieces in zip(*of_process, strict=True):
        seen += list(itertools.chain.from_iterable(piece.labels[piece.mask].tolist() for piece in pieces))
        sizes |= {len(piece.labels) for piece in pieces}
    assert seen == list(range(count))
    assert len(sizes) == 1
    assert next(iter(sizes)) % devices == 0


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("last_batch", ["drop", "keep"])
def test_images_on_the_device_make_the_same_batches(tmp_path, encoding, last_batch):
    prepare(toy_source(train=pictures(23, 1, 8), val=pictures(2, 2, 8)), tmp_path / "out", size=8, encoding=encoding)
    split = open_prepared(tmp_path / "out").splits["train"]
    batches = functools.partial(training_batches, batch_size=5, seed=3, last_batch=last_batch, num_steps=12)
    kept = resident(split)
    assert isinstance(kept.images, jax.Array)
    found = list(batches(kept, first_step=2))
    assert len(found) == 10
    for batch, wanted in zip(found, batches(split, first_step=2), strict=True):
        assert isinstance(batch.images, jax.Array)
        for one, other in zip(batch, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


def test_batches_are_moved_to_the_device_in_the_background():
    options = {"seed": 0, "last_batch": "drop", "first_step": 0, "num_steps": 6}
    placed = list(training_batches(split_of(20), 4, place=Layout().place_rows, **options))
    for batch, wanted in zip(placed, training_batches(split_of(20), 4, **options), strict=True):
        for one, other in zip(batch, wanted, strict=True):
            assert isinstance(one, jax.Array)
            np.testing.assert_array_equal(one, other)
