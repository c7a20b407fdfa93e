"""Runs of several real processes: the same run as in one, and what happens when one of them ends."""

from __future__ import annotations

import functools
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from alexnet_jax.training.metrics import read

from .teams import XLA_FLAGS, arrays, assert_same, losses, saved, started, untimed

EPOCH = 1197 // 32
LAST = EPOCH + 5  # an epoch's end, with an evaluation, and some more
OPTIONS = (
    *("--config.model.width=0.125", "--config.model.hidden_width=0.03", "--config.model.init=pytorch"),
    *("--config.log_every_steps=1", "--config.batch_size=32", f"--config.num_steps={LAST}", "--config.data.flip=True"),
    *("--config.data.image_size=72", "--config.data.crop_size=64", "--config.checkpoint_every_steps=5"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the workdirs are."""
    return tmp_path_factory.mktemp("teams")


@pytest.fixture(scope="module")
def pair(command, environment, folder):
    """Starts two processes of a run; the second is told another workdir, which it must leave alone."""

    def start(name, *arguments, **more):
        own = more.pop("own", ((f"--workdir={folder / name}",), (f"--workdir={folder / 'elsewhere' / name}",)))
        return started(command, environment, folder / f"{name} says", *OPTIONS, *arguments, own=own, **more)

    return start


@pytest.fixture(scope="module")
def finished(pair, folder):
    """Runs two processes to their end; (workdir, what each said)."""

    def run(name, *arguments, **more):
        with pair(name, *arguments, **more) as processes:
            assert processes.codes() == [0, 0], processes.said(0) + processes.said(1)
            return folder / name, [processes.said(index) for index in range(2)]

    return run


@pytest.fixture(scope="module")
def one(train_process, folder):
    """The workdir of the run on one device."""
    ended = train_process(*OPTIONS, f"--workdir={folder / 'one'}")
    assert ended.returncode == 0, ended.stderr
    return folder / "one"


@pytest.fixture(scope="module")
def whole(finished):
    """An undisturbed run of two processes: (workdir, what each said)."""
    return finished("whole")


def close(workdir, other, step=LAST):
    """Whether two runs are the same to float32's rounding, as it grows in so many steps: losses and parameters."""
    mine, theirs = losses(workdir), losses(other)
    assert list(mine) == list(theirs) == list(range(1, step + 1))
    for number in mine:
        assert mine[number] == pytest.approx(theirs[number], abs=1e-4), f"step {number}"
    assert_close_arrays(workdir, other, step)
    return True


def assert_close_arrays(workdir, other, step=LAST):
    """The parameters alone."""
    others = arrays(other, step)
    for name, found in arrays(workdir, step).items():
        assert found.shape == others[name].shape
        if "params" in name:
            largest = np.abs(others[name]).max()
            np.testing.assert_allclose(found, others[name], rtol=0, atol=2e-3 * largest, err_msg=name)


# ---- the same run


@pytest.mark.slow
def test_two_processes_train_as_one_device_does(one, whole):
    assert close(whole[0], one)
    evaluated = [[line for line in untimed(workdir) if line["split"] == "val"] for workdir in (whole[0], one)]
    for mine, theirs in zip(*evaluated, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_the_first_process_speaks_and_writes_and_the_second_does_neither(whole, folder):
    workdir, (first, second) = whole
    assert "2 devices of 2 processes: the batch in 2 parts (shard_map)" in first
    assert "test top-1 error" in first
    assert re.sub(r"\[Gloo\].*\n", "", second) == ""
    assert {path.name for path in workdir.iterdir()} >= {"config.json", "metrics.jsonl", "result.json"}
    assert not (folder / "elsewhere").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "devices", "words"),
    [
        (["--config.parallel.towers=2"], 1, "2 devices of 2 processes: the network in 2 towers (shard_map)"),
        (
            ["--config.parallel.data=2", "--config.parallel.towers=2"],
            2,
            "4 devices of 2 processes: the batch in 2 parts, the network in 2 towers (shard_map)",
        ),
    ],
    ids=["1x2", "2x2"],
)
def test_towers_over_two_processes_train_as_one_device_does(one, finished, request, flags, devices, words):
    name = request.node.callspec.id
    workdir, (first, _) = finished(name, *flags, devices=devices)
    assert words in first
    assert close(workdir, one)


@pytest.mark.slow
def test_two_processes_take_several_steps_a_call_as_one_device_takes_single_ones(one, finished):
    flags = ("--config.steps_per_call=3", "--config.log_every_steps=6", "--config.checkpoint_every_steps=12")
    workdir, _ = finished("several", *flags)
    found = losses(workdir)
    assert list(found) == [*range(6, EPOCH, 6), EPOCH, LAST]
    single, before = losses(one), 0
    for step, loss in found.items():  # a line has the mean since the one before
        assert loss == pytest.approx(np.mean([single[at] for at in range(before + 1, step + 1)]), abs=1e-4), step
        before = step
    assert_close_arrays(workdir, one)


# ---- an end in the middle


def in_the_middle(workdir):
    """Whether there is a checkpoint and steps after it have been done."""
    steps = [line["step"] for line in read(workdir / "metrics.jsonl")]
    return bool(steps) and any(5 <= step < steps[-1] for step in saved(workdir))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0])
