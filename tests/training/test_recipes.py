"""The recipes under `configs/`: what each changes, the sources' numbers, and two steps of each tiny form."""

from __future__ import annotations

import ast
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from alexnet_jax.models.summary import layer_table, totals
from alexnet_jax.training import loop, saving
from alexnet_jax.training.config import ConfigError, default_config, from_dict, keys, model_spec
from alexnet_jax.training.flags import parse
from alexnet_jax.training.schedules import make_schedule
from alexnet_jax.training.setup import describe, set_up

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
PAPER = {
    "model.width": 1.0,
    "model.hidden_width": 1.0,
    "model.init": None,
    "data.source": "data/imagenet-256",
    "data.image_size": None,
    "data.crop_size": None,
    "data.flip": True,
    "batch_size": 128,
    "log_every_steps": 100,
}
SOURCE2012 = PAPER | {
    "model.name": "source2012",
    "data.colour_noise": "source2012",
    "data.shared_draw": 32,
    "data.last_batch": "keep",
    "optimizer.schedule": "source2012_145",
    "optimizer.decay_biases": False,
    "num_epochs": 91,
}
FIGURE1 = {
    "model.name": "cifar",
    "model.width": 1.0,
    "model.hidden_width": 1.0,
    "model.init": None,
    "data.source": "cifar10:data/cifar10",
    "data.image_size": None,
    "data.crop_size": None,
    "batch_size": 128,
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 0.001,
    "optimizer.bias_rate_multiplier": 2.0,
    "optimizer.weight_decay": 0.0,
    "num_epochs": 40,
}
# Every key in which a recipe differs from the default run, from facts.md sections 2, 3 and 5.
DIFFERENCES = {
    "default": {},
    "paper_imagenet": PAPER | {"data.colour_noise": "paper", "optimizer.schedule": "plateau", "num_epochs": 90},
    "source2012_imagenet": SOURCE2012,
    "torchvision_imagenet": PAPER
    | {
        "model.name": "torchvision",
        "batch_size": 256,
        "optimizer.weight_decay": 1e-4,
        "optimizer.drop_epochs": (30, 60),
        "num_epochs": 90,
    },
    "caffe_imagenet": PAPER
    | {
        "model.name": "bvlc_alexnet",
        "data.source": "data/imagenet-256-warp",
        "batch_size": 256,
        "optimizer.bias_rate_multiplier": 2.0,
        "optimizer.decay_biases": False,
        "optimizer.drop_epochs": (),
        "optimizer.drop_steps": (100_000, 200_000, 300_000, 400_000),
        "num_steps": 450_000,
    },
    "fast_imagenet": {name: value for name, value in PAPER.items() if name != "model.init"}
    | {
        "data.colour_noise": "paper",
        "batch_size": 1024,
        "precision": "bfloat16",
        "optimizer.schedule": "warmup_cosine",
        "optimizer.learning_rate": 0.08,
        "optimizer.cosine_epochs": 90,
        "num_epochs": 90,
    },
    "finetune": SOURCE2012
    | {
        "model.sixth_conv": True,
        "init_from": "runs/pretrained",
        "init_skip": "fc9",
        "optimizer.schedule": "source2012_finetune",
        "num_epochs": 54,
    },
    "ablations/no_lrn": SOURCE2012 | {"model.lrn": False},
    "ablations/no_dropout": SOURCE2012 | {"model.dropout": 0.0},
    "ablations/tanh": SOURCE2012 | {"model.activation": "tanh"},
    "ablations/non_overlapping_pools": SOURCE2012 | {"model.pool_window": 2, "model.padding": "conv2=1,conv5=0"},
    "ablations/one_tower": {name: value for name, value in SOURCE2012.items() if name != "model.init"}
    | {"model.name": "one_tower"},
    "figure1_relu": FIGURE1,
    "figure1_tanh": FIGURE1 | {"model.activation": "tanh"},
}
RECIPES = [name for name in DIFFERENCES if name != "default"]
# The default run's numbers that the recipes keep: P section 5.
KEPT = {"optimizer.momentum": 0.9, "optimizer.drop_factor": 0.1, "optimizer.plateau_max_drops": 3}


