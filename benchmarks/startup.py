"""How long it takes from the start of a process to the end of its first training step.

    python benchmarks/startup.py [--quick] [--json FILE] [--networks digits paper]

Each figure is of a fresh process, seconds from its start until the metrics of the first step are
in the file:

- `digits`: `python train.py` without flags (but that it writes its metrics at each step). "First" has an
  empty user's cache folder: the digits are prepared, the programs compiled, the fonts of the pictures
  listed. "Next" is the same again with the caches that "first" left behind;
- `paper`: the full network at 224 pixels, batch 32, 1,000 classes, from a folder that is prepared
  already; first and next as above.

The evaluation step is compiled before the first training step, and the preview of the data drawn: both are in
the figures. The goals are 30 seconds for a first start and 10 for the next.

The peer is a PyTorch script, eager: imports, the same network, a DataLoader over the same prepared images
(it never prepares them) with random crops, one step. It compiles nothing, so it has one figure only.
Files are in the page cache: a round that does not count comes first, unless `--quick`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import harness
import photographs
import train_process
import workers

from alexnet_jax.data.cached import prepared
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import Source

GOALS = {"first": 30.0, "next": 10.0}  # seconds
BATCH_SIZE = 32
IMAGES = 64
CLASSES = 1000


def digits(folder: pathlib.Path, narrow: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The default run: its keys, and the arguments of the same in PyTorch."""
    ours = {"model.width": 0.5 / narrow, "model.hidden_width": 0.25 / narrow} if narrow > 1 else {}
    data = prepared("digits", size=72, rule="shorter_side", cache_dir=folder)
    # Half of the kernels, and of the hidden units a quarter.
    network = {"size": 64, "narrow": 2 * narrow, "hidden": 2048, "classes": 10, "flip": False}
    return ours, {"folder": str(data.directory), "image_size": 72, **network}


def paper(folder: pathlib.Path, narrow: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The full network: the keys of its run, and the arguments of the same in PyTorch."""
    few = photographs.crops(IMAGES, 256)
    names = tuple(f"class {number}" for number in range(CLASSES))
    prepare(Source(few.name, names, few.splits, few.fingerprint), folder / "photographs", size=256)
    network = {"model.name": "paper", "model.width": 1 / narrow, "model.hidden_width": 1 / narrow}
    sizes = {"data.image_size": 256, "data.crop_size": 224, "data.flip": True, "batch_size": BATCH_SIZE}
    # What is learnt does not matter.
    ours = {**network, **sizes, "data.source": folder / "photographs", "optimizer.learning_rate": 1e-5}
    return ours, {"folder": str(folder / "photographs"), "image_size": 256, "narrow": narrow, "classes": CLASSES}


NETWORKS = {"digits": digits, "paper": paper}


def start(keys: dict[str, Any], cache: pathlib.Path, *, first: bool) -> float:
    """Seconds of `train.py` up to its first step; a first start has no caches."""
    if first:
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(exist_ok=True)
    return train_process.train(keys | {"log_every_steps": 1}, cache, lines=1)[0]


def start_torch(arguments: dict[str, Any]) -> float:
    """Seconds of the PyTorch script up to its first step."""
    begun = time.perf_counter()
    worker = workers.Worker("stock")
    try:
        worker.ask(build="one", side="PyTorch training", arguments={**arguments, "batch_size": BATCH_SIZE})
        worker.ask(run="one", count=1)
        return time.perf_counter() - begun
    finally:
        worker.close()


def measure(report: harness.Report, name: str, arguments: argparse.Namespace, folder: pathlib.Path) -> None:
    """All rows of one network."""
    keys, torch = NETWORKS[name](folder, arguments.narrow)
    cases: dict[str, Callable[[], float]] = {
        case: functools.partial(start, keys, folder / f"{name}-cache", first=case == "first") for case in GOALS
    }
    if importlib.util.find_spec("torch"):
        cases["PyTorch"] = functools.partial(start_torch, torch)
    found = harness.interleave(cases, arguments.rounds, warm_up=0 if arguments.quick else 1)
    more: dict[str, Any] = {"network": name, "batch_size": BATCH_SIZE, "threads": harness.cores()}
    for case, goal in GOALS.items():
        title, wanted = f"{name}, {case} start", harness.Samples((goal,) * arguments.rounds)
        add = functools.partial(harness.row, title, found[case], unit="s", lower_is_better=True, **more)
        report.add(add(peer=wanted, peer_name="the goal", target=1))
        if "PyTorch" in found:
            report.add(add(peer=found["PyTorch"], peer_name="PyTorch eager"))


def main() -> None:
    """Measures, prints, writes."""
    parser = harness.parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, help="starts of each; default: 5, or 1 with --quick")
    parser.add_argument("--narrow", type=int, default=1, help="divide every width by this: for a test of the program")
    parser.add_argument("--folder", type=pathlib.Path, help="for temporary files; default: the system's")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    report = harness.Report(
        arguments,
        "Start: seconds to the end of the first training step",
        batch_size=BATCH_SIZE,
        rounds=arguments.rounds,
    )
    if not importlib.util.find_spec("torch"):
        report.note("PyTorch is not installed, so the rows that compare with it are left out")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(report, name, arguments, pathlib.Path(folder))
    report.finish()


if __name__ == "__main__":
    main()
