"""TensorBoard's events, read back by hand, and the pictures of a run that goes on."""

from __future__ import annotations

import struct
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from alexnet_jax.training import watching
from alexnet_jax.training.metrics import MetricsLog
from alexnet_jax.training.watching import Watch

RUN = types.SimpleNamespace(
    spec=types.SimpleNamespace(groups=2, input=types.SimpleNamespace(channel_order="rgb")), num_classes=10
)
PARAMS = {"conv1": {"kernel": np.random.default_rng(0).normal(size=(11, 11, 3, 8)).astype(np.float32)}}


def events(workdir):
    """All events, in the order in which TensorBoard reads them."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            found.append(event_pb2.Event.FromString(data[place + 12 : place + 12 + length]))
            place += 16 + length
    return found


def shown(workdir):
    """What TensorBoard shows: a process's start hides the later steps of those before it."""
    kept = []
    for event in events(workdir):
        if event.HasField("session_log"):
            kept = [old for old in kept if old[1] < event.step]
        kept += [(value.tag, event.step, value) for value in event.summary.value]
    return kept


def line(step, split="train"):
    return {
        "step": step,
        "epoch": step / 10,
        "split": split,
        "loss": 1.0 / step,
        "top1_error": 5.0,
        "top5_error": None,
    } | ({"learning_rate": 0.01} if split == "train" else {})


def test_events_are_there_once_after_restarts(tmp_path):
    for first, last in ((0, 6), (4, 8), (4, 10)):
        watch = Watch(RUN, tmp_path, first, pytest.fail)
        for step in range(first + 1, last + 1):
            watch.line(line(step))
        watch.line(line(last, "val"))
        del watch  # no close: as if killed
    found = [(tag, step) for tag, step, _ in shown(tmp_path)]
    assert len(found) == len(set(found))
    assert [step for tag, step in found if tag == "loss/train"] == list(range(1, 11))
    assert {tag for tag, _ in found} == {
        *("loss/train", "top1_error/train", "learning_rate/train"),
        *("loss/val", "top1_error/val"),
    }
    (value,) = [value for tag, step, value in shown(tmp_path) if (tag, step) == ("loss/train", 10)]
    assert value.simple_value == pytest.approx(0.1)


def test_pictures_are_drawn_at_an_evaluation(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", up_to_step=0)
    log.write(**line(1))
    log.write(**line(1, "val"))
    watch = Watch(RUN, tmp_path, 0, pytest.fail)
    watch.evaluated(1, PARAMS["conv1"]["kernel"])
    deadline = 60
    while "conv1_kernels" not in [tag for tag, *_ in shown(tmp_path)] and deadline > 0:
        watch._thread.join(0.05)
        deadline -= 0.05
    watch.close(patience=10)
    pictures = {tag: value.image for tag, _, value in shown(tmp_path) if value.HasField("image")}
    for name in ("learning_curves", "conv1_kernels"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == (pictures[name].width, pictures[name].height)
        assert pictures[name].encoded_image_string == (tmp_path / f"{name}.png").read_bytes()
    assert not list(tmp_path.glob(".partial*"))


def test_what_can_not_be_written_is_told_once(tmp_path, monkeypatch):
    told = []

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    watch = Watch(RUN, tmp_path, 0, told.append)
    monkeypatch.setattr(watch._events._writer, "write_event", full)
    monkeypatch.setattr(watching, "draw", full)
    watch.line(line(1))
    watch.line(line(2))
    watch.evaluated(2, PARAMS["conv1"]["kernel"])
    while len(told) < 2:
        watch._thread.join(0.01)
    watch.close(patience=10)
    assert sorted(words.split(" can't")[0] for words in told) == [
        "WARNING: TensorBoard's events",
        "WARNING: the pictures",
    ]


def test_watching_imports_neither_tensorflow_nor_torch(tmp_path):
    code = (
        "import sys, pathlib; from alexnet_jax.training import watching\n"
        f"watching._Events(pathlib.Path({str(tmp_path / 'e')!r}), 0).close()\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
