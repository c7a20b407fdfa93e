"""Short runs of `train.py` in real processes: what they write and print, and how they stop and go on."""

from __future__ import annotations

import json
import math
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from alexnet_jax import create_model
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.models import ModelSpec
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import OptimizerConfig, from_dict
from alexnet_jax.training.flags import parse
from alexnet_jax.training.metrics import read
from alexnet_jax.training.optimizer import make_optimizer
from alexnet_jax.training.schedules import Schedule

ROOT = pathlib.Path(__file__).parents[2]
EPOCH = 1197 // 32
OPTIONS = (
    *("--config.model.width=0.125", "--config.model.hidden_width=0.03", "--config.model.init=pytorch"),
    *("--config.log_every_steps=5", "--config.batch_size=32", "--config.num_epochs=2", "--config.data.flip=True"),
    *("--config.data.image_size=72", "--config.data.crop_size=64", "--config.optimizer.drop_epochs=(1,)"),
)
PICTURES = {"data_preview.png", "learning_curves.png", "conv1_kernels.png"}
FILES = {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "result.json", ".lock"} | PICTURES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the workdirs are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(train_process, folder):
    """A run from nothing to its end, undisturbed."""
    ended = train_process(*OPTIONS, f"--workdir={folder / 'whole'}")
    assert ended.returncode == 0, ended.stderr
    return ended, folder / "whole"