def test_a_killed_process_ends_the_other_and_the_restarted_pair_is_the_undisturbed_one(
    whole, pair, finished, folder, lost
):
    name = f"killed{lost}"
    workdir = folder / name
    with pair(name) as processes:
        processes.wait_for(lambda: in_the_middle(workdir))
        processes.members[lost].send_signal(signal.SIGKILL)
        left = processes.members[1 - lost]
        code = left.wait(timeout=60)
        said = processes.said(1 - lost)
    done = losses(workdir)
    assert max(done) < LAST, "killed too late"
    assert code == 75, said
    assert f"process {1 - lost} of 2 can't go on: another one has ended" in said
    assert "Start all of them again: the run resumes from its last checkpoint" in said
    assert f"(resumes after step {saved(workdir)[-1]})" in finished(name)[1][0]
    assert_same(workdir, whole[0], LAST)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step(whole, pair, finished, folder):
    workdir = folder / "stopped"
    with pair("stopped", "--config.checkpoint_every_steps=None") as processes:
        processes.wait_for(lambda: len(losses(workdir)) > 5)
        processes.members[1].send_signal(signal.SIGTERM)
        assert processes.codes() == [143, 143], processes.said(0) + processes.said(1)
        first, second = processes.said(0), processes.said(1)
    (step,) = saved(workdir)
    assert 5 <= step < EPOCH
    assert max(losses(workdir)) <= step
    assert f"Stopped by SIGTERM after step {step}; a checkpoint is in" in first
    assert "stopping after the step in progress" in second
    assert f"(resumes after step {step})" in finished("stopped")[1][0]
    assert_same(workdir, whole[0], LAST)


@pytest.mark.slow
def test_checkpoints_by_the_clock_leave_the_run_as_it_is(whole, pair, folder):
    workdir = folder / "clock"
    with pair("clock", "--config.checkpoint_every_steps=None", "--config.checkpoint_every_seconds=0.1") as processes:
        processes.wait_for(lambda: any(step not in (EPOCH, LAST) for step in saved(workdir)))
        assert processes.codes() == [0, 0], processes.said(0) + processes.said(1)
    assert_same(workdir, whole[0], LAST)


@pytest.mark.slow
def test_divergence_ends_both_with_one_report(pair, folder):
    with pair("diverged", "--config.optimizer.learning_rate=1e30") as processes:
        assert processes.codes() == [1, 1], processes.said(0) + processes.said(1)
        for index in range(2):
            assert processes.said(index).count("the run has diverged") == 1
        assert processes.said(1).startswith("train.py: process 0: ") or "\ntrain.py: process 0: " in processes.said(1)
    assert (folder / "diverged" / "diverged.json").exists()
    assert not (folder / "elsewhere").exists()


# ---- a checkpoint in another layout

HALF = 20
LATER = 41
TOWERS, PARTS = "--config.parallel.towers=2", "--config.parallel.data={}"
ONE_PROCESS = {"1x1": ([], 1), "1x2": ([TOWERS], 2), "4x1": ([PARTS.format(4)], 4)}
TWO_PROCESSES = {"2x2": ([PARTS.format(2), TOWERS], 2), "2x1 apart": ([], 1)}


@pytest.fixture(scope="module")
def trained(command, environment, folder, finished):
    """Trains up to a step in a layout, from the beginning or from a run's checkpoint; the workdir."""

    def run(layout, steps, begun=None):
        name = f"{layout} to {steps}" if begun is None else f"{begun.name}, then {layout}"
        if begun is not None:
            shutil.copytree(begun, folder / name)
        if layout in TWO_PROCESSES:
            flags, devices = TWO_PROCESSES[layout]
            workdir, (said, _) = finished(name, f"--config.num_steps={steps}", *flags, devices=devices)
        else:
            flags, devices = ONE_PROCESS[layout]
            workdir = folder / name
            ended = subprocess.run(
                command(*OPTIONS, f"--config.num_steps={steps}", f"--workdir={workdir}", *flags),
                env=environment | {"XLA_FLAGS": XLA_FLAGS.format(devices)},
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert ended.returncode == 0, ended.stderr
            said = ended.stdout
        mapping = {"1x1": "one device holds", "1x2": "(pmap)"}.get(layout, "(shard_map)")
        assert mapping in said
        assert begun is None or f"(resumes after step {HALF})" in said
        return workdir

    return run


@pytest.fixture(scope="module")
def gone_on(trained):
    """By the layout in which a run began: its half, and the whole of it in the same layout."""

    @functools.cache
    def run(layout):
        half = trained(layout, HALF)
        return half, trained(layout, LATER, half)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [("2x2", "1x1"), ("2x2", "1x2"), ("2x2", "4x1"), ("1x1", "2x1 apart")],
)
def test_a_checkpoint_goes_on_in_another_layout(trained, gone_on, first, then):
    half, itself = gone_on(first)
    expected, found = losses(itself), losses(trained(then, LATER, half))
    assert found[HALF + 1] == pytest.approx(expected[HALF + 1], rel=0, abs=1e-6)
    for step in range(HALF + 2, LATER + 1):
        assert found[step] == pytest.approx(expected[step], rel=0, abs=1e-4), f"step {step}"
