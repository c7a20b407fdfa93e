"""Checkpoints: what is saved comes back, bit for bit; the latest and the best are kept."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writer import assert_same, metadata, tree

from alexnet_jax import checkpoint
from alexnet_jax.checkpoint import CheckpointError, Checkpoints, DamagedError, record


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
        checkpoints.save(step, tree(step), metadata(step), score=score)
    checkpoints.wait()


def steps_in(folder):
    """The numbers of the complete checkpoints in a folder."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def silent(line):
    """Nothing is to be told."""
    raise AssertionError(line)


def test_a_round_trip_keeps_every_bit_and_dtype(opened):
    about = {"classes": ["a", "ü"], "spec": {"size": 3, "pair": [1, 2.5], "none": None, "nan": float("inf")}}
    first = opened()
    first.save(12, tree(5), about)
    first.close()
    again = opened()
    assert again.latest_step() == 12
    for like in (tree(9), jax.eval_shape(tree)):
        assert_same(again.restore(12, like), tree(5))
        found = again.newest(like, tell=silent)
        assert found.step == 12
        assert_same(found.tree, tree(5))
        assert found.metadata == again.metadata(12) == {"format": checkpoint.FORMAT, **about}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found.tree))


def test_values_that_only_their_bits_tell_apart_come_back(opened):
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001], np.uint32).view(np.float32)
    arrays = {"odd": jnp.asarray(odd), "scalar": jnp.float32(-0.0)}
    one = opened()
    one.save(1, arrays, {})
    one.close()
    assert_same(opened().restore(1, arrays), arrays)


def test_what_happens_to_the_tree_after_save_changes_nothing(opened):
    later = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    made = later({"device": jnp.zeros(1_000_000), "small": jnp.zeros(3)})
    host = np.ones(500_000)
    one = opened()
    for step in range(1, 6):
        about = {"step": [step]}
        one.save(step, {**made, "host": host}, about)
        about["step"].append("changed")
        made, host[:] = later(made), step + 1
    one.wait()
    like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in {**made, "host": np.float32(host)}.items()}
    with jax.enable_x64(True):
        like["host"] = jax.ShapeDtypeStruct(host.shape, host.dtype)
        found = one.newest(like, tell=silent)
    assert (found.step, found.metadata["step"]) == (5, [5])
    assert set(np.unique(found.tree["device"])) == set(np.unique(found.tree["small"])) == {5.0}
    assert set(np.unique(found.tree["host"])) == {5.0}


def test_an_empty_folder_has_none(opened):
    for empty in (opened(), opened(read_only=True)):
        assert empty.latest_step() is None
        assert empty.best_step() is None
        assert empty.newest(tree(), tell=silent) is None
        assert empty.best(tree(), tell=silent) is None


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
    again.close()
    third = opened(keep=2)
    save(third, {9: 1.0, 10: None, 11: 2.0})
    assert steps_in(tmp_path) == [9, 10, 11]
    assert third.best_step() == 9
    assert_same(third.restore(9, tree()), tree(9))
    found = third.best(tree(), tell=silent)
    assert (found.step, found.metadata["words"]) == (9, "step 9")
    assert_same(found.tree, tree(9))


def test_of_equal_scores_the_latest_is_the_best(opened, tmp_path):
    one = opened(keep=1)
    save(one, {1: 2.0, 2: 2.0, 3: None})
    assert steps_in(tmp_path) == [2, 3]
    assert one.best_step() == 2


def test_without_scores_the_latest_are_kept(opened, tmp_path):
    one = opened(keep=3)
    save(one, dict.fromkeys(range(1, 6)))
    assert steps_in(tmp_path) == [3, 4, 5]
    assert (one.latest_step(), one.best_step()) == (5, None)


def test_a_score_of_nan_is_never_the_best(opened):
    one = opened()
    save(one, {1: float("nan"), 2: 5.0, 3: float("nan")})
    assert one.best_step() == 2


def test_a_second_checkpoint_of_a_step_is_refused(opened):
    one = opened()
    save(one, {3: None})
    with pytest.raises(CheckpointError, match=r"there is a checkpoint 3 in .* already"):
        one.save(3, tree(4), {})
    assert_same(one.restore(3, tree()), tree(3))


