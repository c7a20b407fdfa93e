"""`alexnet-jax doctor`: the facts, no secrets, and a broken machine described to the end."""

from __future__ import annotations

import json
import pathlib

import jax
import pytest

from alexnet_jax.cli import doctor, main
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import open_source

SECTIONS = ["versions", "devices", "gpu", "environment", "host", "workdir", "cache", "git"]


@pytest.fixture
def told(capsys, tmp_path):
    """What doctor finds, as an object."""

    def run(*arguments) -> dict:
        assert main(["doctor", "--json", f"--workdir={tmp_path / 'run'}", *arguments]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return json.loads(printed.out)

    return run


def test_every_section_has_its_facts(told):
    found = told()
    assert list(found) == SECTIONS
    assert not [name for name, facts in found.items() if "error" in facts]
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"]["backend"] == "cpu"
    assert "cpu:3" in found["devices"]
    assert "GiB" in found["host"]["memory"]
    assert "not made yet" in found["workdir"]["path"]
    assert set(found["workdir"]) == {"path", "free", "file system", "can be written"}


def test_text(capsys, tmp_path):
    assert main(["doctor", f"--workdir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == SECTIONS
    assert any(line.split() == ["jax", jax.__version__] for line in lines)


def test_only_what_matters_of_the_environment(told, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JWT", "hush1")
    monkeypatch.setenv("JAX_SECRET_TOKEN", "hush2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush3")
    found = told()
    assert found["environment"]["JAX_COMPILATION_CACHE_DIR"] == "/somewhere"
    assert found["environment"]["SLURM_JOB_ID"] == "12"
    assert "hush" not in json.dumps(found)
    assert "AWS_SECRET_ACCESS_KEY" not in json.dumps(found)


def test_the_home_folder_is_not_named(told, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = told()
    assert found["workdir"]["path"].startswith("~/run")
    assert str(tmp_path) not in json.dumps(found["workdir"])


@pytest.mark.parametrize("broken", ["_versions", "_devices", "_gpu", "_host", "_git"])
def test_a_broken_part_is_one_line_and_the_rest_goes_on(told, monkeypatch, broken):
    def fails():
        raise RuntimeError("Unable to initialize backend 'cuda':\n  no driver")

    monkeypatch.setattr(doctor, broken, fails)
    found = told()
    name = broken.removeprefix("_")
    assert found[name] == {"error": "RuntimeError: Unable to initialize backend 'cuda': no driver"}
    assert [section for section, facts in found.items() if "error" in facts] == [name]


def test_a_broken_nvidia_smi_is_told(told, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert told()["gpu"]["nvidia-smi"] == "NVIDIA-SMI has failed"


def test_prepared_data(told, monkeypatch, tmp_path):
    folder = tmp_path / "digits"
    prepare(open_source("digits"), folder, size=8)
    found = told(f"--data={folder}")["data"]
    assert "1,197 train" in found["images"]
    assert found["page cache"].startswith("fits")
    monkeypatch.setattr(doctor, "_memory", lambda: {"MemTotal": 1000, "MemAvailable": 500})
    assert "does NOT fit" in told(f"--data={folder}")["data"]["page cache"]


def test_data_that_is_none(told, tmp_path):
    assert "is not a prepared data set" in told(f"--data={tmp_path}")["data"]["error"]


MOUNTS = """\
overlay / overlay rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sda1 /home/me/my\\040disk ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tmp", "overlay"),
        ("/home", "nfs4"),
        ("/home/me/runs", "nfs4"),
        ("/homely", "overlay"),
        ("/home/me/my disk/runs", "ext4"),
    ],
)
def test_file_systems(path, kind):
    assert doctor.filesystem(pathlib.Path(path), MOUNTS) == kind
    assert (kind in doctor.NETWORK) == (kind == "nfs4")


def test_a_mistake(capsys):
    assert main(["doctor", "--workdr=x"]) == 2
    assert "did you mean --workdir?" in capsys.readouterr().err
