"""Several steps a call: the numbers, lines and checkpoints of single steps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_jax.parallel import Layout
from alexnet_jax.training import setup
from alexnet_jax.training.calls import check_calls, steps_at_once
from alexnet_jax.training.config import Config
from alexnet_jax.training.flags import parse
from alexnet_jax.training.metrics import Pending, read
from alexnet_jax.training.schema import ConfigError

from .layouts import Case, assert_same, eighth, layout
from .small_runs import NETWORK, last_state, noise, run

TIMING = ("images_per_second", "data_wait_fraction")


@given(
    several=st.integers(1, 9),
    log=st.integers(1, 30),
    epoch=st.integers(1, 30),
    every=st.integers(1, 3),
    saves=st.none() | st.integers(1, 30),
    first=st.integers(0, 40),
    rest=st.booleans(),
    profile=st.none() | st.tuples(st.integers(1, 40), st.integers(0, 10)).map(lambda at: f"{at[0]}:{sum(at)}"),
)
def test_a_call_of_several_steps_ends_at_the_latest_where_something_is_due(
    several, log, epoch, every, saves, first, rest, profile
):
    config = Config(
        steps_per_call=several,
        log_every_steps=log,
        eval_every_epochs=every,
        checkpoint_every_steps=saves,
        profile=profile,
    )
    end, step = 50, first
    while step < end:
        count = steps_at_once(config, step, steps_per_epoch=epoch, num_steps=end, rest=rest)
        assert count in (1, several)
        taken = range(step + 1, step + count + 1)
        if count > 1:
            for period in (log, epoch * every, *([saves] if saves else [])):
                assert not any(number % period == 0 for number in taken[:-1])
            assert not (rest and any(number % epoch == 0 for number in taken))
            if profile:
                traced = range(int(profile.split(":")[0]), int(profile.split(":")[1]) + 1)
                assert len({number in traced for number in taken}) == 1
        step += count
    assert step == end


def test_several_steps_are_taken_where_nothing_is_due():
    config = Config(steps_per_call=4, log_every_steps=20, profile="9:10")
    places, step = [], 0
    while step < 40:
        step += steps_at_once(config, step, steps_per_epoch=30, num_steps=40, rest=5)
        places.append(step)
    assert places == [4, 8, 9, 10, 14, 18, 19, 20, 24, 28, 29, 30, 34, 38, 39, 40]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps_per_call": 21, "log_every_steps": 20}, r"every 20 steps \(config\.log_every_steps=20\)"),
        ({"steps_per_call": 11, "checkpoint_every_steps": 10}, r"10 steps \(config\.checkpoint_every_steps=10\)"),
        ({"steps_per_call": 31, "log_every_steps": 40}, r"every 30 steps \(config\.eval_every_epochs=1\)"),
    ],
)
def test_calls_that_would_never_come_are_refused(changes, words):
    with pytest.raises(ConfigError, match=rf"^config\.steps_per_call={changes['steps_per_call']}: .*{words}.*divisor"):
        check_calls(Config(**changes), steps_per_epoch=30, rest=0)


def test_calls_that_never_come_before_an_incomplete_batch_are_refused():
    config = Config(steps_per_call=5, log_every_steps=10, eval_every_epochs=2)
    check_calls(config, steps_per_epoch=5, rest=0)
    with pytest.raises(ConfigError, match=r"every 4 steps \(.*keep"):
        check_calls(config, steps_per_epoch=5, rest=3)
    taken, step = [], 0
    while step < 20:
        taken.append(steps_at_once(config, step, steps_per_epoch=5, num_steps=20, rest=3))
        step += taken[-1]
    assert set(taken) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["jit", "1x2 pmap", "2x2"])
def test_three_steps_are_three_single_ones(x64, where):
    case, devices = Case(eighth("paper")), Layout() if where == "jit" else layout(where)
    step, initial = case.step(devices)
    mean = devices.place_whole(jnp.asarray(case.mean_image()))
    rows = [row for number in range(3) for row in devices.place_rows(case.batch(number, 8))]
    state, metrics = step(devices.place(initial), mean, *rows)
    singles = case.train(devices, 3)[0]
    for number, (wanted, _) in enumerate(singles):
        found = jax.tree.map(lambda values, number=number: values[number], jax.device_get(metrics))
        assert_same([found], [wanted])
    assert_same([devices.fetch(state)], [singles[-1][1]])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Eight steps an epoch, the last of them smaller; lines every five."""
    folder = noise(tmp_path_factory.mktemp("data"), train=60, val=20)
    return parse(
        [
            *(f"--config.data.source={folder}", "--config.data.last_batch=keep", "--config.num_epochs=3"),
            *(*NETWORK, "--config.model.init=kaiming", "--config.log_every_steps=5"),
            "--config.compilation_cache=False",
        ]
    ).config


