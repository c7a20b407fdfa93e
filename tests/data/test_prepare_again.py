"""A preparation that is interrupted, shared between processes, or started twice."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from alexnet_jax.data import merge as merging
from alexnet_jax.data import parts
from alexnet_jax.data.merge import merge
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.prepared import DataError, open_prepared
from alexnet_jax.data.sources import Source

from .conftest import pictures, toy_source
from .test_prepare import Loading, content

OPTIONS = {"size": 6, "per_part": 2}


@pytest.fixture
def whole(source, tmp_path):
    """The undisturbed result, as bytes."""
    prepare(source, tmp_path / "whole", **OPTIONS)
    return content(tmp_path / "whole")


def loading(pairs, split="train", before=lambda index: None):
    """The source with a split that watches its loads."""
    source = toy_source(**pairs)
    return Source("toy", source.classes, {**source.splits, split: Loading(pairs[split], before)}, "1")


def failing_at(place, error):
    def before(index):
        if index == place:
            raise error

    return before


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt("stop"), MemoryError("stop")])
def test_an_interrupted_one_continues(pairs, source, whole, tmp_path, split, error):
    out = tmp_path / "out"
    with pytest.raises(type(error), match="stop"):
        prepare(loading(pairs, split, failing_at(2, error)), out, threads=1, **OPTIONS)
    with pytest.raises(DataError, match="is not finished"):
        open_prepared(out)
    assert not list(out.rglob("*.partial"))
    watched = loading(pairs)
    assert prepare(watched, out, **OPTIONS)
    assert content(out) == whole
    assert len(watched.splits["train"].loaded) == {"train": 9, "val": 0, "test": 0}[split]


def test_a_finished_one_is_left_alone(pairs, tmp_path, source):
    prepare(source, tmp_path / "out", size=6)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    watched = loading(pairs)
    assert prepare(watched, tmp_path / "out", size=6)
    assert watched.splits["train"].loaded == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps


CHANGES = [
    ({"size": 5}, "image_size"),
    ({"rule": "warp"}, "resize_rule"),
    ({"encoding": "jpeg"}, "encoding"),
    ({"max_pixels": 10**6}, "max_pixels"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(pairs, source, tmp_path, change, words, finished):
    out = tmp_path / "out"
    if finished:
        prepare(source, out, **OPTIONS)
    else:
        with pytest.raises(RuntimeError):
            prepare(loading(pairs, "val", failing_at(2, RuntimeError())), out, **OPTIONS)
    before = content(out) if finished else None
    with pytest.raises(DataError, match=rf"other (images|settings).*{words} .* there, .* now"):
        prepare(source, out, **(OPTIONS | change))
    assert before is None or content(out) == before


def test_other_images_are_refused(pairs, source, tmp_path):
    prepare(source, tmp_path / "out", size=6)
    other = Source("toy", source.classes, source.splits, "2")
    with pytest.raises(DataError, match="other fingerprint"):
        prepare(other, tmp_path / "out", size=6)


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: (path / "mine").mkdir(parents=True)])
def test_a_folder_with_something_else_is_refused(source, tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(DataError, match=r"out is (a file|not empty)"):
        prepare(source, tmp_path / "out", size=6)


def test_a_full_disk_ends_in_words_and_continues(pairs, source, whole, tmp_path, monkeypatch):
    calls = itertools.count()
    add = parts.PartWriter.add

    def full(self, *args, **kwargs):
        if next(calls) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *args, **kwargs)

    monkeypatch.setattr(parts.PartWriter, "add", full)
    with pytest.raises(DataError, match=r"the disk of .* is full .* run the same command again"):
        prepare(source, tmp_path / "out", **OPTIONS)
    assert not list((tmp_path / "out").rglob("*.partial"))
    prepare(source, tmp_path / "out", **OPTIONS)
    assert content(tmp_path / "out") == whole


def test_two_at_once(pairs, source, whole, tmp_path):
    out, started, go = tmp_path / "out", threading.Event(), threading.Event()

    def before(index):
        started.set()
        assert go.wait(60)

    first = threading.Thread(target=prepare, args=(loading(pairs, before=before), out), kwargs=OPTIONS)
    first.start()
    assert started.wait(60)
    with pytest.raises(DataError, match="another process is preparing"):
        prepare(source, out, **OPTIONS)
    waiting = threading.Thread(target=prepare, args=(source, out), kwargs={**OPTIONS, "wait": True})
    waiting.start()
    go.set()
    first.join(60)
    waiting.join(60)
    assert content(out) == whole


def test_the_lock_of_a_dead_process_does_not_hold(source, whole, tmp_path):
    out = tmp_path / "out"
    holding = (
        "import pathlib, sys; from alexnet_jax.data.parts import Work\n"
        "with Work(pathlib.Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="another process"):
            prepare(source, out, **OPTIONS)
        child.kill()
    prepare(source, out, **OPTIONS)
    assert content(out) == whole


@pytest.mark.parametrize("count", [1, 2, 3, 20])
@pytest.mark.parametrize("apart", [True, False])
def test_shards_make_the_same_folder(source, whole, tmp_path, count, apart):
    folders = [tmp_path / (f"out{index}" if apart else "out") for index in range(count)]
    for index in reversed(range(count)):
        finished = prepare(source, folders[index], shard=(index + 1, count), **OPTIONS)
        assert finished == (count == 1)
    if count > 1:
        before = {path.name for path in folders[-1].rglob("*")}
        out = tmp_path / ("merged" if apart else "out")
        merge(folders if apart else [out], out)
        assert content(out) == whole
        assert not apart or {path.name for path in folders[-1].rglob("*")} == before


def test_shards_on_another_file_system_are_copied_and_verified(source, whole, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(merging.os, "link", refuse)
    folders = [tmp_path / "a", tmp_path / "b"]
    for index, folder in enumerate(folders):
        prepare(source, folder, shard=(index + 1, 2), **OPTIONS)
    merge(folders, tmp_path / "out")
    assert content(tmp_path / "out") == whole
    spoilt = folders[1] / "train-00001.bin"
    spoilt.write_bytes(bytes([spoilt.read_bytes()[0] ^ 1]) + spoilt.read_bytes()[1:])
    with pytest.raises(DataError, match=r"train-00001\.bin is damaged"):
        merge(folders, tmp_path / "again")


def test_a_missing_shard_is_named(source, tmp_path):
    prepare(source, tmp_path / "out", shard=(1, 2), **OPTIONS)
    with pytest.raises(DataError, match=r"5 of 10 parts are not done, from train-00001\.bin on"):
        merge([tmp_path / "out"], tmp_path / "out")
    with pytest.raises(DataError, match="is not finished"):
        open_prepared(tmp_path / "out")


def test_shards_that_do_not_belong_together_are_refused(source, tmp_path):
    prepare(source, tmp_path / "a", shard=(1, 2), **OPTIONS)
    prepare(source, tmp_path / "b", shard=(2, 2), **(OPTIONS | {"size": 5}))
    with pytest.raises(DataError, match=r"do not belong together: image_size 6 there, 5 now"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(DataError, match="no preparation"):
        merge([tmp_path / "a", tmp_path / "nothing"], tmp_path / "out")


# Forks after one import, so that a start costs milliseconds: child k is killed at its own random moment.
KILLS = """
import os, pathlib, random, shutil, signal, sys, time
from alexnet_jax.data import parts
from alexnet_jax.data.prepare import prepare
from tests.data.conftest import toy_source, pictures
from tests.data.test_prepare import Loading, content
from alexnet_jax.data.sources import Source

