"""Checkpoints under kills and full disks, where the writing really happens."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from checkpoint_writer import assert_same, metadata, tree
from damage import FAILURES

from alexnet_jax.checkpoint import CheckpointError, Checkpoints, DiskFullError, record

WRITER = pathlib.Path(__file__).with_name("checkpoint_writer.py")
SIZE = 600_000  # numbers; writing them takes longer than all else
MIB = 2**20

pytestmark = FAILURES


@pytest.fixture
def opened():
    """Opens folders of checkpoints; everything opened is closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda folder: stack.enter_context(contextlib.closing(Checkpoints(folder)))


def saved(checkpoints, *steps, size=24):
    """Saves whole checkpoints."""
    for step in steps:
        checkpoints.save(step, tree(step, size), metadata(step), score=-step)
    checkpoints.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kills", [6, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    """After each kill the newest whole checkpoint is there and right, and the next process goes on from it."""
    folder, draw = tmp_path / "checkpoints", random.Random(0)
    writer = subprocess.Popen(
        [sys.executable, str(WRITER), str(SIZE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    inside, last = 0, 0
    with writer:
        for _kill in range(kills):
            print(folder, file=writer.stdin, flush=True)
            child = int(writer.stdout.readline().removeprefix("pid "))
            begun = 0
            for line in writer.stdout:
                if line.startswith("saving"):
                    begun = int(line.split()[1])
                    assert begun > last, line  # it went on from the newest, not from nothing
                    if begun >= last + (2 if last else 3):
                        break
            time.sleep(draw.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
            begun = max([begun, *(int(line.split()[1]) for line in iter(writer.stdout.readline, "gone\n"))])
            inside += any(folder.glob("*.orbax-checkpoint-tmp"))
            checkpoints = Checkpoints(folder, read_only=True)
            found = checkpoints.newest(tree(size=SIZE), tell=pytest.fail)
            assert found is not None
            assert last <= found.step <= begun
            assert found.step >= begun - 2  # the one being written, and the one about to be
            assert_same(found.tree, tree(found.step, SIZE))
            assert found.metadata["words"] == f"step {found.step}"
            best = checkpoints.best_step()
            assert best is None or (best % 3 == 0 and found.step - best < 3)
            last = found.step
        writer.stdin.close()
    assert last >= kills / 4
    assert inside >= kills / 4, f"only {inside} kills fell into the writing of a checkpoint"
    Checkpoints(folder).close()
    assert not list(folder.glob("*tmp*"))


@contextlib.contextmanager
def file_size_limit(size, folder):
    """No file may grow beyond a size, whoever writes it; fails if that stops nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            (folder / "probe").write_bytes(bytes(size + 1))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        (folder / "probe").unlink()


def contents(folder):
    """Every file and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["arrays", "record"])
@pytest.mark.parametrize("told_by", ["wait", "save", "close"])
def test_files_that_may_not_grow(tmp_path, opened, what, told_by):
    """Orbax's thread, or ours, can't write; the next call says so, and what was there stays."""
    folder = tmp_path / "checkpoints"
    checkpoints = opened(folder)
    saved(checkpoints, 1, 2)
    before = contents(folder)
    about = {"much": "x" * 300_000} if what == "record" else {}
    with file_size_limit(200_000, tmp_path):
        checkpoints.save(3, tree(3, 24 if what == "record" else SIZE), about, score=-3)
        tell = {
            "wait": checkpoints.wait,
            "close": checkpoints.close,
            "save": lambda: checkpoints.save(4, tree(4), metadata(4), score=-4),
        }
        with pytest.raises(DiskFullError, match=r"checkpoint 3 could not be written to .*File too large.*: make room"):
            tell[told_by]()
        if told_by == "save":  # the fourth was begun all the same
            checkpoints.wait()
            assert names(folder) == ["2", "4"]
            assert_same(checkpoints.newest(tree(), tell=pytest.fail).tree, tree(4))
            return
        if told_by == "close":
            checkpoints = opened(folder)
        checkpoints.wait()  # said once
    assert contents(folder) == before
    assert names(folder) == ["1", "2"]
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (2, 2)
    assert_same(checkpoints.newest(tree(), tell=pytest.fail).tree, tree(2))
    saved(checkpoints, 3)
    assert names(folder) == ["2", "3"]
    assert_same(checkpoints.best(tree(), tell=pytest.fail).tree, tree(3))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, where this machine lets us mount one."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=400", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)


def touch(folder, count):
    """Makes empty files."""
    for number in range(count):
        (folder / str(number)).touch()


@pytest.mark.parametrize("lack", ["room", "nothing at all", "names"])
def test_a_full_disk(small_disk, opened, lack):
    """A real one: for the arrays, for the first folder already, or without a name for another file."""
    folder = small_disk / "checkpoints"
    checkpoints = opened(folder)
    saved(checkpoints, 1, 2)
    before = contents(folder)
    for step in (3, 4):
        filler, others = small_disk / "filler", small_disk / "others"
        if lack == "names":
            others.mkdir()
            with pytest.raises(OSError, match="No space left"):
                touch(others, 500)
        elif lack == "nothing at all":
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(bytes(5 * MIB))
        with pytest.raises(DiskFullError, match=rf"checkpoint {step} could .*No space left on device.*: make room"):
            saved(checkpoints, step, size=SIZE)
        assert contents(folder) == before
        assert names(folder) == ["1", "2"]
        filler.unlink(missing_ok=True)
        for path in others.glob("*"):
            path.unlink()
        if others.exists():
            others.rmdir()
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (2, 2)
    saved(checkpoints, 5)
    assert names(folder) == ["2", "5"]
    assert_same(checkpoints.newest(tree(), tell=pytest.fail).tree, tree(5))


def test_a_folder_that_is_gone_is_said(tmp_path, opened):
    """Another write error: a file where the folder was."""
    folder = tmp_path / "checkpoints"
    checkpoints = opened(folder)
    saved(checkpoints, 1)
    folder.rename(tmp_path / "moved")
    folder.write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"checkpoint 2 could not be written to .*checkpoints") as caught:
        saved(checkpoints, 2)
    assert not isinstance(caught.value, DiskFullError)
    folder.unlink()
    (tmp_path / "moved").rename(folder)
    saved(checkpoints, 3)
    assert_same(checkpoints.newest(tree(), tell=pytest.fail).tree, tree(3))


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be used for checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_saving_does_not_wait_for_what_is_written(tmp_path, opened, monkeypatch):
    """Hashing, held up here, and with it the checkpoint's end come after `save`."""
    go_on, stamp = threading.Event(), record.stamp

    def held_up(array):
        assert go_on.wait(20), "nobody went on: save waits for it"
        return stamp(array)

    monkeypatch.setattr(record, "stamp", held_up)
    checkpoints = opened(tmp_path / "checkpoints")
    checkpoints.save(1, tree(1), metadata(1))
    assert not (tmp_path / "checkpoints" / "1").exists()
    go_on.set()
    checkpoints.wait()
    assert_same(checkpoints.newest(tree(), tell=pytest.fail).tree, tree(1))
