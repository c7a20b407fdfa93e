"""The schema: complete, checked, and the same after every passage through files and flags."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax.models import INIT_SCHEMES, get_spec, list_models
from alexnet_jax.training import config as configs
from alexnet_jax.training.config import Config, ConfigError, differences, from_dict, model_spec, to_config_dict, to_dict
from alexnet_jax.training.config import keys as list_keys

KEYS = {key.name: key for key in list_keys()}
WRONG = {
    int: ("3", 1.5, 2.0, True, [1], math.nan, {}),
    float: ("0.5", "fast", True, [0.5], math.nan, math.inf, -math.inf, {}),
    bool: (0, 1, "True", "yes", []),
    str: (3, True, ["digits"], {}),
    tuple: (5, "12", (1.5,), (True,), ("1",), {}),
}


def kind_of(key):
    """The type of a key without None."""
    options = typing.get_args(key.kind) if isinstance(key.kind, types.UnionType) else (key.kind,)
    return next(typing.get_origin(option) or option for option in options if option is not types.NoneType)


def values_of(key):
    """Valid values of a key."""
    if key.name == "optimizer.plateau_max_drops":
        found = st.integers(0, 100)
    elif key.name == "profile":
        found = st.lists(st.integers(1, 10**6), min_size=2, max_size=2).map(lambda ends: "{}:{}".format(*sorted(ends)))
    elif key.allowed.startswith("one of "):
        found = st.sampled_from(key.allowed.removeprefix("one of ").split(", "))
    else:
        found = {
            int: st.integers(1, 10**6),
            float: st.floats(0.001, 0.999),
            bool: st.booleans(),
            str: st.text(min_size=1),
            tuple: st.sets(st.integers(1, 999)).map(lambda epochs: tuple(sorted(epochs))),
        }[kind_of(key)]
    return st.none() | found if key.optional else found


def changed(**values):
    """The default as nested data with keys changed; a key is written model__name."""
    found = to_dict(Config())
    for name, value in values.items():
        *sections, last = name.split("__")
        inner = found
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return found


def refusal(values) -> str:
    """The one line that refuses the values."""
    with pytest.raises(ConfigError) as caught:
        model_spec(from_dict(values))
    message = str(caught.value)
    assert "\n" not in message
    return message


def whole_config(draw_value):
    """A config with the value that the function gives for each key."""
    return from_dict(changed(**{name.replace(".", "__"): draw_value(key) for name, key in KEYS.items()}))


def test_every_key_says_what_it_means_and_what_it_takes():
    for key in KEYS.values():
        assert key.meaning, key.name
        assert key.kind_in_words(), key.name
        assert key.allowed_in_words(), key.name
    in_pixels = {"data.image_size", "data.crop_size"}
    in_steps = {"num_steps", "log_every_steps"}
    in_epochs = {"num_epochs", "eval_every_epochs"}
    for names, unit in ((in_pixels, "pixels"), (in_steps, "steps"), (in_epochs, "epochs")):
        assert {KEYS[name].unit for name in names} == {unit}
    assert KEYS["checkpoint_every_seconds"].unit == "seconds"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_round_trips(data):
    config = whole_config(lambda key: data.draw(values_of(key), label=key.name))
    assert from_dict(to_config_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert to_dict(from_dict(to_config_dict(config))) == to_dict(config)


def test_a_config_dict_is_locked_and_keeps_the_types_of_empty_keys():
    found = configs.default_config()
    with pytest.raises((AttributeError, KeyError), match="batchsize"):
        found.batchsize = 3
    assert found.num_steps is None
    with pytest.raises(TypeError):
        found.num_steps = "many"
    found.num_steps = 7
    found.model.dropout = 0.25
    assert (from_dict(found).num_steps, from_dict(found).model.dropout) == (7, 0.25)


@pytest.mark.parametrize("name", KEYS)
def test_a_value_of_another_type_is_refused(name):
    key = KEYS[name]
    for value in WRONG[kind_of(key)] + (() if key.optional else (None,)):
        message = refusal(changed(**{name.replace(".", "__"): value}))
        assert f"config.{name}={value!r}" in message, value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", 0, "at least 1"),
        ("batch_size", -3, "at least 1"),
        ("num_epochs", 0, "at least 1"),
        ("num_steps", 0, "or None"),
        ("seed", -1, "at least 0"),
        ("optimizer.learning_rate", -0.01, "at least 0"),
        ("optimizer.momentum", 1.0, "less than 1"),
        ("optimizer.momentum", -0.1, "from 0"),
        ("optimizer.weight_decay", -5e-4, "at least 0"),
        ("optimizer.drop_epochs", [26, 20], "rising"),
        ("optimizer.drop_epochs", [20, 20], "rising"),
        ("optimizer.drop_epochs", [0, 20], "positive"),
        ("optimizer.drop_factor", 0.0, "more than 0"),
        ("optimizer.schedule", "plato", "plateau, source2012_145"),
        ("optimizer.schedule", "plateu", "did you mean 'plateau'?"),
        ("optimizer.bias_rate_multiplier", -1.0, "at least 0"),
        ("optimizer.plateau_patience", 0, "at least 1"),
        ("optimizer.plateau_threshold", -0.1, "from 0"),
        ("optimizer.plateau_max_drops", -1, "from 0"),
        ("optimizer.plateau_max_drops", 101, "to 100"),
        ("optimizer.source2012_biases", "drop", "first_drop"),
        ("optimizer.warmup_epochs", -1, "at least 0"),
        ("optimizer.cosine_epochs", 0, "at least 1"),
        ("accumulate_steps", 0, "at least 1"),
        ("model.width", 0.0, "more than 0"),
        ("model.dropout", 1.0, "less than 1"),
        ("model.groups", 0, "at least 1"),
        ("checkpoint_every_seconds", 0.0, "more than 0"),
        ("model.name", "papr", "did you mean 'paper'?"),
        ("model.name", "cafenet", "did you mean 'caffenet'?"),
        ("model.name", "resnet", "bvlc_alexnet"),
        ("model.activation", "rlu", "did you mean 'relu'?"),
        ("model.init", "pytorh", "did you mean 'pytorch'?"),
        ("data.last_batch", "kep", "did you mean 'keep'?"),
        ("data.colour_noise", "papr", "did you mean 'paper'?"),
        ("data.colour_noise", "source", "did you mean 'source2012'?"),
        ("data.colour_noise", "none", "or None"),
        ("data.shared_draw", 0, "at least 1"),
        ("precision", "bfloat", "did you mean 'bfloat16'?"),
    ],
)
def test_an_impossible_value_is_refused(name, value, words):
    message = refusal(changed(**{name.replace(".", "__"): value}))
    shown = tuple(value) if isinstance(value, list) else value
    assert f"config.{name}={shown!r}" in message
    assert words in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", 1.5, ("int", "whole")),
        ("batch_size", "many", ("int", "whole", "number")),
        ("optimizer.learning_rate", "fast", ("float", "number")),
        ("optimizer.learning_rate", math.inf, ("finite",)),
        ("model.width", True, ("float", "number")),
    ],
)
def test_a_refused_type_is_named(name, value, words):
    """The words for 1.5 as a batch size, "must be at least 1", would help nobody."""
    message = refusal(changed(**{name.replace(".", "__"): value}))
    assert any(word in message.split("must be", 1)[-1] for word in words), message


def test_seeds_that_jax_cannot_take_are_refused():
    assert "config.seed=" in refusal(changed(seed=2**64))


def test_unknown_missing_and_flat_keys():
    message = refusal(changed(batchsize=3))
    assert "config.batchsize" in message
    assert "'batch_size'" in message
    message = refusal(changed(optimizer__learningrate=3))
    assert "config.optimizer.learningrate" in message
    assert "'optimizer.learning_rate'" in message
    values = to_dict(Config())
    del values["data"]["flip"]
    assert "config.data.flip is missing" in refusal(values)
    message = refusal({**to_dict(Config()), "optimizer": 0.1})
    assert "config.optimizer" in message
    assert "0.1" in message
    for kind in (None, [], 3, "paper"):
        assert repr(kind) in refusal(kind)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_differences_are_the_keys_that_may_not_change(data):
    one, other = (whole_config(lambda key: data.draw(values_of(key), label=key.name)) for _ in range(2))
    flat = [configs.flat(to_dict(config)) for config in (one, other)]
    expected = {name for name in KEYS if flat[0][name] != flat[1][name] and not KEYS[name].may_change}
    lines = differences(one, to_dict(other))
    assert len(lines) == len(expected)
    for name in expected:
        (line,) = (line for line in lines if line.startswith(f"config.{name}: "))
        assert repr(flat[0][name]) in line
        assert repr(flat[1][name]) in line
    assert differences(one, to_dict(one)) == []


def test_runs_from_before_a_key_go_on_with_its_default():
    earlier = to_dict(Config())
    for name in ("colour_noise", "shared_draw"):
        del earlier["data"][name]
    assert differences(Config(), earlier) == []
    now = from_dict(changed(data__colour_noise="paper", data__shared_draw=32))
    assert differences(now, earlier) == [
        "config.data.colour_noise: None before, 'paper' now",
        "config.data.shared_draw: 1 before, 32 now",
    ]


def test_lengths_intervals_and_paths_may_change_and_nothing_else():
    may_change = {"num_epochs", "num_steps", "log_every_steps", "eval_every_epochs", "checkpoint_every_seconds"}
    may_change |= {"data.source", "data.cache_dir", "require_gpu"}
    assert may_change <= {name for name, key in KEYS.items() if key.may_change}
    fixed = {"model.name", "model.width", "data.image_size", "data.crop_size", "batch_size", "seed", "precision"}
    fixed |= {"optimizer.learning_rate", "optimizer.drop_epochs", "data.flip", "data.last_batch", "model.init"}
    assert not any(KEYS[name].may_change for name in fixed)


def test_the_default_is_the_papers_network_made_smaller():
    paper, spec = get_spec("paper"), model_spec(Config())
    assert len(spec.convs) == 5
    assert spec.groups == 2
    assert [conv.groups for conv in spec.convs] == [1, 2, 1, 2, 2]
    assert [conv.norm and conv.norm.groups for conv in spec.convs] == [2, 2, None, None, None]
    assert [conv.pool and (conv.pool.kind, conv.pool.window, conv.pool.stride) for conv in spec.convs] == [
        ("max", 3, 2) if number in (1, 2, 5) else None for number in range(1, 6)
    ]
    assert spec.dense_names() == ("fc6", "fc7")
    assert [layer.dropout for layer in spec.dense] == [0.5, 0.5]
    assert not Config().data.flip  # a mirrored 2 is none
    small, large = ([*found.convs, *found.dense] for found in (spec, paper))
    for layer, full in zip(small, large, strict=True):
        assert layer.features < full.features
        assert layer.features % 2 == 0
    start = ("features", "kernel_init", "bias_init")
    layers = [
        dataclasses.replace(layer, **{name: getattr(full, name) for name in start})
        for layer, full in zip(small, large, strict=True)
    ]
    contract = dataclasses.replace(spec.input, size=paper.input.size, resize=paper.input.resize)
    assert spec.input.size < paper.input.size
    restored = dataclasses.replace(
        spec, convs=tuple(layers[:5]), dense=tuple(layers[5:]), head=paper.head, input=contract
    )
    assert restored == paper


def whole_size(**values):
    """The spec of a config at the variant's own sizes, with keys changed."""
    own = {"model__width": 1.0, "model__hidden_width": 1.0, "model__init": None}
    own |= {"data__image_size": None, "data__crop_size": None}
    return model_spec(from_dict(changed(**{**own, **values})))


