"""Checkpoints: what is saved comes back, bit for bit; the latest and the best are kept."""

from __future__ import annotations

import gc
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import checkpoint
from alexnet_jax.checkpoint import CheckpointError, Checkpoints


def tree(seed: float = 0.0):
    """Arrays of the dtypes that a run has."""
    return {
        "state": {
            "step": jnp.int32(7),
            "params": {"conv1": {"kernel": jnp.linspace(-1, 1, 24).reshape(2, 3, 4) + seed, "bias": jnp.zeros(4)}},
            "half": jnp.asarray([1.0078125, -3e38, seed], jnp.bfloat16),
            "mask": jnp.asarray([True, False]),
        },
        "bytes": jnp.asarray([0, 255], jnp.uint8),
    }


@pytest.fixture
def opened(tmp_path):
    """Opens the folder of checkpoints; everything opened is closed at the end."""
    found = []

    def open_again(**options):
        found.append(Checkpoints(tmp_path / "checkpoints", **options))
        return found[-1]

    yield open_again
    for one in found:
        one.close()


def save(checkpoints, scores):
    """Saves a checkpoint for each step with its score."""
    for step, score in scores.items():
        checkpoints.save(step, tree(step), {"words": f"step {step}"}, score=score)
    checkpoints.wait()


def steps_in(folder):
    """The numbers of the complete checkpoints in a folder."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def test_a_round_trip_keeps_every_bit_and_dtype(opened, tmp_path):
    metadata = {"classes": ["a", "ü"], "spec": {"size": 3, "pair": [1, 2.5], "none": None}}
    first = opened()
    first.save(12, tree(), metadata)
    first.close()
    again = opened()
    assert again.latest_step() == 12
    for like in (tree(9), jax.eval_shape(tree)):
        found = again.restore(12, like)
        chex.assert_trees_all_equal(found, tree())
        chex.assert_trees_all_equal_dtypes(found, tree())
    assert again.metadata(12) == {"format": checkpoint.FORMAT, **metadata}


def test_an_empty_folder_has_none(opened):
    empty = opened()
    assert empty.latest_step() is None
    assert empty.best_step() is None


def test_the_latest_and_the_best_are_kept(opened, tmp_path):
    one = opened(keep=2)
    save(one, {1: 9.0, 2: 3.0, 3: None, 4: 5.0, 5: None, 6: 4.0})
    assert steps_in(tmp_path) == [2, 5, 6]
    assert (one.latest_step(), one.best_step()) == (6, 2)
    one.close()
    again = opened(keep=2)
    assert (again.latest_step(), again.best_step()) == (6, 2)
    save(again, {7: None, 8: 3.5})
    assert steps_in(tmp_path) == [2, 7, 8]
    save(again, {9: 1.0, 10: None, 11: 2.0})
    assert steps_in(tmp_path) == [9, 10, 11]
    assert again.best_step() == 9
    np.testing.assert_array_equal(again.restore(9, tree())["state"]["half"], tree(9)["state"]["half"])


def test_without_scores_the_latest_are_kept(opened, tmp_path):
    one = opened(keep=3)
    save(one, dict.fromkeys(range(1, 6)))
    assert steps_in(tmp_path) == [3, 4, 5]
    assert (one.latest_step(), one.best_step()) == (5, None)


def test_a_score_of_nan_is_never_the_best(opened):
    one = opened()
    save(one, {1: float("nan"), 2: 5.0, 3: float("nan")})
    assert one.best_step() == 2


def test_a_newer_format_is_refused_with_the_remedy(opened, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    one = opened()
    save(one, {3: None})
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    for read in (lambda: one.metadata(3), lambda: one.restore(3, tree())):
        with pytest.raises(CheckpointError, match=r"checkpoint 3 has format 99.* up to 1.*update alexnet-jax"):
            read()


def test_what_a_crash_left_is_ignored(opened, tmp_path):
    one = opened()
    save(one, {3: 1.0})
    one.close()
    left = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    again = opened()
    assert (again.latest_step(), again.best_step()) == (3, 1 * 3)
    save(again, {5: 0.5})
    assert steps_in(tmp_path) == [3, 5]
    assert not left.exists()
    chex.assert_trees_all_equal(again.restore(5, tree()), tree(5))


@pytest.mark.filterwarnings("ignore")
def test_an_empty_numbered_folder_is_no_checkpoint(opened, tmp_path):
    one = opened()
    save(one, {3: 1.0})
    one.close()
    (tmp_path / "checkpoints" / "8").mkdir()
    assert opened().latest_step() == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["bytes"].astype(jnp.int32), "uint8"),
        (lambda t: jnp.zeros(3, jnp.uint8), "3"),
    ],
    ids=["dtype", "shape"],
)
def test_other_arrays_than_expected_are_refused(opened, change, words):
    one = opened()
    save(one, {3: None})
    with pytest.raises((CheckpointError, ValueError), match=words):
        one.restore(3, {**tree(), "bytes": change(tree())})


@pytest.fixture
def abandoned():
    """Collects what Orbax leaves behind when a restore fails in the middle: it complains of it at an end of its own."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("abandoned")
@pytest.mark.parametrize(
    "name", ["metadata/metadata", "state/_METADATA", "state/manifest.ocdbt", "metadata", "state"], ids=str
)
def test_a_damaged_checkpoint_is_named(opened, tmp_path, name):
    one = opened()
    save(one, {3: None})
    one.close()
    path = tmp_path / "checkpoints" / "3" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(CheckpointError, match=r"checkpoints/3 is damaged .*: delete it") as caught:
        opened().restore(3, tree())
    assert "\n" not in str(caught.value)
