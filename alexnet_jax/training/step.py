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
import numpy as np
import optax
from flax import nnx

from alexnet_jax import evaluation, keys
from alexnet_jax.data.views import Augmentation, evaluation_view, training_view, view_keys
from alexnet_jax.models import AlexNet, InputSpec
from alexnet_jax.parallel import Layout
from alexnet_jax.training.schedules import Schedule, State

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
      step: int32 scalar, how many steps were taken.
      params: nested dictionaries, `params["conv1"]["kernel"]` and so on.
      opt_state: the optimizer's.
      schedule: the schedule's, scalars by name; changed by evaluations, not by steps.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    schedule: State


def split(model: AlexNet, tower_axis: str | None = None) -> tuple[nnx.GraphDef, Any]:
    """A model as its structure, for towers along an axis, and a plain dictionary of its whole parameters."""
    graph, state = nnx.split(model)
    if tower_axis is not None:
        alone = nnx.merge(graph, state)
        alone.tower_axis = tower_axis
        graph = nnx.graphdef(alone)
    return graph, nnx.to_pure_dict(state)


def init_state(params: Any, optimizer: optax.GradientTransformation, schedule: Schedule) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), schedule.init())


def make_train_step(
    graph: nnx.GraphDef,
    contract: InputSpec,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    *,
    seed: int,
    augmentation: Augmentation,
    directions: np.ndarray | None = None,
    accumulate_steps: int = 1,
    layout: Layout | None = None,
    like: TrainState | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A compiled (state, mean_image, images, labels, mask) -> (state, metrics).

    Images are (N, S, S, 3) uint8 as prepared, labels (N,), the mask (N,) is all true.
    `directions` is for colour noise, from `views.colour_directions`.
    The state's memory is taken over. Metrics are `evaluation.sums` of the batch as the
    network saw it, dropout on, and the `learning_rate` of the weights that the step used.

    With the images, labels and masks of K batches of one size, in this order batch after batch,
    a call takes K steps, and each of its metrics is (K,).

    With `accumulate_steps` of k the network sees the batch in k parts, one after the
    other; an N that k does not divide is filled up with masked rows. An image's view and
    dropout follow from its row in the whole batch, so only the order of sums differs.

    `layout` says over which devices (None is one), each in k parts then; `graph` must be for
    its towers, `like` is the whole state, and the arguments are as the layout places them.
    Where `wishes` (a row a device, see `Layout.any`) come last, the metrics have them too.
    """
    layout = layout or Layout(devices=tuple(jax.local_devices()[:1]))
    assert like is not None or layout.size == 1, "several devices need the state's shapes"

    def one_step(
        state: TrainState, mean_image: jax.Array, images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[TrainState, Metrics]:
        chex.assert_shape([labels, mask], images.shape[:1])
        images, labels, mask = layout.all_rows((images, labels, mask))
        settings = schedule.settings(state.step, state.schedule)
        count = layout.total(jnp.sum(mask, dtype=jnp.int32))
        batch = _filled_up((images, labels, mask), accumulate_steps)
        rows = layout.first_row(len(labels)) + jnp.arange(len(batch[0]))
        with jax.named_scope("draws"):
            views = view_keys(seed, state.step, rows, augmentation)
            drops = keys.for_step(seed, keys.Purpose.DROPOUT, state.step, rows)

        def gradient(part: tuple[Any, ...]) -> tuple[Any, Metrics]:
            images, labels, mask, views, drops = part
            with jax.named_scope("view"):
                x = training_view(
                    images, views, contract, mean_image, augmentation, directions, noise_on=settings.noise_on
                )

            def loss_fn(params: Any) -> tuple[jax.Array, Metrics]:
                logits = nnx.merge(graph, params)(x, train=True, dropout_key=drops)
                with jax.named_scope("loss"):
                    totals = evaluation.sums(logits, labels, mask)
                # The whole batch's count; each tower has a copy of the loss, see `Layout.gradient_sum`.
                return totals["loss"] / count / layout.towers, totals

            return jax.grad(loss_fn, has_aux=True)(state.params)

        grads, totals = _sum_over_parts(gradient, (*batch, views, drops), accumulate_steps)
        with jax.named_scope("gradient_sum"):
            grads = layout.gradient_sum(grads, state.params if like is None else like.params)
        totals = layout.total(totals)
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, rates=settings.rates)
            params = optax.apply_updates(state.params, updates)
        after = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return after, totals | {"learning_rate": settings.rates["weights"]}

    def step_fn(state: TrainState, mean_image: jax.Array, *rows: jax.Array) -> tuple[TrainState, Metrics]:
        count, has_wishes = divmod(len(rows), 3)
        if count == 1:
            state, metrics = one_step(state, mean_image, *rows[:3])
        else:
            batches = tuple(jnp.stack(rows[place : count * 3 : 3]) for place in range(3))
            state, metrics = jax.lax.scan(lambda state, batch: one_step(state, mean_image, *batch), state, batches)
        return state, metrics | ({"wishes": layout.any(rows[-1])} if has_wishes else {})

    return layout.compile(step_fn, like, updates=True)


def _filled_up(batch: tuple[jax.Array, ...], parts: int) -> tuple[jax.Array, ...]:
    """A batch whose rows the number of parts divides; added rows are zero, so their mask is False."""
    room = -len(batch[0]) % parts
    return tuple(jnp.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1)) for x in batch) if room else batch


def _sum_over_parts(function: Callable[[Any], Any], batch: tuple[Any, ...], parts: int) -> Any:
    """The sum of a function's results over equal parts of a batch's rows, one in memory at a time."""
    if parts == 1:
        return function(batch)
    each = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], each))
    nothing = jax.tree.map(lambda found: jnp.zeros(found.shape, found.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, nothing, each)[0]


def make_evaluation_step(
    graph: nnx.GraphDef, contract: InputSpec, *, layout: Layout | None = None, like: Any = None
) -> Callable[..., Metrics]:
    """A compiled (params, mean_image, images, labels, mask) -> `evaluation.sums` on the central crops.

    `layout`, `like` (the whole parameters) and `wishes` are as in `make_train_step`.
    """
    layout = layout or Layout(devices=tuple(jax.local_devices()[:1]))

    def step_fn(
        params: Any,
        mean_image: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        wishes: jax.Array | None = None,
    ) -> Metrics:
        chex.assert_shape([labels, mask], images.shape[:1])
        images, labels, mask = layout.all_rows((images, labels, mask))
        with jax.named_scope("view"):
            x = evaluation_view(images, contract, mean_image)
        logits = nnx.merge(graph, params)(x)
        with jax.named_scope("loss"):
            totals = layout.total(evaluation.sums(logits, labels, mask))
        return totals | ({} if wishes is None else {"wishes": layout.any(wishes)})

    return layout.compile(step_fn, like, updates=False)
