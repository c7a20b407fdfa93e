"""Networks as StableHLO, reloaded in a process that has JAX and nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from models.builders import distance, made, narrow, pictures, run

from alexnet_jax.models import list_models
from alexnet_jax.weights import Weights
from alexnet_jax.weights.stablehlo import save_stablehlo

RELOAD = """
import sys, zipfile
import numpy as np
import jax
from jax import export

for name in sys.argv[2:]:
    with zipfile.ZipFile(f"{sys.argv[1]}/{name}.stablehlo") as archive:
        exported = export.deserialize(bytearray(archive.read("model.stablehlo")))
    assert exported.platforms == ("cpu", "cuda"), exported.platforms
    images = np.load(f"{sys.argv[1]}/{name}.npy")
    np.save(f"{sys.argv[1]}/{name}.logits.npy", exported.call(images))
    assert exported.call(images[:1]).shape == (1, 7)
assert not [name for name in sys.modules if name.startswith(("alexnet_jax", "flax"))]
"""


@pytest.mark.parametrize("names", [["source2012"], pytest.param(list_models(), marks=pytest.mark.slow)], ids=len)
def test_it_runs_without_this_package(names, tmp_path):
    wanted = {}
    for name in names:
        spec = narrow(name)
        model = made(spec)
        images = pictures(spec, 3).astype(np.float32)
        wanted[name] = np.asarray(run(model, images))
        np.save(tmp_path / f"{name}.npy", images)
        save_stablehlo(Weights(model, "made", ()), tmp_path / f"{name}.stablehlo")
        assert model.forms == "auto"  # the model itself is left as it is
    command = [sys.executable, "-c", RELOAD, str(tmp_path), *wanted]
    done = subprocess.run(command, cwd=tmp_path, env=bare(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, logits in wanted.items():
        assert distance(np.load(tmp_path / f"{name}.logits.npy"), logits) < 1e-5, name


def bare():
    """Variables of a process that finds no checkout of ours."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}


def test_the_archive_says_all_that_a_user_needs(tmp_path):
    spec = narrow("paper")
    mean_image = np.full((spec.input.resize, spec.input.resize, 3), 7.0, np.float32)
    weights = Weights(made(spec), "made", (), classes=tuple("abcdefg"), mean_image=mean_image)
    contents = []
    for name in ("a", "b"):
        save_stablehlo(weights, tmp_path / name, provenance={"source": "a test"})
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert archive.namelist() == ["model.stablehlo", "metadata.json", "mean_image.npy"]
        found = json.loads(archive.read("metadata.json"))
        with archive.open("mean_image.npy") as file:
            np.testing.assert_array_equal(np.load(file), mean_image)
    assert found["classes"] == list("abcdefg")
    assert found["spec"] == json.loads(json.dumps(spec.to_dict()))
    assert found["provenance"]["source"] == "a test"
    assert found["preprocessing"]["shape"] == ["N", 67, 67, 3]
    assert found["preprocessing"]["mean_image_included"]
