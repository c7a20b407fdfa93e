"""What a person sees of a run: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


class Reporter:
    """Prints a run's progress.

    In a terminal a line with a bar is redrawn; evaluations stay as lines above it.
    Elsewhere a line is printed at each evaluation, and in between at most every
    `quiet_seconds`.
    """

    def __init__(self, total_steps: int, *, first_step: int, console: Console | None = None, quiet_seconds: float = 30):
        self._console = console or Console(highlight=False, soft_wrap=True, markup=False)
        self._quiet_seconds, self._last_line = quiet_seconds, time.monotonic()
        self._total = total_steps
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TaskProgressColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("compiling …", total=total_steps, completed=first_step)
        self._bar.start()

    def step(self, step: int, line: str) -> None:
        """New training metrics; `line` says them."""
        self._bar.update(self._task, completed=step, description=line)
        if not self._console.is_terminal and time.monotonic() - self._last_line > self._quiet_seconds:
            self.line(line)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._last_line = time.monotonic()
        self._bar.print(text, markup=False)

    def close(self) -> None:
        """Takes the live line away."""
        self._bar.stop()


class Counter:
    """A bar of things that are done, with the rate and the time left; call it with (done, total, skipped).

    Outside a terminal a line is printed at most every `quiet_seconds`.
    """

    def __init__(self, unit: str, *, console: Console | None = None, quiet_seconds: float = 30):
        self._unit, self._quiet_seconds = unit, quiet_seconds
        self._console = console or Console(highlight=False, soft_wrap=True, markup=False)
        columns = (BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=None)
        self._first: tuple[float, int] | None = None
        self._done, self._skipped, self._printed = 0, 0, time.monotonic()

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, skipped: int) -> None:
        now = time.monotonic()
        if self._first is None:  # what an earlier call did does not count into the rate
            self._first = (now, done)
            self._bar.start()
        self._done, self._skipped = done, skipped
        rate = self._rate(now)
        left = f", {duration((total - done) / rate)} left" if rate else ""
        broken = f", {skipped:,} broken" if skipped else ""
        line = f"{done:,}/{total:,} {self._unit}, {rate:,.0f} a second{left}{broken}"
        self._bar.update(self._task, completed=done, total=total, description=line)
        if not self._console.is_terminal and now - self._printed > self._quiet_seconds:
            self._console.print(line, markup=False)
            self._printed = now

    def _rate(self, now: float) -> float:
        if self._first is None or now - self._first[0] < 1e-3:
            return 0.0
        return (self._done - self._first[1]) / (now - self._first[0])

    def summary(self) -> str:
        """What was done, in how long."""
        if self._first is None or self._done == self._first[1]:
            return "nothing was left to do"
        now = time.monotonic()
        seconds = now - self._first[0]
        count = self._done - self._first[1]
        return f"{count:,} {self._unit} in {duration(seconds)}, {self._rate(now):,.0f} a second"


def training_line(
    *,
    epoch: float,
    epochs: float,
    step: int,
    steps: int,
    loss: float,
    top1_error: float,
    learning_rate: float,
    images_per_second: float,
    data_wait_fraction: float,
    seconds_left: float | None,
    val_error: float | None,
) -> str:
    """The line of a run: epoch, step, loss, errors in percent, rate, speed, share of waiting for data, time left.

    The time left is unknown (None) before a step was measured that did not compile.
    """
    left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
    val = "" if val_error is None else f"  val {val_error:.2f} %"
    return (
        f"epoch {epoch:.{0 if epoch == int(epoch) else 1}f}/{epochs:g}  step {step:,}/{steps:,}  loss {loss:.4f}  "
        f"top-1 error {top1_error:.2f} %{val}  rate {learning_rate:g}  {images_per_second:,.0f} images/s  "
        f"data wait {100 * data_wait_fraction:.0f} %{left}"
    )


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 48s, 12m 05s, 3h 20m, 4d 02h."""
    seconds = round(seconds)
    for size, name, below, unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{name} {seconds % size // below:02d}{unit}"
    return f"{seconds}s"
