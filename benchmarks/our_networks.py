"""Our networks, with random images that stay on the device: the side of `step.py` and others that is ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from alexnet_jax import create_model, get_spec
from alexnet_jax.data.views import Augmentation
from alexnet_jax.models import ModelSpec
from alexnet_jax.models.summary import layer_table
from alexnet_jax.nn.forms import jit
from alexnet_jax.trained import PRECISIONS
from alexnet_jax.training import optimizer as optimizers
from alexnet_jax.training import schedules
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import OptimizerConfig
from alexnet_jax.training.model_config import ModelConfig, changed

WORK = ("training", "program", "forward")
AUGMENTATION = Augmentation(flip=True)


def variant(name: str, *, size: int | None = None, narrow: int = 1) -> ModelSpec:
    """A variant's spec for images of another size, with every width divided by `narrow`."""
    spec = get_spec(name) if size is None else get_spec(name).at_image_size(size)
    return changed(spec, ModelConfig(width=1 / narrow, hidden_width=1 / narrow, init=None))


def operations(spec: ModelSpec, classes: int = 1000, *, training: bool = True) -> int:
    """Floating-point operations of one image: two for each multiply-accumulate of convolutions and linear layers.

    Training adds each layer's gradient of its parameters and, but for conv1, of its input: as much each.
    """
    counts = {row.layer: 2 * row.macs for row in layer_table(spec, classes)}
    return 3 * sum(counts.values()) - counts["conv1"] if training else sum(counts.values())


class Case:
    """A network with random images that stay on the device.

    Args:
      spec: any variant.
      batch_size: images.
      work: "training" is the work that PyTorch does in a step: float images to loss, gradient,
        momentum update. "program" is the step of `train.py`, which has in it the views (crop,
        mirroring, mean image) of prepared uint8 images, and top-1 and top-5 errors. "forward" is
        inference.
      forms: of the model.
      precision: "float32" (true), "tf32" (GPU) or "bfloat16" (computation; float32 parameters).
      classes: width of the logits.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batch_size: int,
        work: str = "training",
        *,
        forms: str = "auto",
        precision: str = "float32",
        classes: int = 1000,
    ):
        self.batch_size, self._precision = batch_size, PRECISIONS[precision]
        dtype = jnp.bfloat16 if precision == "bfloat16" else None
        model = create_model(spec, num_classes=classes, dtype=dtype, forms=forms)
        graph, params = steps.split(model)
        draw = np.random.default_rng(0)
        labels = jnp.asarray(draw.integers(0, classes, batch_size, np.int32))
        side = spec.input.resize if work == "program" else spec.input.size
        shape = (batch_size, side, side, 3)
        if work == "program":
            images = jnp.asarray(draw.integers(0, 256, shape, np.uint8))
        else:
            images = jnp.asarray(draw.standard_normal(shape, np.float32))
        make = {"training": _training, "program": _program, "forward": _forward}[work]
        self._step: Callable[[], Any] = make(graph, params, spec, images, labels)

    def run(self, count: int) -> float:
        """Images a second over so many steps, or forward passes."""
        result: Any = None
        with jax.default_matmul_precision(self._precision):
            start = time.perf_counter()
            for _ in range(count):
                result = self._step()
            jax.block_until_ready(result)
            return count * self.batch_size / (time.perf_counter() - start)


def _training(
    graph: nnx.GraphDef, params: Any, spec: ModelSpec, images: jax.Array, labels: jax.Array
) -> Callable[[], Any]:
    """Loss, gradient and the product's update, the state's memory taken over."""
    optimizer = optimizers.make_optimizer(OptimizerConfig(), list(params))
    rates = {"weights": jnp.float32(0.01), "biases": jnp.float32(0.01)}
    state = (params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(state: Any, rates: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, opt_state, number = state
        drops = jax.random.fold_in(jax.random.key(0), number)

        def loss_fn(params: Any) -> jax.Array:
            logits = nnx.merge(graph, params)(images, train=True, dropout_key=drops).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params, rates=rates)
        return (optax.apply_updates(params, updates), opt_state, number + 1), loss

    compiled = jit(step, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state, loss = compiled(state, rates, images, labels)
        return state, loss

    return run


def _program(
    graph: nnx.GraphDef, params: Any, spec: ModelSpec, images: jax.Array, labels: jax.Array
) -> Callable[[], Any]:
    """The step of `train.py`."""
    config = OptimizerConfig()
    optimizer = optimizers.make_optimizer(config, list(params))
    schedule = schedules.make_schedule(config, 100, num_steps=100, layers=list(params))
    state = steps.init_state(params, optimizer, schedule)
    compiled = steps.make_train_step(graph, spec.input, optimizer, schedule, seed=0, augmentation=AUGMENTATION)
    mean = jnp.full(images.shape[1:], 120, jnp.float32)
    mask = jnp.ones(len(labels), bool)

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, mean, images, labels, mask)
        return state, metrics

    return run


def _forward(
    graph: nnx.GraphDef, params: Any, spec: ModelSpec, images: jax.Array, labels: jax.Array
) -> Callable[[], Any]:
    """Logits."""
    compiled = jit(lambda params, images: nnx.merge(graph, params)(images))
    return lambda: compiled(params, images)
