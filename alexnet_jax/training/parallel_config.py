"""The section `parallel` of a configuration: over which devices and processes a run is laid."""

from __future__ import annotations

import dataclasses

import jax

from alexnet_jax.parallel import Layout
from alexnet_jax.training.schema import ConfigError
from alexnet_jax.training.schema import key as _key
from alexnet_jax.training.schema import positive as _positive


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Devices and processes."""

    data: int | None = _positive(
        None,
        "parts into which each batch is split, each for a device of its own, or for `towers` devices; None: as many "
        "as divide the batch, of the GPUs of all processes; on a CPU as few as there can be",
        unit="parts",
        may_change=True,
    )
    towers: int = _positive(
        1,
        "parts into which the network is split, each for a device of its own: 2 is the paper's scheme",
        unit="parts",
        may_change=True,
    )
    distributed: bool = _key(
        False,
        "this is one of the processes that a cluster (Slurm, Open MPI, ...) started for the run: JAX finds the others",
        may_change=True,
    )
    coordinator: str | None = _key(
        None,
        "HOST:PORT of process 0 of a run of several processes, where no cluster says it; with processes and process",
        may_change=True,
    )
    processes: int | None = _positive(None, "how many processes the run has", unit="processes", may_change=True)
    process: int | None = _key(
        None,
        "the number of this process, from 0; process 0 writes the workdir",
        allowed="at least 0",
        check=lambda value: value >= 0,
        may_change=True,
    )


def make_layout(choice: ParallelConfig, batch_size: int) -> Layout:
    """The layout that a configuration asks for, on the devices that there are.

    Raises:
      ConfigError: more devices than there are, or a batch that can't be split so.
    """
    towers, data = choice.towers, choice.data
    if data is None:
        data = _parts(towers, batch_size)
    if batch_size % data:
        near = [size for size in (batch_size // data * data, -(-batch_size // data) * data) if size]
        raise ConfigError(
            f"config.batch_size={batch_size} can't be split into config.parallel.data={data} equal parts: "
            f"the nearest sizes that can are {' and '.join(map(str, near))}"
        )
    try:
        return Layout(data, towers)
    except ValueError as error:
        count = data * towers
        raise ConfigError(
            f"config.parallel.data={data} with config.parallel.towers={towers} takes {count} devices: {error}. Lower "
            "them; or, to try it without that many devices, start the same command with JAX_PLATFORMS=cpu "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={-(-count // jax.process_count())}"
        ) from None


def _parts(towers: int, batch_size: int) -> int:
    """Into how many parts a batch is split where nobody says it; of a CPU's emulated devices one is the fastest.

    Raises:
      ConfigError: the processes can't share the batch equally.
    """
    processes, local = jax.process_count(), jax.local_device_count()
    most = range(local, 0, -1)
    each = most if jax.default_backend() != "cpu" else range(1, max(towers, local) + 1)
    for devices in (number * processes for number in each):
        if devices % towers == 0 and batch_size % (devices // towers) == 0:
            return devices // towers
    if processes == 1:
        return 1  # too few devices for the towers: the layout says so
    raise ConfigError(
        f"config.batch_size={batch_size} can't be shared equally by {processes} processes with "
        f"config.parallel.towers={towers}: take a multiple of {processes}"
    )


def describe(layout: Layout) -> str:
    """The layout in words, for the beginning of a run."""
    if layout.size == 1:
        return "one device holds the whole batch and the whole network"
    where = f"{layout.size} devices" + (f" of {layout.processes} processes" if layout.processes > 1 else "")
    parts = []
    if layout.data > 1:
        parts.append(f"the batch in {layout.data} parts")
    if layout.towers > 1:
        parts.append(f"the network in {layout.towers} towers")
    return f"{where}: {', '.join(parts)} ({layout.mapping})"
