"""Damaged checkpoints: found whatever was changed, told of, set aside, never restored."""

from __future__ import annotations

import functools
import random
import shutil

import pytest
from checkpoint_writer import assert_same, metadata, tree
from damage import FAILURES, empty, files, flip, remove, truncate

from alexnet_jax.checkpoint import CheckpointError, Checkpoints, DamagedError

pytestmark = FAILURES


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A folder with the checkpoints 1 and 2, of which the second is the best."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, tree(step, size=6000), metadata(step), score=-step)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of `written`, to be damaged."""
    return shutil.copytree(written, tmp_path / "checkpoints")


def newest(folder):
    """The newest checkpoint and what was told."""
    told = []
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.newest(tree(size=6000), tell=told.append), told
    finally:
        checkpoints.close()


def fell_back(folder):
    """Whether the second checkpoint was found damaged; in any case what was restored is right, to the bit."""
    found, told = newest(folder)
    assert found.step == 2 - len(told)
    assert_same(found.tree, tree(found.step, size=6000))
    assert found.metadata["words"] == f"step {found.step}"
    if not told:
        return False
    assert "\n" not in told[0]
    assert told[0].startswith("checkpoint 2 ")
    assert told[0].endswith(": set aside as 2.damaged")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"]
    return True


def kind(path):
    """A file's kind: "state/d" for all files of arrays."""
    parts = path.parts[path.parts.index("checkpoints") + 2 :]
    return "/".join(parts[:-1] if parts[-2:-1] == ("d",) else parts)


@pytest.mark.parametrize("how", [truncate, empty, remove], ids=lambda how: how.__name__)
def test_each_file_of_the_newest_in_turn(written, tmp_path, how):
    caught = set()
    for number, original in enumerate(files(written / "2")):
        folder = shutil.copytree(written, tmp_path / str(number) / "checkpoints")
        how(folder / "2" / original.relative_to(written / "2"), random.Random(number))
        if fell_back(folder):
            caught.add(kind(original))
    assert {"metadata/metadata", "state/_METADATA", "state/d", "state/manifest.ocdbt"} <= caught


def test_one_changed_byte_anywhere(written, tmp_path):
    """Each file in turn, three times: found, or in a byte that does not matter."""
    caught, number = {}, 0
    for turn in range(3):
        for original in files(written / "2"):
            number += 1
            folder = shutil.copytree(written, tmp_path / str(number) / "checkpoints")
            flip(folder / "2" / original.relative_to(written / "2"), random.Random(f"{turn} {kind(original)}"))
            caught.setdefault(kind(original), []).append(fell_back(folder))
            shutil.rmtree(folder)
    assert number >= 30
    assert all(caught["metadata/metadata"])
    for name in ("state/_METADATA", "state/manifest.ocdbt", "state/ocdbt.process_0/d"):
        assert any(caught[name]), name
    assert sum(sum(some) for some in caught.values()) >= 10


def test_every_byte_of_the_record_counts(folder):
    """No change of the record passes, and none is taken for another format."""
    path = folder / "2" / "metadata" / "metadata"
    content, checkpoints = path.read_bytes(), Checkpoints(folder)
    for place in range(len(content)):
        for bit in {place % 8, 0}:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with pytest.raises(DamagedError):
                checkpoints.metadata(2)
    path.write_bytes(content)
    assert checkpoints.metadata(2)["words"] == "step 2"
    checkpoints.close()


def test_arrays_of_another_checkpoint_are_found(folder):
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    assert fell_back(folder)


def test_another_checkpoint_under_this_number_is_found(folder):
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
    found, told = newest(folder)
    assert found.step == 1
    assert "its record is that of checkpoint 1" in told[0]


def test_an_empty_folder_is_no_checkpoint(folder):
    (folder / "8").mkdir()
    (folder / "9").mkdir()
    for read_only in (True, False):
        checkpoints = Checkpoints(folder, read_only=read_only)
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (2, 2)
        assert checkpoints.newest(tree(size=6000), tell=pytest.fail).step == 2
    checkpoints.save(8, tree(8, size=6000), metadata(8))
    checkpoints.close()
    assert newest(folder)[0].step == 8


def test_what_a_kill_left_is_cleaned_up(folder):
    half_written = folder / "5.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", half_written)
    half_deleted = folder / "0"
    shutil.copytree(folder / "1" / "state", half_deleted / "state")
    assert not fell_back(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_newest_without_a_record_is_damaged_not_cleaned_up(folder):
    shutil.rmtree(folder / "2" / "metadata")
    assert fell_back(folder)


def test_when_all_are_damaged_nothing_begins_from_zero(folder):
    for step in "12":
        truncate(folder / step / "metadata" / "metadata")
    for _again in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole \(damaged: 1.damaged, 2.damaged\)"):
            newest(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1.damaged", "2.damaged"]


def test_names_of_damaged_ones_do_not_collide_and_saving_goes_on(folder):
    for turn in range(3):
        assert newest(folder)[0].step == 2
        truncate(folder / "2" / "metadata" / "metadata")
        found, told = newest(folder)
        assert found.step == 1
        assert told[0].endswith("2.damaged" + (f"-{turn + 1}" if turn else ""))
        checkpoints = Checkpoints(folder)
        checkpoints.save(2, tree(2, size=6000), metadata(2), score=-2)
        checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "2.damaged", "2.damaged-2", "2.damaged-3"]


@pytest.mark.parametrize("name", ["metadata/metadata", "state/_METADATA", "state/d"])
def test_a_damaged_best_is_not_the_best(folder, name):
    path = folder / "2" / name
    for one in [path] if path.is_file() else files(path):
        truncate(one)
    checkpoints, told = Checkpoints(folder), []
    assert checkpoints.best_step() == 1
    found = checkpoints.best(tree(size=6000), tell=told.append)
    assert found.step == 1
    assert_same(found.tree, tree(1, size=6000))
    checkpoints.save(3, tree(3, size=6000), metadata(3))
    checkpoints.save(4, tree(4, size=6000), metadata(4))
    checkpoints.wait()
    assert checkpoints.best_step() == 1
    checkpoints.close()


@pytest.mark.parametrize("name", ["metadata/metadata", "state/_METADATA", "state/manifest.ocdbt", "metadata", "state"])
def test_a_single_damaged_checkpoint_is_named(folder, name):
    path = folder / "2" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:5])
    checkpoints = Checkpoints(folder)
    with pytest.raises(DamagedError, match=r"checkpoint 2 .*is damaged \(.*\): take another one") as caught:
        checkpoints.restore(2, tree(size=6000))
    assert "\n" not in str(caught.value)
    assert (folder / "2").exists()
    checkpoints.close()


@pytest.mark.parametrize("trouble", [MemoryError("no memory"), PermissionError(13, "Permission denied")], ids=type)
def test_what_the_files_are_not_to_blame_for_is_no_damage(folder, monkeypatch, trouble):
    checkpoints = Checkpoints(folder)
    monkeypatch.setattr(checkpoints._manager, "restore", functools.partial(fail, trouble))
    with pytest.raises((CheckpointError, MemoryError)) as caught:
        checkpoints.newest(tree(size=6000), tell=pytest.fail)
    assert not isinstance(caught.value, DamagedError)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    checkpoints.close()


def fail(trouble, *_args, **_kwargs):
    raise trouble
