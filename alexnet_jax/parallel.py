"""How a step is laid over devices: how many share its batch, how many share the network.

A step is written once, for one device, with the collectives of its `Layout`; on one device
they are the identity. Outside the step every array is whole: an array of the state is one
JAX array of its full shape whose last axis is spread over the towers, so that a checkpoint
of any layout opens in any other.

With two towers the scheme is that of Krizhevsky et al. 2012, section 3.5: both devices see
the whole batch, and each holds half of the kernels of every layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alexnet_jax.nn.forms import jit

DATA, TOWER = "data", "tower"
ROWS = PartitionSpec((DATA, TOWER))


@dataclasses.dataclass(frozen=True)
class Layout:
    """`data` × `towers` devices, over all processes.

    Attributes:
      data: into how many parts the batch is split; each part sees its own images.
      towers: into how many parts the network is split.
      devices: which, `data` × `towers` of them, the towers of one part of the batch side by
        side; empty for the first ones of each process.
      mapping: "jit" (one device), "pmap" (the towers of one process) or "shard_map" (all else);
        empty for the first of these that fits.

    Raises:
      ValueError: numbers below 1, more devices than there are, or a mapping that does not fit.
    """

    data: int = 1
    towers: int = 1
    devices: tuple[jax.Device, ...] = ()
    mapping: str = ""

    def __post_init__(self):
        if self.data < 1 or self.towers < 1:
            raise ValueError(f"data and towers must be at least 1, got data={self.data} and towers={self.towers}")
        devices = self.devices or _first_devices(self.data * self.towers)
        if len(devices) != self.data * self.towers:
            raise ValueError(f"data={self.data} × towers={self.towers} takes other than {len(devices)} devices")
        processes = len({device.process_index for device in devices})
        fitting = ["shard_map"]
        if self.data == 1 and self.towers > 1 and processes == 1:
            fitting.insert(0, "pmap")
        if len(devices) == 1:
            fitting.insert(0, "jit")
        if (self.mapping or fitting[0]) not in fitting:
            raise ValueError(f"mapping={self.mapping!r} does not fit data={self.data}, towers={self.towers}: {fitting}")
        object.__setattr__(self, "devices", tuple(devices))
        object.__setattr__(self, "mapping", self.mapping or fitting[0])

    @property
    def size(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    @property
    def processes(self) -> int:
        """Over how many processes the devices are spread."""
        return len({device.process_index for device in self.devices})

    @property
    def tower_axis(self) -> str | None:
        """The name of the mapped axis of the towers, for `AlexNet.tower_axis`."""
        return TOWER if self.towers > 1 else None

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices as a mesh of data × towers."""
        return Mesh(np.array(self.devices).reshape(self.data, self.towers), (DATA, TOWER))

    # Outside the step: whole arrays and where they lie.

    def is_split(self, leaf: Any) -> bool:
        """Whether an array of the state is spread over the towers: where its last axis, output channels, allows."""
        return self.towers > 1 and np.ndim(leaf) > 0 and np.shape(leaf)[-1] % self.towers == 0

    def place(self, state: Any) -> Any:
        """Puts a state's arrays, whole on the host or on a device, where the step wants them."""
        return self._put(state, self._spec)

    def place_whole(self, tree: Any) -> Any:
        """Puts arrays on every device, whole."""
        return self._put(tree, lambda _: PartitionSpec())

    def place_rows(self, rows: Any) -> Any:
        """Puts arrays whose first axis runs over this process's rows of a batch on the devices, each its own rows."""
        if self.mapping == "jit":
            return jax.device_put(rows)
        sharding = NamedSharding(self.mesh, ROWS)
        if self.processes == 1:
            return jax.device_put(rows, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), rows)

    def fetch(self, state: Any) -> Any:
        """The state on the host, whole; where there are several processes, in each, and each must call it."""
        return jax.device_get(state) if self.processes == 1 else multihost_utils.process_allgather(state, tiled=True)

    def _put(self, tree: Any, spec: Callable[[Any], PartitionSpec]) -> Any:
        if self.mapping == "jit":
            return jax.tree.map(jnp.asarray, tree)
        if self.processes == 1:
            return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(self.mesh, spec(x))), tree)

        def put(x: Any) -> jax.Array:
            host = np.asarray(x)
            return jax.make_array_from_callback(host.shape, NamedSharding(self.mesh, spec(x)), lambda at: host[at])

        return jax.tree.map(put, tree)

    def _spec(self, leaf: Any) -> PartitionSpec:
        return PartitionSpec(*[None] * (np.ndim(leaf) - 1), TOWER) if self.is_split(leaf) else PartitionSpec()

    def compile(self, function: Callable[..., Any], like: Any, *, updates: bool) -> Callable[..., Any]:
        """Compiles what one device does into what all do: (state, whole, *rows) -> (state, totals) or totals.

        Args:
          function: (state, whole, *rows) -> (state, totals) with the device's share of the state
            and its rows; the totals are the same on all devices.
          like: the whole state, or `jax.ShapeDtypeStruct`s of it.
          updates: whether the function returns a state too; the old one's memory is then taken over.
        """
        donated = (0,) if updates else ()
        if self.mapping == "jit":
            return jit(function, donate_argnums=donated)
        placed = jax.tree.map(lambda x: NamedSharding(self.mesh, self._spec(x)), like)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        mapped = self._pmapped if self.mapping == "pmap" else self._shard_mapped
        return jit(
            mapped(function, updates),
            donate_argnums=donated,
            out_shardings=(placed, everywhere) if updates else everywhere,
        )

    def _shard_mapped(self, function: Callable[..., Any], updates: bool) -> Callable[..., Any]:
        def step(state: Any, whole: Any, *rows: Any) -> Any:
            specs = jax.tree.map(self._spec, state)
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(specs, PartitionSpec(), *(ROWS for _ in rows)),
                out_specs=(specs, PartitionSpec()) if updates else PartitionSpec(),
                check_vma=False,  # the one meaning that pmap has too: see `gradient_sum`
            )(state, whole, *rows)

        return step

    def _pmapped(self, function: Callable[..., Any], updates: bool) -> Callable[..., Any]:
        """pmap wants an axis of its own: (…, C) is seen as (…, towers, C / towers), at no cost where it lies so."""

        def step(state: Any, whole: Any, *rows: Any) -> Any:
            leaves, tree = jax.tree.flatten(state)
            axes = [x.ndim - 1 if self.is_split(x) else None for x in leaves]

            def one(leaves: list[jax.Array], whole: Any, *rows: Any) -> Any:
                found = function(jax.tree.unflatten(tree, leaves), whole, *rows)
                return (jax.tree.leaves(found[0]), found[1]) if updates else found

            mapped = jax.pmap(
                one,
                axis_name=TOWER,
                in_axes=(axes, None, *(0 for _ in rows)),
                out_axes=(axes, None) if updates else None,
                devices=self.devices,
            )
            apart = [x.reshape(*x.shape[:-1], self.towers, -1) if self.is_split(x) else x for x in leaves]
            found = mapped(apart, whole, *(x.reshape(self.towers, -1, *x.shape[1:]) for x in rows))
            if not updates:
                return found
            after = [x.reshape(like.shape) for x, like in zip(found[0], leaves, strict=True)]
            return jax.tree.unflatten(tree, after), found[1]

        return step

    # Inside the step: what devices tell each other.

    def all_rows(self, rows: Any) -> Any:
        """The rows of the part of the batch that a device's tower works on; each tower was fed its share."""
        if self.towers == 1:
            return rows
        return jax.tree.map(lambda x: lax.all_gather(x, TOWER, axis=0, tiled=True), rows)

    def first_row(self, count: int) -> jax.Array | int:
        """The number in the whole batch of the first of a part's `count` rows."""
        return 0 if self.data == 1 else lax.axis_index(DATA) * count

    def total(self, tree: Any) -> Any:
        """Sums over the parts of the batch."""
        return tree if self.data == 1 else lax.psum(tree, DATA)

    def gradient_sum(self, grads: Any, like: Any) -> Any:
        """The gradient of the whole batch's loss, from what each device found.

        A device differentiates the loss of its part of the batch, divided by `towers`: the
        transposed gathers add up what each tower's copy of the loss asks for. What is whole on
        every tower has had no gather, so its shares are added here.

        Args:
          grads: a device's.
          like: the whole parameters, or their shapes.
        """

        def add(grad: jax.Array, whole: Any) -> jax.Array:
            axes = [DATA] * (self.data > 1) + [TOWER] * (self.towers > 1 and not self.is_split(whole))
            return lax.psum(grad, tuple(axes)) if axes else grad

        return jax.tree.map(add, grads, like)

    def any(self, wishes: jax.Array) -> jax.Array:
        """Of wishes (1, n) of 0 or 1, one row a device, those that some device has, (n,)."""
        return lax.pmax(wishes[0], (DATA, TOWER))


def _first_devices(count: int) -> list[jax.Device]:
    """The same number of devices of each process, in the order of the processes.

    Raises:
      ValueError: there are too few, or the processes can't have the same number.
    """
    processes = jax.process_count()
    by_process = [[d for d in jax.devices() if d.process_index == number] for number in range(processes)]
    each, rest = divmod(count, processes)
    if rest:
        raise ValueError(f"{count} devices can't be shared evenly by {processes} processes")
    fewest = min(map(len, by_process))
    if fewest < max(map(len, by_process)):
        counts = ", ".join(map(str, map(len, by_process)))
        raise ValueError(
            f"the processes have different numbers of devices ({counts}): let each see as many, "
            "by CUDA_VISIBLE_DEVICES or JAX_LOCAL_DEVICE_IDS"
        )
    if each > fewest:
        found = ", ".join(f"{device.platform}:{device.id}" for device in jax.local_devices())
        where = "" if processes == 1 else f" in each of {processes} processes"
        raise ValueError(f"{each} devices are needed{where}, and there are {fewest} ({found})")
    return [device for devices in by_process for device in devices[:each]]
