"""The training loop: steps, evaluations, checkpoints, and a result at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import time
from typing import Any

import jax
from rich.console import Console

from alexnet_jax import evaluation, figures
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.training import devices, processes, profiling, progress
from alexnet_jax.training.calls import steps_at_once
from alexnet_jax.training.clock import Clock
from alexnet_jax.training.config import Config, to_dict
from alexnet_jax.training.errors import NothingSaved
from alexnet_jax.training.metrics import MetricsLog, Pending, write_atomically
from alexnet_jax.training.result import Outcome, earlier_result, finish, git_state, print_end, program
from alexnet_jax.training.saving import Progress, Saver
from alexnet_jax.training.setup import (
    Interrupted,
    Run,
    check_workdir,
    has_checkpoint,
    precision,
    print_beginning,
    set_up,
)
from alexnet_jax.training.signals import Stop, Stopped
from alexnet_jax.training.step import TrainState
from alexnet_jax.training.trouble import first_bad, memory_in_words, report_divergence, stalled
from alexnet_jax.training.watching import Unheard, Watch, first_kernels
from alexnet_jax.training.workdir import locked, writing

EVALUATION_GRACE = 3.0  # seconds that an evaluation may still take after a signal


def train(config: Config, workdir: pathlib.Path, *, console: Console | None = None) -> Outcome:
    """Trains until the configured end, or goes on with the run that is in `workdir`.

    SIGINT and SIGTERM end the run after the step in progress, with a checkpoint, or at
    once where there is nothing new to save; a second SIGINT ends it at once.

    Args:
      config: the run.
      workdir: where everything is written; created if need be.
      console: where to print; the terminal by default.

    Raises:
      ConfigError: the configuration can't be run, here or in this workdir, or another process uses it.
      DataError: the data can't be trained on.
      CheckpointError: the checkpoint to go on from can't be used.
      RunError: it can't go on: `Diverged`, `OutOfMemory`, `NothingSaved` (a full disk).
    """
    console = console or Console(highlight=False, soft_wrap=True, markup=False)
    began = time.perf_counter()
    devices.set_deterministic(config.deterministic)
    team = processes.join(config.parallel)
    if not team.first:
        console = Console(quiet=True)
    with (
        Stop().listening() as stop,
        contextlib.ExitStack() as stack,
        team.losses_in_words(),
        memory_in_words(config),
        precision(config),
        devices.compilation_cache(config),
    ):
        try:
            warning = team.by_all(lambda: devices.check_gpu(config.require_gpu))
            processes.check_the_same(team, "configuration or program", program(config))

            def take() -> None:
                check_workdir(config, workdir)
                stack.enter_context(locked(workdir))

            team.by_first(take)
            return _train(config, workdir, console, stop, began, warning, team)
        except Stopped:
            console.print("The same command goes on from the last checkpoint.", markup=False)
            return Outcome(None, stop.signal, agreed=team.alone)


def _train(
    config: Config,
    workdir: pathlib.Path,
    console: Console,
    stop: Stop,
    began: float,
    warning: str | None,
    team: processes.Team,
) -> Outcome:
    git = git_state()
    resumes = team.by_first(lambda: has_checkpoint(workdir))
    with progress.Counter("images prepared", console=console) as counter:
        run = team.by_all(lambda: set_up(config, progress=counter, resumes=resumes, team=team))
    processes.check_the_same(team, "data set", {"checksum": run.data.fingerprint})
    checkpoints: Checkpoints | None = None

    def open_workdir() -> None:
        nonlocal checkpoints
        with writing(workdir):
            (workdir / "checkpoints").mkdir(exist_ok=True)
            if not (workdir / "data_preview.png").exists():
                figures.data_preview(run.data, run.spec.input, run.augmentation, workdir / "data_preview.png")
            checkpoints = Checkpoints(workdir / "checkpoints", processes=team.count)

    def begin(names: tuple[str, ...]) -> None:
        with writing(workdir):
            write_atomically(workdir / "config.json", json.dumps(to_dict(config), indent=1) + "\n")
            for name in names:
                (workdir / name).unlink(missing_ok=True)

    team.by_first(open_workdir)
    try:
        saver = Saver(run, checkpoints, workdir, lambda text: console.print(text, markup=False))
        state, history = saver.restored()
        first_step = int(state.step)
        print_beginning(console, run, workdir, first_step, warning)
        if first_step < run.num_steps or history.unevaluated:
            team.by_first(lambda: begin(("result.json", "diverged.json")))
            state, stopped = _Loop(run, workdir, saver, console, stop, history).steps(state)
            if stopped is not None:
                console.print(
                    f"Stopped by {stopped.name} after step {int(state.step):,}; a checkpoint is in "
                    f"{workdir / 'checkpoints'}. The same command resumes.",
                    markup=False,
                )
                return Outcome(None, stopped)
        else:
            team.by_first(lambda: begin(()))
            if (result := team.by_first(lambda: earlier_result(workdir))) is not None:
                console.print("This run is finished: nothing was trained.")
                print_end(console, result, workdir)
                return Outcome(result)
        seconds = time.perf_counter() - began
        result = finish(run, saver, workdir, int(state.step), seconds=seconds, git=git)
        print_end(console, result, workdir)
        return Outcome(result)
    finally:
        with contextlib.suppress(Exception):  # told by the saver
            if checkpoints is not None:
                checkpoints.close()


class _Loop:
    """The steps of one process: reads metrics a call late, so that the device never waits for Python."""

    def __init__(self, run: Run, workdir: pathlib.Path, saver: Saver, console: Console, stop: Stop, history: Progress):
        self._run, self._workdir, self._saver, self._team = run, workdir, saver, run.team
        self._console, self._stop, self._history = console, stop, history
        self._wished = False  # to save, which others have yet to hear
        self._pending = Pending(history.pending)
        self._shown: dict[str, Any] = {}
        self._score: tuple[int, float | None] = (-1, None)  # of the last evaluation's step
        self._clock = Clock()
        self._granted: Any = None  # the last step's, on the device
        self._log: MetricsLog | Unheard = Unheard()
        self._watch: Watch | Unheard = Unheard()
        self._profile: profiling.Profile | profiling.Off = profiling.Off()

    def steps(self, state: TrainState) -> tuple[TrainState, signal.Signals | None]:
        """Trains up to the last step, or until a stop signal came here or to another process (then SIGTERM).

        The last state is in a checkpoint then.
        """
        first_step = int(state.step)
        self._reporter = progress.Reporter(self._run.num_steps, first_step=first_step, console=self._console)
        tell, self._saver.tell = self._saver.tell, self._reporter.line
        try:
            self._team.by_first(lambda: self._open_log(first_step))
            try:
                state, stopped = self._steps(state, first_step)
            finally:
                self._profile.close()
                self._watch.close(patience=2 if self._stop else 60)
        finally:
            self._reporter.close()
            self._saver.tell = tell
        return state, (self._stop.signal or signal.SIGTERM) if stopped else None

    def _open_log(self, first_step: int) -> None:
        with writing(self._workdir):
            path = self._workdir / "metrics.jsonl"
            self._log = MetricsLog(path, up_to_step=first_step, tell=self._reporter.line)
        self._watch = Watch(self._run, self._workdir, first_step, self._reporter.line)
        self._profile = profiling.make_profile(
            self._run.config.profile, self._workdir, first_step, tell=self._reporter.line, paused=self._clock.paused
        )

    def _steps(self, state: TrainState, first_step: int) -> tuple[TrainState, bool]:
        run, config, stopped = self._run, self._run.config, False
        self._saved_step, self._saved_at = first_step, time.monotonic()
        every = config.eval_every_epochs * run.steps_per_epoch
        if self._history.unevaluated:
            state = self._evaluate(state, first_step, interruptible=False)
        run.compile_ahead(state)
        batches, step, line_due = run.batches(first_step), first_step, False
        while step < run.num_steps:
            count = steps_at_once(
                config, step, steps_per_epoch=run.steps_per_epoch, num_steps=run.num_steps, rest=run.rest
            )
            with self._profile.steps(step + 1, step + count, self._pending.calls):
                with self._clock.waiting():
                    rows = [array for _ in range(count) for array in next(batches)]
                state, metrics = run.train_step(state, run.mean_image, *rows, *self._wishes())
                self._pending.calls.append(metrics)
            self._pending.wait_for_last_but_one()
            if line_due:  # now that the device has the next call to work on
                self._report(state, step, newest=1)
            stopped, due = self._decided(step + count)
            self._clock.count(sum(map(len, rows[1::3])), count)
            first = step == first_step
            if first:  # leaves the compilation out of the speed
                jax.block_until_ready(metrics)
                self._stop.at_once = False
                self._clock.first_is_done()
            step += count
            evaluate = step % every == 0 or step == run.num_steps
            line_due = step % config.log_every_steps == 0
            if evaluate or (line_due and (due or first)):
                self._report(state, step)
                line_due = False
            if evaluate:
                try:
                    state = self._evaluate(state, step)
                except Interrupted:  # in all processes at the same place
                    self._history.unevaluated, stopped = True, True
                    self._save(state, step)
            elif due:
                self._save(state, step)
            if stopped or (self._team.alone and self._stop):
                break
        if line_due:
            self._report(state, step)
        self._end(state, int(state.step))
        return state, stopped or any(self._team.ask(bool(self._stop)))

    def _late(self) -> bool:
        """Whether it is time for a checkpoint, by this process's clock."""
        return time.monotonic() - self._saved_at > self._run.config.checkpoint_every_seconds

    def _wishes(self) -> tuple[Any, ...]:
        """For the other processes, with the step: to stop, and to save, which is the first one's to say, once."""
        if self._team.alone:
            return ()
        save = self._team.first and not self._wished and self._late()
        self._wished = self._wished or save
        return self._team.wishes(self._run.layout, bool(self._stop), save)

    def _decided(self, step: int) -> tuple[bool, bool]:
        """Whether to stop and to save after this step; of several processes all decide alike, a call late."""
        steps = self._run.config.checkpoint_every_steps
        due = steps is not None and step % steps == 0
        if self._team.alone:
            return bool(self._stop), due or self._late()
        before, self._granted = self._granted, self._pending.calls[-1].pop("wishes")
        stop, save = (False, False) if before is None else self._team.granted({"wishes": before})
        return stop, due or save

    def _end(self, state: TrainState, step: int) -> None:
        """Has the last state on disk; from then on a signal has nothing to wait for."""

        def unsaved() -> bool:
            return self._saved_step != step or not self._saver.wait()

        def check() -> None:
            if unsaved():
                raise NothingSaved(
                    f"step {step:,} could not be saved in {self._workdir}, and {self._saver.last()}: make room, and "
                    "the same command goes on from there"
                )

        if self._team.by_first(unsaved):
            self._save(state, step)
        self._team.by_first(check)
        self._stop.at_once = True

    def _report(self, state: TrainState, step: int, newest: int = 0) -> None:
        """Writes the training metrics since the last report, up to a step; not those of the `newest` calls after it."""
        run = self._run
        metrics = self._pending.take(newest)
        speed, wait, seconds_left = self._clock.read(run, step)
        epoch = step / run.steps_per_epoch
        found = evaluation.errors(metrics, run.num_classes)
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "split": "train",
            **found,
            "learning_rate": float(metrics[-1]["learning_rate"]),
            "images_per_second": round(speed, 1),
            "data_wait_fraction": round(wait, 4),
            **devices.device_memory(run.layout.devices),
        }
        self._log.write(**line)
        self._watch.line(line)
        if (place := first_bad(metrics)) is not None:
            bad = {name: metrics[place][name] for name in ("loss", "learning_rate")}
            bad["loss"] = bad["loss"] / metrics[place]["count"]
            self._diverged(state, "training", step - len(metrics) + 1 + place, bad)
        if (warning := stalled(self._history, found["loss"], len(metrics), step, run)) is not None:
            self._reporter.line(warning)
        self._shown = {
            "epoch": epoch,
            "epochs": round(run.num_steps / run.steps_per_epoch, 1),
            "step": step,
            "steps": run.num_steps,
            "loss": found["loss"],
            "top1_error": found["top1_error"],
            "learning_rate": line["learning_rate"],
            "images_per_second": speed,
            "data_wait_fraction": wait,
            "seconds_left": seconds_left,
        }
        self._reporter.step(step, progress.training_line(**self._shown, val_error=self._history.val_error))

    def _evaluate(self, state: TrainState, step: int, *, interruptible: bool = True) -> TrainState:
        """Evaluates on the validation images, and saves; the state after the schedule has seen the error.

        Raises:
          Interrupted: a signal came, and there is no time to come to the end; nothing has changed.
        """
        with self._clock.evaluating():
            found = self._run.evaluate(
                state.params,
                "val",
                interrupted=lambda: interruptible and bool(self._stop) and self._stop.seconds() > EVALUATION_GRACE,
            )
        line = {"step": step, "epoch": round(step / self._run.steps_per_epoch, 4), "split": "val", **found}
        self._log.write(**line)
        self._watch.line(line)
        if not math.isfinite(found["loss"]):
            self._diverged(state, "validation", step, {"loss": found["loss"]})
        self._history.val_error, self._history.unevaluated = found["top1_error"], False
        if self._shown:
            self._reporter.line(progress.training_line(**self._shown, val_error=found["top1_error"]))
        # A run's last step may not be one of the schedule's: a longer run would not see it.
        if step % (self._run.config.eval_every_epochs * self._run.steps_per_epoch) == 0:
            state = dataclasses.replace(
                state, schedule=self._run.schedule.observed(state.schedule, found["top1_error"])
            )
        # The loss decides between equal errors.
        self._score = (step, found["top1_error"] + 1e-6 * found["loss"])
        self._save(state, step)
        self._watch.evaluated(step, first_kernels(self._run, state.params))
        return state

    def _diverged(self, state: TrainState, what: str, step: int, metrics: dict[str, Any]) -> None:
        """Raises `Diverged`, in all processes."""
        state = self._run.layout.fetch(state)

        def report() -> None:
            raise report_divergence(
                self._run,
                self._workdir,
                self._saver,
                state,
                what=what,
                step=step,
                reached=int(state.step),
                metrics=metrics,
            )

        self._team.by_first(report)

    def _save(self, state: TrainState, step: int) -> None:
        """Begins to write a checkpoint, unless the lines of metrics that belong before it can't be written.

        Raises:
          Diverged: the state is no good any more.
        """
        with self._clock.paused():
            self._stop.at_once = False
            self._saved_step, self._saved_at, self._wished = -1, time.monotonic(), False
            pending = self._pending.read()
            if (place := first_bad(pending)) is not None:
                bad = pending[place]
                at = step - len(pending) + 1 + place
                self._diverged(state, "training", at, {"loss": bad["loss"] / bad["count"]})
            if not self._saver.is_finite(state):
                self._diverged(state, "parameters", step, {})
            settled = self._log.settled()
            if not self._team.told(settled):
                return
            self._history.pending = pending
            score = self._score[1] if self._score[0] == step else None
            if self._saver.save(state, step, self._history, score):
                self._saved_step = step
