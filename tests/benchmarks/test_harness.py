"""What every figure of the benchmarks rests on: cases in turn, rounds that do not count, which way a ratio goes."""

from __future__ import annotations

import importlib
import itertools
import math
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("harness")


def test_cases_are_measured_in_turn_and_warm_up_rounds_do_not_count(harness):
    clock, order = itertools.count(), []

    def case(name):
        order.append(name)
        return float(next(clock))

    found = harness.interleave({"ours": lambda: case("ours"), "peer": lambda: case("peer")}, 3, warm_up=2)
    assert order == ["ours", "peer"] * 5
    assert found["ours"].values == (4, 6, 8)
    assert found["peer"].values == (5, 7, 9)


# The ratio of the medians, and the lowest and highest of rounds side by side: here 2/8, 6/4, 9/1 or their inverses.
@pytest.mark.parametrize(
    ("lower_is_better", "ratio", "spread"), [(False, 6 / 4, (1 / 4, 9)), (True, 4 / 6, (1 / 9, 4))]
)
def test_a_row(harness, lower_is_better, ratio, spread):
    ours, peer = harness.Samples((2, 9, 6)), harness.Samples((8, 1, 4))
    found = harness.row("a", ours, peer, "b", "s", lower_is_better=lower_is_better, target=1.5, threads=2)
    assert (found["ours"], found["peer"]) == (6, 4)
    assert found["ratio"] == pytest.approx(ratio)
    assert found["ratio_spread"] == pytest.approx(spread)
    assert (found["ours_spread"], found["peer_spread"]) == ((2, 9), (1, 8))
    assert (found["rounds"], found["target"], found["threads"]) == (3, 1.5, 2)


def test_a_peer_of_nothing_has_no_ratio(harness):
    assert math.isnan(harness.row("a", harness.Samples((1,)), harness.Samples((0,)), "b", "s")["ratio"])
