"""One step of training and one of evaluation, put together again by hand from public pieces."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alexnet_jax import create_model, evaluation, keys
from alexnet_jax.data.views import Augmentation, ViewKeys, colour_directions, training_view, view_keys
from alexnet_jax.models.spec import ConvSpec, DenseSpec, InputSpec, ModelSpec, NormSpec, PoolSpec
from alexnet_jax.training import optimizer as optimizers
from alexnet_jax.training import schedules
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import OptimizerConfig

SPEC = ModelSpec(
    name="tiny",
    input=InputSpec(size=10, resize=13, mean_image="centre"),
    convs=(
        ConvSpec(4, 3, stride=2, norm=NormSpec(groups=2), pool=PoolSpec()),
        ConvSpec(4, 3, padding=1, groups=2),
    ),
    dense=(DenseSpec(8),),
).with_convs(kernel_init=dataclasses.replace(ConvSpec(1, 1).kernel_init, value=0.05))
CLASSES, BATCH = 7, 6
CONFIG = OptimizerConfig(learning_rate=0.1, drop_epochs=(1,), drop_factor=0.1)
STEPS_PER_EPOCH = 2
FLIPPED = Augmentation(flip=True)
EIGEN = np.array([100.0, 400.0, 2500.0]), np.eye(3)


def examples(count=BATCH, seed=0):
    """Images, labels and the mask of a batch."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 13, 13, 3), np.uint8)
    return images, draw.integers(0, CLASSES, count, np.int32), np.ones(count, bool)


def mean_image():
    """A mean image that is not flat."""
    return jnp.asarray(np.random.default_rng(9).uniform(90, 140, (13, 13, 3)), jnp.float32)


@dataclasses.dataclass
class Parts:
    """A compiled step with what it is made of."""

    graph: nnx.GraphDef
    params: dict
    rate: optax.Schedule
    schedule: schedules.Schedule
    optimizer: optax.GradientTransformation
    step: object

    def state(self, step: int = 0) -> steps.TrainState:
        """A fresh state, which the step may take over, as if so many steps were taken."""
        state = steps.init_state(jax.tree.map(jnp.copy, self.params), self.optimizer, self.schedule)
        return dataclasses.replace(state, step=jnp.int32(step))


@functools.cache
def parts(*, seed=3, augmentation=FLIPPED, dtype=jnp.float32, config=CONFIG, accumulate_steps=1, spec=SPEC) -> Parts:
    """The tiny network's step."""
    graph, params = steps.split(create_model(spec, num_classes=CLASSES, param_dtype=dtype, rngs=1))
    rate = schedules.steps(config, STEPS_PER_EPOCH)
    optimizer = optimizers.make_optimizer(config, list(params))
    schedule = schedules.make_schedule(config, STEPS_PER_EPOCH, num_steps=1, layers=list(params))
    kind = augmentation.colour_noise
    options = {
        "seed": seed,
        "augmentation": augmentation,
        "directions": None if kind is None else colour_directions(kind, *EIGEN),
        "accumulate_steps": accumulate_steps,
    }
    step = steps.make_train_step(graph, spec.input, optimizer, schedule, **options)
    return Parts(graph, params, rate, schedule, optimizer, step)


@pytest.mark.usefixtures("x64")
def test_three_steps_by_hand():
    made = parts(dtype=jnp.float64)
    w = jax.tree.map(jnp.copy, made.params)
    v = jax.tree.map(jnp.zeros_like, w)
    state, rows = made.state(), jnp.arange(BATCH)
    view = jax.jit(lambda images, keys: training_view(images, keys, SPEC.input, mean_image(), FLIPPED))

    @jax.jit
    def gradient(params, x, drops, labels):
        def loss_fn(params):
            logits = nnx.merge(made.graph, params)(x, train=True, dropout_key=drops)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    for step in range(3):
        images, labels, mask = examples(seed=step)
        views = keys.for_step(3, keys.Purpose.VIEW, jnp.int32(step), rows)
        drops = keys.for_step(3, keys.Purpose.DROPOUT, jnp.int32(step), rows)
        (loss, logits), g = gradient(w, view(images, ViewKeys(views)), drops, labels)
        rate = 0.1 if step < 2 else 0.01
        v = jax.tree.map(lambda v, w, g, rate=rate: 0.9 * v - 0.0005 * rate * w - rate * g, v, w, g)
        w = jax.tree.map(jnp.add, w, v)

        state, metrics = made.step(state, mean_image(), images, labels, mask)
        assert metrics["loss"].dtype == jnp.float64
        np.testing.assert_allclose(metrics["loss"], loss * BATCH, rtol=1e-11)
        assert int(metrics["count"]) == BATCH
        assert int(metrics["top1_wrong"]) == int(jnp.sum(evaluation.label_rank(logits, labels) > 0))
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-7)
        assert int(state.step) == step + 1
        chex.assert_trees_all_close(state.params, w, rtol=1e-9, atol=1e-12)


