"""A run that is stopped anywhere writes the lines of an undisturbed one, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import FAILURES, files, flip, truncate

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.training import loop, setup, trouble
from alexnet_jax.training.config import from_dict, to_dict
from alexnet_jax.training.flags import parse
from alexnet_jax.training.metrics import read

from .kill_run import outcome
from .small_runs import NETWORK, last_state, noise
from .small_runs import run as small_run

pytestmark = FAILURES

EPOCH = 4  # steps, the last of them smaller
TIMING = ("images_per_second", "data_wait_fraction")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Steps of eight of thirty images; lines every three steps."""
    folder = noise(tmp_path_factory.mktemp("data"), train=30, val=20)
    return parse(
        [
            *(f"--config.data.source={folder}", "--config.data.last_batch=keep", "--config.num_epochs=4"),
            *(*NETWORK, "--config.model.init=None", "--config.log_every_steps=3"),
            "--config.optimizer.schedule=plateau",
        ]
    ).config


@pytest.fixture(scope="module")
def train(config):
    """Trains in a workdir, with something done before a step or in an evaluation."""
    made = setup.set_up(config)

    def run(workdir, *, before=lambda step: None, evaluating=lambda: None, changed=None, **changes):
        def set_up(config, **_):
            fresh = jax.tree.map(jnp.copy, made.initial)  # a step takes over the state's memory

            def train_step(state, *batch):
                before(int(state.step) + 1)
                after, metrics = made.train_step(state, *batch)
                return (after, metrics) if changed is None else changed(after, metrics)

            def evaluation_step(*batch):
                evaluating()
                return made.evaluation_step(*batch)

            parts = {"train_step": train_step, "evaluation_step": evaluation_step, "initial": fresh}
            return dataclasses.replace(made, config=config, **parts)

        return small_run(from_dict(to_dict(config) | {"compilation_cache": False} | changes), workdir, set_up)

    def outcome_of(workdir):
        lines = [{k: v for k, v in line.items() if k not in TIMING} for line in read(workdir / "metrics.jsonl")]
        checkpoints = Checkpoints(workdir / "checkpoints")
        best = checkpoints.best_step()
        checkpoints.close()
        return lines, last_state(made, workdir)["state"], best

    run.outcome_of = outcome_of
    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """Four epochs, undisturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    train(workdir)
    return train.outcome_of(workdir)


def check(train, workdir, whole):
    """Everything is the undisturbed run's."""
    lines, state, best = train.outcome_of(workdir)
    assert lines == whole[0]
    assert best == whole[2]
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_at_every_step(train, whole, tmp_path, number):
    """Each process takes two steps, so that most stops are between two lines."""
    for _ in range(EPOCH * 4):
        taken = []

        def before(step, taken=taken):
            taken.append(step)
            if len(set(taken)) == 2:  # the first counts twice: another shape is compiled ahead
                os.kill(os.getpid(), number)

        outcome, text = train(tmp_path, before=before)
        if outcome.stopped_by is None:
            break
        assert outcome.stopped_by == number
        assert f"Stopped by {number.name} after step {taken[-1]}" in text
    assert outcome.result is not None
    check(train, tmp_path, whole)


def test_stopped_in_an_evaluation(train, whole, tmp_path, monkeypatch):
    """The evaluation is given up, the state saved, and the evaluation done first at the next start."""
    monkeypatch.setattr(loop, "EVALUATION_GRACE", -1.0)
    for step in (4, 16):
        seen = []

        def evaluating(seen=seen, step=step, place=[0]):  # noqa: B006
            if seen and seen[-1] == step and not place[0]:
                place[0] = 1
                os.kill(os.getpid(), signal.SIGTERM)

        outcome, _ = train(tmp_path, before=seen.append, evaluating=evaluating)
        assert outcome.stopped_by == signal.SIGTERM
        assert not [
            line for line in read(tmp_path / "metrics.jsonl") if line["step"] == step and line["split"] == "val"
        ]
    outcome, _ = train(tmp_path)
    assert outcome.result is not None
    check(train, tmp_path, whole)


def test_lines_of_steps_that_no_checkpoint_has_are_written_again(train, whole, tmp_path):
    class Crash(Exception):
        pass

    def crash(at):
        def before(step):
            if step == at:
                raise Crash

        return before

    for at in (3, 8, 14):
        with pytest.raises(Crash):
            train(tmp_path, before=crash(at), checkpoint_every_steps=5)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 99, "split": "train"}\n{"step": 1')
    train(tmp_path)
    check(train, tmp_path, whole)


def test_nothing_compiles_after_the_first_step(train, tmp_path):
    """So that a signal has to wait for no compilation while there is something to save."""
    seen = []

    def before(step):
        if step == 2:
            jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))

    train(tmp_path, before=before, num_epochs=1)
    jax.monitoring.clear_event_listeners()
    assert seen.count("/jax/core/compile/backend_compile_duration") <= 8  # of single operations


