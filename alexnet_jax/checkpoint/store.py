"""The checkpoints of a run: Orbax writes them, our own records say whether they are whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from alexnet_jax.checkpoint import leftovers, record
from alexnet_jax.checkpoint.errors import CheckpointError, DamagedError, not_read, not_written
from alexnet_jax.checkpoint.fitting import check_fit, placed

_DAMAGED = "damaged"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A whole checkpoint: its number, its arrays and its metadata."""

    step: int
    tree: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, `directory/<step>/`: the latest ones and the best one.

    Orbax writes each under a temporary name, in the background, and renames it when it is
    complete. Each holds a record with a SHA-256 of every array and of the record itself,
    compared whenever it is read.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2, read_only: bool = False, processes: int = 1):
        """Opens (and creates) a folder of checkpoints.

        Args:
          directory: the folder.
          keep: how many of the latest are kept; the best is kept besides.
          processes: of how many of JAX's processes this is the one that writes.
          read_only: changes nothing in the folder, in which another process may be writing. Otherwise what
            a killed process left half written or half deleted is removed here.

        Raises:
          CheckpointError: the folder can't be written.
        """
        self._directory, self._keep, self._read_only = directory.absolute(), keep, read_only
        self._processes = processes
        self._pending: CheckpointError | None = None
        self._writing: int | None = None
        self._verified: set[int] = set()
        try:
            if not read_only:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._clean_up()
            self._scores = self._read_scores()
            self._manager = self._open()
        except OSError as error:
            raise CheckpointError(f"{directory} can't be used for checkpoints: {error}") from None

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any], *, score: float | None = None) -> None:
        """Begins to write a checkpoint; waits for the one before it.

        Args:
          step: its number, greater than those before.
          tree: arrays, in nested dictionaries; what happens to them afterwards changes nothing.
          metadata: what JSON can hold.
          score: how good it is, the lower the better; None, or not finite, is never the best.

        Raises:
          DiskFullError: no room for this checkpoint, or for the one before it; if the latter, this one
            is being written all the same.
          CheckpointError: another reason why one of them can't be written. All earlier ones are whole.
        """
        if self._read_only:
            raise ValueError("these checkpoints were opened with read_only=True")
        if (self._directory / str(step)).exists():
            raise CheckpointError(f"there is a checkpoint {step} in {self._directory} already")
        self._settle()
        json.dumps(metadata)  # what JSON can't hold is the caller's mistake, not a failure to write
        score = score if score is not None and math.isfinite(score) else None
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            metadata=record.Save(step, score, json.loads(json.dumps(metadata)), _on_host(tree)),
        )
        self._scores[step], self._writing = score, step
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            self._pending = self._failed(error)
        self._raise_pending()

    def delete(self, step: int) -> None:
        """Takes a checkpoint away, such as one that is to be written anew.

        Raises:
          CheckpointError: it can't be deleted.
        """
        self._settle()
        try:
            self._manager.delete(step)
        except OSError as error:
            raise CheckpointError(f"checkpoint {step} in {self._directory} can't be deleted: {error}") from None
        self._scores.pop(step, None)
        self._verified.discard(step)

    def stored(self, step: int) -> Restored:
        """A checkpoint as it is, without knowing what is in it; its arrays are NumPy's.

        Raises:
          DamagedError: it is not what was written.
          CheckpointError: it is of another format.
        """
        self._settle()
        return self._read(step)

    def latest_step(self) -> int | None:
        """The number of the newest complete checkpoint whose record is whole, or None."""
        return next(iter(self._whole_records(reversed(self._steps()))), None)

    def best_step(self) -> int | None:
        """The number of the checkpoint with the lowest score among those that are whole, or None.

        Its arrays are read and compared, once in this object's life.
        """
        self._settle()
        for step in self._by_score():
            with contextlib.suppress(DamagedError):
                if step not in self._verified:
                    self._read(step)
                return step
        return None

    def metadata(self, step: int) -> dict[str, Any]:
        """A checkpoint's metadata, with the `format` that it was written in.

        Raises:
          DamagedError: it is not what was written.
          CheckpointError: it was written by a newer version of this program, or by one too old.
        """
        return _described(self._record(step))

    def restore(self, step: int, like: Any) -> Any:
        """A checkpoint's arrays, in the structure of `like` (arrays or `jax.ShapeDtypeStruct`).

        Raises:
          DamagedError: it is not what was written.
          CheckpointError: its arrays have other names, shapes or dtypes, or it is of another format.
        """
        self._settle()
        return self._read(step, like).tree

    def newest(self, target: Any, *, tell: Callable[[str], None]) -> Restored | None:
        """The newest checkpoint that is whole, or None if there is none at all.

        A damaged one is told of and set aside as `<step>.damaged`, and the one before it is tried.

        Args:
          target: arrays or `jax.ShapeDtypeStruct`, the structure to restore.
          tell: takes a line.

        Raises:
          CheckpointError: all are damaged; or the newest whole one has other arrays than `target`, or
            is of another format: that is no damage, and it stays where it is.
        """
        self._settle()
        found = self._first_whole(reversed(self._steps()), target, tell)
        aside = sorted(path.name for path in self._directory.glob(f"[0-9]*.{_DAMAGED}*"))
        if found is None and (aside or self._steps()):
            raise CheckpointError(
                f"no checkpoint in {self._directory} is whole (damaged: {', '.join(aside) or self._steps()}): "
                "put back a copy of them, or, to begin again from nothing, delete that folder or take a new workdir"
            )
        return found

    def best(self, target: Any, *, tell: Callable[[str], None]) -> Restored | None:
        """The checkpoint with the lowest score among those that are whole, or None; otherwise like `newest`."""
        self._settle()
        return self._first_whole(self._by_score(), target, tell)

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
          DiskFullError: there was no room for it.
          CheckpointError: it can't be written for another reason.
        """
        self._settle()
        self._raise_pending()

    def close(self) -> None:
        """Waits until everything is on disk, and ends; raises what `wait` does, if nothing else did before."""
        self._settle()
        self._manager.close()
        self._raise_pending()

    def _open(self) -> ocp.CheckpointManager:
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix="alexnet_jax"
        )
        options = ocp.CheckpointManagerOptions(
            create=False,
            **({"multiprocessing_options": alone} if self._processes > 1 else {}),
            preservation_policy=_Preserved(self._preserved),
            # A folder that can't be made is known at once; Orbax's threads would wait for it for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), record.ITEM: record.Handler()}
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def _preserved(self, steps: Sequence[int]) -> set[int]:
        """Of these, the latest, the best, and those that we know nothing of."""
        known = sorted(step for step in steps if step in self._scores)
        best = [step for step in self._by_score() if step in known][:1]
        return {*known[-self._keep :], *best, *(step for step in steps if step not in self._scores)}

    def _settle(self) -> None:
        """Waits for the save in progress; its failure is kept for the next one who can be told."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._pending = self._failed(error)
        self._writing = None
        if not self._read_only:
            leftovers.remove_temporary(self._directory)  # what a failed save wrote even after it had failed

    def _failed(self, error: Exception) -> CheckpointError:
        """Puts everything back to where it was before the save that failed."""
        step, self._writing = self._writing, None
        with contextlib.suppress(Exception):
            self._manager.close()
        leftovers.join_writers()
        with contextlib.suppress(OSError):
            self._clean_up()
        self._scores = self._read_scores()
        self._manager = self._open()  # Orbax forgets what it was about to delete, and keeps parts of what failed
        return not_written(-1 if step is None else step, self._directory, error)

    def _raise_pending(self) -> None:
        error, self._pending = self._pending, None
        if error is not None:
            raise error

    def _clean_up(self) -> None:
        """Removes what is no checkpoint: half written, half deleted, or an empty folder."""
        leftovers.remove_temporary(self._directory)
        steps = self._folders()
        for step in steps:
            path = self._directory / str(step)
            if not any(path.iterdir()):
                path.rmdir()
            elif not self._file(step).exists() and any(self._file(newer).exists() for newer in steps if newer > step):
                leftovers.remove(path)  # its deletion was interrupted

    def _folders(self) -> list[int]:
        """The numbers of all numbered folders, ascending."""
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def _steps(self) -> list[int]:
        """The numbers of the checkpoints, ascending, whole or not."""
        return [step for step in self._folders() if any((self._directory / str(step)).iterdir())]

    def _file(self, step: int) -> pathlib.Path:
        return self._directory / str(step) / record.ITEM / record.ITEM

    def _record(self, step: int) -> record.Record:
        try:
            data = self._file(step).read_bytes()
        except OSError as error:
            raise not_read(step, self._directory / str(step), error) from None
        return record.decode(data, step)

    def _whole_records(self, steps: Iterable[int]) -> Iterable[int]:
        for step in steps:
            with contextlib.suppress(CheckpointError):
                self._record(step)
                yield step

    def _read_scores(self) -> dict[int, float | None]:
        """The score of each checkpoint whose record is whole."""
        return {step: self._record(step).score for step in self._whole_records(self._steps())}

    def _by_score(self) -> list[int]:
        """The numbers of those with a score, the best first; of equals the latest."""
        scores = {step: score for step, score in self._scores.items() if score is not None}
        return sorted(scores, key=lambda step: (scores[step], -step))

    def _read(self, step: int, target: Any = None) -> Restored:
        """A checkpoint, compared with its record; without a target its arrays stay on the host."""
        about, path = self._record(step), self._directory / str(step)
        if target is not None:
            check_fit(about, target)
        try:
            like = self._manager.item_metadata(step)["state"].tree if target is None else target
            # To the host: what goes wrong in the device's memory is then no damage of the files.
            empty = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like)
            tree = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(empty))).state
            found = record.named(tree)
        except Exception as error:
            raise not_read(step, path, error) from None
        wrong = sorted(name for name in {*found, *about.arrays} if not _same(found.get(name), about.arrays.get(name)))
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise DamagedError(
                f"checkpoint {step} in {path} is damaged ({', '.join(wrong[:3])}{more}: not the bytes that were saved)"
            )
        self._verified.add(step)
        return Restored(step, tree if target is None else placed(tree, target), _described(about))

    def _first_whole(self, steps: Iterable[int], target: Any, tell: Callable[[str], None]) -> Restored | None:
        for step in steps:
            try:
                return self._read(step, target)
            except DamagedError as error:
                tell(f"{error.fault}: {self._set_aside(step)}")
        return None

    def _set_aside(self, step: int) -> str:
        """Gives a damaged checkpoint a name that nobody takes for a checkpoint's; says what was done."""
        self._verified.discard(step)
        if self._read_only:
            return "passed over"
        names = [f"{step}.{_DAMAGED}", *(f"{step}.{_DAMAGED}-{number}" for number in range(2, 1000))]
        name = next(name for name in names if not (self._directory / name).exists())
        try:
            (self._directory / str(step)).rename(self._directory / name)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {step} in {self._directory} is damaged and can't be renamed ({error}): remove it by hand"
            ) from None
        self._scores.pop(step, None)
        self._manager.reload()
        return f"set aside as {name}"


@dataclasses.dataclass
class _Preserved(checkpoint_managers.PreservationPolicy):
    """Orbax's question which checkpoints to keep, answered by a function of their numbers."""

    chosen: Callable[[Sequence[int]], set[int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each is to be kept."""
        kept = self.chosen([one.step for one in checkpoints])
        return [one.step in kept for one in checkpoints]


def _on_host(tree: Any) -> dict[str, np.ndarray]:
    """The arrays by name, safe from what is done to the tree afterwards."""
    leaves = record.named(tree)
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    # On a CPU these are views, which costs nothing: JAX reuses no memory that NumPy still sees, donated or not.
    return {name: np.asarray(leaf) if isinstance(leaf, jax.Array) else np.array(leaf) for name, leaf in leaves.items()}


def _described(about: record.Record) -> dict[str, Any]:
    return {"format": record.FORMAT, **about.metadata}


def _same(array: Any, expected: record.Stamp | None) -> bool:
    return array is not None and record.stamp(np.asarray(array)) == expected
