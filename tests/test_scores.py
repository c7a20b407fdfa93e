"""Evaluation of whole networks against NumPy in float64: sizes, shares, crops, ensembles, ties, tables."""

from __future__ import annotations

import csv
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import CONTRACTS, expected, images_of, network

from alexnet_jax import evaluation
from alexnet_jax.data.loader import Share
from alexnet_jax.evaluation import Examples
from alexnet_jax.training.step import make_evaluation_step

per_example = jax.jit(evaluation.per_example)


def agrees(found: Examples, wanted: dict, classes: int = 7) -> None:
    """The errors exactly, the loss to rounding."""
    errors = found.errors(classes)
    for name in ("top1_error", "top5_error"):
        assert errors[name] == pytest.approx(wanted[name], rel=1e-12), name
    np.testing.assert_allclose(errors["loss"], wanted["loss"], rtol=2e-5)
    np.testing.assert_array_equal(found.predicted, wanted["predicted"])


@pytest.mark.parametrize("count", [1, 7, 127, 128, 129])
def test_every_size_on_one_to_four_devices(count):
    split, one = images_of(count), network()
    wanted = expected([one], split)
    agrees(evaluation.score([one], split), wanted)
    for number in range(1, 5):
        devices = jax.local_devices()[:number]
        assert len(devices) == number
        parts = [
            evaluation.score([one], split, batch_size=50, share=Share(index, number), device=device)
            for index, device in enumerate(devices)
        ]
        found = Examples.joined(parts)
        assert len(found) == count
        order = np.concatenate([np.arange(count)[part] for part in rows_of(count, 50, number)])
        agrees(found, wanted | {"predicted": wanted["predicted"][order]})
        np.testing.assert_array_equal(found.labels, split.labels[order])


