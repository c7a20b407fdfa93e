"""What spoils a run: signals, other processes, full and read-only disks, divergence, too little memory."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import cli
from alexnet_jax.training import trouble
from alexnet_jax.training.config import Config, ConfigError, from_dict, to_dict
from alexnet_jax.training.metrics import MetricsLog, read
from alexnet_jax.training.saving import Progress
from alexnet_jax.training.workdir import locked

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    *("--config.model.width=0.125", "--config.model.hidden_width=0.03", "--config.model.init=pytorch"),
    *("--config.log_every_steps=7", "--config.num_epochs=2", "--config.checkpoint_every_steps=5"),
)
TIMING = ("images_per_second", "data_wait_fraction")


def untimed(path):
    """The lines of metrics without what differs between runs."""
    return [{name: value for name, value in line.items() if name not in TIMING} for line in read(path)]


def started(environment, program, *arguments):
    """A process of its own that runs a program's text."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=120):
    """Waits for a condition while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- signals

# A compilation: one call of C that takes minutes, in which Python runs no handler.
COMPILING = """
import dataclasses, hashlib, pathlib, sys, threading
from alexnet_jax import cli
from alexnet_jax.training import loop
original, mark = loop.set_up, pathlib.Path(sys.argv.pop(1))
def step(*_):
    threading.Timer(0.5, mark.touch).start()  # when the call below has begun
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
loop.set_up = lambda *a, **k: dataclasses.replace(original(*a, **k), train_step=step)
sys.exit(cli.train())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_compilation_ends_the_run(environment, tmp_path, number):
    workdir, mark = tmp_path / "run", tmp_path / "mark"
    process = started(environment, COMPILING, mark, *SMALL, f"--workdir={workdir}")
    wait_for(mark.exists, process)
    began = time.monotonic()
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + number
    assert f"{signal.Signals(number).name}: stopped at once" in err
    assert "Traceback" not in err
    with locked(workdir):  # is free
        assert not any((workdir / "checkpoints").iterdir())


TRAINING = """
import sys
from alexnet_jax import cli
sys.exit(cli.train())
"""
PREPARING = """
import sys, time
from alexnet_jax import cli
from alexnet_jax.data import prepare
def run(*_):
    print("ready", flush=True)
    time.sleep(600)
prepare._Job.run = run
cli.train()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_another_process_prepares_the_data_ends_the_run(environment, tmp_path, number):
    own = environment | {"XDG_CACHE_HOME": str(tmp_path)}
    other = started(own, PREPARING, *SMALL, f"--workdir={tmp_path / 'other'}")
    assert other.stdout.readline() == "ready\n"
    process = started(own, TRAINING, *SMALL, f"--workdir={tmp_path / 'run'}")
    assert process.stderr.readline().startswith("waiting for another process")
    time.sleep(0.5)  # it looks again and again
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    undisturbed = other.poll() is None
    other.kill()
    other.communicate()
    assert undisturbed
    assert process.returncode == 128 + number
    assert "same command goes on" in out
    assert "stopped at once" not in err  # by itself, not by the watcher
    assert "Traceback" not in err


HOLDING = """
import hashlib, signal, sys
from alexnet_jax.training.signals import Stop
with Stop().listening() as stop:
    stop.at_once = False
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_a_second_sigint_ends_a_process_that_hangs(environment):
    process = started(environment, HOLDING)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # it has something to save
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=10)[1]
    assert process.returncode == 130
    assert "stopped at once" in err


# ---- other processes