def last_state(workdir, step=2 * EPOCH):
    """Parameters and optimizer of a checkpoint, opened without the program's loop."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    about = checkpoints.metadata(step)

    def like():
        model = create_model(ModelSpec.from_dict(about["spec"]), num_classes=about["num_classes"], dtype=jnp.float32)
        params = steps.split(model)[1]
        state = steps.init_state(params, make_optimizer(OptimizerConfig(), list(params)), Schedule())
        tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state, "schedule": state.schedule}
        return {"state": tree, "mean_image": jnp.zeros((72, 72, 3))}

    found = checkpoints.restore(step, jax.eval_shape(like))
    checkpoints.close()
    return found, about


def signalled(command, environment, workdir, number):
    """Starts a run in a pseudo-terminal, sends it a signal after its first metrics; (exit code, what it wrote)."""
    ours, its = pty.openpty()
    terminal = environment | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=terminal, stdin=its, stdout=its, stderr=its, close_fds=True)
    os.close(its)
    written, sent, deadline = b"", False, time.monotonic() + 300
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.01)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            written += part
        if not sent and (workdir / "metrics.jsonl").exists() and read(workdir / "metrics.jsonl"):
            process.send_signal(number)
            sent = True
    code = process.wait(timeout=60)
    os.close(ours)
    return code, written.decode()


@pytest.fixture(scope="module")
def stopped(whole, command, environment, folder):
    """The same run, stopped by SIGINT early in the first epoch, into a pipe."""
    workdir = folder / "stopped"
    process = subprocess.Popen(
        command(*OPTIONS, f"--workdir={workdir}"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not read(workdir / "metrics.jsonl") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    return process.returncode, out, err, saved, read(workdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def resumed(stopped, train_process, folder):
    """The stopped run, gone on with by the same command."""
    ended = train_process(*OPTIONS, f"--workdir={folder / 'stopped'}")
    assert ended.returncode == 0, ended.stderr
    return ended, folder / "stopped"


def test_a_workdir_holds_what_is_promised(whole):
    _, workdir = whole
    assert {path.name for path in workdir.iterdir()} == FILES
    told = whole[0].stdout.splitlines()[-1].partition(f"written to {workdir}: ")[2].replace("/", "").split(", ")
    assert sorted(told) == sorted(FILES - {"config.json", ".lock"})
    config = json.loads((workdir / "config.json").read_text())
    assert from_dict(config) == parse(OPTIONS).config
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [str(EPOCH), str(2 * EPOCH)]
    for name in ("learning_curves.png", "conv1_kernels.png"):
        with Image.open(workdir / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 50


def test_metrics_are_complete_and_finite(whole):
    lines = read(whole[1] / "metrics.jsonl")
    common = ["step", "epoch", "split", "loss", "top1_error", "top5_error"]
    for line in lines:
        more = ["learning_rate", "images_per_second", "data_wait_fraction"] if line["split"] == "train" else []
        assert list(line) == common + more
        assert all(math.isfinite(value) for name, value in line.items() if name != "split")
        assert 0 <= line["top5_error"] <= line["top1_error"] <= 100
        assert line["epoch"] == round(line["step"] / EPOCH, 4)
    trained = {line["step"]: line for line in lines if line["split"] == "train"}
    assert list(trained) == sorted({*range(5, 2 * EPOCH, 5), EPOCH, 2 * EPOCH})
    assert [line["step"] for line in lines if line["split"] == "val"] == [EPOCH, 2 * EPOCH]
    assert all(0 <= line["data_wait_fraction"] <= 1 and line["images_per_second"] > 0 for line in trained.values())
    for step, line in trained.items():  # the last step of an epoch still has its rate
        assert math.isclose(line["learning_rate"], 0.01 if step <= EPOCH else 0.001, rel_tol=1e-6)


def test_the_result_agrees_with_the_metrics(whole):
    result = json.loads((whole[1] / "result.json").read_text())
    val = {line["step"]: line for line in read(whole[1] / "metrics.jsonl") if line["split"] == "val"}
    assert result["split"] == "test"
    assert result["best_step"] == min(val, key=lambda step: (val[step]["top1_error"], val[step]["loss"]))
    assert result["best_val_top1_error"] == val[result["best_step"]]["top1_error"]
    assert (result["steps"], result["epochs"]) == (2 * EPOCH, 2.0)
    assert 0 <= result["top5_error"] <= result["top1_error"] <= 100
    assert result["top1_error"] * 3 == pytest.approx(round(result["top1_error"] * 3))  # of 300 images
    assert result["seconds"] > 0
    assert result["peak_memory_mib"] > 50
    assert result["device"].startswith("cpu:0")
    assert result["versions"]["jax"] == jax.__version__


def test_a_run_says_what_it_is_and_how_it_ended(whole):
    ended, workdir = whole
    lines = dict(re.findall(r"^(\w+) +(.*)$", ended.stdout, re.MULTILINE))
    assert lines["devices"].startswith("cpu:0")
    assert lines["precision"] == "float32"
    assert lines["data"].startswith("digits: 1,197 train, 300 val, 300 test")
    about = last_state(workdir)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(about[0]["state"]["params"]))
    assert f": {parameters:,} parameters" in lines["network"]
    assert "2 group(s)" in lines["network"]
    assert f"{2 * EPOCH} steps of 32 images, {EPOCH} an epoch" in lines["training"]
    assert lines["workdir"] == f"{workdir} (new run)"
    result = json.loads((workdir / "result.json").read_text())
    assert f"test top-1 error {result['top1_error']:.2f} %" in ended.stdout
    assert ended.stdout.count(" val ") == 2  # evaluations
    assert ended.stderr == ""


def test_a_pipe_gets_no_escape_codes(whole, resumed, stopped):
    for text in (whole[0].stdout, whole[0].stderr, resumed[0].stdout, resumed[0].stderr, *stopped[1:3]):
        assert "\x1b" not in text
        assert "\r" not in text


def test_a_finished_run_trains_nothing(whole, train_process):
    _, workdir = whole
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    ended = train_process(*OPTIONS, f"--workdir={workdir}")
    assert ended.returncode == 0
    assert "finished" in ended.stdout
    assert "nothing was trained" in ended.stdout
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_sigint_stops_with_a_checkpoint(stopped):
    code, out, _, saved, metrics = stopped
    assert code == 130
    (step,) = saved
    assert 5 <= step < EPOCH
    assert f"Stopped by SIGINT after step {step}" in out
    assert "same command resumes" in out
    assert max(line["step"] for line in metrics) <= step


def test_the_same_command_resumes(stopped, resumed):
    ended, workdir = resumed
    assert f"(resumes after step {stopped[3][0]})" in ended.stdout
    assert {path.name for path in workdir.iterdir()} == FILES


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(whole, resumed):
    (one, about), (other, about_other) = last_state(whole[1]), last_state(resumed[1])
    assert int(one["state"]["step"]) == 2 * EPOCH
    chex.assert_trees_all_equal(one, other)
    assert about["spec"] == about_other["spec"]
    assert about["classes"] == list("0123456789")
    val = [[line for line in read(w / "metrics.jsonl") if line["split"] == "val"] for w in (whole[1], resumed[1])]
    assert val[0] == val[1]
    results = [json.loads((w / "result.json").read_text()) for w in (whole[1], resumed[1])]
    for name in ("loss", "top1_error", "top5_error", "best_step"):
        assert results[0][name] == results[1][name]


def test_a_resumed_log_has_every_line_once(resumed):
    lines = [(line["split"], line["step"]) for line in read(resumed[1] / "metrics.jsonl")]
    assert len(lines) == len(set(lines))
    assert [step for _, step in lines] == sorted(step for _, step in lines)


@pytest.mark.slow
def test_in_a_terminal_there_is_a_live_line_and_sigterm_stops(whole, command, environment, folder):
    workdir = folder / "terminal [a]"
    code, written = signalled(command(*OPTIONS, f"--workdir={workdir}"), environment, workdir, signal.SIGTERM)
    assert code == 143, written
    assert "\x1b[" in written
    assert "━" in written
    assert "loss" in written
    assert "Stopped by SIGTERM after step" in written
    assert "same command resumes" in written
    assert f"{workdir / 'checkpoints'}" in written.replace("\r", "").replace("\n", "")
    assert len(list((workdir / "checkpoints").iterdir())) == 1


@pytest.fixture(scope="module")
def longer(whole, environment, folder):
    """The finished run with an epoch more, on a host with a GPU that JAX does not use."""
    workdir = folder / "longer"
    shutil.copytree(whole[1], workdir)
    program = (
        "import sys; from alexnet_jax import cli; from alexnet_jax.training import devices; "
        "devices.nvidia_gpus = lambda: ['0000:01:00.0']; sys.exit(cli.train())"
    )
    arguments = [*OPTIONS, "--config.num_epochs=3", "--config.log_every_steps=7", f"--workdir={workdir}"]
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended, workdir


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_finished_one(whole, longer):
    ended, workdir = longer
    assert f"(resumes after step {2 * EPOCH})" in ended.stdout
    lines = (workdir / "metrics.jsonl").read_text()
    assert lines.startswith((whole[1] / "metrics.jsonl").read_text())
    evaluated = [line["step"] for line in read(workdir / "metrics.jsonl") if line["split"] == "val"]
    assert evaluated == [EPOCH, 2 * EPOCH, 3 * EPOCH]
    assert json.loads((workdir / "result.json").read_text())["steps"] == 3 * EPOCH
    assert json.loads((workdir / "config.json").read_text())["num_epochs"] == 3


@pytest.mark.slow
def test_a_gpu_that_jax_does_not_use_is_told(longer):
    first = longer[0].stdout.splitlines()[0]
    assert first.startswith("WARNING: 1 NVIDIA GPU(s)")
    assert 'pip install "alexnet-jax[cuda12]" (or [cuda13]' in first