def test_metadata_that_json_cannot_hold_is_the_callers_mistake(opened, tmp_path):
    one = opened()
    with pytest.raises(TypeError):
        one.save(3, tree(), {"a": object()})
    assert steps_in(tmp_path) == []
    save(one, {3: None})


def refused(checkpoints, step, words):
    """All ways to read a checkpoint refuse it with these words, and it stays where it is."""
    for read in (
        lambda: checkpoints.metadata(step),
        lambda: checkpoints.restore(step, tree()),
        lambda: checkpoints.newest(tree(), tell=silent),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            read()
        assert not isinstance(caught.value, DamagedError)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (99, r"checkpoint 3 has format 99, this program reads up to 2: update alexnet-jax"),
        (1, r"checkpoint 3 has format 1, this program reads from 2: take the version that wrote it"),
    ],
)
def test_another_format_is_refused_with_the_remedy(opened, monkeypatch, tmp_path, version, words):
    one = opened()
    save(one, {2: None})
    monkeypatch.setattr(record, "FORMAT", version)
    save(one, {3: None})
    monkeypatch.undo()
    refused(opened(), 3, words)
    assert steps_in(tmp_path) == [2, 3]


def test_one_of_an_earlier_development_version_is_refused(opened, tmp_path):
    save(opened(), {2: None, 3: None})
    path = tmp_path / "checkpoints" / "3" / "metadata" / "metadata"
    for content in ({"format": 1, "spec": {}}, {"spec": {}}):
        path.write_text(json.dumps(content))
        refused(opened(), 3, r"checkpoint 3 was written before checkpoints had checksums.* take a new workdir")
    assert steps_in(tmp_path) == [2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, "bytes": t["bytes"].astype(jnp.int8)}, r"bytes: uint8\(3,\), expected int8\(3,\)"),
        (lambda t: {**t, "bytes": t["bytes"].astype(jnp.int32)}, r"bytes: uint8\(3,\), expected int32\(3,\)"),
        (lambda t: {**t, "bytes": jnp.zeros(4, jnp.uint8)}, r"bytes: uint8\(3,\), expected uint8\(4,\)"),
        (lambda t: {**t, "bytes": jnp.zeros((3, 1), jnp.uint8)}, r"bytes: uint8\(3,\), expected uint8\(3, 1\)"),
        (lambda t: {**t, "more": jnp.zeros(1)}, r"more: missing, expected float32\(1,\)"),
        (lambda t: {"state": t["state"]}, r"bytes: not expected"),
        (lambda t: {"state": t["state"], "Bytes": t["bytes"]}, r"Bytes: missing.*; bytes: not expected"),
    ],
    ids=["dtype", "wider", "shape", "rank", "more", "less", "name"],
)
def test_other_arrays_than_expected_are_no_damage(opened, tmp_path, change, words):
    one = opened()
    save(one, {2: None, 3: None})
    for read in (one.restore, lambda step, like: one.newest(like, tell=silent)):
        with pytest.raises(CheckpointError, match=rf"checkpoint 3 does not fit this run.*{words}") as caught:
            read(3, change(tree()))
        assert not isinstance(caught.value, DamagedError)
    assert steps_in(tmp_path) == [2, 3]
    assert_same(one.restore(3, tree()), tree(3))


def test_float64_without_x64_is_refused_in_words(opened):
    one = opened()
    one.save(1, {"a": np.zeros(3)}, {})
    with pytest.raises(CheckpointError, match="float64 arrays were saved, and JAX makes float32 of them: set jax_en"):
        one.restore(1, {"a": np.zeros(3)})
    assert one.latest_step() == 1


def test_a_reader_changes_nothing_beside_a_writer(opened, tmp_path):
    writer = opened()
    save(writer, {3: 1.0})
    left = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp" / "state"
    left.mkdir(parents=True)
    (tmp_path / "checkpoints" / "8").mkdir()
    reader = opened(read_only=True)
    assert (reader.latest_step(), reader.best_step()) == (3, 3)
    assert left.exists()
    save(writer, {4: 0.5})
    assert reader.newest(tree(), tell=silent).step == 4
    path = tmp_path / "checkpoints" / "4" / "metadata" / "metadata"
    path.write_bytes(path.read_bytes()[:-1])
    told = []
    assert reader.newest(tree(), tell=told.append).step == 3
    assert len(told) == 1
    assert told[0].endswith("passed over")
    assert path.exists()