out, whole, wanted = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
pairs = {"train": pictures(60, 1), "val": pictures(14, 2)}
slow = lambda index: time.sleep(0.002)
plain = toy_source(**pairs)
source = Source("toy", plain.classes, {k: Loading(v, slow) for k, v in pairs.items()}, "1")
draw = random.Random(int(sys.argv[4]))
kills = inside = finished = 0
window = 0.06  # seconds; wider where a process gets nowhere in them
while not finished or kills < wanted:
    child = os.fork()
    if not child:
        prepare(source, out, size=6, per_part=4, threads=2)
        os._exit(0)
    window *= 1.1 if kills >= wanted else 1
    time.sleep(draw.uniform(0, window))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        finished += 1
        assert content(out) == content(whole)
        shutil.rmtree(out)
    else:
        kills += 1
        inside += (out / "unfinished").is_dir()
print(kills, inside)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(tmp_path, seed):
    pairs = {"train": pictures(60, 1), "val": pictures(14, 2)}
    prepare(toy_source(**pairs), tmp_path / "whole", size=6, per_part=4)
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        KILLS,
        str(tmp_path / "out"),
        str(tmp_path / "whole"),
        "20",
        str(seed),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    kills, inside = map(int, done.stdout.split())
    assert kills >= 20
    assert inside >= 5


