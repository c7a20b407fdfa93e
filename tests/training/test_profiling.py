"""`config.profile`: which steps are traced, what stands in the trace, and what happens when it can't be."""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import jax
import pytest
from jax.profiler import ProfileData

from alexnet_jax.training import profiling, setup
from alexnet_jax.training.config import Config, ConfigError, from_dict, to_dict
from alexnet_jax.training.flags import parse
from alexnet_jax.training.metrics import read

from .small_runs import noise, run

STAGES = [f"conv{number}" for number in range(1, 6)] + ["norm1", "norm2", "pool1", "pool2", "pool5"]
STAGES += ["fc6", "fc7", "fc8", "loss"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The paper's network, very narrow, for six steps on sixteen images."""
    folder = noise(tmp_path_factory.mktemp("data"), train=16, val=4, size=64)
    base = parse(
        [
            *(f"--config.data.source={folder}", "--config.data.image_size=64", "--config.data.crop_size=63"),
            *("--config.model.width=0.03", "--config.model.hidden_width=0.001", "--config.batch_size=4"),
            *("--config.num_steps=6", "--config.log_every_steps=2", "--config.compilation_cache=False"),
        ]
    ).config
    return lambda **changes: from_dict(to_dict(base) | changes)


@pytest.mark.slow
def test_the_trace_has_the_steps_and_the_names_of_the_stages(config, tmp_path):
    _, printed = run(config(profile="3:4"), tmp_path)
    assert f"profile of the steps 3 to 4: {tmp_path / 'profile'}" in printed
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    events = [
        (event.name, dict(event.stats))
        for plane in ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
    ]
    assert sorted(about["step_num"] for name, about in events if name == "train") == [3, 4]
    assert len({about["run_id"] for _, about in events if about.get("hlo_module") == "jit_step_fn"}) == 2
    # An operation's event has its name in the compiled program, and the program, with the scopes, is in the trace.
    scopes = {name.decode() for name in re.findall(rb"jit\(step_fn\)/[\w()./]+", path.read_bytes())}
    for stage in STAGES:
        assert any(name.startswith(f"jit(step_fn)/jvp({stage})/") for name in scopes), stage
        assert any(name.startswith(f"jit(step_fn)/transpose(jvp({stage}))/") for name in scopes), stage
    for stage in ("view", "draws", "update"):
        assert any(name.startswith(f"jit(step_fn)/{stage}/") for name in scopes), stage
    lines = [line for line in read(tmp_path / "metrics.jsonl") if line["split"] == "train"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert not any("device_memory_mib" in line for line in lines)  # a CPU does not count it


class Fake:
    """`jax.profiler` that notes what it is asked for."""

    ProfileOptions = SimpleNamespace

    def __init__(self, fails=""):
        self.calls: list[str] = []
        self._fails = fails

    def start_trace(self, folder, *, profiler_options):
        self._call("start")
        assert profiler_options.python_tracer_level == 0

    def stop_trace(self):
        self._call("stop")

    @contextlib.contextmanager
    def StepTraceAnnotation(self, name, *, step_num):
        self.calls.append(str(step_num))
        yield

    def _call(self, name):
        if name == self._fails:
            raise OSError(f"no {name}")
        self.calls.append(name)


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Goes through steps: (what the profiler was asked for, what was told)."""

    def run(wanted, first_step, end, *, fails=""):
        fake, told = Fake(fails), []
        monkeypatch.setattr(jax, "profiler", fake)
        profile = profiling.make_profile(
            wanted, tmp_path, first_step, tell=told.append, paused=lambda: contextlib.nullcontext()
        )
        for step in range(first_step + 1, end + 1):
            with profile.steps(step, step, []):
                pass
        profile.close()
        profile.close()
        return fake.calls, told

    return run


def test_steps_are_counted_over_the_whole_run(steps):
    assert steps("1:2", 0, 5)[0] == ["start", "1", "2", "stop"]
    assert steps("3:3", 0, 5)[0] == ["start", "3", "stop"]
    assert steps("3:5", 3, 9)[0] == ["start", "4", "5", "stop"]  # resumed in the middle
    assert steps("3:5", 0, 4)[0] == ["start", "3", "4", "stop"]  # stopped in the middle
    assert steps("3:5", 0, 2) == ([], [])


def test_a_profile_of_steps_that_are_past_is_told(steps):
    calls, (told,) = steps("3:5", 5, 9)
    assert calls == []
    assert "config.profile='3:5'" in told
    assert "step 5 already" in told


@pytest.mark.parametrize("fails", ["start", "stop"])
def test_a_trace_that_fails_is_told_once_and_the_steps_go_on(steps, fails):
    calls, (told,) = steps("2:3", 0, 5, fails=fails)
    assert calls == {"start": ["2", "3"], "stop": ["start", "2", "3"]}[fails] or calls == []
    assert f"no {fails}" in told
    assert "goes on" in told


def test_nothing_is_traced_without_the_key(steps):
    assert Config().profile is None
    assert steps(None, 0, 5) == ([], [])
    assert isinstance(profiling.make_profile(None, None, 0, tell=print, paused=None), profiling.Off)


@pytest.mark.parametrize("value", ["", "5", "5:", ":5", "0:3", "20:10", "-1:3", "1:2:3", "1.5:2", "a:b", "1 : 2"])
def test_what_is_no_range_of_steps_is_refused(value):
    with pytest.raises(ConfigError) as caught:
        from_dict(to_dict(Config()) | {"profile": value})
    assert f"config.profile={value!r}" in str(caught.value)
    assert "FIRST:LAST with 1 <= FIRST <= LAST" in str(caught.value)


def test_a_profile_behind_the_end_of_the_run_is_refused(config):  # before anything is built
    profiling.check_profile("6:6", 6)
    profiling.check_profile(None, 6)
    with pytest.raises(ConfigError, match=r"config\.profile='6:7'.*6 steps"):
        setup.set_up(config(profile="6:7"))
