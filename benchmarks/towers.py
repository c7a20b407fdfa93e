"""What the layouts cost: a training step in two towers, and in parts of the batch, against one device.

    python benchmarks/towers.py [--quick] [--json FILE] [--model paper] [--batch-size 32]

On a host with two GPUs or more these are its devices. On a CPU two devices are emulated, which
share its cores: the step then has the same arithmetic to do, and what is more than that is the
scheme's own cost. Each case is the step of `train.py`, at full size, with views and dropout,
float32. The peers:

- one device: the same step on one of the devices (on a CPU it uses all cores too);
- plain jit: a step written out by hand from the same pieces, without anything of layouts.

The last rows say which share of the two-tower step goes into collectives, from a profiler's
trace. On emulated devices that is mostly waiting for the other device.
"""

from __future__ import annotations

import functools
import os
import sys

if "--help" not in sys.argv:  # before JAX starts
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}".strip()

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import our_networks
from flax import nnx

from alexnet_jax import create_model, evaluation, keys
from alexnet_jax.data.views import Augmentation, training_view, view_keys
from alexnet_jax.models import ModelSpec
from alexnet_jax.nn.forms import jit
from alexnet_jax.parallel import Layout
from alexnet_jax.training import optimizer as optimizers
from alexnet_jax.training import schedules
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import OptimizerConfig

CLASSES, AUGMENTATION = 1000, Augmentation(flip=True)
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")


class Case:
    """A compiled step with its state on the devices of a layout."""

    def __init__(
        self, spec: ModelSpec, batch_size: int, layout: Layout, make: Callable[..., Any] = steps.make_train_step
    ):
        model = create_model(spec, num_classes=CLASSES, rngs=0)
        graph, params = steps.split(model, layout.tower_axis)
        config = OptimizerConfig()
        optimizer = optimizers.make_optimizer(config, list(params))
        schedule = schedules.make_schedule(config, 100, num_steps=100, layers=list(params))
        state = steps.init_state(params, optimizer, schedule)
        options = {} if make is plain_step else {"layout": layout, "like": state}
        self._step = make(graph, spec.input, optimizer, schedule, seed=0, augmentation=AUGMENTATION, **options)
        self._size = batch_size
        draw = np.random.default_rng(0)
        side = spec.input.resize
        self._state = layout.place(state)
        self._mean = layout.place_whole(jnp.full((side, side, 3), 120, jnp.float32))
        images = draw.integers(0, 256, (batch_size, side, side, 3), np.uint8)
        labels = draw.integers(0, CLASSES, batch_size, np.int32)
        self._batch = layout.place_rows((images, labels, np.ones(batch_size, bool)))

    def run(self, count: int) -> float:
        """Images a second over so many steps."""
        start = time.perf_counter()
        for _ in range(count):
            self._state, metrics = self._step(self._state, self._mean, *self._batch)
        jax.block_until_ready((self._state, metrics))
        return count * self._size / (time.perf_counter() - start)

    def collectives(self, count: int) -> tuple[float, float]:
        """Shares of the devices' busy time, from a trace of so many steps: inside collectives, and waiting there."""
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(count)
            (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
            found = jax.profiler.ProfileData.from_file(str(path))
        inside = waiting = total = 0.0
        for event in (event for plane in found.planes for line in plane.lines for event in line.events):
            if event.name.startswith("Wait: pending_threads"):  # of a CPU's collective, for the other device
                waiting += event.duration_ns
            elif any(name == "hlo_op" for name, _ in event.stats) and not event.name.startswith("end: "):
                total += event.duration_ns
                inside += event.duration_ns * event.name.replace("_", "-").startswith(COLLECTIVES)
        return inside / total, waiting / total


def plain_step(
    graph: Any, contract: Any, optimizer: Any, schedule: Any, *, seed: int, augmentation: Augmentation
) -> Callable[..., Any]:
    """The training step as one would write it for one device."""

    def step(state: Any, mean_image: jax.Array, images: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
        settings = schedule.settings(state.step, state.schedule)
        rows = jnp.arange(len(labels))
        views = view_keys(seed, state.step, rows, augmentation)
        drops = keys.for_step(seed, keys.Purpose.DROPOUT, state.step, rows)
        x = training_view(images, views, contract, mean_image, augmentation)

        def loss(params: Any) -> Any:
            totals = evaluation.sums(nnx.merge(graph, params)(x, train=True, dropout_key=drops), labels, mask)
            return totals["loss"] / totals["count"], totals

        grads, totals = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, rates=settings.rates)
        params = optax.apply_updates(state.params, updates)
        return steps.TrainState(state.step + 1, params, opt_state, state.schedule), totals

    return jit(step, donate_argnums=0)


def main() -> None:
    """Measures, prints, writes."""
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="paper", help="a variant with two towers")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    rounds, count = (1, 1) if arguments.quick else (7, 2 if jax.default_backend() == "cpu" else 50)
    emulated = jax.default_backend() == "cpu"
    report = harness.Report(
        arguments,
        "Layouts: images a second of a training step",
        model=arguments.model,
        batch_size=arguments.batch_size,
        devices=f"{len(jax.devices())} × {jax.devices()[0].device_kind}{' (emulated)' if emulated else ''}",
    )
    layouts = {"one device": Layout()}
    if len(jax.devices()) > 1:
        layouts |= {
            "two towers, pmap": Layout(towers=2),
            "two towers, shard_map": Layout(towers=2, mapping="shard_map"),
            "two parts of the batch": Layout(data=2),
        }
    spec = our_networks.variant(arguments.model, **({"size": 67, "narrow": 8} if arguments.quick else {}))
    cases = {name: Case(spec, arguments.batch_size, layout) for name, layout in layouts.items()}
    cases["plain jit"] = Case(spec, arguments.batch_size, Layout(), plain_step)
    found = harness.interleave({name: functools.partial(case.run, count) for name, case in cases.items()}, rounds)
    one, plain = found["one device"], found["plain jit"]
    report.add(harness.row("one device", one, plain, "a plain jit step", "images/s", target=1 / 1.02))
    for name in list(layouts)[1:]:
        target = 1 / 1.05 if emulated and "towers" in name else None
        report.add(harness.row(name, found[name], one, "the step on one device", "images/s", target=target))
    if "two towers, pmap" in cases:
        inside, waiting = cases["two towers, pmap"].collectives(count)
        words = f", {waiting:.1%} waiting there for the other device" if emulated else ""
        report.note(f"of the two-tower step's busy time {inside:.1%} is inside collectives{words} (pmap, from a trace)")
    report.finish()


if __name__ == "__main__":
    main()