def flat(config) -> dict:
    """The values of a configuration by key."""

    def value(name: str):
        found = config
        for part in name.split("."):
            found = found[part]
        return found

    return {key.name: value(key.name) for key in keys()}


def recipe(name: str, *argument):
    """What a file's get_config returns."""
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*argument)


def checked(name: str, *argument):
    """The same as a checked `Config`."""
    return from_dict(recipe(name, *argument))


def test_every_file_is_in_the_table():
    assert {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.py")} == set(DIFFERENCES)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_recipe_is_the_sources_numbers_and_states_only_differences(name, monkeypatch):
    idle = []
    plain = config_dict.ConfigDict.__setattr__

    def recorded(self, key, value):
        if not key.startswith("_") and key in self and type(self[key]) is type(value) and self[key] == value:
            idle.append(f"{key} = {value!r}")
        plain(self, key, value)

    default = flat(default_config())
    monkeypatch.setattr(config_dict.ConfigDict, "__setattr__", recorded)
    found = flat(recipe(name))
    assert {key: value for key, value in found.items() if value != default[key]} == DIFFERENCES[name]
    assert KEPT.items() <= found.items()
    assert not idle


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_says_cost_result_and_command(name):
    words = ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text(encoding="utf-8")))
    for heading in ("Cost: ", "Result: ", "Command:"):
        assert len(re.findall(rf"^{heading}", words, re.MULTILINE)) == 1, heading
    assert re.search(r"not\s+measured", words, re.IGNORECASE)
    assert f"python train.py --config=configs/{name}.py" in words


@pytest.mark.parametrize(
    ("name", "parameters", "size", "rule", "order"),
    [
        ("paper_imagenet", 60_965_224, 224, "shorter_side", "rgb"),
        ("source2012_imagenet", 60_965_224, 224, "shorter_side", "rgb"),
        ("torchvision_imagenet", 61_100_840, 224, "shorter_side", "rgb"),
        ("caffe_imagenet", 60_965_224, 227, "warp", "bgr"),
        ("fast_imagenet", 60_965_224, 224, "shorter_side", "rgb"),
        ("finetune", 61_555_304, 224, "shorter_side", "rgb"),
        ("ablations/one_tower", 59_798_312, 224, "shorter_side", "rgb"),
        ("ablations/non_overlapping_pools", 60_965_224, 224, "shorter_side", "rgb"),
    ],
)
def test_the_network_and_what_it_sees(name, parameters, size, rule, order):
    spec = model_spec(checked(name))
    assert totals(layer_table(spec, 1000))[0] == parameters
    assert (spec.input.size, spec.input.resize) == (size, 256)
    assert (spec.input.resize_rule, spec.input.channel_order) == (rule, order)


def starts(name: str) -> tuple[list, list]:
    """How kernels and biases start, layer by layer."""
    spec = model_spec(checked(name))
    layers = [*spec.convs, *spec.dense, spec.head]
    return [layer.kernel_init.value for layer in layers], [layer.bias_init.value for layer in layers]


@pytest.mark.parametrize(
    ("name", "kernels", "biases"),
    [
        ("paper_imagenet", [0.01] * 8, [0, 1, 0, 1, 1, 1, 1, 0]),
        ("source2012_imagenet", [0.01] * 2 + [0.03] * 3 + [0.01] * 3, [0, 1, 0, 1, 1, 1, 1, 0]),
        ("fast_imagenet", [0.01] * 2 + [0.03] * 3 + [0.01] * 3, [0, 1, 0, 1, 1, 1, 1, 0]),
        ("ablations/one_tower", [0.01] * 2 + [0.03] * 3 + [0.01] * 3, [0, 1, 0, 1, 1, 1, 1, 0]),
        ("caffe_imagenet", [0.01] * 5 + [0.005] * 2 + [0.01], [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]),
        ("finetune", [0.01] * 2 + [0.03] * 4 + [0.01] * 3, [0, 1, 0, 1, 1, 1, 1, 1, 0]),
        ("figure1_relu", [1e-4, 0.01, 0.01, 0.01], [0, 0, 0, 0]),
    ],
)
def test_how_the_parameters_start(name, kernels, biases):
    assert starts(name) == (kernels, biases)


