"""Checkpoints: a pytree with its metadata, written atomically. Knows no model."""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that can't be used; the message says why and what to do."""


class Checkpoints:
    """The checkpoints of a run, `directory/<step>/`: the latest ones and the best one.

    Orbax writes each under a temporary name, in the background, and renames it when it is complete.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2):
        """Opens (and creates) a folder of checkpoints; keeps the `keep` latest and the best."""
        for path in directory.glob("[0-9]*"):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()  # Orbax would take it for the latest
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: -metrics["score"], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: -metrics["score"],
            cleanup_tmp_directories=True,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), best]),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "metadata": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options, item_handlers=handlers)

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any], *, score: float | None = None) -> None:
        """Begins to write a checkpoint; waits for the one before it.

        Args:
          step: its number.
          tree: arrays, in nested dictionaries.
          metadata: what JSON can hold.
          score: how good it is, the lower the better; None, or not finite, is never the best.
        """
        metrics = None if score is None or not math.isfinite(score) else {"score": score}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), metadata=ocp.args.JsonSave({"format": FORMAT, **metadata})
        )
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def latest_step(self) -> int | None:
        """The newest checkpoint's number, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The number of the checkpoint with the lowest score, or None."""
        return self._manager.best_step()

    def metadata(self, step: int) -> dict[str, Any]:
        """A checkpoint's metadata.

        Raises:
          CheckpointError: it was written by a newer version of this program.
        """
        with self._reading(step):
            found = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())).metadata
            newer = found["format"] > FORMAT
        if newer:
            raise CheckpointError(
                f"checkpoint {step} has format {found['format']}, this program reads up to {FORMAT}: update alexnet-jax"
            )
        return found

    def restore(self, step: int, like: Any) -> Any:
        """A checkpoint's arrays, in the structure of `like` (arrays or `jax.ShapeDtypeStruct`).

        Raises:
          CheckpointError: its arrays have other names, shapes or dtypes, or a newer program wrote it.
        """
        self.metadata(step)
        with self._reading(step):
            wanted, found = _shapes(like), _shapes(self._manager.item_metadata(step)["state"].tree)
        other = [f"{name}: {found.get(name)}" for name in sorted(wanted) if found.get(name) != wanted[name]]
        other += [f"{name}: not expected" for name in sorted(found.keys() - wanted.keys())]
        if other:
            raise CheckpointError(f"checkpoint {step} does not fit this run ({'; '.join(other[:5])})")
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes))).state

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns what goes wrong with a checkpoint's files into a CheckpointError that names it."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            words = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self._manager.directory / str(step)} is damaged ({type(error).__name__}: {words}): "
                "delete it to go on from the checkpoint before"
            ) from None

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and ends."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, str]:
    """The arrays of a tree by name, each as "dtype(shape)"; Orbax itself would cast without a word."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in leaves
    }
