"""A step whose devices are those of two real processes, in float64: what one device finds."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from .teams import XLA_FLAGS, Processes, free_port

WORKER = pathlib.Path(__file__).with_name("layout_worker.py")
BOTH = ((2, 2),)  # parts of the batch, towers
ALL = ((2, 1), (1, 2), *BOTH, (4, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "steps", "layouts"),
    [("paper", 20, ALL), ("source2012", 4, BOTH), ("caffenet", 4, BOTH)],
)
def test_two_processes_find_what_one_device_finds(environment, tmp_path, variant, steps, layouts):
    port = free_port()
    given = [variant, str(steps), str(port), json.dumps(layouts)]
    commands = [[sys.executable, str(WORKER), *given, str(index)] for index in range(2)]
    processes = Processes(commands, environment | {"XLA_FLAGS": XLA_FLAGS.format(2)}, tmp_path)
    try:
        assert processes.codes(500) == [0, 0], processes.said(0) + processes.said(1)
    finally:
        processes.end()
    for index in range(2):
        found = [json.loads(line) for line in processes.said(index).splitlines() if line.startswith("{")]
        assert [(line["data"], line["towers"]) for line in found] == list(layouts)
        for line in found:
            assert len(line["losses"]) == steps
            assert len({round(loss, 3) for loss in line["losses"]}) == steps  # it trains
            assert line["floats"] >= 1 + 2 * 16  # losses, parameters, momentum
            assert line["apart"] <= 1e-10, line
