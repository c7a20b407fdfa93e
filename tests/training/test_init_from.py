"""A run that starts from another's layers: loaded ones bit for bit, the others fresh, every one named."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from alexnet_jax.checkpoint import CheckpointError
from alexnet_jax.models import create_model
from alexnet_jax.training import loop, saving
from alexnet_jax.training.config import ConfigError, default_config, from_dict, model_spec
from alexnet_jax.training.init_from import start_from
from alexnet_jax.training.recipes import sized
from alexnet_jax.training.setup import describe, has_checkpoint, set_up

CONVS = [f"conv{number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the digits are prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small(cache):
    """Makes a small configuration with some keys changed."""

    def made(**changes):
        config = sized(default_config(), "tiny")
        config.data.cache_dir = str(cache)
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            setattr(getattr(config, section) if section else config, key, value)
        return from_dict(config)

    return made


@pytest.fixture(scope="module")
def pretrained(small, tmp_path_factory):
    """A run of another seed with a checkpoint: its workdir and its parameters."""
    run = set_up(small(seed=7))
    workdir = tmp_path_factory.mktemp("pretrained")
    checkpoints = loop.Checkpoints(workdir / "checkpoints")
    checkpoints.save(3, saving.tree(run, run.initial), run.metadata(), score=5.0)
    checkpoints.close()
    return workdir, run.initial.params


def taken(config, place, classes=tuple("0123456789")) -> tuple[dict, dict]:
    """What a new network takes from a run, and what is said of it; its own parameters are zeros."""
    spec = model_spec(config)
    model = nnx.eval_shape(lambda: create_model(spec, num_classes=len(classes)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nnx.to_pure_dict(nnx.split(model)[1]))
    start = start_from(str(place), config.init_skip, zeros, spec, classes)
    return start.params, dict(start.lines)


def says(run) -> dict:
    return {heading: words for heading, words in describe(run) if heading in ("start", "afresh", "not used")}


def test_layers_are_loaded_bit_for_bit_and_the_head_is_fresh(small, pretrained):
    workdir, old = pretrained
    fresh = set_up(small()).initial.params
    run = set_up(small(init_from=str(workdir), init_skip="fc8"))
    for name in [*CONVS, "fc6", "fc7"]:
        chex.assert_trees_all_equal(run.initial.params[name], old[name])
        assert not np.array_equal(run.initial.params[name]["kernel"], fresh[name]["kernel"]), name
    chex.assert_trees_all_equal(run.initial.params["fc8"], fresh["fc8"])
    assert int(run.initial.step) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(run.initial.opt_state))
    assert says(run) == {
        "start": f"{workdir}, checkpoint 3 (best by validation): conv1, conv2, conv3, conv4, conv5, fc6, fc7",
        "afresh": "fc8 (in init_skip)",
    }


def test_everything_is_loaded_where_everything_is_the_same(small, pretrained):
    workdir, old = pretrained
    run = set_up(small(init_from=str(workdir / "checkpoints" / "3")))
    chex.assert_trees_all_equal(run.initial.params, old)
    assert says(run)["afresh"] == "nothing"


def test_a_head_of_other_classes_is_fresh(small, pretrained):
    workdir, old = pretrained
    for classes, reason in ((tuple("abcdefghij"), "other classes"), (tuple("ab"), "is 32×2 here and 32×10 there")):
        params, said = taken(small(), workdir, classes)
        assert not params["fc8"]["kernel"].any()
        assert params["fc8"]["kernel"].shape == (32, len(classes))
        chex.assert_trees_all_equal(params["fc7"], old["fc7"])
        assert said["afresh"] == f"fc8 ({reason})"


def test_a_sixth_layer_on_top_of_five(small, pretrained):
    workdir, old = pretrained
    with pytest.raises(ConfigError, match=r"fc8 is the head of one network and not of the other"):
        taken(small(model__sixth_conv=True, init_skip="fc7"), workdir)
    params, said = taken(small(model__sixth_conv=True, init_skip="fc7, fc8"), workdir)
    for name in CONVS:
        chex.assert_trees_all_equal(params[name], old[name])
    assert said["afresh"] == "conv6 (not there), fc7 (in init_skip), fc8 (in init_skip), fc9 (not there)"
    assert said["not used"] == "fc6 of that network"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__hidden_width": 1 / 64}, "fc6 is 22×64 here and 22×32 there"),
        ({"model__width": 1 / 4}, "conv1 is 11×11×3×24 here and 11×11×3×8 there"),
        ({"init_skip": "fc9"}, "config.init_skip='fc9': there is no layer 'fc9'; there are conv1"),
        ({"init_skip": ",".join([*CONVS, "fc6", "fc7", "fc8"])}, "no layer would be taken"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(small, pretrained, changes, words):
    with pytest.raises(ConfigError) as caught:
        taken(small(**changes), pretrained[0])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_names_the_remedy(small, pretrained):
    def wider(skip):
        return small(model__hidden_width=1 / 64, init_skip=skip)

    with pytest.raises(ConfigError, match=r"config\.init_skip=fc6$"):
        taken(wider(""), pretrained[0])
    with pytest.raises(ConfigError, match=r"config\.init_skip=fc6,fc7$"):
        taken(wider("fc6"), pretrained[0])
    _, said = taken(wider("fc6,fc7"), pretrained[0])
    assert said["start"].endswith(": conv1, conv2, conv3, conv4, conv5")
    assert said["afresh"] == "fc6 (in init_skip), fc7 (in init_skip), fc8 (is 64×10 here and 32×10 there)"


def test_no_network_to_start_from(small, tmp_path):
    with pytest.raises(CheckpointError, match=r"^config\.init_from: .*no such folder"):
        set_up(small(init_from=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"config\.init_skip='fc8' goes with config\.init_from"):
        set_up(small(init_skip="fc8"))


def test_a_run_that_goes_on_needs_it_no_more(small, tmp_path):
    run = set_up(small(init_from=str(tmp_path / "gone"), init_skip="fc8"), resumes=True)
    assert run.loaded == ()
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "checkpoints" / "13").mkdir()
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "13" / "state").mkdir()
    assert has_checkpoint(tmp_path)
