"""The real loop through the 91 epochs of run 145, and through three drops of a plateau, killed again and again."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax.training import loop
from alexnet_jax.training.config import to_dict
from alexnet_jax.training.flags import parse
from alexnet_jax.training.metrics import read

from .small_runs import NETWORK, last_state, noise
from .timetables import RUN_145, Row

PROGRAM = pathlib.Path(__file__).with_name("killed_run.py")
EPOCHS = 91

# Falls for ten epochs, stands still for five, again for ten and five, then for good.
ERRORS = [60.0 - e for e in range(10)] + [51.0] * 5 + [50.0 - e for e in range(10)] + [41.0] * 66
PLATEAU = (
    [Row(0.01, 0.01, 0.02, 0.02, True, True)] * 15
    + [Row(0.001, 0.001, 0.002, 0.002, True, True)] * 15
    + [Row(0.0001, 0.0001, 0.0002, 0.0002, True, True)] * 5
    + [Row(0.00001, 0.00001, 0.00002, 0.00002, True, True)] * 56
)
RUNS = {
    "source2012_145": (RUN_145, ("--config.optimizer.decay_biases=False",)),
    "plateau": (PLATEAU, ("--config.optimizer.bias_rate_multiplier=2",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with prepared data: sixteen images to train, eight to validate."""
    folder = tmp_path_factory.mktemp("long")
    noise(folder, train=16, val=8)
    return folder


def boundaries(name):
    """The epochs before which a run is killed: where its settings change, and every fifth."""
    rows = RUNS[name][0]
    return [epoch for epoch in range(1, EPOCHS) if epoch % 5 == 0 or rows[epoch] != rows[epoch - 1]]


def run(folder, environment, name, epochs=()):
    """Trains to the end, killed before `epochs`; (config, workdir, what each step wrote down, the number of kills)."""
    options = [
        f"--config.data.source={folder / 'prepared'}",
        *(*NETWORK, "--config.model.init=None"),
        *("--config.log_every_steps=1", f"--config.num_epochs={EPOCHS}", f"--config.optimizer.schedule={name}"),
    ]
    config = parse([*options, *RUNS[name][1]]).config
    place = folder / f"{name}-{len(epochs)}"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(to_dict(config)))
    (place / "errors.json").write_text(json.dumps(ERRORS))
    arguments = [
        place / "config.json",
        place / "run",
        place / "record.jsonl",
        place / "errors.json",
        [2 * epoch for epoch in epochs],
    ]
    ended = subprocess.run(
        [sys.executable, PROGRAM, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=590
    )
    assert ended.returncode == 0, ended.stderr
    steps: dict[int, dict] = {}
    for text in (place / "record.jsonl").read_text().splitlines():
        line = json.loads(text)
        assert steps.setdefault(line["step"], line) == line  # a step that was taken again is the same step
    return config, place / "run", steps, ended.stdout.count("killed\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_epoch_has_its_settings_whatever_was_killed(folder, environment, name):
    config, workdir, steps, kills = run(folder, environment, name, boundaries(name))
    assert kills == len(boundaries(name)) >= 18
    assert sorted(steps) == list(range(EPOCHS * 2))
    number = np.float32
    for step, line in steps.items():
        row, rates = RUNS[name][0][step // 2], line["rates"]
        expected = {"weights": row.weights, "biases": row.biases}
        if name == "source2012_145":
            expected |= {"conv1.weights": row.conv1_weights, "conv1.biases": row.conv1_biases}
        assert rates.keys() == expected.keys()
        np.testing.assert_allclose(list(rates.values()), [expected[group] for group in rates], rtol=2e-7, err_msg=step)
        assert number(line["learning_rate"]) == number(rates["weights"])
        assert line["noise"] == row.noise
        frozen = row.conv1_weights == 0
        for moved in (line["moved"], line["moved_buffers"]):
            assert moved["conv1"] == {"kernel": not frozen, "bias": not frozen}, step
    for moved in (steps[2 * EPOCHS - 1]["moved"], steps[2 * EPOCHS - 1]["moved_buffers"]):
        assert all(all(leaves.values()) for layer, leaves in moved.items() if layer != "conv1")

    _, undisturbed, other_steps, kills = run(folder, environment, name)
    assert kills == 0
    assert steps == other_steps
    made = loop.set_up(config)
    assert all(int(last_state(made, place)["state"]["step"]) == EPOCHS * 2 for place in (workdir, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, *(last_state(made, place) for place in (workdir, undisturbed)))
    lines = [
        [{k: v for k, v in line.items() if "second" not in k and "wait" not in k} for line in read(w / "metrics.jsonl")]
        for w in (workdir, undisturbed)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == EPOCHS * 3
