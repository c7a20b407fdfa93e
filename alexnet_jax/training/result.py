"""The end of a run: the test error of its best checkpoint, and `result.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import platform
import signal
import subprocess
from importlib.metadata import version
from typing import Any

import numpy as np
from rich.console import Console

import alexnet_jax
from alexnet_jax.training import devices, watching
from alexnet_jax.training.config import Config, flat, to_dict
from alexnet_jax.training.metrics import read, write_atomically
from alexnet_jax.training.saving import Saver
from alexnet_jax.training.setup import Run
from alexnet_jax.training.workdir import writing

PACKAGES = ("alexnet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
      result: what `result.json` holds, or None if the run was interrupted.
      stopped_by: the signal that interrupted it, or None.
      agreed: whether the other processes of the run, if it has any, have stopped too.
    """

    result: dict[str, Any] | None
    stopped_by: signal.Signals | None = None
    agreed: bool = True


def earlier_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What `result.json` holds; None if there is none, or a damaged one: the end is then run again."""
    try:
        found = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def finish(
    run: Run, saver: Saver, workdir: pathlib.Path, steps: int, *, seconds: float, git: dict[str, Any] | None
) -> dict[str, Any]:
    """Evaluates the best checkpoint on the test images, once; draws the pictures; writes `result.json`."""
    best = saver.best_step()
    params = saver.parameters(steps if best is None else best)
    split = "test" if "test" in run.data.splits else "val"
    found = run.evaluate(params, split)
    kernel = watching.first_kernels(run, params)
    return run.team.by_first(lambda: _written(run, workdir, steps, best, split, found, kernel, seconds, git))


def _written(
    run: Run,
    workdir: pathlib.Path,
    steps: int,
    best: int | None,
    split: str,
    found: dict[str, Any],
    kernel: np.ndarray,
    seconds: float,
    git: dict[str, Any] | None,
) -> dict[str, Any]:
    metrics = read(workdir / "metrics.jsonl")
    result = {
        "split": split,
        **found,
        "best_step": best,
        "best_val_top1_error": next(
            (line["top1_error"] for line in metrics if line["split"] == "val" and line["step"] == best), None
        ),
        "steps": steps,
        "epochs": round(steps / run.steps_per_epoch, 2),
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(devices.peak_memory_mib()),
        **devices.device_memory(run.layout.devices),
        "device": devices.describe(run.layout.devices),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git": git,
        "config_sha256": config_hash(run.config),
    }
    with writing(workdir):
        watching.draw(metrics, kernel, run.spec.groups, workdir)
        write_atomically(workdir / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def config_hash(config: Config) -> str:
    """SHA-256 of a configuration: of its JSON with sorted keys and no spaces."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def git_state() -> dict[str, Any] | None:
    """The commit of the clone that the program runs from, and whether tracked files differ; None if it is no clone."""
    root = pathlib.Path(alexnet_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no").strip()),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def program(config: Config) -> dict[str, Any]:
    """What all processes of a run must have in common, by name: configuration and versions."""
    found = {f"config.{name}": value for name, value in flat(to_dict(config)).items()}
    for own in ("parallel.process", "parallel.coordinator", "data.source", "data.cache_dir", "compilation_cache"):
        del found[f"config.{own}"]
    return found | {"git": git_state() or {}} | {name: version(name) for name in PACKAGES}


def print_end(console: Console, result: dict[str, Any], workdir: pathlib.Path) -> None:
    """The test error, and what was written."""
    top5 = "" if result["top5_error"] is None else f", top-5 error {result['top5_error']:.2f} %"
    best = "" if result["best_step"] is None else f" (best checkpoint by validation: step {result['best_step']:,})"
    lines = [
        f"{result['split']} top-1 error {result['top1_error']:.2f} %{top5}{best}",
        f"written to {workdir}: result.json, metrics.jsonl, checkpoints/, tensorboard/, data_preview.png, "
        "learning_curves.png, conv1_kernels.png",
    ]
    for line in lines:
        console.print(line, markup=False)
