"""`python train.py`, no flags, in a real process: what the README's first command promises."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from alexnet_jax.training.metrics import read

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # a minute and a half of both cores


def run(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "train.py", f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment | {"XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=550,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The default run, from nothing to its end: (its process, its workdir, the cache)."""
    folder = tmp_path_factory.mktemp("main_job")
    return run(folder / "run", folder / "cache"), folder / "run", folder / "cache"


def test_learns_the_digits(finished):
    done, workdir, _ = finished
    assert done.returncode == 0, done.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert result["split"] == "test"
    assert result["top1_error"] <= 3.0
    assert result["peak_memory_mib"] < 2048
    assert f"test top-1 error {result['top1_error']:.2f} %" in done.stdout
    assert done.stderr == ""


def test_the_best_checkpoint_is_validations_not_tests(finished):
    _, workdir, _ = finished
    result = json.loads((workdir / "result.json").read_text())
    lines = [line for line in read(workdir / "metrics.jsonl") if line["split"] == "val"]
    best = min(lines, key=lambda line: (line["top1_error"], line["loss"]))
    assert (result["best_step"], result["best_val_top1_error"]) == (best["step"], best["top1_error"])
    assert {line["split"] for line in read(workdir / "metrics.jsonl")} == {"train", "val"}


def test_draws_its_pictures(finished):
    _, workdir, _ = finished
    for name in ("learning_curves.png", "conv1_kernels.png"):
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 200


def test_a_second_start_trains_nothing(finished):
    _, workdir, cache = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    done = run(workdir, cache)
    assert done.returncode == 0, done.stderr
    assert "This run is finished: nothing was trained." in done.stdout
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