OWNER = """
import pathlib, sys, time
from alexnet_jax.training.workdir import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_workdir_belongs_to_one_process_until_it_is_dead(environment, tmp_path, capsys):
    process = started(environment, OWNER, tmp_path)
    assert process.stdout.readline() == "locked\n"
    before = sorted(tmp_path.iterdir())
    assert cli.train([*SMALL, f"--workdir={tmp_path}"]) == 2
    printed = capsys.readouterr()
    assert f"--workdir={tmp_path} is in use by process {process.pid} on {socket.gethostname()}" in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.iterdir()) == before
    process.kill()
    process.communicate()
    with locked(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == ""


def test_a_folder_made_for_nothing_is_taken_away(tmp_path):
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


# ---- disks; a mount of its own, which stops root as well


def mounted(environment, script, *arguments):
    """Runs a shell script that may mount, as `sh -c SCRIPT sh ARGUMENTS`."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "mount", "-t", "tmpfs", "x", "/mnt"]).returncode:
        pytest.skip("this host lets no test mount a file system")
    return subprocess.run(
        [*unshare, "sh", "-euc", script, "sh", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


READ_ONLY = """
mount -t tmpfs x "$1"; mkdir "$1/run"; : > "$1/run/.lock"; mount -o remount,ro "$1"
if touch "$1/run/x" 2>/dev/null; then exit 99; fi
shift; exec "$@"
"""


def test_a_read_only_workdir_is_refused_before_the_work(environment, command, tmp_path):
    done = mounted(environment, READ_ONLY, tmp_path, *command(*SMALL, f"--workdir={tmp_path / 'run'}"))
    assert done.returncode == 2, done.stderr
    assert f"--workdir={tmp_path / 'run'} can't be used: " in done.stderr
    assert "Read-only file system" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# Fills the disk when the first checkpoint is there, and makes room after the run's end.
FULL = """
mount -t tmpfs -o size=16m x "$1"; workdir=$1/run; out=$2; shift 2
"$@" > "$out/first.out" 2> "$out/first.err" & pid=$!
while ! ls "$workdir"/checkpoints/5/_CHECKPOINT_METADATA > /dev/null 2>&1; do sleep 0.01; kill -0 $pid; done
dd if=/dev/zero of="$workdir/../filler" bs=64k 2> /dev/null || true
code=0; wait $pid || code=$?
echo $code > "$out/code"; ls "$workdir/checkpoints" > "$out/checkpoints"
rm "$workdir/../filler"
"$@" > "$out/second.out" 2> "$out/second.err"
cp "$workdir/metrics.jsonl" "$workdir/result.json" "$out"
"""


@pytest.mark.slow
def test_a_full_disk_destroys_nothing(environment, command, train_process, tmp_path):
    whole, out, disk = (tmp_path / name for name in ("whole", "out", "disk"))
    out.mkdir()
    disk.mkdir()
    done = train_process(*SMALL, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    done = mounted(environment, FULL, disk, out, *command(*SMALL, f"--workdir={disk / 'run'}"))
    words = "".join((out / f"{name}").read_text() for name in ("first.out", "first.err"))
    assert done.returncode == 0, done.stdout + done.stderr + words
    assert (out / "code").read_text() == "1\n", words
    assert "WARNING: " in words
    assert "can't be written" in words
    assert "make room" in (out / "first.err").read_text()
    assert (out / "checkpoints").read_text().split()
    assert "resumes after step" in (out / "second.out").read_text()
    assert untimed(out / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    results = [json.loads((folder / "result.json").read_text()) for folder in (out, whole)]
    assert results[0]["loss"] == results[1]["loss"]


def test_lines_that_find_no_room_wait_for_it(tmp_path):
    path, told = tmp_path / "metrics.jsonl", []
    log = MetricsLog(path, up_to_step=0, tell=told.append)
    log.write(step=1)
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    log.write(step=2)
    log.write(step=3)
    assert not log.settled()
    assert len(told) == 1
    assert "No space left" in told[0]
    path.unlink()
    (tmp_path / "kept").rename(path)
    log.write(step=4)
    assert log.settled()
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4]
    assert told[1].endswith("is complete again")


def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
    path, told, pwrite = tmp_path / "metrics.jsonl", [], os.pwrite
    log = MetricsLog(path, up_to_step=0, tell=told.append)
    log.write(step=1)
    before = path.read_bytes()

    def fills_up(descriptor, data, place):
        if len(data) < 8:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data[: len(data) // 2], place)

    monkeypatch.setattr(os, "pwrite", fills_up)
    log.write(step=2)
    assert len(told) == 1
    assert path.read_bytes() == before
    monkeypatch.undo()
    log.write(step=3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


# ---- divergence and memory


@pytest.mark.slow
def test_a_run_that_diverges_ends_in_words(train_process, tmp_path):
    done = train_process(*SMALL, "--config.optimizer.learning_rate=1e10", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "the run has diverged" in done.stderr
    assert "lower config.optimizer.learning_rate (now 1e+10)" in done.stderr
    assert done.stderr.count("\n") == 1
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert found["step"] <= found["seen_after_step"] <= 7
    assert len(found["batch"]["indices"]) == len(found["batch"]["names"]) == len(found["batch"]["labels"]) == 32
    assert found["layers"]["conv1.kernel"].keys() >= {"parameters_norm", "momentum_norm", "parameters_not_finite"}


def lack_of_memory(**changes):
    config = from_dict(to_dict(Config()) | changes)
    with pytest.raises(trouble.OutOfMemory) as found, trouble.memory_in_words(config):
        jnp.zeros(2**46, jnp.uint8).block_until_ready()
    return str(found.value)


def test_too_little_memory_is_said_with_what_to_lower():
    words = lack_of_memory()
    assert "config.batch_size=32 in 1 part(s) and config.precision=float32" in words
    assert "try config.accumulate_steps=2 (the same numbers in less memory)" in words
    assert "config.precision=bfloat16" in words
    assert "config.batch_size below 32" in words
    words = lack_of_memory(precision="bfloat16", batch_size=3, accumulate_steps=3)
    assert "accumulate_steps=" not in words
    assert "precision=bfloat16, or" not in words.split("try")[1]


def test_other_errors_of_the_runtime_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError), trouble.memory_in_words(Config()):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


class OfTenClasses:
    num_classes, steps_per_epoch = 10, 200


def test_a_loss_that_stands_still_is_told_once():
    history, chance, told = Progress(), math.log(10), []

    def see(step, loss):
        words = trouble.stalled(history, loss, 50, step, OfTenClasses)
        told.extend([(step, words)] if words else [])

    for step in range(50, 401, 50):
        see(step, chance * 1.009)
    assert [step for step, _ in told] == [400]  # an epoch's steps after the first epoch
    assert "ln(10) = 2.303" in told[0][1]
    assert "config.model.init=source2012" in told[0][1]
    history = Progress.from_json(history.to_json())
    for step in range(450, 1000, 50):
        see(step, chance)
    assert len(told) == 1
    history = Progress()
    for step in range(50, 2000, 50):
        see(step, chance * (1 if step % 200 else 0.9))
    assert len(told) == 1


def test_sums_come_back_with_every_bit():
    rng = np.random.default_rng(0)
    rows = [
        {"count": np.int32(32), "loss": np.float32(x), "top1_wrong": np.int32(3), "top5_wrong": np.int32(1)}
        | {"learning_rate": np.float32(0.1)}
        for x in rng.normal(size=20)
    ]
    written = json.loads(json.dumps(Progress(pending=rows, val_error=12.5).to_json()))
    found = Progress.from_json(written)
    assert found.val_error == 12.5
    for one, other in zip(rows, found.pending, strict=True):
        assert {name: np.float64(value) for name, value in one.items()} == other
    assert Progress.from_json(None) == Progress()
