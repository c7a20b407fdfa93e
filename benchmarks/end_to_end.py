"""`train.py` on images of a prepared folder, against its own step without them and against a loop in PyTorch.

    python benchmarks/end_to_end.py [--quick] [--json FILE] [--encoding raw|jpeg] [--variant paper]

Images a second after the compilation, float32, random crops with mirroring, 1,000 classes. The folder is
prepared from random crops of two photographs and lies in the page cache. Measured in turn:

- `train.py` in a fresh process each time, the whole program with loader, logs and the rest: what its own
  `metrics.jsonl` says of the steps after the first few, and the share of waiting for data;
- its own step alone: the compiled step of the same network, views and errors included, on one batch that
  stays in memory. The goal is 0.97 of it;
- PyTorch: the step of `step.py` on batches of a DataLoader over the same folder (raw images from a memory
  map; JPEG by Pillow), the same random crops and mirroring made by its workers, less the mean colour.
  It counts no errors and writes nothing. Each number of workers (`--workers`) has a row.

Every process has the heap kept, as in `step.py`; while one is measured the others wait.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import pathlib
import tempfile
from typing import Any

import harness
import our_networks
import photographs
import torch_networks
import train_process
import workers

from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.sources import Source

GOAL = 0.97
TRAIN, STEP = "train.py", "its step alone"


def keys(folder: pathlib.Path, arguments: argparse.Namespace, sizes: tuple[int, int], steps: int) -> dict[str, Any]:
    """The configuration of a run that only trains, with a line of metrics every so many steps."""
    found = {"model.name": arguments.variant, "model.width": 1 / arguments.narrow}
    found |= {"model.hidden_width": 1 / arguments.narrow, "data.image_size": sizes[0], "data.crop_size": sizes[1]}
    found |= {"data.source": folder, "data.flip": True, "batch_size": arguments.batch_size}
    found |= {"log_every_steps": steps, "eval_every_epochs": train_process.NEVER}
    # What is learnt does not matter.
    return found | {"optimizer.learning_rate": 1e-5}


class Program:
    """`train.py`, started anew for each measurement; the compiled programs are kept between them.

    Args:
      keys: of its configuration.
      cache: folder that stands for the user's cache folder.
    """

    def __init__(self, keys: dict[str, Any], cache: pathlib.Path):
        self._keys, self._cache = keys, cache
        self.waits: list[float] = []  # shares, by measurement

    def run(self) -> float:
        """Images a second between its first line of metrics and its third."""
        _, lines = train_process.train(self._keys, self._cache, lines=3)
        seconds = [1 / line["images_per_second"] for line in lines[1:]]
        waits = [line["data_wait_fraction"] * each for line, each in zip(lines[1:], seconds, strict=True)]
        self.waits.append(sum(waits) / sum(seconds))
        return len(seconds) / sum(seconds)


def measure(report: harness.Report, arguments: argparse.Namespace, folder: pathlib.Path) -> None:
    """All rows."""
    spec = our_networks.variant(arguments.variant, size=arguments.image_size, narrow=arguments.narrow)
    sizes = spec.input.resize, spec.input.size
    few, data = photographs.crops(arguments.images, sizes[0]), folder / "data"
    names = tuple(f"class {number}" for number in range(arguments.classes))
    prepare(Source(few.name, names, few.splits, few.fingerprint), data, size=sizes[0], encoding=arguments.encoding)
    (folder / "cache").mkdir()
    program = Program(keys(data, arguments, sizes, max(arguments.steps // 2, 2)), folder / "cache")
    network = {"batch_size": arguments.batch_size, "classes": arguments.classes, "narrow": arguments.narrow}
    size = {"size": arguments.image_size} if arguments.image_size else {}
    torch = {**network, "network": arguments.variant, "size": sizes[1], "folder": str(data), "image_size": sizes[0]}
    torch["encoding"] = arguments.encoding
    with workers.Team(arguments.seconds) as team:
        team.also(TRAIN, program.run)
        if not arguments.quick:
            program.run()  # fills the caches
            program.waits.clear()
        team.add(STEP, "ours", **network, **size, variant=arguments.variant, work="program")
        peers = []
        if importlib.util.find_spec("torch"):
            for form in arguments.forms:
                for number in arguments.workers:
                    peers.append(f"PyTorch {form}, {number} workers")
                    team.add(peers[-1], "PyTorch training", **torch, form=form, workers=number)
        else:
            report.note("PyTorch is not installed, so the rows that compare with it are left out")
        found = team.interleave(arguments.rounds, warm_up=0)
        settings = team.settings
    waits = harness.Samples(tuple(100 * share for share in program.waits))
    more: dict[str, Any] = {"encoding": arguments.encoding, "batch_size": arguments.batch_size}
    more |= {"variant": arguments.variant, "threads": harness.cores(), "wait_percent": waits.median}
    case = f"train.py, {arguments.variant}, batch {arguments.batch_size}, {arguments.encoding} {sizes[0]}²"
    add = functools.partial(harness.row, case, found[TRAIN], unit="images/s", **more)
    report.add(add(peer=found[STEP], peer_name=STEP, target=GOAL, peer_settings=settings[STEP]))
    for name in peers:
        report.add(add(peer=found[name], peer_name=name, peer_settings=settings[name]))
    report.note(
        f"train.py waits for data {waits.median:.2f} % of its time ({waits.spread[0]:.2f}–{waits.spread[1]:.2f})"
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = harness.parser(__doc__)
    add = parser.add_argument
    add("--variant", choices=torch_networks.NETWORKS, default="paper")
    add("--batch-size", type=int, default=32)
    add("--encoding", choices=("raw", "jpeg"), default="raw", help="of the prepared folder")
    add("--images", type=int, default=640, help="in the training split")
    add("--forms", nargs="+", choices=list(torch_networks.FORMS), default=["eager", "torch.compile"], help="of PyTorch")
    add("--workers", nargs="+", type=int, default=[0, 2], help="of PyTorch's DataLoader")
    add("--rounds", type=int, help="measurements of each case; default: 5, or 1 with --quick")
    add("--steps", type=int, help="of train.py in a measurement; default: 20, or 4 with --quick")
    add("--seconds", type=float, help="that each of the others takes at least; default: 10, or 0.1 with --quick")
    add("--image-size", type=int, help="pixels; the variant's own by default")
    add("--narrow", type=int, default=1, help="divide every width by this: for a test of the program")
    add("--classes", type=int, default=1000)
    add("--folder", type=pathlib.Path, help="for temporary files; default: the system's")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    arguments.steps = arguments.steps or (4 if arguments.quick else 20)
    arguments.seconds = arguments.seconds or (0.1 if arguments.quick else 10.0)
    report = harness.Report(
        arguments,
        "train.py with its data: images a second",
        variant=arguments.variant,
        encoding=arguments.encoding,
        batch_size=arguments.batch_size,
        rounds=arguments.rounds,
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(report, arguments, pathlib.Path(folder))
    report.finish()


if __name__ == "__main__":
    main()
