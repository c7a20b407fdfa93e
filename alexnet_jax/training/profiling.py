"""A trace of some of a run's steps, for TensorBoard's profile plugin (XProf) or Perfetto: `config.profile`."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from alexnet_jax.training.schema import ConfigError, profile_steps

NOTHING = contextlib.nullcontext()


class Off:
    """What a run without a profile has: nothing is begun, waited for or imported."""

    def steps(self, first: int, last: int, results: list[Any]) -> contextlib.AbstractContextManager[None]:
        """Does nothing."""
        return NOTHING

    def close(self) -> None:
        """Does nothing."""


class Profile:
    """Traces those of some steps that this process takes.

    What can't be traced or written is told; the run goes on.
    """

    def __init__(
        self,
        steps: range,
        folder: pathlib.Path,
        *,
        tell: Callable[[str], None],
        paused: Callable[[], contextlib.AbstractContextManager[None]],
    ):
        """Steps are numbered from 1, the first of the whole run. `tell` takes lines, `paused` stops the clock."""
        self._steps, self._folder, self._tell, self._paused = steps, folder, tell, paused
        self._began: int | None = None  # the first step of a trace in progress
        self._reached = 0

    @contextlib.contextmanager
    def steps(self, first: int, last: int, results: list[Any]) -> Iterator[None]:
        """Around the dispatch of some steps, which adds theirs to `results`, those of the steps in progress.

        A trace begins and ends with a device that has nothing to do: the one wait for it at each end.
        """
        if first in self._steps and self._began is None:
            self._begin(first, results)
        if self._began is None:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=first):
            yield
        self._reached = last
        if last == self._steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def _begin(self, number: int, results: list[Any]) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of a Python function: many times the rest, and slow
        with self._paused(), self._trying():
            jax.block_until_ready(results)
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._began = number

    def close(self) -> None:
        """Writes a trace in progress: that of an interrupted run has the steps up to there."""
        if self._began is None:
            return
        began, self._began = self._began, None
        self._steps = range(0)  # no second trace
        with self._paused(), self._trying():
            jax.profiler.stop_trace()
            self._tell(f"profile of the steps {began:,} to {self._reached:,}: {self._folder}")

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a profile is not worth a run
            self._steps = range(0)
            words = " ".join(str(error).split())[:200]
            self._tell(f"WARNING: config.profile can't be written ({type(error).__name__}: {words}): the run goes on")


def make_profile(
    wanted: str | None,
    workdir: pathlib.Path,
    first_step: int,
    *,
    tell: Callable[[str], None],
    paused: Callable[[], contextlib.AbstractContextManager[None]],
) -> Profile | Off:
    """What `config.profile` asks for in a process that goes on after `first_step`; says so if it comes too late."""
    if wanted is None:
        return Off()
    steps = profile_steps(wanted)
    if steps[-1] <= first_step:
        tell(f"WARNING: config.profile={wanted!r}: the run is at step {first_step:,} already, so nothing is profiled")
        return Off()
    return Profile(steps, workdir / "profile", tell=tell, paused=paused)


def check_profile(wanted: str | None, num_steps: int) -> None:
    """Refuses a profile of steps that the run does not have.

    Raises:
      ConfigError: the last one comes after the run's end.
    """
    if wanted is not None and profile_steps(wanted)[-1] > num_steps:
        raise ConfigError(
            f"config.profile={wanted!r}: the run has {num_steps:,} steps, and its profile must end with one of them"
        )
