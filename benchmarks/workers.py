"""Each side of a comparison in a process of its own, which waits while the other is measured.

PyTorch, ONNX Runtime and JAX disturb each other's threads and heaps in one process. So each
has its own, started once with the same heap setting; it builds what it is told to by lines of
JSON, and measures when its turn comes. While it waits it must take no time of the cores: each
reports what it took (libraries let their threads spin for a while after the work).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import harness
import limits

# And what runs them.
SIDES = {"ours": "JAX", "Flax": "Flax", "PyTorch": "torch", "PyTorch training": "torch", "ONNX Runtime": "onnxruntime"}
HEAPS = ("kept", "stock")
# glibc's numbers of these parameters of mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_heap() -> bool:
    """Has glibc keep freed memory in the process, so that large temporaries cost no page faults at every step.

    What `alexnet_jax.training.devices.keep_heap` does for `train.py`, without an import of JAX, for every
    side; `keep_heap_of` is the rest. True if there is glibc and it took the setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(key, value) for key, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))


def keep_heap_of(program: str) -> None:
    """The rest of `keep_heap`, before JAX starts: blocks too large for a thread's arena come from the main one.

    Ours computes in the thread that calls it, as in `train.py`. YNNPACK, which computes for plain Flax,
    asks in its own threads, so there is one arena for all, with which it is the fastest.
    """
    if program == "JAX":
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
    elif program == "Flax":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


class WorkerError(RuntimeError):
    """A side could not be built or measured; the message says why."""


