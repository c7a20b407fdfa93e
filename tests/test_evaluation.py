"""Errors as the paper counts them: every example once, no credit for a constant output."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alexnet_jax import evaluation
from alexnet_jax.data.loader import evaluation_batches
from alexnet_jax.data.prepared import Split

label_rank = jax.jit(evaluation.label_rank)
sums = jax.jit(evaluation.sums)


def slow_rank(scores, label: int) -> int:
    """The definition as a loop."""
    before = 0
    for place, score in enumerate(scores):
        if not (score < scores[label] or (score == scores[label] and place >= label)):
            before += 1
    return before


SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf, np.nan])


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.float32, (4, 9), elements=SCORES), st.lists(st.integers(0, 8), min_size=4, max_size=4))
def test_the_rank_is_that_of_a_slow_loop(scores, labels):
    expected = [slow_rank(row, label) for row, label in zip(scores, labels, strict=True)]
    found = label_rank(scores, np.array(labels, np.int32))
    assert found.dtype == jnp.int32
    assert found.tolist() == expected


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (4, 9), elements=st.floats(-3, 3, width=16)))
def test_without_ties_the_rank_is_the_place_in_the_order(scores):
    order = np.argsort(-scores, axis=1, kind="stable")  # equal scores: the lower index first
    for place in range(9):
        assert (np.asarray(label_rank(scores, order[:, place].astype(np.int32))) == place).all()


def test_a_constant_output_scores_as_chance():
    labels = np.arange(10, dtype=np.int32)
    for value in (0.0, -3.0, np.inf, -np.inf):
        assert label_rank(np.full((10, 10), value, np.float32), labels).tolist() == list(range(10))


def test_nothing_is_right_where_scores_are_no_numbers():
    labels = np.arange(10, dtype=np.int32)
    found = sums(np.full((10, 10), np.nan, np.float32), labels, np.ones(10, bool))
    assert (int(found["top1_wrong"]), int(found["top5_wrong"])) == (10, 10)
    scores = np.zeros((1, 10), np.float32)
    scores[0, 3], scores[0, 7] = np.nan, 5
    assert int(label_rank(scores, np.array([7], np.int32))[0]) == 1
    assert int(label_rank(scores, np.array([3], np.int32))[0]) >= 5


def test_half_precision_scores_are_summed_in_float32():
    scores = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    rounded = jnp.asarray(scores, jnp.bfloat16)
    labels = np.zeros(64, np.int32)
    found = sums(rounded, labels, np.ones(64, bool))
    assert found["loss"].dtype == jnp.float32
    wide = np.asarray(rounded, np.float64)
    np.testing.assert_allclose(found["loss"], (np.log(np.exp(wide).sum(1)) - wide[:, 0]).sum(), rtol=1e-6)


def table(count: int, classes: int):
    """Scores of so many images, which hold their own index, and their labels; half of them score well."""
    draw = np.random.default_rng(count)
    labels = draw.integers(0, classes, count, np.int32)
    scores = draw.standard_normal((count, classes)).astype(np.float32)
    scores[np.arange(count), labels] += draw.uniform(0, 3, count).astype(np.float32)
    images = np.zeros((count, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return scores, Split(images, labels)


@pytest.mark.parametrize("count", [1, 7, 127, 128, 129])
def test_errors_are_exact_at_every_size(count):
    scores, split = table(count, 12)

    def step(images, labels, mask):
        return sums(jnp.asarray(scores)[images[:, 0, 0, 0]], labels, mask)

    found = evaluation.evaluate(step, evaluation_batches(split, 32), 12)
    wide, rows = scores.astype(np.float64), np.arange(count)
    rank = (wide > wide[rows, split.labels][:, None]).sum(1)
    loss = np.log(np.exp(wide).sum(1)) - wide[rows, split.labels]
    assert found["top1_error"] == 100 * (rank >= 1).sum() / count
    assert found["top5_error"] == 100 * (rank >= 5).sum() / count
    np.testing.assert_allclose(found["loss"], loss.mean(), rtol=1e-6)
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(("classes", "known"), [(2, False), (5, False), (6, True), (1000, True)])
def test_five_classes_have_no_top_five(classes, known):
    totals = [{"count": 4, "loss": 2.0, "top1_wrong": 1, "top5_wrong": 0}]
    found = evaluation.errors(totals, classes)
    assert found == {"loss": 0.5, "top1_error": 25.0, "top5_error": 0.0 if known else None}


def test_masked_images_do_not_count():
    scores, split = table(8, 10)
    mask = np.arange(8) % 2 == 0
    found = sums(scores, split.labels, mask)
    alone = sums(scores[mask], split.labels[mask], np.ones(4, bool))
    assert int(found["count"]) == 4
    for name in ("top1_wrong", "top5_wrong"):
        assert int(found[name]) == int(alone[name])
    np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-6)
    spoilt = np.where(mask[:, None], scores, np.nan)
    assert np.isfinite(sums(spoilt, split.labels, mask)["loss"])


def test_batches_of_other_sizes_weigh_by_their_images():
    totals = [
        {"count": 30, "loss": 30.0, "top1_wrong": 30, "top5_wrong": 0},
        {"count": 10, "loss": 50.0, "top1_wrong": 0, "top5_wrong": 10},
    ]
    assert evaluation.errors(iter(totals), 10) == {"loss": 2.0, "top1_error": 75.0, "top5_error": 25.0}
