"""The metrics of a run: those of the steps in progress, and its records on disk, a JSON object a line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class Pending:
    """The metrics of the steps since the last line; they stay on the device until they are read."""

    def __init__(self, rows: list[dict[str, Any]]):
        """Begins with steps whose metrics are on the host already."""
        self.calls: list[dict[str, Any]] = list(rows)  # of a step each, or of several with an axis for them

    def wait_for_last_but_one(self) -> None:
        """Waits until the call before the newest is done, so that the program is one call ahead, not more."""
        if len(self.calls) > 1:
            jax.block_until_ready(self.calls[-2])

    def take(self, newest: int = 0) -> list[dict[str, Any]]:
        """The metrics, a dictionary a step, on the host; they are dropped here, but those of the `newest` calls stay.

        Waits until the steps are done.
        """
        count = len(self.calls) - newest
        taken, self.calls = jax.device_get(self.calls[:count]), self.calls[count:]
        return [row for call in taken for row in _apart(call)]

    def read(self) -> list[dict[str, Any]]:
        """The metrics as `take` gives them; they stay."""
        rows = self.take()
        self.calls = list(rows)
        return rows


def _apart(call: dict[str, Any]) -> list[dict[str, Any]]:
    if np.ndim(call["loss"]) == 0:
        return [call]
    return [{name: values[place] for name, values in call.items()} for place in range(len(call["loss"]))]


class MetricsLog:
    """Appends to `metrics.jsonl`; what a crash left behind a checkpoint is dropped at resume.

    What can't be written, on a full disk, is kept and tried again with the next line.
    """

    def __init__(self, path: pathlib.Path, *, up_to_step: int, tell: Callable[[str], None] = print):
        """Opens the log and keeps the lines of the steps up to `up_to_step`; `tell` takes warnings."""
        self._path, self._tell = path, tell
        self._waiting: list[str] = []
        self._told = False
        kept = "".join(json.dumps(line) + "\n" for line in read(path) if line["step"] <= up_to_step)
        write_atomically(path, kept)
        self._size = len(kept.encode())

    def write(self, **values: Any) -> None:
        """Adds a line; a number that is not finite becomes null, as JSON has no other word for it."""
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}
        self._waiting.append(json.dumps(finite, allow_nan=False) + "\n")
        self._append()

    def settled(self) -> bool:
        """Whether every line is in the file, also after a power failure; a checkpoint must not be ahead of them."""
        return self._append(sync=True)

    def _append(self, *, sync: bool = False) -> bool:
        """Writes what waits, all of it or nothing."""
        text = "".join(self._waiting).encode()
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                place = self._size
                try:
                    while place < self._size + len(text):
                        place += os.pwrite(descriptor, text[place - self._size :], place)
                    if sync:
                        os.fsync(descriptor)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(descriptor, self._size)  # no half lines
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._told:
                self._tell(f"WARNING: {self._path} can't be written ({error}): the run goes on and tries again")
            self._told = True
            return False
        self._size += len(text)
        self._waiting = []
        if self._told:
            self._tell(f"{self._path} is complete again")
        self._told = False
        return True


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a log; none if there is no file. What a crash or a failing disk left of others is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and "step" in values:
                found.append(values)
    return found


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a small file so that a crash, also the machine's, leaves either the old or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
