"""Steps in float64 over two processes, beside the same on one device: a program for `test_layouts_apart`.

    layout_worker.py VARIANT STEPS PORT LAYOUTS PROCESS

Prints a JSON line for each layout: its data and towers, and by how much losses, parameters and momentum differ from
those of one device, relative to the largest number of each array.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import create_model
from alexnet_jax.data.views import Augmentation, colour_directions
from alexnet_jax.parallel import Layout
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import OptimizerConfig
from alexnet_jax.training.optimizer import make_optimizer
from alexnet_jax.training.schedules import make_schedule

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import builders

BATCH, CLASSES = 8, 10


def trained(spec, layout: Layout, count: int, index: int = 0, processes: int = 1):
    """The losses of so many steps and the state after them, on the host."""
    model = create_model(spec, num_classes=CLASSES, param_dtype=jnp.float64, rngs=1)
    graph, params = steps.split(model, layout.tower_axis)
    given = builders.parameters(spec, CLASSES)
    given["conv1"]["kernel"] /= 70  # the images' standard deviation
    params = jax.tree.map(lambda x, found: jnp.asarray(found, x.dtype), params, given)
    config = OptimizerConfig(learning_rate=0.0005)
    optimizer, schedule = (
        make_optimizer(config, list(params)),
        make_schedule(config, 2, num_steps=9, layers=list(params)),
    )
    initial = steps.init_state(params, optimizer, schedule)
    step = steps.make_train_step(
        graph,
        spec.input,
        optimizer,
        schedule,
        seed=3,
        augmentation=Augmentation(flip=True, colour_noise="paper"),
        directions=colour_directions("paper", np.array([100.0, 400.0, 2500.0]), np.eye(3)),
        layout=layout,
        like=initial,
    )
    draw, side = np.random.default_rng(0), spec.input.size + 9
    mean_image = layout.place_whole(jnp.asarray(draw.uniform(90, 140, (side, side, 3)), jnp.float32))
    state, losses = layout.place(jax.tree.map(jnp.copy, initial)), []
    own = slice(index * BATCH // processes, (index + 1) * BATCH // processes)
    for _ in range(count):
        images = draw.integers(0, 256, (BATCH, side, side, 3), np.uint8)
        labels = draw.integers(0, CLASSES, BATCH, np.int32)
        rows = layout.place_rows((images[own], labels[own], np.ones(BATCH, bool)[own]))
        state, metrics = step(state, mean_image, *rows)
        losses.append(float(metrics["loss"]))
    return np.array(losses), layout.fetch(state)


def main(variant: str, count: str, port: str, layouts: str, process: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    spec = builders.narrow(variant)
    expected = jax.tree.leaves(trained(spec, Layout(devices=(jax.local_devices()[0],)), int(count)))
    for data, towers in json.loads(layouts):
        found = jax.tree.leaves(trained(spec, Layout(data, towers), int(count), int(process), 2))
        apart = [
            float(np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-300))
            for x, y in zip(map(np.asarray, found), map(np.asarray, expected), strict=True)
        ]
        floats = sum(np.asarray(x).dtype == np.float64 for x in found)
        line = {"data": data, "towers": towers, "floats": floats, "apart": max(apart), "losses": found[0].tolist()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*sys.argv[1:])
