"""One step of training, and one of evaluation, as functions of plain dictionaries.

The module is split once into its structure and its parameters and put together
again inside the compiled function: forty microseconds of Python a step, where
transforming the module itself costs a millisecond.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from alexnet_jax import evaluation, keys
from alexnet_jax.data.views import evaluation_view, training_view
from alexnet_jax.models import AlexNet, InputSpec

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
      step: int32 scalar, how many steps were taken.
      params: nested dictionaries, `params["conv1"]["kernel"]` and so on.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def split(model: AlexNet) -> tuple[nnx.GraphDef, Any]:
    """A model as its structure and a plain dictionary of its parameters."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def make_train_step(
    graph: nnx.GraphDef,
    contract: InputSpec,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    seed: int,
    flip: bool,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A compiled (state, mean_image, images, labels, mask) -> (state, metrics).

    Images are (N, S, S, 3) uint8 as prepared, labels (N,), the mask (N,) is all true.
    The state's memory is taken over. Metrics are `evaluation.sums` of the batch as the
    network saw it, dropout on, and the `learning_rate` that the step used.
    """

    def step_fn(
        state: TrainState, mean_image: jax.Array, images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[TrainState, Metrics]:
        chex.assert_shape([labels, mask], images.shape[:1])
        rows = jnp.arange(images.shape[0])
        views = keys.for_step(seed, keys.Purpose.VIEW, state.step, rows)
        drops = keys.for_step(seed, keys.Purpose.DROPOUT, state.step, rows)
        with jax.named_scope("view"):
            x = training_view(images, views, contract, mean_image, flip=flip)

        def loss_fn(params: Any) -> tuple[jax.Array, Metrics]:
            logits = nnx.merge(graph, params)(x, train=True, dropout_key=drops)
            totals = evaluation.sums(logits, labels, mask)
            return totals["loss"] / totals["count"], totals

        grads, totals = jax.grad(loss_fn, has_aux=True)(state.params)
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        after = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
        return after, totals | {"learning_rate": jnp.asarray(rate(state.step))}

    return jax.jit(step_fn, donate_argnums=0)


def make_evaluation_step(graph: nnx.GraphDef, contract: InputSpec) -> Callable[..., Metrics]:
    """A compiled (params, mean_image, images, labels, mask) -> `evaluation.sums` on the central crops."""

    def step_fn(params: Any, mean_image: jax.Array, images: jax.Array, labels: jax.Array, mask: jax.Array) -> Metrics:
        chex.assert_shape([labels, mask], images.shape[:1])
        x = evaluation_view(images, contract, mean_image)
        return evaluation.sums(nnx.merge(graph, params)(x), labels, mask)

    return jax.jit(step_fn)
