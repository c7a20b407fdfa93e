"""Peak memory and images a second of a training step against the batch size, ours and PyTorch's.

    python benchmarks/memory.py [--quick] [--json FILE] [--batch-sizes 1 2 4 8 16 32 64 128 256]

For each batch size a fresh process of ours and one of PyTorch eager take the step of `step.py`: the same
work on random images that stay in memory. Peak memory is the most main memory that the process ever held
(VmHWM in /proc/self/status: Linux only): interpreter, libraries, compilation, parameters, momentum and all.
Both have the same heap setting (`--heap`; "kept" is that of `train.py`, "stock" is what a PyTorch
script has if nobody changes it).

Over the batch sizes two lines are fitted, by least squares of the relative error: peak = a + b · batch, in
MiB, and seconds of a step = a + b · batch. The second line's a is the fixed cost of a step, which a small
batch pays; from a batch of 32 on, images a second should be within 15 % of the best of them. Those rates of ours are
measured once more, in turn: between two batch sizes above, minutes pass, in which a shared machine changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comparison
import harness
import numpy as np
import workers

OURS, PEER = "ours", "PyTorch eager"
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LARGE = 32  # from here on the rate should be level
LEVEL = 0.85


def line(points: Mapping[int, float]) -> tuple[float, float, float]:
    """The line a + b · x through points (x, y): a, b, and the largest relative error of a point."""
    x, y = np.array(list(points), float), np.array(list(points.values()))
    terms = np.stack([1 / y, x / y], 1)
    a, b = np.linalg.lstsq(terms, np.ones(len(y)), rcond=None)[0]
    return float(a), float(b), float(np.abs(terms @ [a, b] - 1).max())


class Curves:
    """What was found of one variant: by case, by batch size."""

    def __init__(self, variant: str):
        self._variant = variant
        self.peaks: dict[str, dict[int, float]] = {}
        self.rates: dict[str, dict[int, harness.Samples]] = {}

    def add(self, batch_size: int, peaks: Mapping[str, float], rates: Mapping[str, harness.Samples]) -> None:
        """One batch size."""
        for name in (OURS, PEER):
            if name in rates:
                self.peaks.setdefault(name, {})[batch_size] = peaks[name]
                self.rates.setdefault(name, {})[batch_size] = rates[name]

    def report(self, report: harness.Report) -> None:
        """The lines."""
        title = f"training {self._variant}"
        memory, seconds = {}, {}
        for name in self.peaks:
            if len(self.peaks[name]) > 2:
                memory[name] = line(self.peaks[name])
                seconds[name] = line({size: 1000 * size / rate.median for size, rate in self.rates[name].items()})
        for what, unit, found in (("peak memory", "MiB", memory), ("a step", "ms", seconds)):
            for name, (fixed, each, error) in found.items():
                about = f"{fixed:,.1f} {unit} + {each:.2f} {unit} an image (within {error:.0%})"
                report.note(f"{title}, {name}: {what} is {about}")
            for part, place in (("fixed", 0), ("an image", 1)):
                # A line through a few noisy points may fall; that is no figure.
                if len(found) == 2 and min(found[OURS][place], found[PEER][place]) > 0:
                    ours, peer = (harness.Samples((found[name][place],)) for name in (OURS, PEER))
                    case = f"{title}, {what}, {part} (fitted)"
                    errors = {"ours_error": found[OURS][2], "peer_error": found[PEER][2]}
                    report.add(harness.row(case, ours, peer, PEER, unit, lower_is_better=True, **errors))


def level(report: harness.Report, arguments: Any, variant: str) -> None:
    """The row of the level rate: the large batch sizes in turn, in one process."""
    sizes = [size for size in arguments.batch_sizes if size >= LARGE]
    if len(sizes) < 2:
        return
    print(f"training {variant}, batch {', '.join(map(str, sizes))}, in turn:", flush=True)
    with workers.Team(arguments.seconds, heap=arguments.heap, device=arguments.device) as team:
        found = comparison.Comparison(arguments, report, f"training {variant}", team)
        for size in sizes:
            found.ours(str(size), **found.network(variant, size))
        rates = team.interleave(arguments.rounds)
    low, high = (choose(sizes, key=lambda size: rates[str(size)].median) for choose in (min, max))
    case = f"training {variant}, batch {min(sizes)} to {max(sizes)}, slowest: {low}"
    peer_name = f"ours, batch {high}, the fastest"
    report.add(harness.row(case, rates[str(low)], rates[str(high)], peer_name, "images/s", target=LEVEL))


def main() -> None:
    """Measures, prints, writes."""
    curves: dict[str, Curves] = {}

    def measure(
        arguments: Any, report: harness.Report, peers: list[str], variant: str, batch_size: int, team: workers.Team
    ) -> None:
        found = comparison.Comparison(arguments, report, f"training {variant}, batch {batch_size}", team)
        network = found.network(variant, batch_size)
        found.ours(OURS, **network)
        if "PyTorch" in peers:
            more = {"precision": arguments.precision, "device": arguments.device}
            found.peer(PEER, "PyTorch", **network, form="eager", **more)
        found.measure()
        found.compare(OURS, PEER)
        peaks = found.peaks(OURS, PEER)
        if PEER not in peaks:  # and no row
            about = f"{found.found[OURS].median:.1f} images/s, peak memory {peaks[OURS]:,.0f} MiB"
            report.note(f"{found.title}: {about}")
        curve = curves.setdefault(variant, Curves(variant))
        curve.add(batch_size, peaks, found.found)
        found.close()
        if batch_size == arguments.batch_sizes[-1]:
            curve.report(report)
            level(report, arguments, variant)

    title = "Training step: peak memory and images a second by batch size"
    comparison.run(__doc__, title, ("PyTorch",), BATCH_SIZES, measure, variants=("paper",))


if __name__ == "__main__":
    main()
