"""Rates in time: the 2012 source's timetables typed by hand, plateaus by scripted errors, optax's own schedules."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training.optimizer_config import SCHEDULES, OptimizerConfig
from alexnet_jax.training.schedules import Following, Plateau, Stage, Timetable, make_schedule, source2012
from alexnet_jax.training.schema import ConfigError

from . import timetables
from .timetables import Row

LAYERS = ("conv1", "conv2", "fc3")
IMAGENET = -(-1_281_167 // 128)  # steps an epoch


def made(steps_per_epoch=2, num_steps=10, layers=LAYERS, **changes):
    """The schedule of a configuration."""
    return make_schedule(OptimizerConfig(**changes), steps_per_epoch, num_steps=num_steps, layers=layers)


def rows(schedule, steps, state=None):
    """What the compiled settings of each step are, and what the host says of the noise."""
    state = schedule.init() if state is None else state
    settings = jax.jit(schedule.settings)
    found = []
    for step in steps:
        now = jax.device_get(settings(jnp.int32(step), state))
        weights, biases = now.rates["weights"], now.rates["biases"]
        first = [now.rates.get("conv1.weights", weights), now.rates.get("conv1.biases", biases)]
        noise = bool(now.noise_on)
        if step % 4 == 0:  # not compiled, so slow
            assert schedule.noise_on(step) == noise
        found.append(Row(weights, first[0], biases, first[1], noise, noise))
    assert settings._cache_size() == 1  # an epoch's change compiles nothing
    return found


TABLES = {
    "145": ({"schedule": "source2012_145"}, timetables.RUN_145, 91),
    "145-2010": ({"schedule": "source2012_145_2010"}, timetables.RUN_145_2010, 93),
    "145, biases drop": (
        {"schedule": "source2012_145", "source2012_biases": "first_drop"},
        timetables.RUN_145_BIASES_DROP,
        91,
    ),
    "145 and what came later": ({"schedule": "source2012_145"}, timetables.RUN_145 + timetables.RUN_145_LATER, 135),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_every_epoch_of_a_timetable(name, wide):
    changes, table, epochs = TABLES[name]
    assert len(table) == epochs
    with jax.enable_x64(wide):
        found = rows(made(**changes), range(2 * epochs))
    number = np.float64 if wide else np.float32
    for step, row in enumerate(found):
        expected = table[step // 2]
        assert row[:4] == tuple(number(rate) for rate in expected[:4]), step
        assert row[4:] == expected[4:], step
        assert all(rate.dtype == number for rate in row[:4])


@pytest.mark.parametrize("change", [25, 51, 67, 72, 79])
def test_a_change_comes_with_the_first_step_of_its_epoch_at_full_size(change):
    schedule = made(IMAGENET, num_steps=91 * IMAGENET, schedule="source2012_145")
    before, after = rows(schedule, [change * IMAGENET - 1, change * IMAGENET])
    assert before[0] == np.float32(timetables.RUN_145[change - 1].weights)
    assert after[0] == np.float32(timetables.RUN_145[change].weights)
    assert before[1] == np.float32(timetables.RUN_145[change - 1].conv1_weights)
    assert after[1] == np.float32(timetables.RUN_145[change].conv1_weights)
    assert before != after


def test_timetables_scale_with_the_learning_rate():
    found = rows(made(schedule="source2012_145_2010", learning_rate=0.04), [0, 2 * 68, 2 * 92])
    np.testing.assert_allclose(
        [row[:4] for row in found],
        [[0.04, 0.04, 0.08, 0.08], [4e-4, 4e-5, 0.08, 0.08], [4e-5, 0, 0.08, 0]],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Stage(1, {"weights": 1.0, "biases": 1.0}),),
        (Stage(0, {"weights": 1.0, "biases": 1.0}), Stage(0, {"weights": 1.0, "biases": 1.0})),
        (Stage(0, {"weights": 1.0}),),
        (Stage(0, {"weights": 1.0, "biases": 1.0}), Stage(3, {"weights": 1.0, "biases": 1.0, "fc8.weights": 2.0})),
    ],
)
def test_stages_that_make_no_timetable_are_refused(stages):
    with pytest.raises(ValueError, match=r"stages must begin|every stage needs"):
        Timetable(stages, 2)


def drops_after(schedule, errors):
    """How many drops there were after each error."""
    state, found = schedule.init(), []
    for error in errors:
        state = schedule.observed(state, error)
        found.append(int(state["drops"]))
    return found


@pytest.mark.parametrize(
    ("changes", "errors", "drops"),
    [
        # improves always: never drops
        ({"patience": 1}, [90, 80, 70, 60, 50], [0, 0, 0, 0, 0]),
        # stalls: after two in a row, then the count begins anew
        ({"patience": 2}, [90, 90, 90, 90, 90], [0, 0, 1, 1, 2]),
        # at most three times
        ({"patience": 1}, [50] * 9, [0, 1, 2, 3, 3, 3, 3, 3, 3]),
        ({"patience": 1, "max_drops": 0}, [50] * 4, [0, 0, 0, 0]),
        ({"patience": 1, "max_drops": 5}, [50] * 9, [0, 1, 2, 3, 4, 5, 5, 5, 5]),
        # an improvement in between saves it
        ({"patience": 3}, [50, 51, 51, 40, 41, 41, 39, 40, 40, 40], [0] * 9 + [1]),
        # worse ones don't move the mark: 45 is no improvement over 40
        ({"patience": 3}, [40, 60, 50, 45, 39], [0, 0, 0, 1, 1]),
        # the threshold: by more than it, in points
        ({"patience": 2, "threshold": 1.0}, [50, 49.5, 48.9, 48.5, 48.0, 46], [0, 0, 0, 0, 1, 1]),
        ({"patience": 1, "threshold": 0.0}, [50, 49.998, 49.998], [0, 0, 1]),
        # many small steps below the mark add up to one
        ({"patience": 3, "threshold": 1.0}, [50, 49.5, 48.75, 48.25, 47.5], [0, 0, 0, 0, 0]),
        # thirds of a percent, which float32 rounds: equal is no improvement
        ({"patience": 1, "threshold": 0.0}, [200 / 3, 200 / 3, 100 / 3, 100 / 3], [0, 1, 1, 2]),
    ],
)
def test_a_plateau_by_scripted_errors(changes, errors, drops):
    assert drops_after(Plateau(0.01, **changes), errors) == drops


@pytest.mark.usefixtures("x64")
def test_a_plateau_goes_on_from_its_saved_state():
    schedule = Plateau(0.01, patience=3)
    errors = list(np.random.default_rng(0).uniform(20, 30, 40) + 30 * 0.9 ** np.arange(40))
    whole = drops_after(schedule, errors)
    assert whole[-1] == 3
    for cut in range(40):
        state = schedule.init()
        for error in errors[:cut]:
            state = schedule.observed(state, error)
        saved = jax.tree.map(np.asarray, state)
        types = {name: str(leaf.dtype) for name, leaf in saved.items()}
        assert types == {"best": "float32", "since": "int32", "drops": "int32"}
        state, found = jax.tree.map(jnp.asarray, saved), []
        for error in errors[cut:]:
            state = schedule.observed(state, error)
            found.append(int(state["drops"]))
        assert found == whole[cut:], cut


@pytest.mark.usefixtures("x64")
def test_the_rates_of_a_plateau():
    schedule = made(schedule="plateau", learning_rate=0.01, bias_rate_multiplier=2.0, plateau_patience=1)
    state, found = schedule.init(), []
    for _ in range(6):
        found.append(rows(schedule, [7], state)[0])
        state = schedule.observed(state, 50.0)
    expected = [0.01, 0.01, 0.001, 0.0001, 0.00001, 0.00001]
    np.testing.assert_allclose([row[0] for row in found], expected, rtol=1e-15)
    np.testing.assert_allclose([row[2] for row in found], 2 * np.array(expected), rtol=1e-15)
    assert all(row.noise for row in found)
    halved = made(schedule="plateau", learning_rate=1.0, drop_factor=0.5, plateau_patience=1, plateau_max_drops=2)
    assert drops_after(halved, [9.0] * 5) == [0, 1, 2, 2, 2]
    assert rows(halved, [0], halved.init() | {"drops": jnp.int32(2)})[0].weights == 0.25


def test_a_plateau_is_fed_by_the_configuration():
    schedule = made(schedule="plateau", plateau_patience=7, plateau_threshold=0.5, plateau_max_drops=2)
    assert (schedule.patience, schedule.threshold, schedule.max_drops, schedule.factor) == (7, 0.5, 2, 0.1)


@pytest.mark.usefixtures("x64")
def test_warm_up_and_cosine():
    """Against the formulas; the first step is not lost to a rate of 0."""
    schedule = made(10, schedule="warmup_cosine", learning_rate=0.4, warmup_epochs=2, cosine_epochs=12)
    found = [row.weights for row in rows(schedule, range(120))]
    rising = [0.02 + (0.4 - 0.02) * step / 20 for step in range(20)]
    falling = [0.4 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 100)) for step in range(20, 120)]
    np.testing.assert_allclose(found, rising + falling, rtol=1e-6)
    assert found[0] > 0
    without = made(10, schedule="warmup_cosine", learning_rate=0.4, warmup_epochs=0, cosine_epochs=12)
    np.testing.assert_allclose(rows(without, [0, 60])[1].weights, 0.2, rtol=1e-6)
    assert rows(without, [0])[0].weights == pytest.approx(0.4)


def test_any_schedule_of_optax():
    theirs = optax.sgdr_schedule([{"init_value": 0.0, "peak_value": 0.3, "warmup_steps": 3, "decay_steps": 9}] * 2)
    found = rows(Following(theirs, bias_multiplier=2.0), range(18))
    np.testing.assert_allclose([row.weights for row in found], [theirs(step) for step in range(18)], rtol=1e-6)
    np.testing.assert_allclose([row.biases for row in found], [2 * theirs(step) for step in range(18)], rtol=1e-6)
    assert all(row.noise for row in found)
    assert Following(theirs).describe()


def test_constant_and_steps():
    found = rows(made(schedule="constant", learning_rate=0.5), [0, 10**6])
    assert [row[:4] for row in found] == [(0.5,) * 4] * 2
    found = rows(made(schedule="steps", drop_epochs=(1, 3), drop_factor=0.5, learning_rate=1.0), range(8))
    assert [row.weights for row in found] == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_default_schedule_is_that_of_optax_bit_for_bit():
    theirs = jax.jit(optax.piecewise_constant_schedule(0.01, {20 * 37: 0.1, 26 * 37: 0.1}))
    steps = [0, 20 * 37 - 1, 20 * 37, 26 * 37 - 1, 26 * 37]
    found = rows(make_schedule(OptimizerConfig(), 37, num_steps=1110, layers=LAYERS), steps)
    assert [row.weights for row in found] == [theirs(jnp.int32(step)) for step in steps]
    assert [row.biases for row in found] == [row.weights for row in found]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "source2012_145", "bias_rate_multiplier": 2.0}, "bias_rate_multiplier=2.0"),
        ({"schedule": "source2012_145", "layers": ("conv2", "fc3")}, "conv1"),
        ({"schedule": "plateau", "drop_factor": 1.0}, "drop_factor=1.0"),
        ({"schedule": "warmup_cosine", "warmup_epochs": 30, "cosine_epochs": 30}, "warmup_epochs=30"),
        ({"schedule": "warmup_cosine", "cosine_epochs": 6, "num_steps": 13}, "13 steps, 6.5 epochs"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(changes, words):
    with pytest.raises(ConfigError, match=r"^config\.optimizer\.") as caught:
        made(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_be_made_and_says_what_it_is(name):
    schedule = made(schedule=name, learning_rate=0.02)
    assert "0.02" in schedule.describe()
    assert rows(schedule, [0])[0].weights > 0
    assert schedule.observed(schedule.init(), 50.0).keys() == schedule.init().keys()
    assert bool(schedule.init()) == (name == "plateau")


def test_the_sources_own_figures_are_not_scaled():
    table = source2012("source2012_145", 2)
    assert [stage.rates["weights"] for stage in table.stages[:6]] == [0.01, 0.001, 0.0001, 0.0001, 0.0001, 0.00001]
    assert dataclasses.replace(table, words="x").describe() == "x"
