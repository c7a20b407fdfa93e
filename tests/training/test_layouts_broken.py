"""What makes the layouts agree, broken piece by piece: each time the comparison with one device fails."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from models.builders import narrow

from alexnet_jax import evaluation, keys
from alexnet_jax.models import alexnet
from alexnet_jax.nn import collectives
from alexnet_jax.parallel import DATA, Layout

from .layouts import Case, assert_same

GATHERS = ("conv3", "fc6", "fc7", "fc8", "logits")  # in the order of the forward pass


@pytest.fixture(autouse=True)
def double(x64):
    """All in 64 bits."""


@functools.cache
def alone(name, classes):
    """Two steps on one device; kept, so that what a test breaks doesn't reach it."""
    return Case(narrow(name), classes).train(Layout(), 2)[0]


def compare(over, name="paper", classes=10):
    """Two steps under a layout against the same on one device."""
    wanted = alone(name, classes)
    assert_same(Case(narrow(name), classes).train(over, 2)[0], wanted)


def own_half_twice(x):
    return jnp.concatenate([x, x], -1)


def its_own_gradient(x):
    """Whole forward, but the gradient is that of the device's own copy alone."""
    whole = lax.all_gather(x, "tower", axis=x.ndim - 1, tiled=True)
    width = x.shape[-1]
    own = lax.dynamic_update_slice_in_dim(
        jnp.zeros_like(whole), x - lax.stop_gradient(x), lax.axis_index("tower") * width, x.ndim - 1
    )
    return lax.stop_gradient(whole) + own


def break_gather(monkeypatch, which, broken):
    """Replaces one of the gathers; returns the calls that there were."""
    calls = []

    def gather(x, channels, axis_name):
        if axis_name is None or x.shape[-1] == channels:
            return x
        number = len(calls) % len(GATHERS)
        calls.append(x.shape)
        return broken(x) if GATHERS[number] == which else collectives.all_channels(x, channels, axis_name)

    monkeypatch.setattr(alexnet, "all_channels", gather)
    return calls


def test_nothing_broken(monkeypatch):
    """The comparison holds, and the gathers that are broken below are all that there are."""
    calls = break_gather(monkeypatch, None, None)
    compare(Layout(towers=2))
    assert calls
    assert len(calls) % len(GATHERS) == 0
    assert [shape[-1] for shape in calls[:5]] == [8, 4, 8, 8, 5]
    compare(Layout(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("which", GATHERS)
def test_a_gather(monkeypatch, which):
    alone("paper", 10)
    break_gather(monkeypatch, which, own_half_twice)
    with pytest.raises(AssertionError, match=r"step 1, .*loss"):
        compare(Layout(towers=2))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["conv3", "logits"])
def test_the_way_back_of_a_gather(monkeypatch, which):
    """The first loss is right; the gradient is not."""
    alone("paper", 10)
    break_gather(monkeypatch, which, its_own_gradient)
    with pytest.raises(AssertionError, match=r"step 1, \[1\]"):
        compare(Layout(towers=2))


@pytest.mark.slow
def test_the_loss_over_the_towers(monkeypatch):
    """Each tower differentiates the whole loss, as if it were not divided: gradients are twice as large."""
    alone("paper", 10)
    sums = evaluation.sums

    def broken(logits, labels, mask):
        found = sums(logits, labels, mask)
        return found | {"loss": 2 * found["loss"] - lax.stop_gradient(found["loss"])}

    monkeypatch.setattr(evaluation, "sums", broken)
    with pytest.raises(AssertionError, match=r"step 1, \[1\]"):
        compare(Layout(towers=2))


@pytest.mark.slow
def test_rows_numbered_afresh_in_each_part(monkeypatch):
    alone("paper", 10)
    monkeypatch.setattr(Layout, "first_row", lambda self, count: 0)
    with pytest.raises(AssertionError, match=r"step 1, .*loss"):
        compare(Layout(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DROPOUT", "VIEW", "COLOUR"])
def test_an_images_key(monkeypatch, name):
    """The second part's images draw as the first's do, for one purpose."""
    alone("paper", 10)
    for_step, purpose = keys.for_step, keys.Purpose[name]

    def broken(seed, kind, step, rows):
        return for_step(seed, kind, step, rows - lax.axis_index(DATA) * len(rows) if kind == purpose else rows)

    monkeypatch.setattr(keys, "for_step", broken)
    with pytest.raises(AssertionError, match=r"step 1, .*loss"):
        compare(Layout(2))


@pytest.mark.slow
def test_a_towers_dropout_mask(monkeypatch):
    """Both towers draw the first one's mask."""
    alone("paper", 10)
    dropout = alexnet.dropout
    monkeypatch.setattr(alexnet, "dropout", lambda *args, **options: dropout(*args, **options | {"first_group": 0}))
    with pytest.raises(AssertionError, match=r"step 1, .*loss"):
        compare(Layout(towers=2))


@pytest.mark.slow
@pytest.mark.parametrize("low", [0, 2])
def test_the_seam_of_a_norm(monkeypatch, low):
    """A neighbour's channels as if they were zero, on one side."""
    alone("caffenet", 10)
    with_neighbours = collectives.with_neighbours

    def broken(x, before, after, axis_name):
        wide = with_neighbours(x, before, after, axis_name)
        lost = slice(0, before) if low else slice(-after, None)
        return wide.at[..., lost].set(0)

    monkeypatch.setattr(alexnet, "with_neighbours", broken)
    with pytest.raises(AssertionError, match=r"step 1, .*loss"):
        compare(Layout(towers=2), "caffenet")


@pytest.mark.slow
def test_the_sum_of_gradients_over_the_parts(monkeypatch):
    alone("paper", 10)
    monkeypatch.setattr(Layout, "gradient_sum", lambda self, grads, like: grads)
    with pytest.raises(AssertionError, match=r"step 1, \[1\]"):
        compare(Layout(2))


@pytest.mark.slow
def test_the_sum_of_metrics_over_the_parts(monkeypatch):
    alone("paper", 10)
    monkeypatch.setattr(Layout, "total", lambda self, tree: tree)
    with pytest.raises(AssertionError, match=r"step 1, .*count"):
        compare(Layout(2))


@pytest.mark.slow
def test_the_sum_over_towers_of_what_is_whole(monkeypatch):
    """Seven classes: both towers hold fc8 whole, and each finds a share of its gradient."""
    compare(Layout(2, 2), classes=7)
    monkeypatch.setattr(
        Layout, "gradient_sum", lambda self, grads, like: jax.tree.map(lambda g: lax.psum(g, DATA), grads)
    )
    with pytest.raises(AssertionError, match=r"step 1, \[1\].*fc8"):
        compare(Layout(2, 2), classes=7)
