"""The documentation is true: its code runs, its generated pages are up to date, CI runs its commands."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from alexnet_jax.models import get_spec
from alexnet_jax.models.summary import as_markdown
from alexnet_jax.models.traffic import exchanged_cells, exchanges

ROOT = pathlib.Path(__file__).parent.parent
# Commands and code that work on a run that has been trained.
ON_A_RUN = re.compile(r"evaluat|alexnet-jax (predict|features|neighbours|kernels|convert)")
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


def photographs(folder):
    """The two that scikit-learn ships, as files."""
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(photograph).save(folder / f"{name}.jpg")


def variables(cache):
    """Variables of a process: this interpreter first on the path, one device as a user has it."""
    found = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), found["PATH"]])
    return found | {"PATH": path, "XDG_CACHE_HOME": str(cache)}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of two steps, and the cache with its data."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = f"--config={ROOT / 'configs' / 'source2012_imagenet.py'}:tiny"
    subprocess.run(
        [sys.executable, ROOT / "train.py", recipe, f"--workdir={folder / 'run'}"],
        env=variables(folder / "cache"),
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder


@pytest.fixture
def run_in_folder(folder, request):
    """Runs code of the documentation in the folder; the runs that it names are there, each the tiny one."""

    def run(text, *command):
        cache, names = folder / "cache", set(re.findall(r"runs/\w+", text))
        if "photos" in text:
            photographs(folder / "photos")
        if ON_A_RUN.search(text):
            trained = request.getfixturevalue("trained")
            cache = trained / "cache"
            for name in names:
                shutil.copytree(trained / "run", folder / name)
        return subprocess.run(
            command, cwd=folder, env=variables(cache), capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_python_blocks_run(page, number, run_in_folder):
    code = blocks(page, "python")[number]
    done = run_in_folder(code, sys.executable, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr


SHORT = sorted({c for page in PAGES for c in commands(page) if not for_ci(c) and c != "python train.py"})


@pytest.mark.slow
@pytest.mark.parametrize("command", SHORT)
def test_commands_run(command, run_in_folder):
    done = run_in_folder(command, "sh", "-c", command)
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


@pytest.mark.slow
def test_the_check_of_generated_pages_can_fail(tmp_path):
    shutil.copy(ROOT / "docs" / "generate.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True)
    assert (tmp_path / "towers.png").stat().st_size > 0
    (tmp_path / "towers.png").unlink()
    (tmp_path / "variants.md").write_text("old")
    done = subprocess.run([sys.executable, tmp_path / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "out of date: variants.md, towers.png;" in done.stderr


def test_the_table_of_what_the_towers_exchange_is_the_programs():
    found = exchanges(get_spec("paper"), towers=2)
    page = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8")
    assert as_markdown(exchanged_cells(found)) in page
    for layout in ({"towers": 2}, {"data": 2}):
        total = sum(one.link_bytes for one in exchanges(get_spec("paper"), **layout))
        assert f"| {total:,} | {total / 25e6:.1f} ms | {total / 450e6:.1f} ms |" in page


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
