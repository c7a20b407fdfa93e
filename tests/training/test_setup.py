"""What a run asks of its workdir and its host before it begins."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from alexnet_jax import cli
from alexnet_jax.data.prepared import Prepared, Split, Statistics
from alexnet_jax.data.views import Augmentation
from alexnet_jax.training import devices, loop, setup
from alexnet_jax.training import workdir as workdirs
from alexnet_jax.training.config import Config, ConfigError, from_dict, to_dict
from alexnet_jax.training.signals import Stop


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
    with pytest.raises(ConfigError, match=r"--workdir=.*file"), workdirs.writing(tmp_path / "file"):
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


ASYNCHRONOUS = "jax_cpu_enable_async_dispatch"


class Library:
    """The C library, which notes its settings instead of making them."""

    def __init__(self, works=1):
        self.calls: list[tuple[int, int]] = []
        self._works = works

    def mallopt(self, parameter, value):
        self.calls.append((parameter, value))
        return self._works


@pytest.fixture
def library(monkeypatch):
    """A host with glibc and without a GPU."""
    found = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    monkeypatch.setattr(devices, "nvidia_gpus", list)
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: ("glibc", "2.36"))
    before = jax.config.read(ASYNCHRONOUS)
    yield found
    jax.config.update(ASYNCHRONOUS, before)


def test_the_heap_is_kept_by_glibc_on_a_cpu_only(library, monkeypatch):
    before = jax.config.read(ASYNCHRONOUS)
    assert devices.keep_heap()
    assert dict(library.calls) == {-4: 0, -1: -1, -8: 1}
    assert jax.config.read(ASYNCHRONOUS) == before
    library.calls.clear()
    assert devices.keep_heap(compute_here=True)
    assert dict(library.calls) == {-4: 0, -1: -1}
    assert not jax.config.read(ASYNCHRONOUS)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(works=0))
    assert not devices.keep_heap()
    monkeypatch.setattr(ctypes, "CDLL", pytest.fail)
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: ("", ""))
    assert not devices.keep_heap()
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: ["0000:01:00.0"])
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "")
        assert not devices.keep_heap()
    finally:
        jax.config.update("jax_platforms", before)


def test_the_program_keeps_the_heap_and_the_library_does_not(library, monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(loop, "train", lambda *_: begun.append(len(library.calls)) or loop.Outcome({}))
    assert cli.train([f"--workdir={tmp_path}"]) == 0
    several = ["--config.parallel.coordinator=127.0.0.1:1", "--config.parallel.processes=2"]
    assert cli.train([f"--workdir={tmp_path}", *several, "--config.parallel.process=0"]) == 0
    assert begun == [2, 2 + 3]  # one of several processes dispatches as JAX does
    program = "import ctypes, sys; ctypes.CDLL = sys.exit; import alexnet_jax.cli; import alexnet_jax.training.loop"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def device(process_index, stats):
    """A device with its count of memory."""
    return SimpleNamespace(process_index=process_index, memory_stats=lambda: stats)


def test_the_memory_of_the_devices_is_the_most_that_one_of_this_process_held():
    used = [device(0, {"bytes_in_use": 1, "peak_bytes_in_use": 3 * 2**20}), device(0, {"peak_bytes_in_use": 2**19})]
    other = device(1, {"peak_bytes_in_use": 2**40})
    assert devices.device_memory([*used, other]) == {"device_memory_mib": 3.0}
    assert devices.device_memory([device(0, {"peak_bytes_in_use": 2**19})]) == {"device_memory_mib": 0.5}
    for none in ([], [other], [device(0, None)], [device(0, {})], [device(0, {"bytes_in_use": 5})]):
        assert devices.device_memory(none) == {}
    assert devices.device_memory(jax.local_devices(backend="cpu")) == {}


@pytest.mark.parametrize(
    ("precision", "name"), [("float32", "float32"), ("tf32", "tensorfloat32"), ("bfloat16", "bfloat16")]
)
def test_settings_of_the_importing_program_are_left_alone(precision, name):
    def now():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return [jax.config.jax_default_matmul_precision, *handlers]

    def interrupted():
        with setup.precision(changed(precision=precision)), Stop().listening() as stop:
            stop.at_once = False
            assert jax.config.jax_default_matmul_precision == name
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == signal.SIGINT
            signal.raise_signal(signal.SIGINT)  # the second one ends a run at once

    before = now()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert now() == before


@pytest.mark.parametrize("kind", [None, "paper", "source2012"])
def test_the_step_is_made_with_the_colours_of_the_training_images(monkeypatch, tmp_path, kind):
    images = np.random.default_rng(4).integers(0, 256, (6, 12, 12, 3), np.uint8)
    split = Split(images, np.arange(6, dtype=np.int32) % 2)
    covariance = np.cov(images.reshape(-1, 3).T, bias=True)
    colours = Statistics(images.mean(0), images.mean((0, 1, 2)), covariance, *np.linalg.eigh(covariance))
    data = Prepared(tmp_path, ("a", "b"), {"train": split, "val": split}, colours, {"image_size": 12})
    made = {}
    monkeypatch.setattr(setup, "prepared", lambda *_, **__: data)
    monkeypatch.setattr(setup.steps, "make_train_step", lambda *_, **options: made.update(options))
    values = to_dict(changed(batch_size=3))
    values["model"] |= {"name": "cifar", "init": None}
    values["data"] |= {"image_size": 12, "crop_size": 12, "flip": True, "colour_noise": kind, "shared_draw": 3}
    setup.set_up(from_dict(values))
    assert made["augmentation"] == Augmentation(flip=True, colour_noise=kind, shared_draw=3)
    if kind is None:
        assert made["directions"] is None
        return
    found, unit = made["directions"].astype(np.float64) / 255, covariance / 255**2
    wanted = 0.01 * (unit @ unit if kind == "paper" else unit)  # what its normals have as a covariance
    np.testing.assert_allclose(found @ found.T, wanted, rtol=1e-5, atol=1e-9)


def test_more_images_than_a_batch_has_cannot_share_a_draw(refused, tmp_path):
    line = refused("--config.data.shared_draw=64", "--config.batch_size=32", f"--workdir={tmp_path / 'run'}")
    assert "config.data.shared_draw=64 is larger than config.batch_size=32" in line
    assert "set it to 32 or less" in line
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written_are_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(f"--config.data.cache_dir={tmp_path / 'file'}", f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "file") in line
    assert not (tmp_path / "run").exists()


GPU = """
import os, sys
os.environ.pop("XLA_FLAGS", None)
from alexnet_jax.training import devices
if "late" in sys.argv:
    import jax
    jax.devices()
    jax.default_backend = lambda: "gpu"
