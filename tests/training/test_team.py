"""What the processes of a run tell each other, and the ways in which a run of several does not begin."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import cli
from alexnet_jax.training import processes
from alexnet_jax.training.config import Config, ConfigError
from alexnet_jax.training.errors import Diverged, LostProcess, RunError
from alexnet_jax.training.processes import Team, check_the_same
from alexnet_jax.training.result import PACKAGES, program
from alexnet_jax.training.workdir import locked

from .teams import free_port, started

# ---- words between processes, which are threads here


class Service:
    """A dictionary that waits, as the service of JAX does."""

    def __init__(self):
        self.found, self.changed, self.waits = {}, threading.Condition(), 0

    def key_value_set(self, key, value):
        with self.changed:
            assert key not in self.found
            self.found[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            self.waits += 1
            if not self.changed.wait_for(lambda: key in self.found, timeout=milliseconds / 1e5):  # a hundredth
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: " + key)
            return self.found[key]


@pytest.fixture
def service(monkeypatch):
    """In place of JAX's."""
    service = Service()
    monkeypatch.setattr(processes, "_service", lambda: service)
    return service


def each(function, count=3):
    """What a function of a team returns, or raises, in each of its processes."""
    found = [None] * count

    def run(index):
        try:
            found[index] = function(Team(index, count))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return found


def test_all_hear_what_each_says(service):
    def talk(team):
        return team.ask({"number": team.index}), team.told(f"by {team.index}"), team.ask(team.index**2)

    assert each(talk) == [([{"number": 0}, {"number": 1}, {"number": 2}], "by 0", [0, 1, 4])] * 3


def test_a_late_one_is_waited_for(service):
    late = threading.Event()

    def talk(team):
        if team.index == 2:
            late.wait(60)
        elif team.index == 1:
            while service.waits < 10:  # each wait ends with an error of JAX
                late.wait(0.01)
            late.set()
        return team.ask(team.index)

    assert each(talk) == [[0, 1, 2]] * 3


def test_another_error_of_the_service_is_not_swallowed(service, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: nobody there")

    monkeypatch.setattr(service, "blocking_key_value_get", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="nobody there"):
        Team(0, 2).ask(1)


def test_the_first_alone_calls_and_all_have_what_it_returns(service):
    called = []
    assert each(lambda team: team.by_first(lambda: called.append(team.index) or [1, "a"])) == [[1, "a"]] * 3
    assert called == [0]


def test_each_calls_and_keeps_its_own(service):
    assert each(lambda team: team.by_all(lambda: {team.index})) == [{0}, {1}, {2}]


@pytest.mark.parametrize(("error", "kind"), [(ConfigError("no room"), ConfigError), (Diverged("nan"), RunError)])
def test_an_error_of_the_first_ends_all(service, error, kind):
    def fail():
        raise error

    first, *others = each(lambda team: team.by_first(fail))
    assert first is error
    for other in others:
        assert isinstance(other, kind)
        assert str(other) == f"process 0: {error}"


def test_an_error_of_another_ends_all(service):
    def function(team):
        def fail():
            if team.index == 1:
                raise ValueError

        return team.by_all(fail)

    first, second, third = each(function)
    assert isinstance(second, ValueError)
    for other in (first, third):
        assert isinstance(other, ConfigError)
        assert str(other) == "process 1: ValueError()"


@pytest.mark.parametrize("mine", [{"jax": "0.10", "seed": 1}, {"seed": 1, "jax": "0.10"}])
def test_the_same_is_let_pass(service, mine):
    assert (
        each(lambda team: check_the_same(team, "program", mine if team.index else {"seed": 1, "jax": "0.10"}))
        == [None] * 3
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"jax": "0.12.0", "seed": 1}, "jax: '0.10.2' in process 0, '0.12.0'"),
        ({"jax": "0.10.2"}, "seed: 1 in process 0, None"),
        ({"jax": "0.10.2", "seed": 1, "git": "c"}, "git: None in process 0, 'c'"),
    ],
)
def test_another_version_is_refused_in_all(service, other, words):
    mine = {"jax": "0.10.2", "seed": 1}
    found = each(lambda team: check_the_same(team, "program", other if team.index == 2 else mine))
    for error in found:
        assert isinstance(error, ConfigError)
        assert str(error) == f"process 2 has another program than process 0 ({words}): start all with the same"


def test_what_must_be_the_same():
    found = program(Config())
    assert {*PACKAGES, "git", "config.seed", "config.data.val_fraction", "config.parallel.towers"} <= set(found)
    assert not {"config.parallel.process", "config.data.source", "config.data.cache_dir"} & set(found)


def test_a_process_alone_asks_nobody(monkeypatch):
    monkeypatch.setattr(processes, "_service", None)
    team = Team()
    value = object()
    assert team.ask(value) == [value]
    assert team.told(value) is team.by_first(lambda: value) is team.by_all(lambda: value) is team.share(value) is value
    assert team.wishes(None, True) == ()
    check_the_same(team, "program", {"jax": "0.10"})


