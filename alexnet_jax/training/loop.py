"""The training loop: steps, evaluations, checkpoints, and a result at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from rich.console import Console

from alexnet_jax import evaluation, figures
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.data.prepared import DataError
from alexnet_jax.training import devices, progress
from alexnet_jax.training.config import Config, to_dict
from alexnet_jax.training.metrics import MetricsLog, read, write_atomically
from alexnet_jax.training.setup import Run, check_earlier, check_workdir, describe, precision, set_up, writing
from alexnet_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
      result: what `result.json` holds, or None if the run was interrupted.
      stopped_by: the signal that interrupted it, or None.
    """

    result: dict[str, Any] | None
    stopped_by: signal.Signals | None = None


def train(config: Config, workdir: pathlib.Path, *, console: Console | None = None) -> Outcome:
    """Trains until the configured end, or goes on with the run that is in `workdir`.

    SIGINT and SIGTERM end the run after the step in progress, with a checkpoint; a
    second SIGINT ends it at once.

    Args:
      config: the run.
      workdir: where everything is written; created if need be.
      console: where to print; the terminal by default.

    Raises:
      ConfigError: the configuration can't be run, here or in this workdir.
      DataError: the data can't be trained on.
      Diverged: the loss is no number any more; the last good checkpoint stays.
    """
    console = console or Console(highlight=False, soft_wrap=True, markup=False)
    began = time.perf_counter()
    warning = devices.check_gpu(config.require_gpu)
    check_workdir(config, workdir)
    with precision(config), _stop_signals() as stop:
        run = set_up(config)
        with writing(workdir):
            (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(workdir / "checkpoints")
        try:
            state = _restored(run, checkpoints, workdir)
            with writing(workdir):
                write_atomically(workdir / "config.json", json.dumps(to_dict(config), indent=1) + "\n")
            first_step = int(state.step)
            _print_beginning(console, run, workdir, first_step, warning)
            if first_step < run.num_steps:
                (workdir / "result.json").unlink(missing_ok=True)
                state = _Loop(run, workdir, checkpoints, console, stop).steps(state)
            elif (result := _earlier_result(workdir)) is not None:
                console.print("This run is finished: nothing was trained.")
                _print_end(console, result, workdir)
                return Outcome(result)
            if stop:
                console.print(
                    f"Stopped by {stop[0].name} after step {int(state.step):,}; a checkpoint is in "
                    f"{workdir / 'checkpoints'}. The same command resumes.",
                    markup=False,
                )
                return Outcome(None, stop[0])
            result = _finish(run, checkpoints, workdir, int(state.step), time.perf_counter() - began)
            _print_end(console, result, workdir)
            return Outcome(result)
        finally:
            checkpoints.close()


class Diverged(RuntimeError):
    """The loss is no number any more; the message says what to try."""


class _Loop:
    """The steps of one process: reads metrics a step late, so that the device never waits for Python."""

    def __init__(
        self, run: Run, workdir: pathlib.Path, checkpoints: Checkpoints, console: Console, stop: list[signal.Signals]
    ):
        self._run, self._workdir, self._checkpoints = run, workdir, checkpoints
        self._console, self._stop = console, stop
        self._pending: list[dict[str, jax.Array]] = []
        self._val_error: float | None = None
        self._clock = _Clock()

    def steps(self, state: TrainState) -> TrainState:
        """Trains up to the last step, or until a stop signal; the last state is in a checkpoint."""
        run, config = self._run, self._run.config
        first_step = int(state.step)
        self._log = MetricsLog(self._workdir / "metrics.jsonl", up_to_step=first_step)
        self._reporter = progress.Reporter(run.num_steps, first_step=first_step, console=self._console)
        saved, saved_at = first_step, time.monotonic()
        every = config.eval_every_epochs * run.steps_per_epoch
        try:
            batches = run.batches(first_step)
            for step in range(first_step + 1, run.num_steps + 1):
                with self._clock.waiting():
                    batch = next(batches)
                state, metrics = run.train_step(state, run.mean_image, *batch)
                self._pending.append(metrics)
                if len(self._pending) > 1:
                    jax.block_until_ready(self._pending[-2])
                self._clock.count(len(batch.labels))
                evaluate = step % every == 0 or step == run.num_steps
                report = step % config.log_every_steps == 0 or evaluate
                if step == first_step + 1 and not report:  # leaves the compilation out of the speed
                    jax.block_until_ready(metrics)
                    self._clock.restart()
                if report:
                    self._report(step)
                if evaluate:
                    score = self._evaluate(state, step)
                    self._save(state, step, score)
                    saved, saved_at = step, time.monotonic()
                elif time.monotonic() - saved_at > config.checkpoint_every_seconds:
                    self._save(state, step)
                    saved, saved_at = step, time.monotonic()
                if self._stop:
                    if saved != step:
                        self._save(state, step)
                    break
        finally:
            self._reporter.close()
        return state

    def _report(self, step: int) -> None:
        """Writes the training metrics since the last report."""
        run = self._run
        metrics = jax.device_get(self._pending)
        self._pending = []
        speed, wait, seconds_a_step = self._clock.read(len(metrics))
        epoch = step / run.steps_per_epoch
        found = evaluation.errors(metrics, run.num_classes)
        self._log.write(
            step=step,
            epoch=round(epoch, 4),
            split="train",
            **found,
            learning_rate=float(metrics[-1]["learning_rate"]),
            images_per_second=round(speed, 1),
            data_wait_fraction=round(wait, 4),
        )
        self._check(found["loss"], "training", step)
        self._shown = {
            "epoch": epoch,
            "epochs": round(run.num_steps / run.steps_per_epoch, 1),
            "step": step,
            "steps": run.num_steps,
            "loss": found["loss"],
            "top1_error": found["top1_error"],
            "images_per_second": speed,
            "seconds_left": (run.num_steps - step) * seconds_a_step,
        }
        self._reporter.step(step, progress.training_line(**self._shown, val_error=self._val_error))

    def _evaluate(self, state: TrainState, step: int) -> float:
        """Evaluates on the validation images; returns the score that the best checkpoint has lowest."""
        with self._clock.paused():
            found = self._run.evaluate(state.params, "val")
        self._log.write(step=step, epoch=round(step / self._run.steps_per_epoch, 4), split="val", **found)
        self._check(found["loss"], "validation", step)
        self._val_error = found["top1_error"]
        self._reporter.line(progress.training_line(**self._shown, val_error=self._val_error))
        return found["top1_error"] + 1e-6 * found["loss"]  # the loss decides between equal errors

    def _check(self, loss: float, what: str, step: int) -> None:
        if not math.isfinite(loss):
            last = self._checkpoints.latest_step()
            kept = "there is no checkpoint yet" if last is None else f"the checkpoint of step {last:,} is kept"
            raise Diverged(
                f"the {what} loss is {loss} at step {step:,}: the run has diverged, and {kept}. In a new workdir, try "
                f"a lower config.optimizer.learning_rate (now {self._run.config.optimizer.learning_rate:g}) or another "
                "config.model.init"
            )

    def _save(self, state: TrainState, step: int, score: float | None = None) -> None:
        with self._clock.paused():
            self._checkpoints.save(step, _tree(self._run, state), self._run.metadata(), score=score)


class _Clock:
    """Images a second and the share of waiting for data, evaluations and checkpoints left out."""

    def __init__(self) -> None:
        self._seconds_a_step: float | None = None
        self.restart()

    def restart(self) -> None:
        """Begins a new measurement."""
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def count(self, images: int) -> None:
        """Adds a step's images."""
        self._images += images

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def read(self, steps: int) -> tuple[float, float, float]:
        """Images a second, share of waiting, and seconds a step (smoothed) since the last reading."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        speed, wait = self._images / seconds, self._waited / seconds
        last = self._seconds_a_step
        self._seconds_a_step = seconds / steps if last is None else 0.7 * last + 0.3 * seconds / steps
        self.restart()
        return speed, wait, self._seconds_a_step


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM in the list it gives; a second SIGINT raises KeyboardInterrupt."""
    stop: list[signal.Signals] = []

    def handle(number: int, _frame: Any) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(signal.Signals(number))
        again = " (again: at once, without a checkpoint)" if number == signal.SIGINT else ""
        print(f"\n{stop[0].name}: stopping after the step in progress{again}", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tree(run: Run, state: TrainState) -> dict[str, Any]:
    return {"state": {name: getattr(state, name) for name in state.__annotations__}, "mean_image": run.mean_image}


def _restored(run: Run, checkpoints: Checkpoints, workdir: pathlib.Path, step: int | None = None) -> TrainState:
    """The state of a checkpoint (the latest by default), or the initial one if there is none."""
    step = checkpoints.latest_step() if step is None else step
    if step is None:
        return run.initial
    metadata = checkpoints.metadata(step)
    check_earlier(run.config, metadata.get("config"), workdir)
    if metadata.get("data") != run.data.fingerprint:
        raise DataError(
            f"{run.data.directory} is not the data that the run in {workdir} began with (other checksums): "
            "give it that data again, or take another --workdir"
        )
    return TrainState(**checkpoints.restore(step, _tree(run, run.initial))["state"])


def _earlier_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What `result.json` holds; None if there is none, or a damaged one: the end is then run again."""
    try:
        return json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _finish(run: Run, checkpoints: Checkpoints, workdir: pathlib.Path, steps: int, seconds: float) -> dict[str, Any]:
    """Evaluates the best checkpoint on the test images, once; draws the pictures; writes `result.json`."""
    checkpoints.wait()
    best = checkpoints.best_step()
    params = _restored(run, checkpoints, workdir, best).params
    metrics = read(workdir / "metrics.jsonl")
    split = "test" if "test" in run.data.splits else "val"
    found = run.evaluate(params, split)
    figures.learning_curves(metrics, workdir / "learning_curves.png")
    kernel = np.asarray(params["conv1"]["kernel"], np.float32)
    if run.spec.input.channel_order == "bgr":
        kernel = kernel[:, :, ::-1]
    figures.first_layer_kernels(kernel, run.spec.groups, workdir / "conv1_kernels.png")
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
        "device": devices.describe(),
        "versions": {name: version(name) for name in ("alexnet-jax", "jax", "flax", "optax")},
    }
    write_atomically(workdir / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _print_beginning(console: Console, run: Run, workdir: pathlib.Path, first_step: int, warning: str | None) -> None:
    if warning:
        console.print(warning, style="bold red", markup=False)
    versions = f"alexnet-jax {version('alexnet-jax')}, jax {jax.__version__}"
    state = f"resumes after step {first_step:,}" if first_step else "new run"
    state = "finished" if first_step >= run.num_steps else state
    lines = [("program", versions), ("devices", devices.describe()), *describe(run)]
    for heading, words in [*lines, ("workdir", f"{workdir.absolute()} ({state})")]:
        console.print(f"{heading:<10} {words}", markup=False)


def _print_end(console: Console, result: dict[str, Any], workdir: pathlib.Path) -> None:
    top5 = "" if result["top5_error"] is None else f", top-5 error {result['top5_error']:.2f} %"
    best = "" if result["best_step"] is None else f" (best checkpoint by validation: step {result['best_step']:,})"
    lines = [
        f"{result['split']} top-1 error {result['top1_error']:.2f} %{top5}{best}",
        f"written to {workdir}: result.json, metrics.jsonl, checkpoints/, learning_curves.png, conv1_kernels.png",
    ]
    for line in lines:
        console.print(line, markup=False)