def rows_of(count: int, batch: int, number: int) -> list[np.ndarray]:
    """The examples that each of so many processes sees: equal blocks of each batch, filled up at its end."""
    each = -(-batch // number)
    places = np.arange(-(-count // batch) * each * number)
    at, of = np.divmod(places, each * number)
    rows = np.where(of < batch, at * batch + of, count)
    return [rows[(of // each == index) & (rows < count)] for index in range(number)]


@pytest.mark.parametrize("batch_size", [1, 3, 40, 500])
def test_the_batch_size_changes_nothing(batch_size):
    split, one = images_of(40), network()
    agrees(evaluation.score([one], split, batch_size=batch_size), expected([one], split))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_ten_crops_are_windows_whose_softmaxes_are_averaged(contract):
    split, one = images_of(37), network(contract)
    wanted = expected([one], split, "ten")
    agrees(evaluation.score([one], split, crops="ten"), wanted)
    assert wanted["loss"] != pytest.approx(expected([one], split)["loss"], rel=1e-3)


@pytest.mark.parametrize("crops", ["centre", "ten"])
def test_an_ensemble_averages_softmaxes_each_in_its_own_contract(crops):
    split = images_of(33)
    networks = [network("centre"), network("position", seed=1), network("pixel", seed=2, sharpness=3)]
    agrees(evaluation.score(networks[:2], split, crops=crops), expected(networks[:2], split, crops))
    agrees(evaluation.score(networks, split, crops=crops), expected(networks, split, crops))


@pytest.mark.parametrize("given", [True, False])
def test_it_computes_where_it_is_told_to_and_takes_the_forms_of_that_device(monkeypatch, given):
    second, seen, scorer = jax.devices()[1], [], evaluation._scorer

    def recorded(*arguments):
        def step(weights, images, labels):
            seen.append((images.device, jax.config.jax_default_device))  # the latter is what the forms go by
            return scorer(*arguments)(weights, images, labels)

        return step

    monkeypatch.setattr(evaluation, "_scorer", recorded)
    with jax.default_device(None if given else second):
        evaluation.score([network()], images_of(7), device=second if given else None)
    assert seen == [(second, second)]


def test_an_ensemble_of_one_is_the_run_itself_bit_for_bit():
    split, one = images_of(50), network()
    step = make_evaluation_step(one.structure.graph(), one.spec.input)
    found = evaluation.score([one], split, batch_size=50)
    sums = step(one.params, jnp.asarray(one.mean_image), split.images, split.labels, np.ones(50, bool))
    own = evaluation.errors([jax.device_get(sums)], 7)
    errors = found.errors(7)
    assert (errors["top1_error"], errors["top5_error"]) == (own["top1_error"], own["top5_error"])
    np.testing.assert_allclose(errors["loss"], own["loss"], rtol=1e-6)
    twice = evaluation.score([one, one], split)
    np.testing.assert_array_equal(twice.rank, found.rank)
    np.testing.assert_allclose(twice.loss, found.loss, rtol=1e-5)


def test_probabilities_that_float32_rounds_to_zero_still_have_an_order_and_a_loss():
    logits = np.zeros((1, 2, 8), np.float32)
    logits[0, :, 0], logits[0, :, 1:4] = 400, [[-10, -20, -30]]
    for label, rank in ((0, 0), (1, 5), (2, 6), (3, 7), (4, 1)):
        found = per_example(jnp.asarray(logits), jnp.array([label], jnp.int32))
        assert int(found["rank"][0]) == rank
        np.testing.assert_allclose(found["loss"][0], 400 - logits[0, 0, label], rtol=1e-6, atol=1e-6)


def test_nothing_is_right_where_scores_are_no_numbers():
    for views in (1, 2):
        logits = jnp.full((3, views, 8), jnp.nan)
        fields = jax.device_get(per_example(logits, jnp.arange(3)))
        found = Examples(labels=np.arange(3, dtype=np.int32), **fields)
        for ties in evaluation.TIES:
            assert found.errors(8, ties)["top1_error"] == found.errors(8, ties)["top5_error"] == 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=6), st.integers(0, 5), st.integers(1, 6))
def test_fractional_credit_is_the_share_of_orders_in_which_the_label_is_among_the_first(scores, label, top):
    orders = list(itertools.permutations(range(6)))
    hits = sum(label in sorted(range(6), key=lambda c: (-scores[c], order[c]))[:top] for order in orders)
    logits = jnp.asarray(scores, jnp.float32)[None, None]
    fields = jax.device_get(per_example(logits, jnp.array([label])))
    found = Examples(labels=np.array([label], np.int32), **fields)
    assert 1 - found.wrong(top, "fractional")[0] == pytest.approx(hits / len(orders))
    by_index = sorted(range(6), key=lambda c: (-scores[c], c))[:top]
    assert found.wrong(top)[0] == float(label not in by_index)
    assert int(found.predicted[0]) == by_index[0]


def test_a_constant_output_has_the_error_of_chance_under_fractional_credit():
    fields = jax.device_get(per_example(jnp.zeros((4, 1, 10)), jnp.zeros(4, jnp.int32)))
    found = Examples(labels=np.zeros(4, np.int32), **fields)
    assert found.errors(10)["top1_error"] == 0  # all labels happen to be 0
    assert found.errors(10, "fractional") == {"loss": pytest.approx(np.log(10)), "top1_error": 90, "top5_error": 50}


@pytest.mark.parametrize("classes", [2, 5])
def test_five_classes_have_no_top_five(classes):
    split = images_of(9, classes)
    found = evaluation.score([network(classes=classes)], split)
    assert found.errors(classes)["top5_error"] is None
    assert {row["top5_error"] for row in found.per_class(["x"] * classes)} == {None}


def examples_of(pairs, classes: int = 7) -> Examples:
    """Examples with these labels and predictions; a wrong one has rank 1."""
    labels, predicted = np.array(pairs, np.int32).T
    rank = (labels != predicted).astype(np.int32)
    return Examples(labels, rank, rank, np.ones_like(rank), predicted, np.ones(len(rank), np.float32))


def test_the_tables_count_every_example(tmp_path):
    found = examples_of([(0, 0), (0, 1), (0, 1), (0, 2), (1, 1), (2, 0), (4, 4), (6, 6)])
    names = ["a", "b, c", 'd"', "é", "4", "5", "6"]
    table = found.confusion(7)
    assert table.sum() == len(found)
    evaluation.write_confusion(table, names, tmp_path / "confusion.csv")
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = list(csv.reader(file))
    assert head == ["true \\ predicted", *names]
    assert [row[0] for row in rows] == names
    assert [[int(x) for x in row[1:]] for row in rows] == table.tolist()
    assert table[0].tolist() == [1, 2, 1, 0, 0, 0, 0]
    evaluation.write_per_class(found.per_class(names), tmp_path / "per_class.csv")
    with (tmp_path / "per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == names
    first = {"label": "0", "class": "a", "images": "4", "top1_error": "75.0", "top5_error": "0.0"}
    assert rows[0] == first | {"mostly_taken_for": "b, c", "times": "2"}
    assert (rows[1]["top1_error"], rows[1]["mostly_taken_for"]) == ("0.0", "")
    assert (rows[3]["images"], rows[3]["top1_error"], rows[3]["times"]) == ("0", "", "0")


def test_what_can_not_be_evaluated_is_refused():
    with pytest.raises(ValueError, match="'five'"):
        evaluation.score([network()], images_of(3), crops="five")
    with pytest.raises(ValueError, match="0 networks, 3 images"):
        evaluation.score([], images_of(3))
    with pytest.raises(ValueError, match="1 networks, 0 images"):
        evaluation.score([network()], images_of(0))
    with pytest.raises(ValueError, match="'half'"):
        examples_of([(0, 0)]).wrong(1, "half")
