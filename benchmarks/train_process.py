"""`train.py` as users start it, in a process of its own, watched from outside through its metrics.jsonl."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import harness

# The caches of a user who has set nothing, and Python's own of its modules.
UNSET = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
NEVER = 1_000_000  # steps or epochs


def train(keys: Mapping[str, Any], cache: pathlib.Path, lines: int) -> tuple[float, list[dict[str, Any]]]:
    """Starts `train.py` in a new workdir, and kills it when it has written so many lines of training metrics.

    Args:
      keys: of its configuration, with their values; it trains without an end unless they say otherwise.
      cache: folder that stands for the user's cache folder.
      lines: to wait for.

    Returns:
      Seconds from the start of the process to the last of the lines, and the lines.

    Raises:
      RuntimeError: it ended before; the message is its last line.
    """
    with tempfile.TemporaryDirectory(dir=cache) as folder, (pathlib.Path(folder) / "printed").open("w+") as printed:
        log = pathlib.Path(folder) / "run" / "metrics.jsonl"
        options = [f"--config.{key}={value}" for key, value in {"num_steps": NEVER, **keys}.items()]
        path = os.pathsep.join([str(harness.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {key: value for key, value in os.environ.items() if key not in UNSET}
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(harness.ROOT / "train.py"), f"--workdir={log.parent}", *options],
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)},
        )
        try:
            while True:
                ended = process.poll() is not None
                found = _training_lines(log)
                if len(found) >= lines:
                    return time.perf_counter() - start, found
                if ended:
                    printed.seek(0)
                    said = printed.read().strip().splitlines() or ["it printed nothing"]
                    raise RuntimeError(f"train.py ended with status {process.returncode}: {said[-1]}")
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()


def _training_lines(log: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a log that are there, without evaluations."""
    if not log.exists():
        return []
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n")[:-1]]
    return [line for line in found if line["split"] == "train"]