def test_the_runtime_s_error_becomes_words_where_there_are_others():
    def fail(team):
        with team.losses_in_words():
            raise jax.errors.JaxRuntimeError("Gloo:\n connection   closed")

    with pytest.raises(LostProcess, match=r"process 1 of 2 can't go on: .*Start all .* The runtime says: Gloo: conn"):
        fail(Team(1, 2))
    with pytest.raises(jax.errors.JaxRuntimeError):
        fail(Team())


# ---- flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["coordinator=localhost:1"], "needs config.parallel.processes, config.parallel.process too"),
        (["process=0"], "needs config.parallel.coordinator, config.parallel.processes too"),
        (
            ["coordinator=localhost:1", "processes=2", "process=2"],
            "config.parallel.process=2: the 2 processes are numbered from 0",
        ),
        (
            ["coordinator=localhost", "processes=2", "process=1"],
            "config.parallel.coordinator='localhost': must be HOST",
        ),
        (["distributed=True", "processes=2"], "leave out config.parallel.coordinator, .processes and .process"),
        (["processes=0", "coordinator=localhost:1", "process=0"], "config.parallel.processes=0"),
        (["process=-1", "coordinator=localhost:1", "processes=2"], "config.parallel.process=-1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capfd, flags, words):
    assert cli.train([f"--workdir={tmp_path / 'run'}", *(f"--config.parallel.{flag}" for flag in flags)]) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not jax.distributed.is_initialized()


@pytest.mark.slow
def test_no_cluster_is_said(command, environment, tmp_path):
    clean = {name: value for name, value in environment.items() if not name.startswith(("SLURM", "OMPI", "PMI"))}
    ended = subprocess.run(
        command(f"--workdir={tmp_path / 'run'}", "--config.parallel.distributed=True"),
        env=clean,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 2
    assert "JAX finds no cluster" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_others_that_do_not_come_are_not_waited_for_for_ever(environment, process):
    text = (
        "import sys; from alexnet_jax import cli; from alexnet_jax.training import processes; "
        "processes.JOINED_WITHIN = 2; sys.exit(cli.train(sys.argv[1:]))"
    )
    flags = (f"coordinator=127.0.0.1:{free_port()}", "processes=2", f"process={process}")
    ended = subprocess.run(
        [sys.executable, "-c", text, *(f"--config.parallel.{flag}" for flag in flags)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode in (2, -6)  # JAX itself aborts
    assert "DEADLINE_EXCEEDED" in ended.stderr


# ---- real processes that are refused


@pytest.fixture
def refused(command, environment, tmp_path):
    """What two processes say that both end with exit code 2; each has further arguments of its own."""

    def run(*arguments, own=((), ())):
        with started(command, environment, tmp_path, f"--workdir={tmp_path / 'run'}", *arguments, own=own) as team:
            assert team.codes() == [2, 2], team.said(0) + team.said(1)
            said = [team.said(index) for index in range(2)]
        assert not any("Traceback" in text for text in said)
        return said

    return run


@pytest.mark.slow
def test_another_seed_is_refused_by_both(refused, tmp_path):
    for said in refused(own=((), ("--config.seed=7",))):
        assert "process 1 has another configuration or program than process 0 (config.seed: 0 in process 0, 7)" in said
    assert not (tmp_path / "run").exists()


def images(root, changed=()):
    """Class folders of noise; some of the files have other pixels."""
    for number in range(24):
        name = f"{'train' if number < 16 else 'val'}/{'ab'[number % 2]}/{number}.png"
        seed = [number, name in changed]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (72, 72, 3), np.uint8)).save(root / name)
    return root


SMALL = (
    *("--config.model.width=0.125", "--config.model.hidden_width=0.03", "--config.batch_size=4"),
    *("--config.num_steps=2", "--config.data.image_size=72", "--config.data.crop_size=64"),
)


@pytest.mark.slow
def test_one_other_image_is_refused_by_both(refused, tmp_path):
    sources = [images(tmp_path / "images"), images(tmp_path / "others", changed=["train/a/4.png"])]
    for said in refused(*SMALL, own=[[f"--config.data.source=folder:{source}"] for source in sources]):
        assert "process 1 has another data set than process 0 (checksum: '" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_the_same_images_in_another_place_are_trained_on(command, environment, tmp_path):
    sources = [images(tmp_path / "images"), images(tmp_path / "others")]
    own = [[f"--config.data.source=folder:{source}"] for source in sources]
    with started(command, environment, tmp_path, f"--workdir={tmp_path / 'run'}", *SMALL, own=own) as team:
        assert team.codes() == [0, 0], team.said(0) + team.said(1)


@pytest.mark.slow
@pytest.mark.parametrize("without", [0, 1])
def test_missing_data_of_one_ends_both(refused, tmp_path, without):
    there = images(tmp_path / "images")
    own = [[f"--config.data.source=folder:{there}"] for _ in range(2)]
    own[without] = [f"--config.data.source=folder:{tmp_path / 'nowhere'}"]
    said = refused(*SMALL, own=own)
    assert f"train.py: process {without}: " in said[1 - without]
    for text in said:
        assert "nowhere" in text


@pytest.mark.slow
def test_a_workdir_in_use_ends_both(refused, tmp_path):
    with locked(tmp_path / "run"):
        said = refused()
    for text in said:
        assert f"is in use by process {os.getpid()}" in text
    assert "train.py: process 0: " in said[1]
