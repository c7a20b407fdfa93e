"""The run's checkpoints: what is in them, when a failure to write one matters, where a run goes on."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.checkpoint import CheckpointError, Checkpoints, Restored
from alexnet_jax.data.prepared import DataError
from alexnet_jax.training.setup import Run, check_earlier
from alexnet_jax.training.step import TrainState

PENDING = ("count", "loss", "top1_wrong", "top5_wrong", "learning_rate")


@dataclasses.dataclass
class Progress:
    """What a run knows beside its state; with it a resumed run writes the lines of an undisturbed one.

    Attributes:
      pending: the sums of each step since the last line of metrics, on the host.
      val_error: of the last evaluation.
      unevaluated: an evaluation is due at the checkpoint's step, and was interrupted.
      stalled: for how many steps the loss has stood at ln(classes).
      stall_told: whether that was said.
    """

    pending: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    val_error: float | None = None
    unevaluated: bool = False
    stalled: int = 0
    stall_told: bool = False

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's metadata; the numbers come back with every bit."""
        rows = [[step[name].item() for name in PENDING] for step in self.pending]
        return dataclasses.asdict(dataclasses.replace(self, pending=[])) | {"pending": rows}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Progress:
        """The inverse; nothing for a checkpoint from before there was any."""
        if not values:
            return cls()
        rows = [dict(zip(PENDING, map(np.float64, row), strict=True)) for row in values["pending"]]
        return cls(**values | {"pending": rows})


def tree(run: Run, state: TrainState) -> dict[str, Any]:
    """The arrays of a checkpoint."""
    return {"state": {name: getattr(state, name) for name in state.__annotations__}, "mean_image": run.mean_image}


@jax.jit
def _all_finite(arrays: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


class Saver:
    """Writes a run's checkpoints and opens them. A checkpoint that can't be written is told, and the run goes on.

    Every process of the run has one and calls it at the same places; the first alone has `checkpoints`.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints | None, workdir: pathlib.Path, tell: Callable[[str], None]):
        self._run, self._there, self._workdir = run, checkpoints, workdir
        self.tell = tell

    @property
    def _checkpoints(self) -> Checkpoints:
        assert self._there is not None, "only the first process has checkpoints"
        return self._there

    def is_finite(self, state: TrainState) -> bool:
        """Whether every parameter and momentum is a number; what is not never replaces a good checkpoint."""
        return bool(_all_finite((state.params, state.opt_state)))

    def save(self, state: TrainState, step: int, progress: Progress, score: float | None = None) -> bool:
        """Begins to write a checkpoint; False, and a warning, if it or the one before it failed."""
        arrays = tree(self._run, state)
        if self._run.layout.size > 1:
            arrays = self._run.layout.fetch(arrays)  # whole, on the host: what opens in every other layout
        if self._there is None:
            return True
        metadata = self._run.metadata() | {"progress": progress.to_json()}
        try:
            if self._checkpoints.latest_step() == step:  # one without its evaluation
                self._checkpoints.delete(step)
            self._checkpoints.save(step, arrays, metadata, score=score)
        except Exception as error:
            self._failed(error)
            return False
        return True

    def wait(self) -> bool:
        """Waits until what was saved is on disk; False, and a warning, if that failed."""
        if self._there is None:
            return True
        try:
            self._checkpoints.wait()
        except Exception as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        """Whatever it was: a run of days does not end because its disk is full for an hour."""
        words = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        self.tell(
            f"WARNING: a checkpoint could not be written ({' '.join(words.split())[:300]}); "
            f"{self.last()}. The run goes on and tries again"
        )

    def last(self) -> str:
        """The newest checkpoint, in words; for the first process."""
        step = self._checkpoints.latest_step()
        return "there is no checkpoint yet" if step is None else f"the checkpoint of step {step:,} is kept"

    def best_step(self) -> int | None:
        """The checkpoint with the best validation error."""
        return self._run.team.by_first(lambda: self._checkpoints.best_step())

    def restored(self) -> tuple[TrainState, Progress]:
        """The newest checkpoint that is whole, or the beginning if there is none; a damaged one is told of.

        Raises:
          CheckpointError: it can't be used.
          ConfigError: it is of another configuration.
          DataError: it is of other data.
        """
        found: Restored | None = None

        def newest() -> dict[str, Any] | None:
            nonlocal found
            found = self._newest()
            return None if found is None else {"progress": found.metadata.get("progress")}

        about = self._run.team.by_first(newest)
        if about is None:
            if self._run.team.alone:
                return self._run.initial, Progress()
            # Each process has made its own, on another kind of processor perhaps: they start from one.
            host = self._run.layout.fetch(vars(self._run.initial))
            return TrainState(**self._everywhere(host, None)), Progress()
        state = self._everywhere(None if found is None else found.tree["state"], vars(self._run.initial))
        return TrainState(**state), Progress.from_json(about["progress"])

    def _newest(self) -> Restored | None:
        step = self._checkpoints.latest_step()
        if step is not None:
            metadata = self._checkpoints.metadata(step)
            check_earlier(self._run.config, metadata.get("config"), self._workdir)
            if metadata.get("data") != self._run.data.fingerprint:
                raise DataError(
                    f"{self._run.data.directory} is not the data that the run in {self._workdir} began with (other "
                    "checksums): give it that data again, or take another --workdir"
                )
        return self._checkpoints.newest(tree(self._run, self._run.initial), tell=self.tell)

    def _everywhere(self, found: Any, like: Any) -> Any:
        """What the first process has read, where the step wants it."""
        if not self._run.team.alone and found is None:
            found = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        return self._run.layout.place(self._run.team.share(found))

    def parameters(self, step: int) -> Any:
        """The parameters in one checkpoint, where a step wants them.

        Raises:
          CheckpointError: it can't be used.
        """
        found: Any = None

        def read() -> None:
            nonlocal found
            found = self._checkpoints.restore(step, tree(self._run, self._run.initial))["state"]["params"]

        self._run.team.by_first(read)
        return self._everywhere(found, self._run.initial.params)

    def last_parameters(self) -> tuple[int, Any] | None:
        """Step and parameters, on the host, of the newest checkpoint that can be read; for the first process."""
        try:
            self._checkpoints.wait()
            step = self._checkpoints.latest_step()
            return None if step is None else (step, self._checkpoints.stored(step).tree["state"]["params"])
        except Exception:  # what is wrong with it is told by the next start
            return None
