"""Every benchmark runs, and writes the JSON that others rely on."""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SMALL = ["--image-size", "67", "--narrow", "8", "--classes", "10"]
SMALL_NETWORK = ["--variants", "paper", "--batch-sizes", "2", *SMALL, "--no-compile"]
TINY = {
    "loader.py": ["--images", "48", "--size", "16", "--batch-size", "8", "--batches", "8"],
    "prepare.py": ["--images", "12"],
    "data_memory.py": ["--pair", "16", "20", "40"],
    "towers.py": ["--batch-size", "2"],
    "features.py": ["--images", "9", "--batch-size", "4", "--variant", "half"],
    "checkpoint_cost.py": ["--batch-size", "2", "--rounds", "1"],
    "step.py": SMALL_NETWORK,
    "forward.py": SMALL_NETWORK,
    "memory.py": ["--batch-sizes", "32", "33", *SMALL],
    "startup.py": ["--networks", "digits", "--narrow", "8"],
    "end_to_end.py": [*SMALL, "--batch-size", "2", "--images", "8", "--forms", "eager", "--workers", "1"],
    "layers.py": ["--batch-size", "2", *SMALL],
    "gpu.py": [
        *("--device", "cpu", "--variants", "paper", "--precisions", "float32", "--forms", "channels-last", *SMALL),
        *("--batch-size", "2", "--batch-sizes", "2", "--images", "16"),
    ],
}
KEYS = {"case", "ours", "peer", "peer_name", "ratio", "unit"}
WITHOUT_TORCH = """
import runpy, sys
import importlib.util
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "torch" else there(name, *package)
sys.argv = sys.argv[1:]
sys.path.insert(0, str(__import__("pathlib").Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name, folder, *, start=()):
    """What a benchmark printed and wrote on a tiny set."""
    program, result = ROOT / "benchmarks" / name, folder / "result.json"
    arguments = [str(program), "--quick", "--json", str(result), *TINY[name]]
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder,
        # As a user has it: one device.
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(result.read_text(encoding="utf-8"))


# memory.py has rows with PyTorch alone.
MARKS = {"memory.py": pytest.mark.parity}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in TINY])
def test_a_benchmark_writes_the_agreed_json(name, tmp_path):
    printed, found = run(name, tmp_path)
    assert "is left out:" not in printed
    parts = found.pop("parts", [])
    assert [part for part in parts if part["state"] != "done" or not part["rows"]] == []
    assert len(parts) == (8 if name == "gpu.py" else 0)
    assert set(found) == {"machine", "commit", "versions", "command", "rows", "notes"}
    assert found["command"].startswith(f"python benchmarks/{name} --quick --json")
    assert {"python", "jax", "numpy", "pillow", "simplejpeg"} <= set(found["versions"])
    assert found["machine"]["cores"] >= 1
    assert found["rows"]
    for row in found["rows"]:
        assert set(row) >= KEYS
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0
        better, worse = (row["peer"], row["ours"]) if row["unit"] in ("MiB", "s") else (row["ours"], row["peer"])
        assert row["ratio"] == pytest.approx(better / worse)
        if name in ("loader.py", "prepare.py", "data_memory.py"):
            assert row["encoding"] in ("raw", "jpeg")
            assert row["threads"] >= 1
        assert row["case"] in printed
    assert len({row["case"] + row["peer_name"] for row in found["rows"]}) == len(found["rows"])


def test_every_program_is_tested():
    shared = {"harness.py", "comparison.py", "limits.py", "photographs.py", "torch_loaders.py", "workers.py"}
    shared |= {"gpu_forms.py", "gpu_parts.py", "torch_training.py", "train_process.py"}
    shared |= {f"{side}_networks.py" for side in ("flax", "onnx", "our", "torch")}
    assert {path.name for path in (ROOT / "benchmarks").glob("*.py")} - shared == set(TINY)


@pytest.mark.slow
def test_without_pytorch_its_rows_are_left_out_in_words(tmp_path):
    printed, found = run("loader.py", tmp_path, start=("-c", WITHOUT_TORCH))
    assert "PyTorch is not installed" in printed
    assert found["rows"]
    assert not any("PyTorch" in row["peer_name"] for row in found["rows"])


@pytest.mark.slow
def test_memory_without_pytorch_says_what_it_found(tmp_path):
    printed, found = run("memory.py", tmp_path, start=("-c", WITHOUT_TORCH))
    (note,) = (note for note in found["notes"] if note.startswith("training paper, batch 32: "))
    assert "images/s, peak memory " in note
    assert note in printed
