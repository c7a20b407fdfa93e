"""The same run in every layout, in float64: losses, gradients, parameters and momentum of one device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alexnet_jax import get_spec
from alexnet_jax.parallel import Layout

from .layouts import LAYOUTS, NAMES, Case, assert_same, eighth, layout

NUM_STEPS = 20


@pytest.fixture(autouse=True)
def double(x64):
    """All in 64 bits."""


@functools.cache
def alone(name):
    """The run on one device, with which the others are compared."""
    return Case(eighth(name)).train(Layout(), NUM_STEPS)[0]


EVERY = [(name, where) for name in NAMES for where in (LAYOUTS if name == "paper" else ("1x2 pmap", "2x2"))]


@pytest.mark.slow  # test_layouts_broken.py takes two steps of "paper" in two layouts
@pytest.mark.parametrize(("name", "where"), EVERY)
def test_twenty_steps(name, where):
    assert_same(Case(eighth(name)).train(layout(where), NUM_STEPS)[0], alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_compared_moves(name):
    """Every gradient is there and moves its parameters."""
    one, *_, last = alone(name)
    for metrics, state in (one, last):
        assert 0.1 < metrics["loss"] / metrics["count"] < 20
        grads, _ = state.opt_state
        assert all(np.linalg.norm(g) > 0 for g in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(a), one[1].params, last[1].params)
    assert min(jax.tree.leaves(moved)) > 1e-7, moved


@functools.lru_cache(maxsize=1)
def whole_alone(name):
    """One step of the whole network on one device; one in memory at a time."""
    return Case(get_spec(name), classes=1000).train(Layout(), 1, batch_size=4)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where"),
    [("paper", "1x2 pmap"), ("paper", "2x2")],
)
def test_one_step_of_the_whole_network(name, where):
    assert_same(Case(get_spec(name), classes=1000).train(layout(where), 1, batch_size=4)[0], whole_alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["1x2 pmap", "2x2"])
def test_classes_that_the_towers_do_not_divide(where):
    """Both hold fc8 whole."""
    case = Case(eighth("paper"), classes=7)
    assert_same(case.train(layout(where), 3)[0], case.train(Layout(), 3)[0])


@pytest.mark.parametrize(("where", "count"), [("2x2", 2), ("4x1", 4)], ids=["2x2", "4x1"])
@pytest.mark.slow
def test_parts_one_after_the_other_on_every_device(where, count):
    """In which order sums are taken is all that differs. Four parts of two rows are filled up with masked ones."""
    case = Case(eighth("source2012"))
    found = dataclasses.replace(case, accumulate_steps=count).train(layout(where), 3)[0]
    assert_same(found, alone("source2012")[:3])
