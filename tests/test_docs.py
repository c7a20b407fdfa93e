"""The documentation is true: its code runs, its generated pages are up to date, CI runs its commands."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: pathlib.Path) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if line]
    return [command.strip() for line in lines for command in line.split("&&")]


def for_ci(command: str) -> bool:
    """Commands that a test can't run inside itself: installing, and the tests."""
    return command.startswith("pip ") or "pytest" in command


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like a clone, to run the commands of the documentation in."""
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def environment(tmp_path):
    """This interpreter first on the path, one device as a user has it, data kept in the test's own folder."""
    found = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "python").symlink_to(sys.executable)
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), found["PATH"]])
    return found | {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_python_blocks_run(page, number, folder, environment):
    code = blocks(page, "python")[number]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


SHORT = sorted({c for page in PAGES for c in commands(page) if not for_ci(c) and c != "python train.py"})


@pytest.mark.parametrize("command", SHORT)
def test_commands_run(command, folder, environment):
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_there_are_commands_and_code_to_run():
    assert len(SHORT) >= 4
    assert len(blocks(ROOT / "README.md", "python")) >= 3
    assert commands(ROOT / "README.md")[:4] == [
        "pip install -e .",
        "python train.py",
        'pip install -e ".[test]"',
        "python -m pytest",
    ]


def test_ci_runs_the_commands_that_this_test_can_not():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in commands(ROOT / "README.md")[:4]:
        assert command in [line.strip() for line in script], command


@pytest.mark.parametrize("name", ["variants.md", "stages.md", "configuration.md"])
def test_generated_pages_are_up_to_date(name, tmp_path):
    shutil.copy(ROOT / "docs" / "generate.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True)
    assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / "docs" / name).read_text(encoding="utf-8"), (
        "run python docs/generate.py"
    )


def test_the_check_of_generated_pages_can_fail(tmp_path):
    shutil.copy(ROOT / "docs" / "generate.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True)
    (tmp_path / "variants.md").write_text("old")
    done = subprocess.run([sys.executable, tmp_path / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "variants.md" in done.stderr


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
