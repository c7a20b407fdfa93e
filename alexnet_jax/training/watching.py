"""Watching a run: TensorBoard events, and pictures that a thread draws while the training goes on."""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from alexnet_jax import figures
from alexnet_jax.training.metrics import read
from alexnet_jax.training.setup import Run

EVERY = 30.0  # seconds between drawings, which take a second of a core
SCALARS = (
    *("loss", "top1_error", "top5_error", "learning_rate"),
    *("images_per_second", "data_wait_fraction", "device_memory_mib"),
)


def draw(metrics: list[dict[str, Any]], kernel: np.ndarray, groups: int, workdir: pathlib.Path) -> None:
    """`learning_curves.png` and `conv1_kernels.png`, each replaced as a whole.

    Args:
      metrics: the lines of `metrics.jsonl`.
      kernel: conv1's, (k, k, 3, K) in RGB.
      groups: towers.
      workdir: where to write.
    """
    with _replaced(workdir / "learning_curves.png") as path:
        figures.learning_curves(metrics, path)
    with _replaced(workdir / "conv1_kernels.png") as path:
        figures.first_layer_kernels(kernel, groups, path)


def first_kernels(run: Run, params: Any) -> np.ndarray:
    """conv1's kernels on the host, in RGB; every process must ask for them."""
    kernel = np.asarray(run.layout.fetch(params["conv1"]["kernel"]), np.float32)
    return kernel[:, :, ::-1] if run.spec.input.channel_order == "bgr" else kernel


@contextlib.contextmanager
def _replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, which then takes the place of a file."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Watch:
    """Events and pictures of a run. What can't be written is told once; the run goes on."""

    def __init__(self, run: Run, workdir: pathlib.Path, first_step: int, tell: Callable[[str], None]):
        """Begins after `first_step`: TensorBoard hides what earlier processes wrote of later steps."""
        self._run, self._workdir, self._tell = run, workdir, tell
        self._told: set[str] = set()
        self._events: Any = None
        self._wanted: tuple[int, np.ndarray] | None = None
        self._changed, self._closing = threading.Condition(), False
        with self._trying("TensorBoard's events"):
            self._events = _Events(workdir / "tensorboard", first_step)
        self._thread = threading.Thread(target=self._draw, name="pictures", daemon=True)
        self._thread.start()

    def line(self, line: Mapping[str, Any]) -> None:
        """New metrics: a line of `metrics.jsonl`."""
        values = {f"{name}/{line['split']}": line[name] for name in SCALARS if line.get(name) is not None}
        with self._trying("TensorBoard's events"):
            if self._events is not None:
                self._events.scalars(line["step"], values)

    def evaluated(self, step: int, kernel: np.ndarray) -> None:
        """Has the pictures drawn, soon, with `first_kernels`; what was not drawn yet is left out."""
        with self._changed:
            self._wanted = step, kernel
            self._changed.notify()

    def close(self, *, patience: float) -> None:
        """Ends; a drawing in progress gets so many seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=patience)
        with self._trying("TensorBoard's events"):
            if self._events is not None:
                self._events.close()

    @contextlib.contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # nothing here is worth a run
            if what not in self._told:
                self._told.add(what)
                words = " ".join(str(error).split())[:200]
                self._tell(f"WARNING: {what} can't be written ({type(error).__name__}: {words}): the run goes on")

    def _draw(self) -> None:
        """The thread: the newest evaluation at most every `EVERY` seconds."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._wanted is not None)
                if self._closing or self._wanted is None:
                    return
                (step, kernel), self._wanted = self._wanted, None
            with self._trying("the pictures"):
                draw(read(self._workdir / "metrics.jsonl"), kernel, self._run.spec.groups, self._workdir)
                if self._events is not None:
                    for name in ("learning_curves", "conv1_kernels"):
                        self._events.picture(step, name, (self._workdir / f"{name}.png").read_bytes())
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=EVERY)


class Unheard:
    """Stands for the log and the pictures in the processes that write none."""

    def write(self, **values: Any) -> None: ...

    def settled(self) -> bool:
        return True

    def line(self, line: Mapping[str, Any]) -> None: ...

    def evaluated(self, step: int, kernel: np.ndarray) -> None: ...

    def close(self, *, patience: float) -> None: ...


class _Events:
    """TensorBoard's event file, written at once: tensorboardX's own writer thread would hang on a full disk."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        self._event, self._summary = event_pb2, summary_pb2
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")  # its own name has seconds
        # Steps from here on in earlier files are hidden by TensorBoard, so that none is there twice.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step + 1, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        made = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary.Summary(value=made))

    def picture(self, step: int, name: str, png: bytes) -> None:
        width, height = struct.unpack(">II", png[16:24])
        image = self._summary.Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        self._write(
            step=step, summary=self._summary.Summary(value=[self._summary.Summary.Value(tag=name, image=image)])
        )

    def _write(self, **values: Any) -> None:
        self._writer.write_event(self._event.Event(wall_time=time.time(), **values))
        self._writer.flush()  # a kill loses none that a checkpoint goes on from

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed: three seconds for graphs that are not drawn here."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]
