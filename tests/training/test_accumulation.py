"""A batch taken in parts gives the whole batch's numbers in less memory; an epoch's change compiles nothing."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.spec import ConvSpec, DenseSpec, InputSpec, ModelSpec
from alexnet_jax.training.config import Config, ConfigError, from_dict, to_dict
from alexnet_jax.training.optimizer_config import OptimizerConfig
from alexnet_jax.training.setup import set_up

from .test_step import examples, mean_image
from .test_step import parts as whole_parts

SPEC = ModelSpec(
    name="small",
    input=InputSpec(size=10, resize=13, mean_image="centre"),
    convs=(ConvSpec(4, 3, stride=2),),
    dense=(DenseSpec(8),),
).with_convs(kernel_init=dataclasses.replace(ConvSpec(1, 1).kernel_init, value=0.05))

parts = functools.partial(whole_parts, spec=SPEC)


def batch(count, seed, masked=()):
    """A batch some of whose rows are masked."""
    images, labels, mask = examples(count, seed)
    mask[list(masked)] = False
    return images, labels, mask


def trained(accumulate_steps, batches, dtype=jnp.float64):
    """State and metrics after each of the batches, augmentation and dropout on."""
    made = parts(dtype=dtype, accumulate_steps=accumulate_steps)
    state, found = made.state(), []
    for one in batches:
        state, metrics = made.step(state, mean_image(), *one)
        found.append(jax.device_get((state.params, state.opt_state, metrics)))
    return found


BATCHES = {
    "three batches": [batch(8, seed) for seed in range(3)],
    "masked rows, unequal in the parts": [batch(8, 0, masked=(0, 1, 5))],
    "a part with nothing to learn from": [batch(8, 0, masked=(2, 3))],
    "an incomplete last batch": [batch(8, 0), batch(5, 1)],
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", BATCHES)
def test_four_parts_give_the_numbers_of_the_whole_batch(name):
    whole, found = trained(1, BATCHES[name]), trained(4, BATCHES[name])
    chex.assert_trees_all_equal_dtypes(whole, found)
    for one, other in zip(whole, found, strict=True):
        scale = jax.tree.map(lambda x: 1e-10 * max(np.abs(x).max(), 1e-3), one)
        jax.tree.map(
            lambda a, b, tolerance: np.testing.assert_allclose(b, a, rtol=0, atol=tolerance), one, other, scale
        )
    assert np.abs(whole[-1][0]["conv1"]["kernel"] - parts(dtype=jnp.float64).params["conv1"]["kernel"]).max() > 1e-6


@pytest.mark.usefixtures("x64")
def test_rows_keep_their_own_views_and_masks():
    """Parts that drew for their own rows, 0 and 1 each time, would differ."""
    same = [np.repeat(x[:1], 8, axis=0) for x in batch(8, 0)]
    images, labels, _ = same
    losses = []
    for row in range(8):
        mask = np.arange(8) == row
        losses.append(float(trained(4, [(images, labels, mask)])[0][2]["loss"]))
    assert len(set(losses)) == 8


@pytest.mark.slow
def test_parts_take_less_memory():
    needed = {}
    for k in (1, 4):
        made = parts(accumulate_steps=k)
        lowered = made.step.lower(made.state(), mean_image(), *batch(256, 0))
        needed[k] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert needed[4] < 0.6 * needed[1], needed


@pytest.mark.parametrize(
    ("parts", "size", "near"), [(3, 32, "2 and 4"), (33, 32, "32"), (5, 128, "4 and 8"), (9, 1, "1")]
)
def test_parts_that_do_not_divide_the_batch_are_refused(parts, size, near):
    config = from_dict(to_dict(Config()) | {"batch_size": size, "accumulate_steps": parts})
    with pytest.raises(ConfigError, match=rf"^config\.accumulate_steps={parts} .*batch_size={size}: .* {near}$"):
        set_up(config)


def test_a_layer_freezes_and_thaws_inside_one_compiled_step():
    """The timetable of run 145 at two steps an epoch: conv1 stands still from epoch 72 on, the rest learns."""
    config = OptimizerConfig(schedule="source2012_145", decay_biases=False)
    made = parts(config=config)
    state, seen = made.state(2 * 70), []
    for step in range(2 * 70, 2 * 74):
        before = jax.device_get((state.params, state.opt_state))
        state, metrics = made.step(state, mean_image(), *examples(8, seed=step))
        after = jax.device_get((state.params, state.opt_state))
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
        seen.append([moved[0]["conv1"], moved[0]["fc2"]])
        trace = moved[1][-1].trace
        assert trace == moved[0]
        np.testing.assert_allclose(metrics["learning_rate"], 1e-4, rtol=1e-6)
    still, moves = ({"kernel": value, "bias": value} for value in (False, True))
    assert seen == [[moves, moves]] * 4 + [[still, moves]] * 4
    assert made.step._cache_size() == 1