def test_metrics_hold_the_rate_that_the_step_used():
    made = parts()
    state, rates = made.state(), []
    for _ in range(4):
        state, metrics = made.step(state, mean_image(), *examples())
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    np.testing.assert_allclose(rates, [made.rate(step) for step in range(4)], rtol=1e-6)


def two_steps(**options):
    """Parameters and summed losses after two steps."""
    made = parts(**options)
    state, one = made.step(made.state(), mean_image(), *examples(seed=0))
    state, other = made.step(state, mean_image(), *examples(seed=1))
    return jax.device_get((state.params, one["loss"], other["loss"]))


def test_a_seed_decides_everything():
    first = two_steps(seed=3)
    chex.assert_trees_all_equal(first, two_steps(seed=3))
    assert first[1] != two_steps(seed=4)[1]


def test_flipping_is_an_option_of_the_step():
    assert two_steps(augmentation=FLIPPED)[1] != two_steps(augmentation=Augmentation())[1]


@pytest.mark.usefixtures("x64")
def test_the_step_sees_what_the_augmentation_says():
    """The loss of a step, from the view that is asked for; in 64 bits because it moves by millionths."""
    augmentation, step = Augmentation(True, "source2012", 4), jnp.int32(5)
    made, (images, labels, mask) = parts(augmentation=augmentation, dtype=jnp.float64), examples()

    def expected(augmentation):
        directions = colour_directions("source2012", *EIGEN)
        views = view_keys(3, step, jnp.arange(BATCH), augmentation)
        x = training_view(jnp.asarray(images), views, SPEC.input, mean_image(), augmentation, directions)
        drops = keys.for_step(3, keys.Purpose.DROPOUT, step, jnp.arange(BATCH))
        logits = nnx.merge(made.graph, made.params)(x, train=True, dropout_key=drops)
        return float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum())

    wanted = expected(augmentation)
    found = float(made.step(made.state(5), mean_image(), images, labels, mask)[1]["loss"])
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    for other in (FLIPPED, Augmentation(True, "source2012"), Augmentation(True, None, 4)):
        assert abs(expected(other) - wanted) > 1e-5, other


def test_views_and_dropout_change_from_step_to_step():
    made = parts()
    losses = [float(made.step(made.state(step), mean_image(), *examples())[1]["loss"]) for step in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def update(mask, images=None):
    """What the first step adds to the parameters, and its metrics."""
    made = parts()
    pictures, labels, _ = examples()
    pictures = pictures if images is None else images
    state, metrics = made.step(made.state(), mean_image(), pictures, labels, np.asarray(mask, bool))
    return jax.tree.map(jnp.subtract, state.params, made.params), metrics


def test_masked_rows_teach_nothing():
    first, last = [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]
    one, metrics = update(first)
    images = examples()[0]
    images[4:] = 255
    other, same = update(first, images)
    chex.assert_trees_all_equal((one, metrics), (other, same))
    assert int(metrics["count"]) == 4
    rest, other_metrics = update(last)
    whole, all_metrics = update([1] * 6)
    np.testing.assert_allclose(all_metrics["loss"], metrics["loss"] + other_metrics["loss"], rtol=1e-5)
    mean = jax.tree.map(lambda four, two: (4 * four + 2 * two) / 6, one, rest)  # each is a mean of its own rows
    chex.assert_trees_all_close(whole, mean, rtol=1e-3, atol=1e-6)


def test_the_step_learns_a_few_images():
    made = parts()
    state, losses = made.state(), []
    for _ in range(300):
        state, metrics = made.step(state, mean_image(), *examples())
        losses.append(float(metrics["loss"]) / BATCH)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:2]), losses[::30]


@pytest.mark.usefixtures("x64")
def test_an_evaluation_step_sees_central_crops_without_dropout():
    made = parts(dtype=jnp.float64)
    images, labels, mask = examples()
    mask[[1, 5]] = False
    centre = images.astype(np.float64)[:, 1:11, 1:11] - np.asarray(mean_image(), np.float64)[1:11, 1:11]
    logits = np.asarray(nnx.merge(made.graph, made.params)(jnp.asarray(centre)))
    own = logits[np.arange(BATCH), labels]
    losses = np.log(np.exp(logits).sum(1)) - own
    wrong = (logits > own[:, None]).sum(1)
    found = steps.make_evaluation_step(made.graph, SPEC.input)(made.params, mean_image(), images, labels, mask)
    assert int(found["count"]) == 4
    np.testing.assert_allclose(found["loss"], losses[mask].sum(), rtol=1e-5)
    assert int(found["top1_wrong"]) == (wrong[mask] >= 1).sum()
    assert int(found["top5_wrong"]) == (wrong[mask] >= 5).sum()


@pytest.mark.parametrize("wrong", ["labels", "mask"])
def test_shapes_that_do_not_belong_together_are_refused(wrong):
    made = parts()
    images, labels, mask = examples()
    labels, mask = (labels[:-1], mask) if wrong == "labels" else (labels, mask[:-1])
    with pytest.raises(AssertionError):
        made.step(made.state(), mean_image(), images, labels, mask)