@pytest.mark.parametrize(
    ("what", "seen"), [("loss", "training loss is nan at step 7"), ("parameters", "finite at step 8")]
)
def test_a_number_that_is_none_keeps_the_last_good_checkpoint(train, whole, tmp_path, what, seen):
    def changed(state, metrics):
        if int(state.step) != 7:
            return state, metrics
        if what == "loss":
            return state, metrics | {"loss": metrics["loss"] * jnp.nan}
        return dataclasses.replace(state, params=jax.tree.map(lambda x: x * jnp.nan, state.params)), metrics

    with pytest.raises(trouble.Diverged, match="the checkpoint of step 5 is kept") as found:
        train(tmp_path, changed=changed, checkpoint_every_steps=5)
    assert ("at step 7" if what == "loss" else "at step 8") in str(found.value), seen
    about = json.loads((tmp_path / "diverged.json").read_text())
    assert about["checkpoint"] == 5
    assert len(about["batch"]["indices"]) == (8 if about["step"] % EPOCH else 6)
    train(tmp_path)
    check(train, tmp_path, whole)
    assert not (tmp_path / "diverged.json").exists()


@pytest.mark.slow
def test_a_newest_checkpoint_that_is_damaged_is_told_of_and_done_without(train, whole, tmp_path):
    """Truncated, and one byte of it changed in twenty ways: a damaged one is never gone on from."""

    class Crash(Exception):
        pass

    def crash(step):
        if step == 13:
            raise Crash

    crashed, fell_back = tmp_path / "crashed", {truncate: 0, flip: 0}
    with pytest.raises(Crash):
        train(crashed, before=crash, checkpoint_every_steps=5)
    newest = crashed / "checkpoints" / "12"
    paths, draw = files(newest), random.Random(0)
    ways = [(flip, paths[number % len(paths)]) for number in range(20)]
    for number, (how, path) in enumerate([*((truncate, path) for path in paths), *ways]):
        workdir = shutil.copytree(crashed, tmp_path / str(number))
        how(workdir / path.relative_to(crashed), draw)
        taken = []
        _, text = train(workdir, before=taken.append)
        found = "checkpoint 12 " in text
        assert found == (workdir / "checkpoints" / "12.damaged").exists() == ("set aside as 12.damaged" in text)
        assert taken[0] == (11 if found else 13)
        fell_back[how] += found
        check(train, workdir, whole)
        shutil.rmtree(workdir)
    # Some files, and some bytes of the others, hold nothing that is needed.
    assert fell_back[truncate] >= 4, fell_back
    assert fell_back[flip] >= 3, fell_back


@pytest.mark.slow
def test_a_killed_process_whose_newest_checkpoint_is_damaged(environment, command, train_process, tmp_path):
    """The same with real processes: killed, damaged in two ways, started again."""
    last, flags = 74, ("--config.num_epochs=2", "--config.log_every_steps=7", "--config.checkpoint_every_steps=5")
    assert train_process(*flags, f"--workdir={tmp_path / 'whole'}").returncode == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(*flags, f"--workdir={killed}"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=train_process.folder,
    )
    while not (killed / "checkpoints" / "20").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    newest = max(int(path.name) for path in (killed / "checkpoints").glob("[0-9]*") if path.name.isdecimal())
    places = {"manifest": "state/manifest.ocdbt"}
    largest = max(files(killed / "checkpoints" / str(newest)), key=lambda path: path.stat().st_size)
    places["arrays"] = str(largest.relative_to(killed / "checkpoints" / str(newest)))
    fell_back = 0
    for number, (name, place) in enumerate(places.items()):
        workdir = shutil.copytree(killed, tmp_path / name)
        (truncate if name == "arrays" else flip)(workdir / "checkpoints" / str(newest) / place, random.Random(number))
        done = train_process(*flags, f"--workdir={workdir}")
        assert done.returncode == 0, done.stderr
        found = f"checkpoint {newest} " in done.stdout
        assert found == (workdir / "checkpoints" / f"{newest}.damaged").exists()
        assert (f"resumes after step {newest})" in done.stdout) == (not found)
        fell_back += found
        lines, arrays, result = outcome(workdir, last)
        lines2, arrays2, result2 = outcome(tmp_path / "whole", last)
        assert (lines, result) == (lines2, result2)
        assert arrays.keys() == arrays2.keys()
        assert all(array.tobytes() == arrays2[key].tobytes() for key, array in arrays.items())
    assert fell_back


@pytest.mark.slow
def test_kills_at_random_moments(environment):
    program = pathlib.Path(__file__).with_name("kill_run.py")
    command = [sys.executable, str(program), "--kills", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit for bit" in done.stdout
