"""What a checkpoint a minute costs a run: its step rate with background checkpoints against its rate with none.

    python benchmarks/checkpoint_cost.py [--quick] [--json FILE]

The program's own loop trains (`half` at 1,000 classes, 224 pixels, batch 32, images from the
page cache) and writes its own checkpoints, in the background. It writes one every two windows: the
first window from a checkpoint on, all that the loop does to begin it included, is "ours", and the second,
in which nothing is written any more, is "none". So both alternate within one process.

Where a window is shorter than a minute, the seconds that a checkpoint took from the steps are
measured in it, and the rate of a minute with one checkpoint follows from them: the rest of the minute
goes at the rate of the window without. The JSON has both (`window_seconds`, `seconds_lost`).
"""

from __future__ import annotations

import dataclasses
import io
import logging
import pathlib
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness
import photographs
from rich.console import Console

from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import Source
from alexnet_jax.training import loop
from alexnet_jax.training.config import Config, default_config, from_dict
from alexnet_jax.training.saving import Saver

EVERY = 60.0  # seconds between checkpoints
SIZE = 256
CLASSES = 1000
IMAGES = 640


@dataclasses.dataclass
class Timeline:
    """When each step was begun, and which steps were followed by a checkpoint."""

    begun: list[float] = dataclasses.field(default_factory=list)
    saved_after: list[int] = dataclasses.field(default_factory=list)

    def pairs(self, window: float) -> list[tuple[float, float, float, float]]:
        """From each checkpoint but the last to the next: steps and seconds of the window with it, then of the rest."""
        found: list[tuple[float, float, float, float]] = []
        for first, last in zip(self.saved_after, self.saved_after[1:], strict=False):
            # The step after which a checkpoint is begun ends when that is begun; the loop waits for it.
            start, stop = first - 1, last - 1
            middle = next(n for n in range(start, stop) if self.begun[n] - self.begun[start] >= window)
            seconds = (self.begun[middle] - self.begun[start], self.begun[stop] - self.begun[middle])
            found.append((middle - start, seconds[0], stop - middle, seconds[1]))
        return found


def config(folder: pathlib.Path, arguments: Any, window: float) -> Config:
    """A run without an end that writes a checkpoint every two windows and evaluates never."""
    found = default_config()
    found.model.name = "half"
    found.model.width = found.model.hidden_width = 0.125 if arguments.quick else 1.0
    found.model.init = None
    found.optimizer.learning_rate = 1e-5  # what is learnt does not matter, and a small batch must not diverge
    found.data.source = str(folder)
    found.data.image_size = found.data.crop_size = None
    found.batch_size = arguments.batch_size
    found.num_steps = found.eval_every_epochs = 1_000_000
    found.checkpoint_every_seconds = 2 * window
    return from_dict(found)


def trained(chosen: Config, workdir: pathlib.Path, rounds: int) -> Timeline:
    """Trains until so many windows with and without a checkpoint are over, and stops as Ctrl-C does."""
    found, original = Timeline(), loop.set_up

    def set_up(*args: Any, **kwargs: Any) -> Any:
        run = original(*args, **kwargs)
        step = run.train_step

        def train_step(*batch: Any) -> Any:
            found.begun.append(time.perf_counter())
            if len(found.saved_after) > rounds:
                signal.raise_signal(signal.SIGINT)
            return step(*batch)

        return dataclasses.replace(run, train_step=train_step)

    class Noting(Saver):
        def save(self, *args: Any, **kwargs: Any) -> bool:
            found.saved_after.append(len(found.begun))
            return super().save(*args, **kwargs)

    parts: dict[str, Callable[..., Any]] = {"set_up": set_up, "Saver": Noting}
    before = {name: getattr(loop, name) for name in parts}
    for name, part in parts.items():
        setattr(loop, name, part)
    try:
        loop.train(chosen, workdir, console=Console(file=io.StringIO()))
    finally:
        for name, part in before.items():
            setattr(loop, name, part)
    found.saved_after = found.saved_after[: rounds + 1]  # the last one is that of the end
    return found


def main() -> None:
    """Measures, prints, writes."""
    parser = harness.parser(__doc__)
    parser.add_argument("--window", type=float, help=f"seconds, at most {EVERY:g}; default: 30, or 1 with --quick")
    parser.add_argument("--rounds", type=int, help="pairs of windows; default: 6, or 2 with --quick")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--folder", type=pathlib.Path, help="for temporary files; default: the system's")
    arguments = parser.parse_args()
    window = min(arguments.window or (1.0 if arguments.quick else 30.0), EVERY)
    rounds = arguments.rounds or (2 if arguments.quick else 6)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax and Grain tell of every save and thread
    report = harness.Report(
        arguments,
        "Checkpoints in the background: the step rate of the program's own loop",
        network="half",
        batch_size=arguments.batch_size,
        window_seconds=window,
        rounds=rounds,
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder, workdir = pathlib.Path(temporary) / "data", pathlib.Path(temporary) / "run"
        few = photographs.crops(IMAGES, SIZE)
        names = tuple(f"class {number}" for number in range(CLASSES))
        prepare(Source(few.name, names, few.splits, few.fingerprint), folder, size=SIZE)
        timeline = trained(config(folder, arguments, window), workdir, rounds)
        newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    ours, none, lost = [], [], []
    for steps, seconds, more_steps, more_seconds in timeline.pairs(window):
        rate = more_steps / more_seconds
        lost.append(seconds - steps / rate)
        none.append(rate * arguments.batch_size)
        ours.append((steps + rate * max(EVERY - seconds, 0)) / max(EVERY, seconds) * arguments.batch_size)
    report.add(
        harness.row(
            f"half, a checkpoint every {EVERY:g} s",
            harness.Samples(tuple(ours)),
            harness.Samples(tuple(none)),
            "no checkpoint",
            "images/s",
            target=0.97,
            encoding="raw",
            threads=harness.cores(),
            batch_size=arguments.batch_size,
            checkpoint_bytes=size,
            window_seconds=window,
            seconds_lost=statistics.median(lost),
            seconds_lost_spread=(min(lost), max(lost)),
        )
    )
    report.note(
        f"a checkpoint of {size / 1e6:.0f} MB took {statistics.median(lost):.2f} s from the steps "
        f"({min(lost):.2f} to {max(lost):.2f})"
    )
    if window < EVERY:
        report.note(f"measured in windows of {window:g} s; the ratio for {EVERY:g} s follows from the seconds lost")
    report.finish()


if __name__ == "__main__":
    main()