def test_the_ablations_change_what_they_say():
    base = model_spec(checked("source2012_imagenet"))
    assert all(conv.norm is conv.map_norm is None for conv in model_spec(checked("ablations/no_lrn")).convs)
    assert [layer.dropout for layer in model_spec(checked("ablations/no_dropout")).dense] == [0, 0]
    assert [layer.dropout for layer in base.dense] == [0.5, 0.5]
    assert (base.activation, model_spec(checked("ablations/tanh")).activation) == ("relu", "tanh")
    stages = model_spec(checked("ablations/non_overlapping_pools")).stages(1000)
    sizes = [stages[name][0] for name in ("conv1.pre", "pool1", "conv2.pre", "pool2", "conv5.pre", "pool5")]
    assert sizes == [55, 28, 26, 13, 11, 6]  # S run 147
    one = model_spec(checked("ablations/one_tower"))
    assert [conv.features for conv in one.convs] == [48, 128, 192, 192, 256]
    assert one.groups == 1
    sixth = model_spec(checked("finetune")).convs[5]
    assert (sixth.features, sixth.kernel, sixth.padding, sixth.groups, sixth.pool) == (256, 3, 1, 1, None)


def settings_at(name: str, step: int, per_epoch: int):
    """What a recipe trains with after so many steps."""
    config = checked(name)
    spec = model_spec(config)
    layers = [*spec.conv_names(), *spec.dense_names(), spec.head_name()]
    steps = config.num_steps or config.num_epochs * per_epoch
    schedule = make_schedule(config.optimizer, per_epoch, num_steps=steps, layers=layers)
    return schedule.settings(jnp.int32(step), schedule.init())


@pytest.mark.parametrize(
    ("name", "step", "weights", "biases"),
    [
        *(("caffe_imagenet", step, 0.01, 0.02) for step in (0, 99_999)),
        *(("caffe_imagenet", step, 0.001, 0.002) for step in (100_000, 199_999)),
        *(("caffe_imagenet", step, 0.0001, 0.0002) for step in (200_000, 299_999)),
        *(("caffe_imagenet", step, 0.000001, 0.000002) for step in (400_000, 449_999)),
        ("torchvision_imagenet", 30 * 5004 - 1, 0.01, 0.01),
        ("torchvision_imagenet", 30 * 5004, 0.001, 0.001),
        ("torchvision_imagenet", 60 * 5004, 0.0001, 0.0001),
        ("paper_imagenet", 0, 0.01, 0.01),
        ("source2012_imagenet", 0, 0.01, 0.02),
        ("fast_imagenet", 5 * 5004, 0.08, 0.08),
        ("figure1_relu", 10_000, 0.001, 0.002),
    ],
)
def test_rates(name, step, weights, biases):
    rates = settings_at(name, step, 5004).rates
    np.testing.assert_allclose([rates["weights"], rates["biases"]], [weights, biases], rtol=1e-6)


# S's 146-2012-2011, facts.md section 5: first epoch, last epoch, weights, conv1, head, colour noise.
FINETUNING = [
    (0, 4, 1e-3, 1e-4, 1e-2, True),
    (5, 6, 1e-3, 1e-5, 1e-2, True),
    (7, 8, 1e-3, 0, 1e-2, True),
    (9, 21, 1e-3, 0, 1e-3, True),
    (22, 37, 1e-4, 0, 1e-4, True),
    (38, 41, 1e-4, 0, 1e-4, False),
    (42, 53, 1e-5, 0, 1e-5, False),
]


