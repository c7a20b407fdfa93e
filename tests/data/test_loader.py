"""Batches as a function of the step: every image once an epoch, and the same after a restart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax import keys
from alexnet_jax.data.loader import evaluation_batches, steps_per_epoch, training_batches
from alexnet_jax.data.prepared import Split

SEEDS = st.integers(0, 2**32)


def split_of(count: int) -> Split:
    """Images that hold their own index, which is their label too."""
    index = np.arange(count)
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[..., 0], images[..., 1] = index[:, None, None] % 256, index[:, None, None] // 256
    return Split(images, index.astype(np.int32))


@st.composite
def shapes(draw):
    """A number of images, a batch size and a rule for the last batch that make at least one step."""
    last_batch = draw(st.sampled_from(("drop", "keep")))
    count = draw(st.integers(1, 60))
    return count, draw(st.integers(1, count if last_batch == "drop" else 80)), last_batch


def batches_of(count, batch_size, last_batch, *, seed, first_step, num_steps):
    """All batches, each checked to be what it says."""
    found = list(
        training_batches(
            split_of(count),
            batch_size,
            seed=seed,
            last_batch=last_batch,
            first_step=first_step,
            num_steps=num_steps,
        )
    )
    for batch in found:
        assert batch.images.dtype == np.uint8
        assert (batch.images[:, 0, 0, 0] + 256 * batch.images[:, 1, 1, 1].astype(int) == batch.labels).all()
        assert batch.mask.dtype == bool
        assert batch.mask.shape == batch.labels.shape
        assert batch.mask.all()
    return found


@settings(max_examples=25, deadline=None)
@given(shapes(), SEEDS)
def test_an_epoch_visits_its_permutation(shape, seed):
    count, batch_size, last_batch = shape
    per_epoch = steps_per_epoch(count, batch_size, last_batch)
    found = batches_of(*shape, seed=seed, first_step=0, num_steps=3 * per_epoch)
    assert len(found) == 3 * per_epoch
    for epoch in range(3):
        of_epoch = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        labels = np.concatenate([batch.labels for batch in of_epoch])
        whole = len(labels) if last_batch == "drop" else count
        assert whole == (count // batch_size * batch_size if last_batch == "drop" else len(labels))
        np.testing.assert_array_equal(labels, keys.permutation(seed, epoch, count)[:whole])
        assert len(set(labels.tolist())) == whole
        sizes = [len(batch.labels) for batch in of_epoch]
        assert sizes[:-1] == [batch_size] * (per_epoch - 1)
        assert sizes[-1] == (batch_size if last_batch == "drop" or count % batch_size == 0 else count % batch_size)


@settings(max_examples=25, deadline=None)
@given(shapes(), SEEDS, st.data())
def test_a_run_that_resumes_sees_the_same_batches(shape, seed, data):
    num_steps = data.draw(st.integers(1, 3 * steps_per_epoch(*shape) + 1), label="num_steps")
    first_step = data.draw(st.integers(0, num_steps - 1), label="first_step")
    whole = batches_of(*shape, seed=seed, first_step=0, num_steps=num_steps)
    rest = batches_of(*shape, seed=seed, first_step=first_step, num_steps=num_steps)
    assert len(rest) == num_steps - first_step
    for expected, found in zip(whole[first_step:], rest, strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)


def test_epochs_and_seeds_have_orders_of_their_own():
    def labels(seed):
        found = batches_of(50, 10, "drop", seed=seed, first_step=0, num_steps=20)
        return [tuple(np.concatenate([b.labels for b in found[i : i + 5]])) for i in range(0, 20, 5)]

    orders = [*labels(0), *labels(1), tuple(range(50))]
    assert len(set(orders)) == len(orders)
    assert labels(0) == labels(0)


def test_later_steps_do_not_need_the_earlier_ones():
    found = batches_of(7, 2, "drop", seed=0, first_step=3 * 10**6, num_steps=3 * 10**6 + 2)
    np.testing.assert_array_equal(found[0].labels, keys.permutation(0, 10**6, 7)[:2])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 80))
def test_evaluation_shows_every_image_once(count, batch_size):
    found = list(evaluation_batches(split_of(count), batch_size))
    assert len(found) == -(-count // batch_size)
    assert all(batch.images.shape == (batch_size, 2, 2, 3) for batch in found)
    assert all(batch.labels.shape == batch.mask.shape == (batch_size,) for batch in found)
    shown = list(itertools.chain.from_iterable(batch.labels[batch.mask] for batch in found))
    assert shown == list(range(count))
    for batch in found:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)


@pytest.mark.parametrize(
    ("count", "batch_size", "last_batch", "steps"),
    [(1197, 32, "drop", 37), (1197, 32, "keep", 38), (64, 32, "keep", 2), (31, 32, "drop", 0), (31, 32, "keep", 1)],
)
def test_steps_per_epoch(count, batch_size, last_batch, steps):
    assert steps_per_epoch(count, batch_size, last_batch) == steps