@pytest.fixture(scope="module")
def trained(config):
    """Trains with so many steps a call: (how it ended, the steps of each call, lines, last state)."""
    made = setup.set_up(config)

    def train(workdir, several, before=lambda: None):
        calls = []

        def set_up(config, **_):
            fresh = jax.tree.map(jnp.copy, made.initial)  # a step takes over the state's memory

            def train_step(state, mean_image, *rows):
                before()
                calls.append((int(state.step), len(rows) // 3))
                return made.train_step(state, mean_image, *rows)

            return dataclasses.replace(made, config=config, train_step=train_step, initial=fresh)

        ended, _ = run(dataclasses.replace(config, steps_per_call=several), workdir, set_up)
        return ended, calls, read(workdir / "metrics.jsonl"), last_state(made, workdir)["state"]

    return train


@pytest.fixture(scope="module")
def single(trained, tmp_path_factory):
    """The run in single steps."""
    return trained(tmp_path_factory.mktemp("single"), 1)


def check(found, wanted):
    """The lines and the state agree to rounding."""
    _, _, lines, state = found
    assert [line.keys() for line in lines] == [line.keys() for line in wanted[2]]
    for line, other in zip(lines, wanted[2], strict=True):
        for name in line.keys() - set(TIMING):
            close = other[name] if isinstance(other[name], str | None) else pytest.approx(other[name], rel=1e-4)
            assert line[name] == close, name
        assert line["split"] == "val" or line["images_per_second"] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, wanted[3])


def test_metrics_of_calls_are_taken_step_by_step():
    """Also those of the newest call, which stay until it is done."""
    calls = [{"loss": np.float32(1)}, {"loss": jnp.array([2.0, 3.0])}, {"loss": jnp.array([4.0, 5.0])}]
    pending = Pending(calls[:1])
    pending.calls += calls[1:]
    assert [row["loss"] for row in pending.take(newest=1)] == [1, 2, 3]
    assert [row["loss"] for row in pending.read()] == [4, 5]
    assert [row["loss"] for row in pending.take()] == [4, 5]
    assert pending.take() == []


def test_a_run_is_the_one_of_single_steps(trained, single, tmp_path):
    found = trained(tmp_path, 3)
    check(found, single)
    ahead = 3  # compiled before the first: the smaller batch, one step, three
    firsts = [step for step, _ in found[1][ahead:]]
    assert list(itertools.pairwise([*firsts, 24]))[:6] == [(0, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    assert [count for _, count in found[1][ahead:]].count(3) == 4


def test_a_run_goes_on_in_the_middle_and_with_another_number(trained, single, tmp_path):
    taken = []

    def before():
        taken.append(1)
        if len(taken) == 3 + 6:  # those compiled ahead, and some
            os.kill(os.getpid(), signal.SIGINT)

    stopped = trained(tmp_path, 3, before)
    assert stopped[0].stopped_by == signal.SIGINT
    check(trained(tmp_path, 2), single)
