"""The Slurm script with stand-ins for Slurm's programs, and the linters where they are installed."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "operations" / "train.sbatch"


@pytest.fixture
def slurm(tmp_path):
    """Environment in which srun does what `SRUN` says and scontrol writes down its arguments."""
    for name, text in (
        ("srun", 'echo "$@" > "$HERE/srun.txt"\neval "$SRUN"\n'),
        ("scontrol", 'echo "$@" >> "$HERE/scontrol.txt"\n'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HERE": str(tmp_path), "SLURM_JOB_ID": "42"}


@pytest.mark.parametrize(
    ("code", "again"),
    [(0, False), (1, False), (2, False), (130, False), (75, True), (134, True), (137, True), (143, True)],
)
def test_goes_back_to_the_queue_on_the_documented_codes(slurm, tmp_path, code, again):
    done = subprocess.run(
        [SCRIPT, "--workdir=a b"], cwd=tmp_path, env=slurm | {"SRUN": f"exit {code}"}, capture_output=True, check=False
    )
    assert done.returncode == code
    assert (tmp_path / "scontrol.txt").exists() == again
    if again:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 42\n"
    assert (tmp_path / "srun.txt").read_text().endswith("python train.py --workdir=a b\n")


def test_not_for_ever(slurm, tmp_path):
    ends = slurm | {"SRUN": "exit 143", "SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}
    assert subprocess.run([SCRIPT], cwd=tmp_path, env=ends, capture_output=True, check=False).returncode == 143
    assert not (tmp_path / "scontrol.txt").exists()


def test_what_is_always_killed_is_not_started_for_ever(slurm, tmp_path):
    """Three times in a row, and as often again after another end."""

    def requeued(code):
        subprocess.run([SCRIPT], cwd=tmp_path, env=slurm | {"SRUN": f"exit {code}"}, capture_output=True, check=False)
        found = (tmp_path / "scontrol.txt").exists()
        (tmp_path / "scontrol.txt").unlink(missing_ok=True)
        return found

    codes = [137, 137, 137, 143, 137, 137, 137, 137]
    assert [requeued(code) for code in codes] == [True] * 7 + [False]
    assert not (tmp_path / ".killed-42").exists()


def test_several_nodes_find_each_other(slurm, tmp_path):
    subprocess.run([SCRIPT], cwd=tmp_path, env=slurm | {"SRUN": "exit 0", "SLURM_JOB_NUM_NODES": "2"}, check=True)
    assert "--config.parallel.distributed=True" in (tmp_path / "srun.txt").read_text()


@pytest.mark.parametrize(
    ("nodes", "mine", "wanted"),
    [
        ("2", {}, "0,1,2,3"),
        ("2", {"SLURM_NTASKS_PER_NODE": "1"}, "0,1,2,3"),
        ("2", {"SLURM_NTASKS_PER_NODE": "4"}, ""),
        ("2", {"JAX_LOCAL_DEVICE_IDS": "1"}, "1"),
        ("1", {}, ""),
    ],
)
def test_a_process_uses_all_gpus_of_its_node(slurm, tmp_path, nodes, mine, wanted):
    """JAX would give it one (`jax._src.clusters`); on one node it is no distributed run and takes all."""
    says = {
        "SRUN": 'echo "$JAX_LOCAL_DEVICE_IDS" > "$HERE/ids.txt"',
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_GPUS_ON_NODE": "4",
    }
    subprocess.run([SCRIPT], cwd=tmp_path, env=slurm | says | mine, check=True)
    assert (tmp_path / "ids.txt").read_text() == f"{wanted}\n"


def test_sigterm_is_passed_on_and_waited_for(slurm, tmp_path):
    saves = 'trap "sleep 0.5; touch $HERE/saved; exit 143" TERM; touch $HERE/ready; while :; do sleep 0.1; done'
    job = subprocess.Popen([SCRIPT], cwd=tmp_path, env=slurm | {"SRUN": saves}, stdout=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "scontrol.txt").exists()


@pytest.mark.parametrize(("program", "file"), [("shellcheck", SCRIPT), ("hadolint", ROOT / "Dockerfile")])
def test_linters_find_nothing(program, file):
    if shutil.which(program) is None:
        pytest.skip(f'{program} is not installed: pip install -e ".[dev]"')
    done = subprocess.run([program, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_the_image_holds_what_the_dockerfile_copies():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
