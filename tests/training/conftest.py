"""Real processes of `train.py`, small enough to be started often."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Variables of a process of its own: one device, its own cache of data, compiled code kept between processes."""
    caches = tmp_path_factory.mktemp("caches")
    own = {
        "XDG_CACHE_HOME": str(caches / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(caches / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "COLUMNS": "200",
    }
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "FORCE_COLOR")}
    return inherited | own


@pytest.fixture(scope="session")
def command():
    """The command line of `train.py`."""
    return lambda *arguments: [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]


@pytest.fixture(scope="session")
def train_process(environment, command, tmp_path_factory):
    """Runs `train.py` with the arguments to its end, in a folder of its own with the repository's `configs`."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "configs").symlink_to(ROOT / "configs")

    def run(*arguments):
        return subprocess.run(
            command(*arguments), env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )

    run.folder = folder
    return run
