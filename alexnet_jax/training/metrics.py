"""The run's records on disk: `metrics.jsonl`, a JSON object a line."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any


class MetricsLog:
    """Appends to `metrics.jsonl`; what a crash left behind a checkpoint is dropped at resume."""

    def __init__(self, path: pathlib.Path, *, up_to_step: int):
        """Opens the log and keeps the lines of the steps up to `up_to_step`."""
        self._path = path
        kept = [line for line in read(path) if line["step"] <= up_to_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, **values: Any) -> None:
        """Adds a line; a number that is not finite becomes null, as JSON has no other word for it."""
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a log; none if there is no file. A last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a small file so that a crash leaves either the old or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
