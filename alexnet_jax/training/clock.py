"""How fast a run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from alexnet_jax.training.setup import Run


class Clock:
    """Images a second, the share of waiting for data, and the time left; checkpoints and the like left out."""

    def __init__(self) -> None:
        self._seconds_a_step: float | None = None
        self._evaluation: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._began, self._waited, self._images, self._steps = time.perf_counter(), 0.0, 0, 0
        self._compiling = False

    def count(self, images: int, steps: int) -> None:
        """Adds the images of some steps."""
        self._images, self._steps = self._images + images, self._steps + steps

    def first_is_done(self) -> None:
        """The steps after the first are measured; a reading before the next one shows the first's."""
        self._compiling = True

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts as waiting for data."""
        if self._compiling:
            self._restart()
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Does not count into the speed, but into the time left."""
        began = time.perf_counter()
        with self.paused():
            yield
        self._evaluation = time.perf_counter() - began

    def read(self, run: Run, step: int) -> tuple[float, float, float | None]:
        """Images a second and share of waiting since the last reading; seconds left, None before that is known."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        speed, wait = self._images / seconds, self._waited / seconds
        if not self._compiling:
            last, now = self._seconds_a_step, seconds / max(self._steps, 1)
            self._seconds_a_step = now if last is None else 0.7 * last + 0.3 * now
        self._restart()
        if self._seconds_a_step is None:
            return speed, wait, None
        every = run.config.eval_every_epochs * run.steps_per_epoch
        evaluations = -(-run.num_steps // every) - step // every
        return speed, wait, (run.num_steps - step) * self._seconds_a_step + evaluations * (self._evaluation or 0.0)
