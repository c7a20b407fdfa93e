"""The loop under a schedule with a state: the validation error drops the rate, also after a restart."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.training import loop
from alexnet_jax.training.config import from_dict, to_dict
from alexnet_jax.training.flags import parse
from alexnet_jax.training.metrics import read

from .small_runs import NETWORK, last_state, noise, run

RATE = 2.0**-30  # learns nothing, so the error stands still


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder of sixteen images to train and eight to validate."""
    return noise(tmp_path_factory.mktemp("data"), train=16, val=8)


@pytest.fixture(scope="module")
def config(data):
    """Two steps an epoch; the rate halves after two evaluations without an improvement, twice."""
    base = to_dict(
        parse(
            [
                f"--config.data.source={data}",
                *(*NETWORK, "--config.model.init=None"),
                *("--config.accumulate_steps=2", "--config.log_every_steps=1", "--config.num_epochs=7"),
                *("--config.optimizer.schedule=plateau", f"--config.optimizer.learning_rate={RATE}"),
                *("--config.optimizer.plateau_patience=2", "--config.optimizer.plateau_max_drops=2"),
                "--config.optimizer.drop_factor=0.5",
            ]
        ).config
    )
    return lambda **changes: from_dict(base | changes)


class Compiled:
    """`set_up` that compiles once for runs of several lengths."""

    def __init__(self, config):
        self.run = loop.set_up(config)

    def __call__(self, config, **_):
        fresh = jax.tree.map(jnp.copy, self.run.initial)  # a step takes over the state's memory
        length = config.num_steps or config.num_epochs * self.run.steps_per_epoch
        return dataclasses.replace(self.run, config=config, num_steps=length, initial=fresh)


@pytest.fixture(scope="module")
def trained(config):
    """Trains in a workdir: what was printed, the metrics, the last state, the programs compiled for the step so far."""
    set_up = Compiled(config())

    def train(workdir, **changes):
        _, text = run(config(**changes), workdir, set_up)
        made = set_up(config())
        programs = made.train_step._cache_size()
        return text, read(workdir / "metrics.jsonl"), last_state(made, workdir)["state"], programs

    return train


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """Seven epochs, undisturbed."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_the_rate_drops_when_the_error_stands_still(whole):
    text, metrics, state, programs = whole
    assert programs == 1  # a drop compiles nothing
    assert "× 0.5 after 2 evaluations without an improvement, at most 2 times" in text
    assert "of 8 images in 2 parts" in text
    rates = [line["learning_rate"] for line in metrics if line["split"] == "train"]
    assert len({line["top1_error"] for line in metrics if line["split"] == "val"}) == 1
    # The first evaluation is the best one, the second and third don't improve, and so on.
    assert rates == [RATE] * 6 + [RATE / 2] * 4 + [RATE / 4] * 4
    assert {name: float(value) for name, value in state["schedule"].items()} == {"best": 50.0, "since": 2, "drops": 2}


def test_a_run_that_goes_on_drops_at_the_same_epochs(whole, trained, tmp_path):
    """Stopped inside an epoch, whose evaluation at the end is one more than the undisturbed run has."""
    for steps in (5, None):
        _, metrics, state, programs = trained(tmp_path / "run", num_steps=steps)
    evaluated = [line["step"] for line in metrics if line["split"] == "val"]
    assert evaluated == [2, 4, 5, 6, 8, 10, 12, 14]
    assert programs == 1  # going on compiles nothing either
    rates = [line["learning_rate"] for line in metrics if line["split"] == "train"]
    assert rates == [line["learning_rate"] for line in whole[1] if line["split"] == "train"]
    jax.tree.map(np.testing.assert_array_equal, state, whole[2])