devices.set_deterministic({"True": True, "None": None}[sys.argv[1]])
print(os.environ.get("XLA_FLAGS"))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("True",), "--xla_gpu_deterministic_ops=true\n"),
        (("None",), "None\n"),
        (("None", "late"), "None\n"),
        (("True", "late"), "config.deterministic=True comes too late"),
    ],
)
def test_deterministic_operations_are_asked_for_before_jax_starts(arguments, words):
    done = subprocess.run([sys.executable, "-c", GPU, *arguments], capture_output=True, text=True, timeout=120)
    assert words in done.stdout + done.stderr
    assert (done.returncode == 0) == ("too late" not in words)


CACHED = """
import dataclasses, pathlib, sys, jax
from alexnet_jax.training import devices
from alexnet_jax.training.config import Config
names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")
before = [getattr(jax.config, name) for name in names]
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
before[2] = 0.0
with devices.compilation_cache(dataclasses.replace(Config(), compilation_cache=sys.argv[1] == "True")):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: x * 3 + 1)(1.0)
assert [getattr(jax.config, name) for name in names] == before
"""


@pytest.mark.parametrize("on", [True, False])
def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, on):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", CACHED, str(on)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        bool(list((tmp_path / "alexnet-jax" / "compiled").glob("*/jit*"))) == on if on else not list(tmp_path.iterdir())
    )