@pytest.mark.parametrize(("first", "last", "weights", "conv1", "head", "noise"), FINETUNING)
def test_the_rates_of_fine_tuning(first, last, weights, conv1, head, noise):
    for step in (first * 3, last * 3 + 2):
        found = settings_at("finetune", step, 3)
        wanted = {"": weights, "conv1.": conv1, "fc9.": head}
        for layer, rate in wanted.items():
            np.testing.assert_allclose(found.rates[f"{layer}weights"], rate, rtol=1e-6)
            np.testing.assert_allclose(found.rates[f"{layer}biases"], 2 * rate, rtol=1e-6)
        assert len(found.rates) == 6
        assert bool(found.noise_on) == noise


def test_an_argument_that_is_no_form_is_refused():
    with pytest.raises(ConfigError, match="no form 'tinny'; its argument is none, or tiny"):
        recipe("paper_imagenet", "tinny")
    with (
        pytest.warns(DeprecationWarning, match="load_module"),  # ml_collections
        pytest.raises(ConfigError, match=r"this recipe has no form 'tinny'"),
    ):
        parse([f"--config={CONFIGS / 'caffe_imagenet.py'}:tinny"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_tiny_form_keeps_the_recipe(name):
    tiny, whole = flat(recipe(name, "tiny")), flat(recipe(name))
    changed = {key for key in whole if whole[key] != tiny[key]}
    sizes = {"data.image_size", "data.crop_size"}
    allowed = {"data.source", "model.width", "model.hidden_width", "batch_size", "num_steps"} | sizes
    assert changed <= allowed
    assert (tiny["data.source"], tiny["num_steps"]) == ("digits", 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"padding": "conv9=1"}, "there is no layer 'conv9'"),
        ({"padding": "conv2=0.5"}, "conv2 takes a whole number of pixels"),
        ({"name": "cifar", "sixth_conv": True}, "cifar has 3 convolutions"),
        ({"pool_window": 0}, "at least 1"),
    ],
)
def test_changes_that_the_network_can_not_take_are_refused(changes, words):
    config = default_config()
    config.model.update(changes)
    with pytest.raises(ConfigError, match=r"^config\.model\.") as caught:
        model_spec(from_dict(config))
    assert words in str(caught.value)


def test_drops_in_steps_and_in_epochs_are_not_mixed():
    config = default_config()
    config.optimizer.drop_steps = (3,)
    with pytest.raises(ConfigError, match="drop_epochs"):
        make_schedule(from_dict(config).optimizer, 4, num_steps=9, layers=["conv1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_the_tiny_form(name, tmp_path):
    config = recipe(name, "tiny")
    if config.init_from:  # what the docstring's first command makes, as small
        other = recipe("source2012_imagenet", "tiny")
        other.model.sixth_conv = True
        run = set_up(from_dict(other))
        checkpoints = loop.Checkpoints(tmp_path / "pretrained" / "checkpoints")
        checkpoints.save(1, saving.tree(run, run.initial), run.metadata())
        checkpoints.close()
        config.init_from = str(tmp_path / "pretrained")
    run = set_up(from_dict(config))
    state = run.initial
    before = jax.tree.map(np.asarray, state.params)
    for batch in run.batches(0):
        state, metrics = run.train_step(state, run.mean_image, *batch)
    assert int(state.step) == run.num_steps == 2
    assert np.isfinite(float(metrics["loss"]))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.tree.map(np.asarray, state.params))
    assert moved["fc4" if name.startswith("figure1") else run.spec.head_name()]["bias"]
    found = run.evaluate(state.params, "val")
    assert np.isfinite(found["loss"])
    assert bool(config.init_from) == any(heading == "start" for heading, _ in describe(run))