def test_killed_at_every_step_of_its_writing(pairs, source, whole, tmp_path, monkeypatch):
    """Every file takes its place by os.replace: fails before and after each, as a kill would."""

    class Killed(BaseException):
        pass

    replace, total = os.replace, 0
    for when in ("before", "after"):
        for place in itertools.count():
            out, calls = tmp_path / f"{when}{place}", itertools.count()

            def dying(a, b, calls=calls, when=when, place=place):
                if (now := next(calls)) == place and when == "before":
                    raise Killed
                replace(a, b)
                if now == place:
                    raise Killed

            monkeypatch.setattr(parts.os, "replace", dying)
            try:
                prepare(source, out, **OPTIONS)
                break
            except Killed:
                total += 1
                monkeypatch.setattr(parts.os, "replace", replace)
                prepare(source, out, **OPTIONS)
                assert content(out) == whole
    assert total > 50


def test_another_split_of_the_same_images_is_refused(pairs, tmp_path):
    """The fingerprint is of the files: counts and classes tell one division of them from another."""
    prepare(toy_source(**pairs), tmp_path / "out", size=6)
    fewer = {"train": pairs["train"][:9], "val": [*pairs["train"][9:], *pairs["val"]], "test": pairs["test"]}
    with pytest.raises(DataError, match=r"source_counts .* there, .* now"):
        prepare(toy_source(**fewer), tmp_path / "out", size=6)
    renamed = Source("toy", ("red", "green", "violet"), toy_source(**pairs).splits, "1")
    with pytest.raises(DataError, match="other classes"):
        prepare(renamed, tmp_path / "out", size=6)


def test_what_could_not_be_read_is_tried_again(pairs, source, whole, tmp_path):
    out = tmp_path / "out"
    broken = loading(pairs, "test", failing_at(0, RuntimeError()))
    splits = {**broken.splits, "train": Loading(pairs["train"], failing_at(3, OSError(errno.EIO, "I/O error")))}
    with pytest.raises(RuntimeError):
        prepare(Source("toy", source.classes, splits, "1"), out, max_broken=0.5, threads=1, **OPTIONS)
    prepare(source, out, **OPTIONS)
    assert content(out) == whole


def test_shards_have_their_own_budget_of_broken_images(tmp_path):
    """Or N shards would let N times as many pass."""
    bad = [(b"no image", 0) if index in (0, 1) else pair for index, pair in enumerate(pictures(20, 1))]
    source = toy_source(train=bad, val=pictures(20, 2))
    with pytest.raises(DataError, match="2 of 20 images are broken"):
        prepare(source, tmp_path / "out", size=6, per_part=4, shard=(1, 2), max_broken=0.06)


def test_a_part_cut_off_by_a_power_failure_is_made_again(pairs, source, whole, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        prepare(loading(pairs, "test", failing_at(0, RuntimeError())), out, **OPTIONS)
    os.truncate(out / "train-00001.bin", 10)
    sidecar = out / "unfinished" / "train-00002.bin.npz"
    sidecar.write_bytes(sidecar.read_bytes()[:50])
    (out / "unfinished" / "train-00003.bin.elsewhere-1.partial").write_bytes(b"left behind")
    prepare(source, out, **OPTIONS)
    assert content(out) == whole


def test_what_lies_in_the_folder_by_chance_is_no_part_of_it(pairs, source, whole, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError):
        prepare(loading(pairs, "test", failing_at(0, RuntimeError())), out, **OPTIONS)
    for name in ("notes.txt", "mine.npy"):
        (out / name).write_text("mine")
    prepare(source, out, **OPTIONS)
    assert {name: data for name, data in content(out).items() if name not in ("notes.txt", "mine.npy")} == whole


def test_a_finished_folder_is_not_merged_away(source, whole, tmp_path):
    prepare(source, tmp_path / "out", **OPTIONS)
    with pytest.raises(DataError, match=r"out is finished already$"):
        merge([tmp_path / "out"], tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_a_whole_run_and_a_shard_exclude_each_other(source, tmp_path):
    work = parts.Work(tmp_path / "out")
    for held, wanted in (((1, 1), (1, 2)), ((1, 2), (1, 1)), ((1, 2), (1, 2)), ((1, 2), (2, 3))):
        with work.lock(held), pytest.raises(DataError, match="another process is preparing"), work.lock(wanted):
            pass
    with work.lock((1, 2)), work.lock((2, 2)):
        pass


def test_shards_of_one_source_in_two_places(source, whole, tmp_path):
    for index, place in ((1, "folder:a"), (2, "folder:/mnt/a")):
        prepare(dataclasses.replace(source, name=place), tmp_path / f"{index}", shard=(index, 2), **OPTIONS)
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "2")
    assert len(open_prepared(tmp_path / "2").splits["train"]) == 11
