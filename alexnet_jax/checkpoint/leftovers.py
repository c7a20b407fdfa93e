"""What saves that were killed or failed leave behind."""

from __future__ import annotations

import pathlib
import shutil
import threading
import time


def remove_temporary(directory: pathlib.Path) -> None:
    """Removes what was half written; nothing may be being written."""
    for path in directory.glob("*.orbax-checkpoint-tmp*"):
        remove(path)


def join_writers(seconds: float = 60) -> None:
    """Waits for Orbax's other threads of a save of which one has failed: they go on writing."""
    end = time.monotonic() + seconds
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") and thread is not threading.current_thread():
            threading.Thread.join(thread, max(0.0, end - time.monotonic()))  # not its own, which raises


def remove(path: pathlib.Path) -> None:
    """Removes a folder, into which a thread of a failed save may still be writing."""
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.05)
