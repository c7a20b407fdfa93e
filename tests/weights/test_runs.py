"""This project's own runs and checkpoints, by load_weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from alexnet_jax import load_weights
from alexnet_jax.checkpoint import CheckpointError
from alexnet_jax.trained import open_trained
from alexnet_jax.training.config import default_config, from_dict
from alexnet_jax.training.loop import train
from alexnet_jax.training.recipes import sized
from alexnet_jax.weights import WeightsError, open_weights

from .networks import assert_holds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = sized(default_config(), "tiny")
    config.num_steps, config.eval_every_epochs = 4, 1
    config.data.cache_dir = str(folder / "cache")
    train(from_dict(config), folder / "run")
    return folder / "run"


def test_a_run_gives_its_network(run):
    expected = open_trained(run)
    params = jax.tree.map(np.asarray, expected.params)
    found = open_weights(run)
    assert found.model.spec == expected.spec
    assert found.classes == expected.classes == tuple("0123456789")
    assert found.model.num_classes == 10
    np.testing.assert_array_equal(found.mean_image, np.asarray(expected.mean_image))
    assert_holds(found.model, params)
    assert_holds(load_weights(run / "checkpoints" / str(expected.step)), params)
    assert_holds(load_weights(run, variant=expected.spec.name), params)


def test_a_runs_variant_is_not_another(run):
    with pytest.raises(WeightsError, match=f"it says that it is '{open_trained(run).spec.name}', not 'caffenet'"):
        load_weights(run, variant="caffenet")


def test_another_head_has_not_the_runs_classes(run):
    found = open_weights(run, partial=True, num_classes=3)
    assert found.classes is None
    assert found.fresh[0].startswith("fc8 (fc8.kernel is ")
    assert len(found.fresh) == 1


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        load_weights(tmp_path)
