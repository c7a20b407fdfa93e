"""What a run asks of its workdir and its host before it begins."""

from __future__ import annotations

import json
import signal

import jax
import pytest

from alexnet_jax import cli
from alexnet_jax.training import devices, loop, setup
from alexnet_jax.training.config import Config, ConfigError, from_dict, to_dict


@pytest.fixture
def refused(capsys):
    """The one line that refuses a run, with exit code 2."""

    def run(*arguments) -> str:
        assert cli.train(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        return printed.err

    return run


@pytest.fixture
def workdir(tmp_path):
    """A workdir of the default configuration with a checkpoint."""
    path = tmp_path / "run"
    (path / "checkpoints" / "74").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(to_dict(Config())))
    return path


def changed(**values) -> Config:
    """The default with keys of the top changed."""
    return from_dict(to_dict(Config()) | values)


def test_another_configuration_in_the_same_workdir_is_refused(refused, workdir):
    before = (workdir / "config.json").read_bytes()
    rate = Config().optimizer.learning_rate
    line = refused(
        f"--workdir={workdir}", "--config.seed=1", "--config.optimizer.learning_rate=0.5", "--config.num_epochs=9"
    )
    for words in ("config.seed: 0 before, 1 now", f"config.optimizer.learning_rate: {rate} before, 0.5 now"):
        assert words in line
    assert str(workdir) in line
    assert "num_epochs" not in line
    assert "--workdir" in line
    assert (workdir / "config.json").read_bytes() == before
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints", "config.json"]


def test_a_workdir_may_be_gone_on_with(workdir, tmp_path):
    setup.check_workdir(Config(), workdir)
    setup.check_workdir(changed(num_epochs=99, log_every_steps=3), workdir)
    setup.check_workdir(changed(seed=1), tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.seed"):
        setup.check_workdir(changed(seed=1), workdir)
    (workdir / "checkpoints" / "74").rmdir()
    setup.check_workdir(changed(seed=1), workdir)  # nothing to go on from


def test_a_damaged_config_is_left_to_the_checkpoint(workdir):
    for text in ("{", "", "[]"):
        (workdir / "config.json").write_text(text)
        if text == "[]":
            with pytest.raises(ConfigError, match=r"config\.seed: None before"):
                setup.check_workdir(Config(), workdir)
        else:
            setup.check_workdir(Config(), workdir)
    setup.check_earlier(Config(), to_dict(changed(num_epochs=99)), workdir)
    with pytest.raises(ConfigError, match=r"config\.seed: 1 before, 0 now"):
        setup.check_earlier(Config(), to_dict(changed(seed=1)), workdir)


def test_a_workdir_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--workdir=.*file"), setup.writing(tmp_path / "file"):
        (tmp_path / "file" / "below").mkdir(parents=True)


@pytest.mark.parametrize("gpus", [[], ["0000:01:00.0", "0000:02:00.0"]], ids=["no GPU", "two idle GPUs"])
def test_gpus_that_jax_does_not_use(refused, monkeypatch, tmp_path, gpus):
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: gpus)
    warning = devices.check_gpu(False)
    if gpus:
        assert "2 NVIDIA GPU(s) in this host (0000:01:00.0, 0000:02:00.0)" in warning
        assert 'pip install "alexnet-jax[cuda12]"' in warning
    else:
        assert warning is None
    words = "alexnet-jax[cuda12]" if gpus else "no NVIDIA driver"
    with pytest.raises(ConfigError, match=r"config\.require_gpu=True.* cpu: "):
        devices.check_gpu(True)
    assert words in refused("--config.require_gpu=True", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_gpu_in_use_is_fine(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: ["0000:01:00.0"])
    assert devices.check_gpu(True) is devices.check_gpu(False) is None


def test_devices_in_words():
    first, *others = jax.local_devices()
    words = devices.describe()
    assert words.startswith(f"{first.platform}:{first.id} ")
    for other in others:
        assert f"{other.platform}:{other.id}" in words.split("unused")[1]
    assert devices.peak_memory_mib() > 50


@pytest.mark.parametrize(
    ("precision", "name"), [("float32", "float32"), ("tf32", "tensorfloat32"), ("bfloat16", "bfloat16")]
)
def test_settings_of_the_importing_program_are_left_alone(precision, name):
    def now():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return [jax.config.jax_default_matmul_precision, *handlers]

    def interrupted():
        with setup.precision(changed(precision=precision)), loop._stop_signals() as stop:
            assert jax.config.jax_default_matmul_precision == name
            signal.raise_signal(signal.SIGINT)
            assert stop == [signal.SIGINT]
            signal.raise_signal(signal.SIGINT)  # the second one ends a run at once

    before = now()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert now() == before


def test_places_that_cannot_be_written_are_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(f"--config.data.cache_dir={tmp_path / 'file'}", f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "file") in line
    assert not (tmp_path / "run").exists()