@pytest.mark.parametrize("name", list_models())
def test_a_variant_without_changes_is_the_variant(name):
    assert whole_size(model__name=name) == get_spec(name)


def test_model_keys_change_what_they_say():
    paper = get_spec("paper")
    assert whole_size(model__groups=1) == paper.with_groups(1)
    assert whole_size(model__activation="tanh") == dataclasses.replace(paper, activation="tanh")
    assert whole_size(model__lrn=False) == paper.with_convs(norm=None)
    assert all(conv.map_norm is None for conv in whole_size(model__name="cifar", model__lrn=False).convs)
    assert whole_size(model__dropout=0.0) == paper.with_dense(dropout=0.0)
    halved = whole_size(model__width=0.5, model__hidden_width=0.25)
    assert [conv.features for conv in halved.convs] == [48, 128, 192, 192, 128]
    assert [layer.features for layer in halved.dense] == [1024, 1024]
    thirds = whole_size(model__width=0.01, model__groups=3, model__hidden_width=1e-6)
    assert [conv.features for conv in thirds.convs] == [3, 3, 3, 3, 3]
    assert [layer.features for layer in thirds.dense] == [3, 3]
    starts = {scheme: whole_size(model__init=scheme).convs[3].kernel_init for scheme in INIT_SCHEMES}
    assert starts["source2012"].value == 0.03
    assert starts["pytorch"].kind == "pytorch"


def test_sizes_follow_each_other():
    assert whole_size(data__crop_size=112).input.resize == 128
    spec = whole_size(data__crop_size=64, data__image_size=100)
    assert (spec.input.size, spec.input.resize) == (64, 100)
    message = refusal(changed(data__crop_size=100, data__image_size=72))
    assert "config.data.crop_size=100" in message
    assert "config.data.image_size=72" in message
    message = refusal(changed(data__crop_size=8))
    assert "config.data.crop_size=8" in message
    assert "conv1" in message