class Worker:
    """A process that measures.

    Args:
      heap: "kept" (`keep_heap`) or "stock".
      device: "cpu" or "cuda".
    """

    def __init__(self, heap: str = "kept", device: str = "cpu"):
        # PyTorch and NumPy have OpenMP or BLAS threads as many as cores by themselves.
        more = {"JAX_PLATFORMS": device, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        path = os.pathsep.join([str(harness.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(pathlib.Path(__file__)), heap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | more | {"PYTHONPATH": path},
        )

    def ask(self, **asked: Any) -> dict[str, Any]:
        """What the process answers.

        Raises:
          WorkerError: it failed or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"its process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait(60)


class Team:
    """The sides of one comparison; use it as a context.

    Args:
      seconds: that one measurement should take at least.
      heap, device: as for `Worker`.
    """

    def __init__(self, seconds: float, *, heap: str = "kept", device: str = "cpu"):
        self._seconds, self._heap, self._device = seconds, heap, device
        self._workers: dict[str, Worker] = {}
        self._counts: dict[str, int] = {}
        self._cases: dict[str, Callable[[], float]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self._last: str | None = None
        self._waits: dict[str, list[tuple[float, float]]] = {}  # by process: seconds, and what it computed meanwhile

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self._workers.values():
            worker.close()

    def add(self, name: str, side: str, **arguments: Any) -> None:
        """Builds a case, runs it once to compile it and once to see how many repetitions fill a measurement.

        Args:
          name: what to call it.
          side: one of `SIDES`, or "limits".
          arguments: of the side's `build`.

        Raises:
          WorkerError: it could not be built or run.
        """
        program = SIDES.get(side, side)
        if side == "limits":
            program = {"PyTorch": "torch", "JAX": "JAX"}.get(arguments["library"], arguments["library"])
        if program not in self._workers:
            self._workers[program] = Worker(self._heap, self._device)
        worker = self._workers[program]
        start = time.perf_counter()
        about = worker.ask(build=name, side=side, arguments=arguments)["settings"]
        worker.ask(run=name, count=1)
        first = time.perf_counter() - start
        start = time.perf_counter()
        worker.ask(run=name, count=1)
        each = time.perf_counter() - start
        self._counts[name] = max(1, math.ceil(self._seconds / max(each, 1e-6)))
        self._cases[name] = functools.partial(self._measure, worker, program, name)
        self.settings[name] = about | {"heap": about["heap"], "first_seconds": round(first, 2)}
        words = ", ".join(f"{key} {value}" for key, value in about.items())
        print(f"  {name}: {words}; built and run once in {first:.1f} s", flush=True)

    def also(self, name: str, measure: Callable[[], float]) -> None:
        """A case that is measured in turn with the others, and has its own process, if it has one."""
        self._cases[name] = measure

    def _measure(self, worker: Worker, program: str, name: str) -> float:
        answer = worker.ask(run=name, count=self._counts[name])
        if self._last not in (None, program):  # it waited while another was measured
            self._waits.setdefault(program, []).append((answer["waited"], answer["used"]))
        self._last = program
        return answer["value"]

    def interleave(self, rounds: int, *, warm_up: int = 1) -> dict[str, harness.Samples]:
        """All cases in turn, see `harness.interleave`."""
        self._waits.clear()
        return harness.interleave(self._cases, rounds, warm_up=warm_up)

    def peak(self, side: str) -> float:
        """The most main memory that the side's process has held so far, MiB; all its cases together (Linux only)."""
        return float(self._workers[SIDES[side]].ask(peak=True)["value"])

    def idle(self) -> dict[str, float]:
        """The share of one core that each process took while others were measured."""
        return {
            program: sum(used for _, used in waits) / sum(waited for waited, _ in waits)
            for program, waits in self._waits.items()
        }


def build_limit(what: str, library: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A `limits.Limit` and its settings."""
    return limits.Limit(what, library, **options), {"layout": "rows"}


def build_ours(
    variant: str, batch_size: int, *, size: int | None = None, narrow: int = 1, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """An `our_networks.Case` and its settings."""
    import our_networks

    spec = our_networks.variant(variant, size=size, narrow=narrow)
    return our_networks.Case(spec, batch_size, **options), {"layout": "NHWC"}


def build_flax(
    variant: str,
    batch_size: int,
    *,
    size: int | None = None,
    narrow: int = 1,
    precision: str = "float32",
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """A `flax_networks.Case` and its settings."""
    import flax_networks
    import our_networks

    spec = our_networks.variant(variant, size=size, narrow=narrow)
    return flax_networks.Case(spec, batch_size, precision=precision, **options), {"layout": "NHWC"}


def build_torch(variant: str, batch_size: int, *, form: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A `torch_networks.Case` and its settings."""
    import torch_networks

    found = torch_networks.Case(variant, batch_size, form, **options)
    return found, {"layout": "channels-last" if found.form.channels_last else "NCHW"}


def build_torch_training(**options: Any) -> tuple[Any, dict[str, Any]]:
    """A `torch_training.Case` and its settings."""
    import torch_training

    found = torch_training.Case(**options)
    settings = {"layout": "channels-last" if found.form.channels_last else "NCHW"}
    return found, settings | {"loader_workers": options.get("workers", 0)}


def build_onnx(
    variant: str, batch_size: int, *, size: int | None = None, narrow: int = 1, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """An `onnx_networks.Case` and its settings."""
    import onnx_networks
    import our_networks

    spec = our_networks.variant(variant, size=size, narrow=narrow)
    return onnx_networks.Case(spec, batch_size, **options), {"layout": "NCHW"}


BUILD: dict[str, Callable[..., tuple[Any, dict[str, Any]]]] = {
    "limits": build_limit,
    "ours": build_ours,
    "Flax": build_flax,
    "PyTorch": build_torch,
    "PyTorch training": build_torch_training,
    "ONNX Runtime": build_onnx,
}


def _threads(side: str) -> int:
    """How many threads a side computes with."""
    if side.startswith("PyTorch"):
        import torch

        return int(torch.get_num_threads())
    return harness.cores()


def serve(heap: str, answers: TextIO) -> None:
    """Builds and measures what it is asked for, until the input ends."""
    kept = heap == "kept" and keep_heap()
    cases: dict[str, Any] = {}
    stopped, used = time.perf_counter(), time.process_time()
    for line in sys.stdin:
        waits = {"waited": time.perf_counter() - stopped, "used": time.process_time() - used}
        asked = json.loads(line)
        answer: dict[str, Any]
        try:
            if "build" in asked:
                library = asked["arguments"].get("library", asked["side"])
                if kept:
                    keep_heap_of(SIDES.get(library, library))
                case, about = BUILD[asked["side"]](**asked["arguments"])
                cases[asked["build"]] = case
                settings = {"threads": _threads(library), "heap": "kept" if kept else "stock", **about}
                answer = {"settings": settings}
            elif "peak" in asked:
                answer = {"value": harness.peak_mib()}
            else:
                answer = {"value": cases[asked["run"]].run(asked["count"]), **waits}
        except Exception as error:  # the parent decides what a failing side means
            answer = {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
        stopped, used = time.perf_counter(), time.process_time()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # What libraries print must not come between the answers.
    with os.fdopen(os.dup(1), "w") as own:
        os.dup2(2, 1)
        serve(sys.argv[1], own)
