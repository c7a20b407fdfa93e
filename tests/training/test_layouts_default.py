"""The default run over several devices, put together from its configuration, against one device; and refusals."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from alexnet_jax import cli
from alexnet_jax.parallel import Layout
from alexnet_jax.training import parallel_config, setup
from alexnet_jax.training.config import Config, ConfigError, from_dict, to_dict
from alexnet_jax.training.parallel_config import ParallelConfig, make_layout

from .layouts import LAYOUTS, layout

FOUND = len(jax.devices())


def config(**changes) -> Config:
    """The default with keys changed: `batch_size=9`, `data__last_batch="keep"`."""
    whole = to_dict(Config())
    for name, value in changes.items():
        *sections, last = name.split("__")
        part = whole
        for section in sections:
            part = part[section]
        assert last in part
        part[last] = value
    return from_dict(whole)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the digits are prepared, once."""
    return str(tmp_path_factory.mktemp("cache"))


def losses(run, count, first_step=0):
    """What the run's batches from a step on cost, a mean of each; and the parameters after them."""
    state, found = run.initial, []
    for batch in itertools.islice(run.batches(first_step), count):
        state, metrics = run.train_step(state, run.mean_image, *batch)
        found.append(float(metrics["loss"]) / int(metrics["count"]))
    assert len(found) == count
    return found, run.layout.fetch(state.params)


@pytest.fixture(scope="module")
def one_device(cache):
    """The first 20 losses."""
    return losses(setup.set_up(config(data__cache_dir=cache)), 20)[0]


@pytest.mark.parametrize(
    "where",
    [pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS],
)
def test_the_first_losses_of_the_default_run(where, cache, one_device, monkeypatch):
    data, towers, mapping = LAYOUTS[where]
    chosen = config(data__cache_dir=cache, parallel__data=data, parallel__towers=towers)
    if layout(where) != make_layout(chosen.parallel, chosen.batch_size):  # a mapping that is not the first choice
        monkeypatch.setattr(setup, "make_layout", lambda choice, size: Layout(data, towers, mapping=mapping))
    run = setup.set_up(chosen)
    assert (run.layout.data, run.layout.towers, run.layout.mapping) == (data, towers, mapping)
    found = losses(run, 20)[0]
    np.testing.assert_allclose(found, one_device, rtol=1e-4)
    assert len(set(found)) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "towers", "size", "last"),
    [(1, 2, 33, False), (2, 2, 34, True), (4, 1, 20, True)],
)
def test_a_batch_that_the_devices_do_not_divide(data, towers, size, last, cache):
    """Any batch of 33, a short last one: filled up with masked rows, the step's mean is over the images alone."""
    options = {"data__cache_dir": cache, "data__last_batch": "keep", "batch_size": size, "data__flip": True}
    alone = setup.set_up(config(**options))
    run = setup.set_up(config(**options, parallel__data=data, parallel__towers=towers))
    first_step = alone.steps_per_epoch - 1 if last else 0
    count = len(alone.train_split) % size if last else size
    assert count % run.layout.size, "choose a size that leaves such a number of images"
    mask = next(iter(run.batches(first_step))).mask
    assert mask.shape[0] % run.layout.size == 0
    assert int(np.sum(mask)) == count
    wanted, found = losses(alone, 1, first_step), losses(run, 1, first_step)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1]), strict=True):
        assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other)  # biases of zero have moved a little


@pytest.mark.slow
def test_evaluation_is_exact_in_every_layout(cache):
    """Every image counts once, whatever a batch is filled up with."""
    wanted = None
    for data, towers in ((1, 1), (1, 2), (2, 2), (4, 1)):
        run = setup.set_up(config(data__cache_dir=cache, batch_size=36, parallel__data=data, parallel__towers=towers))
        found = run.evaluate(run.initial.params, "test")
        wanted = wanted or found
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def refusal(**changes) -> str:
    with pytest.raises(ConfigError) as error:
        setup.set_up(config(**changes))
    return str(error.value)


@pytest.mark.parametrize(("data", "towers"), [(8, 1), (4, 2)])
def test_more_devices_than_there_are(data, towers):
    words = refusal(parallel__data=data, parallel__towers=towers)
    assert f"config.parallel.data={data} with config.parallel.towers={towers} takes 8 devices" in words
    assert f"there are {FOUND} (cpu:0, cpu:1, cpu:2, cpu:3)" in words
    assert "JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8" in words


def test_the_same_on_the_command_line(capsys, tmp_path):
    assert cli.train([f"--workdir={tmp_path / 'run'}", "--config.parallel.data=8"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "--xla_force_host_platform_device_count=8" in printed.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size", "data", "near"), [(33, 2, "32 and 34"), (30, 4, "28 and 32"), (3, 4, "4"), (31, 4, "28 and 32")]
)
def test_a_batch_that_the_parts_do_not_divide(size, data, near):
    words = refusal(batch_size=size, parallel__data=data)
    assert f"config.batch_size={size} can't be split into config.parallel.data={data}" in words
    assert words.endswith(f"the nearest sizes that can are {near}")


def test_a_network_of_one_column_has_no_towers():
    words = refusal(model__name="single", parallel__towers=2)
    assert words.startswith("config.parallel.towers=2: single has 1 group(s)")
    assert "2 towers" in words


def test_three_towers_of_two_groups():
    assert refusal(parallel__towers=3).startswith("config.parallel.towers=3: paper has 2 group(s)")


@pytest.mark.parametrize(
    ("size", "towers", "parts"), [(32, 1, 4), (30, 1, 3), (34, 1, 2), (33, 1, 3), (31, 1, 1), (32, 2, 2), (31, 2, 1)]
)
def test_gpus_are_used_as_far_as_they_divide_the_batch(size, towers, parts, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = make_layout(ParallelConfig(towers=towers), size)
    assert (found.data, found.towers) == (parts, towers)


def test_of_a_cpus_devices_one_is_used():
    assert make_layout(ParallelConfig(), 32).size == 1
    assert make_layout(ParallelConfig(towers=2), 32).size == 2


@pytest.mark.parametrize(
    ("data", "towers", "words"),
    [
        (1, 1, "one device holds the whole batch and the whole network"),
        (1, 2, "2 devices: the network in 2 towers (pmap)"),
        (4, 1, "4 devices: the batch in 4 parts (shard_map)"),
        (2, 2, "4 devices: the batch in 2 parts, the network in 2 towers (shard_map)"),
    ],
)
def test_a_layout_in_words(data, towers, words):
    assert parallel_config.describe(Layout(data, towers)) == words
