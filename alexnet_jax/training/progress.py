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


def training_line(
    *,
    epoch: float,
    epochs: float,
    step: int,
    steps: int,
    loss: float,
    top1_error: float,
    images_per_second: float,
    seconds_left: float,
    val_error: float | None,
) -> str:
    """The line of a run: epoch, step, loss, errors in percent, speed, time left."""
    val = "" if val_error is None else f"  val {val_error:.2f} %"
    return (
        f"epoch {epoch:.{0 if epoch == int(epoch) else 1}f}/{epochs:g}  step {step:,}/{steps:,}  loss {loss:.4f}  "
        f"top-1 error {top1_error:.2f} %{val}  {images_per_second:,.0f} images/s  {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 48s, 12m 05s, 3h 20m, 4d 02h."""
    seconds = round(seconds)
    for size, name, below, unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{name} {seconds % size // below:02d}{unit}"
    return f"{seconds}s"
