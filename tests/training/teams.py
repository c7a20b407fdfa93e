"""Several real processes of `train.py` on this machine that are one run, and what runs leave behind."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.training.metrics import read

TIMING = ("images_per_second", "data_wait_fraction")
XLA_FLAGS = "--xla_force_host_platform_device_count={}"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    """Processes of one run, and the files into which each writes what it says."""

    def __init__(self, commands: Sequence[Sequence[str]], environment: dict[str, str], folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = [folder / f"process{index}.log" for index in range(len(commands))]
        self.members = []
        for command, log in zip(commands, self._logs, strict=True):
            with log.open("w") as file:
                process = subprocess.Popen(
                    command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file
                )
            self.members.append(process)

    def said(self, index: int) -> str:
        """What a process has said so far, on both of its streams."""
        return self._logs[index].read_text(errors="replace")

    def wait_for(self, condition: Callable[[], Any], seconds: float = 200) -> None:
        """Waits until a condition holds, while all live."""
        deadline = time.monotonic() + seconds
        while not condition():
            for index, member in enumerate(self.members):
                assert member.poll() is None, f"process {index} ended early: {self.said(index)}"
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.001)

    def codes(self, seconds: float = 300) -> list[int]:
        """The exit codes, once all have ended."""
        deadline = time.monotonic() + seconds
        return [member.wait(max(deadline - time.monotonic(), 0.1)) for member in self.members]

    def end(self) -> None:
        """Ends those that still run."""
        for member in self.members:
            member.kill()
            member.wait()


@contextlib.contextmanager
def started(
    command: Callable[..., list[str]],
    environment: dict[str, str],
    folder: pathlib.Path,
    *arguments: Any,
    own: Sequence[Sequence[Any]] = ((), ()),
    devices: int = 1,
) -> Iterator[Processes]:
    """A run of as many processes as `own` has items: the further arguments of each.

    Args:
      command: makes a command line.
      environment: of the processes.
      folder: where they run, and where what they say is written.
      arguments: of all.
      own: of each.
      devices: that each has.
    """
    together = (f"--config.parallel.coordinator=127.0.0.1:{free_port()}", f"--config.parallel.processes={len(own)}")
    commands = [
        command(*arguments, *together, f"--config.parallel.process={index}", *more) for index, more in enumerate(own)
    ]
    processes = Processes(commands, environment | {"XLA_FLAGS": XLA_FLAGS.format(devices)}, folder)
    try:
        yield processes
    finally:
        processes.end()


def untimed(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics without what differs between runs."""
    lines = read(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """The training loss of each step that has a line of its own."""
    return {line["step"]: line["loss"] for line in read(workdir / "metrics.jsonl") if line["split"] == "train"}


def saved(workdir: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Parameters, momentum and all else that a checkpoint holds, by name, opened without this project's code."""
    state = ocp.StandardCheckpointHandler().restore(workdir / "checkpoints" / str(step) / "state")
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


def assert_same(workdir: pathlib.Path, other: pathlib.Path, step: int) -> None:
    """Two runs are the same: metrics, the last checkpoint's arrays and the result, bit for bit."""
    assert untimed(workdir) == untimed(other)
    mine, theirs = arrays(workdir, step), arrays(other, step)
    assert {name: (x.dtype, x.tobytes()) for name, x in mine.items()} == {
        name: (x.dtype, x.tobytes()) for name, x in theirs.items()
    }
    results = [json.loads((folder / "result.json").read_text()) for folder in (workdir, other)]
    for name in ("loss", "top1_error", "top5_error", "best_step", "steps"):
        assert results[0][name] == results[1][name]
