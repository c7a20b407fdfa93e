"""Runs of a few steps under a layout, with every gradient, to compare with the same on one device."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from models.builders import build, distance, parameters

from alexnet_jax import ModelSpec, get_spec
from alexnet_jax.data.views import Augmentation, colour_directions
from alexnet_jax.parallel import Layout
from alexnet_jax.training import optimizer as optimizers
from alexnet_jax.training import schedules
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import OptimizerConfig

NAMES = ("paper", "source2012", "bvlc_alexnet", "caffenet")
LAYOUTS = {
    "1x1 shard_map": (1, 1, "shard_map"),
    "1x2 pmap": (1, 2, "pmap"),
    "1x2 shard_map": (1, 2, "shard_map"),
    "2x1": (2, 1, "shard_map"),
    "2x2": (2, 2, "shard_map"),
    "4x1": (4, 1, "shard_map"),
}
AUGMENTATIONS = {  # Caffe's networks were trained without colour noise
    "paper": Augmentation(flip=True, colour_noise="paper"),
    "source2012": Augmentation(flip=True, colour_noise="source2012", shared_draw=3),  # shared across parts of a batch
}
CLASSES = 10
EIGEN = np.array([100.0, 400.0, 2500.0]), np.eye(3)


def layout(name: str) -> Layout:
    """One of `LAYOUTS`."""
    data, towers, mapping = LAYOUTS[name]
    return Layout(data, towers, mapping=mapping)


def eighth(name: str, size: int = 67) -> ModelSpec:
    """A variant with an eighth of its kernels and hidden units, on small images."""
    spec = get_spec(name).at_image_size(size)
    spec = dataclasses.replace(spec, input=dataclasses.replace(spec.input, resize=size + 7))
    for layer, conv in zip(spec.conv_names(), spec.convs, strict=True):
        spec = spec.with_layer(layer, features=conv.features // 8)
    return spec.with_dense(features=spec.dense[0].features // 8)


def with_gradients(optimizer: Any) -> Any:
    """An optimizer whose state is (the gradients that it was given, its own)."""

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, own = optimizer.update(grads, state[1], params, **extra)
        return updates, (grads, own)

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params), optimizer.init(params)

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of training, to be laid over devices.

    Attributes:
      spec: the network; AUGMENTATIONS has what is done to its images.
      classes: the width of the logits.
      dtype: of the parameters.
      forms: see `AlexNet.forms`.
      learning_rate: None leaves the update out.
      keep_gradients: whether the optimizer's state has them.
      accumulate_steps: parts of a step.
    """

    spec: ModelSpec
    classes: int = CLASSES
    dtype: str = "float64"
    forms: str = "auto"
    learning_rate: float | None = 2e-6
    keep_gradients: bool = True
    accumulate_steps: int = 1

    def batch(self, number: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images of noise, labels, the mask."""
        draw, side = np.random.default_rng([number, count]), self.spec.input.resize
        images = draw.integers(0, 256, (count, side, side, 3), np.uint8)
        return images, draw.integers(0, self.classes, count, np.int32), np.ones(count, bool)

    def mean_image(self) -> np.ndarray:
        """A mean image that is not flat."""
        side = self.spec.input.resize
        return np.random.default_rng(9).uniform(90, 140, (side, side, 3)).astype(np.float32)

    def step(self, layout: Layout) -> tuple[Any, steps.TrainState]:
        """The compiled step, and the whole state before it."""
        whole = parameters(self.spec, self.classes)
        whole["conv1"]["kernel"] /= self.spec.input.scale / 4  # so that the logits are of order 1
        model = build(self.spec, whole, dtype=self.dtype, forms=self.forms)
        graph, params = steps.split(model, layout.tower_axis)
        config = OptimizerConfig(learning_rate=self.learning_rate or 1.0)
        optimizer = optimizers.make_optimizer(config, list(params))
        if self.learning_rate is None:
            optimizer = optax.with_extra_args_support(optax.set_to_zero())
        if self.keep_gradients:
            optimizer = with_gradients(optimizer)
        schedule = schedules.make_schedule(config, 2, num_steps=99, layers=list(params))
        initial = steps.init_state(params, optimizer, schedule)
        augmentation = AUGMENTATIONS.get(self.spec.name, Augmentation(flip=True))
        noise = augmentation.colour_noise
        step = steps.make_train_step(
            graph,
            self.spec.input,
            optimizer,
            schedule,
            seed=3,
            augmentation=augmentation,
            directions=None if noise is None else colour_directions(noise, *EIGEN),
            accumulate_steps=self.accumulate_steps,
            layout=layout,
            like=initial,
        )
        return step, initial

    def train(self, layout: Layout, num_steps: int, batch_size: int = 8) -> tuple[list[Any], steps.TrainState]:
        """(metrics, state) on the host after each step, and the last state as it lies on the devices."""
        step, initial = self.step(layout)
        state, mean = layout.place(initial), layout.place_whole(jnp.asarray(self.mean_image()))
        found = []
        for number in range(num_steps):
            state, metrics = step(state, mean, *layout.place_rows(self.batch(number, batch_size)))
            found.append((jax.device_get(metrics), layout.fetch(state)))
        return found, state

    def lowered(self, layout: Layout, batch_size: int) -> Any:
        """The step before its compilation, of shapes alone."""
        step, initial = self.step(layout)
        arguments = (layout.place(initial), layout.place_whole(jnp.asarray(self.mean_image())))
        return step.lower(*arguments, *layout.place_rows(self.batch(0, batch_size)))


def assert_same(found: list[Any], wanted: list[Any], tolerance: float = 1e-10) -> None:
    """Every metric, gradient, parameter and momentum after every step, each array relative to its norm."""
    assert len(found) == len(wanted) > 0
    for number, (one, other) in enumerate(zip(found, wanted, strict=True), 1):
        leaves, expected = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
        for (path, a), (where, b) in zip(leaves, expected, strict=True):
            assert path == where
            apart = f"step {number}, {jax.tree_util.keystr(path)}"
            assert np.shape(a) == np.shape(b), apart
            assert a.dtype == b.dtype, apart
            if np.any(b):
                assert distance(a, b) <= tolerance, apart
            else:
                assert not np.any(a), apart
