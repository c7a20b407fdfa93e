"""The examples run, with warnings as errors; what each shows it checks itself."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

FOLDER = pathlib.Path(__file__).parent.parent / "examples"
SHARED = {"digits"}
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in SHARED)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name, tmp_path):
    variables = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # one device, as a user has it
    command = [sys.executable, "-W", "error", str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    pictures = [path.name for path in tmp_path.iterdir()]
    assert pictures == (["saliency.png"] if name == "saliency" else [])
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert image.size == (1500, 360)


def test_the_table_lists_every_program():
    table = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == PROGRAMS
