"""The processes of a run, on one or several hosts, and what they tell each other.

Words (JSON) go through the service at which JAX's processes meet, which waits for as long as
somebody needs; arrays go between the devices. Every process makes the same calls in the same
order.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.parallel import Layout
from alexnet_jax.training.errors import LostProcess, RunError
from alexnet_jax.training.parallel_config import ParallelConfig
from alexnet_jax.training.schema import ConfigError

LOST_AFTER = 30  # seconds of silence after which JAX ends the processes that are left
JOINED_WITHIN = 300  # seconds that the processes may take to start
_RUNS = itertools.count(1)  # of this process: what they say has other keys in each
# What the runtime's errors say when another process is gone: the service, gloo on a CPU, NCCL on a GPU.
_LOST = ("UNAVAILABLE", "ABORTED", "CANCELLED", "Gloo", "NCCL", "nccl", "onnection", "heartbeat", "coordination")


class Team:
    """The processes of a run. Most runs have one, and then nothing here does anything.

    Attributes:
      index: the number of this process.
      count: how many there are.
    """

    def __init__(self, index: int = 0, count: int = 1, *, run: int = 0):
        self.index, self.count = index, count
        self._run, self._calls = run, 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes: the workdir, the terminal."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def ask(self, value: Any) -> list[Any]:
        """What each process says (JSON), in their order."""
        if self.alone:
            return [value]
        self._say(value)
        return [self._hear(index) for index in range(self.count)]

    def told(self, value: Any) -> Any:
        """What the first process says (JSON)."""
        if self.alone:
            return value
        self._say(value if self.first else None)
        return self._hear(0)

    def by_first(self, function: Callable[[], Any]) -> Any:
        """What a function returns (JSON) in the first process, the only one that calls it; its error ends all."""
        return self._together(function, only_first=True)

    def by_all(self, function: Callable[[], Any]) -> Any:
        """What a function returns here, once it has returned in every process; an error in one ends all."""
        return self._together(function, only_first=False)

    def _together(self, function: Callable[[], Any], *, only_first: bool) -> Any:
        if self.alone:
            return function()
        value, error = None, None
        if self.first or not only_first:
            try:
                value = function()
                if only_first:
                    json.dumps(value)
            except Exception as caught:
                error = caught
        words = None if error is None else {"text": str(error) or repr(error), "run": isinstance(error, RunError)}
        outcome = {"value": value if only_first else None, "error": words}
        outcomes = [self.told(outcome)] if only_first else self.ask(outcome)
        if error is not None:
            raise _agreed(error)
        for index, other in enumerate(outcomes):
            if other["error"] is not None:
                kind = RunError if other["error"]["run"] else ConfigError
                raise _agreed(kind(f"process {index}: {other['error']['text']}"))
        return outcomes[0]["value"] if only_first else value

    def _say(self, value: Any) -> None:
        text = json.dumps(value)
        self._calls += 1
        _service().key_value_set(self._key(self.index), text)

    def _key(self, index: int) -> str:
        return f"alexnet_jax/{self._run}/{self._calls}/{index}"

    def _hear(self, index: int) -> Any:
        while True:  # a second at a time, so that signals are heard
            try:
                return json.loads(_service().blocking_key_value_get(self._key(index), 1000))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def share(self, tree: Any) -> Any:
        """The first process's arrays of the host, in each; the others give arrays of the same shapes and dtypes."""
        if self.alone:
            return tree
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
        # As bytes: what is added to zeros on the way keeps neither the sign of a zero nor every NaN.
        sent = multihost_utils.broadcast_one_to_all([np.frombuffer(x.tobytes(), np.uint8) for x in leaves])
        found = [
            np.frombuffer(np.asarray(bits).tobytes(), x.dtype).reshape(x.shape)
            for bits, x in zip(sent, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, found)

    def wishes(self, layout: Layout, *wishes: bool) -> tuple[Any, ...]:
        """What this process would have all do, as a further argument of a step; nothing where it is alone."""
        if self.alone:
            return ()
        mine = np.tile(np.array(wishes, np.int32), (layout.size // self.count, 1))
        return (layout.place_rows(mine),)

    @staticmethod
    def granted(metrics: dict[str, Any]) -> list[bool]:
        """The wishes that some process had at a step, from its metrics: the same in every process."""
        return [bool(wish) for wish in np.asarray(metrics["wishes"])]

    @contextlib.contextmanager
    def losses_in_words(self) -> Iterator[None]:
        """Turns what the runtime says when another process is gone into a `LostProcess`."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.alone or not any(sign in str(error) for sign in _LOST):
                raise
            raise LostProcess(
                f"process {self.index} of {self.count} can't go on: another one has ended or can't be reached. Start "
                "all of them again: the run resumes from its last checkpoint. The runtime says: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error


def join(choice: ParallelConfig) -> Team:
    """Meets the other processes of the run, if it has any; before JAX starts its devices.

    Raises:
      ConfigError: not all that is needed is said, no cluster was found, or the others did not come.
    """
    explicit = {name: getattr(choice, name) for name in ("coordinator", "processes", "process")}
    missing = [f"config.parallel.{name}" for name, value in explicit.items() if value is None]
    if jax.distributed.is_initialized():
        return Team(jax.process_index(), jax.process_count(), run=next(_RUNS))
    if not choice.distributed and len(missing) == 3:
        return Team()
    if choice.distributed and len(missing) < 3:
        raise ConfigError(
            "config.parallel.distributed=True leaves the processes to the cluster: "
            "leave out config.parallel.coordinator, .processes and .process"
        )
    if not choice.distributed and missing:
        raise ConfigError(f"a run of several processes needs {', '.join(missing)} too")
    if choice.process is not None and choice.processes is not None and choice.process >= choice.processes:
        raise ConfigError(
            f"config.parallel.process={choice.process}: the {choice.processes} processes are numbered from 0"
        )
    if choice.coordinator is not None and not choice.coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"config.parallel.coordinator={choice.coordinator!r}: must be HOST:PORT")
    # JAX ends a process that waits in vain itself, with words of its own.
    words = f"waiting for the other processes of the run, up to {JOINED_WITHIN} s"
    patience = threading.Timer(10, lambda: print(words, file=sys.stderr, flush=True))
    patience.start()
    try:
        jax.distributed.initialize(
            choice.coordinator,
            choice.processes,
            choice.process,
            initialization_timeout=JOINED_WITHIN,
            heartbeat_timeout_seconds=LOST_AFTER,
            shutdown_timeout_seconds=LOST_AFTER,
        )
    except ValueError as error:
        if not choice.distributed:
            raise ConfigError(f"the processes of the run can't meet: {error}") from None
        raise ConfigError(
            "config.parallel.distributed=True, but JAX finds no cluster (Slurm's srun, Open MPI's mpirun, ...) around "
            "this process: set config.parallel.coordinator, .processes and .process"
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"the processes of the run did not meet ({' '.join(str(error).split())[:300]}): see to it that all of them "
            "run, that their numbers differ, and that process 0 can be reached"
        ) from None
    finally:
        patience.cancel()
    return Team(jax.process_index(), jax.process_count(), run=next(_RUNS))


def _agreed(error: Exception) -> Exception:
    """Marks an error that ends all processes."""
    error.__dict__["agreed"] = True
    return error


def leave(code: int, error: Exception | None = None) -> int:
    """Ends a process of whose end the others know nothing: JAX would have it wait for them.

    Alone, or where the error ends all of them, it returns the code.
    """
    if jax.distributed.is_initialized() and not getattr(error, "agreed", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def check_the_same(team: Team, what: str, mine: dict[str, Any]) -> None:
    """Refuses processes that are not of one mind.

    Args:
      team: the processes.
      what: it is about, for the error.
      mine: this process's names and values (JSON), which all must have.

    Raises:
      ConfigError: in every process, with the first names that differ and their values.
    """
    first, *others = team.ask(mine)
    for index, other in enumerate(others, 1):
        names = [name for name in sorted({*first, *other}) if first.get(name) != other.get(name)]
        if names:
            pairs = "; ".join(f"{name}: {first.get(name)!r} in process 0, {other.get(name)!r}" for name in names[:3])
            words = f"process {index} has another {what} than process 0 ({pairs}): start all with the same"
            raise _agreed(ConfigError(words))


def _service() -> Any:
    """The client of the service at which the processes meet."""
    from jax._src import distributed  # there is no public name for it

    return distributed.global_state.client
