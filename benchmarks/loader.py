"""How fast batches come from a prepared folder, against what the machine allows and against PyTorch.

    python benchmarks/loader.py [--quick] [--json FILE]

Shuffled batches, files in the page cache, images a second; each beside its wall, measured
in turn in the same run on the same images (random crops of two photographs):

- raw: `training_batches` against one thread that gathers rows of a memory map of one file
  (`mm[rows]`), and against a PyTorch DataLoader over that memory map;
- JPEG: against the cores × what simplejpeg decodes in one thread from bytes in memory,
  against as many threads that do so at once (what the cores give together, nothing kept),
  and against a PyTorch DataLoader in which Pillow decodes the same bytes;
- at the device: the same batches with `place=Layout().place_rows`, each waited for, against those
  that stay on the host;
- a consumer that takes 80 % of the loader's rate and sleeps otherwise, as one does whose
  accelerator computes: what it gets against what it would get if it never waited.

PyTorch's DataLoader (stock: map-style, default collation and start method, persistent
workers) runs in a process of its own with 0, 1, 2 and 4 workers; the best stands in the
table. Where that is 0 (nothing is made ahead then: the training loop pays for every
batch), the best with workers stands there too. Without PyTorch its rows are left out.
The JSON has images a second a core (`ours_per_core`): for JPEG multiply it by your cores;
raw is bound by memory bandwidth.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import jax
import numpy as np
import photographs
import simplejpeg

from alexnet_jax import keys
from alexnet_jax.data import loader
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.prepared import Split, open_prepared
from alexnet_jax.parallel import Layout

WORKERS = (0, 1, 2, 4)
WARM_UP = 5  # batches, more than the loader makes ahead
DEMAND = 0.8  # share of the loader's rate that the consumer takes


class Images:
    """A prepared folder and its images in one file, for those who map it."""

    def __init__(self, folder: pathlib.Path, source: Any, size: int, encoding: str):
        prepare(source, folder, size=size, encoding=encoding)
        self.split: Split = open_prepared(folder).splits["train"]
        self.encoding, self.size = encoding, size
        self.file, self.labels, self.sizes = folder / "one.bin", folder / "train_labels.npy", folder / "train_sizes.npy"
        with self.file.open("wb") as whole:
            for part in sorted(folder.glob("train-*.bin")):
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        self.file.read_bytes()  # into the page cache


def ours(images: Images, batch_size: int, batches: int, *, at_device: bool = False) -> Iterator[loader.Batch]:
    """The loader's batches, so many after those that warm it up."""
    found = loader.training_batches(
        images.split,
        batch_size,
        seed=1,
        last_batch="drop",
        first_step=0,
        num_steps=WARM_UP + batches + 1,  # so that the last one counts as any other
        place=Layout().place_rows if at_device else lambda batch: batch,
    )
    for _ in range(WARM_UP):
        jax.block_until_ready(next(found).images)  # or their copies would count with those that are measured
    return found


def our_rate(images: Images, batch_size: int, batches: int, *, at_device: bool = False) -> float:
    """Images a second from the loader."""
    found = ours(images, batch_size, batches, at_device=at_device)
    start, count = time.perf_counter(), 0
    for batch in itertools.islice(found, batches):
        if at_device:
            jax.block_until_ready(batch.images)
        count += len(batch.labels)
    return count / (time.perf_counter() - start)


def shuffled(count: int, batch_size: int, batches: int) -> Iterator[np.ndarray]:
    """Rows of shuffled batches, epoch after epoch."""
    per_epoch = count // batch_size
    for step in range(batches):
        if step % per_epoch == 0:
            order = keys.permutation(1, step // per_epoch, count)
        position = step % per_epoch * batch_size
        yield order[position : position + batch_size]


def gather_rate(images: Images, batch_size: int, batches: int) -> float:
    """Images a second from the memory map in one thread."""
    mapped = np.memmap(images.file, np.uint8, "r").reshape(-1, images.size, images.size, 3)
    labels = np.load(images.labels)
    start, count = time.perf_counter(), 0
    for rows in shuffled(len(labels), batch_size, batches):
        count += len((mapped[rows], labels[rows])[1])
    return count / (time.perf_counter() - start)


def decode_rate(images: Images, batch_size: int, batches: int, threads: int = 1) -> float:
    """Images a second that simplejpeg decodes in so many threads together."""
    content = images.file.read_bytes()
    ends = np.cumsum(np.load(images.sizes), dtype=np.int64).tolist()
    starts = [0, *ends[:-1]]
    pieces = [content[a:b] for a, b in zip(starts, ends, strict=True)]

    def decode(_: int) -> int:
        count = 0
        for rows in shuffled(len(pieces), batch_size, batches):
            for row in rows.tolist():
                simplejpeg.decode_jpeg(pieces[row], "RGB")
            count += len(rows)
        return count

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        return sum(pool.map(decode, range(threads))) / (time.perf_counter() - start)


def consumer(images: Images, batch_size: int, batches: int, rate: float) -> tuple[float, float]:
    """Images a second that a consumer of DEMAND × `rate` gets, and the share of its time that it waits."""
    busy = batch_size / (DEMAND * rate)
    found = ours(images, batch_size, batches)
    begin, count, waited, late = time.perf_counter(), 0, 0.0, 0.0
    for _ in range(batches):
        asked = time.perf_counter()
        batch = next(found)
        got = time.perf_counter()
        waited += got - asked
        count += len(batch.labels)
        rest = max(busy - late, 0.0)
        time.sleep(rest)
        late = time.perf_counter() - got - rest  # sleeping takes longer than asked for
    total = time.perf_counter() - begin
    return count / total, waited / total


class Torch:
    """PyTorch's DataLoader in another process; see `torch_loaders`."""

    def __init__(self, batch_size: int, batches: int):
        self._batch_size, self._batches = batch_size, batches
        program = pathlib.Path(__file__).with_name("torch_loaders.py")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def rate(self, images: Images, workers: int) -> float:
        """Images a second with so many workers; they are kept until other workers are asked for."""
        arguments: list[str | int] = [str(images.file), str(images.labels)]
        arguments.append(str(images.sizes) if images.encoding == "jpeg" else images.size)
        asked = {
            "kind": images.encoding,
            "arguments": arguments,
            "workers": workers,
            "batch_size": self._batch_size,
            "batches": self._batches,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def rates(self, images: Images) -> dict[int, float]:
        """Images a second with each number of workers."""
        return {workers: self.rate(images, workers) for workers in WORKERS}

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def measure(report: harness.Report, images: Images, torch: Torch | None, arguments: Any, rounds: int) -> None:
    """All rows of one encoding."""
    encoding, size, batch_size = images.encoding, arguments.size, arguments.batch_size
    raw = encoding == "raw"
    batches = arguments.batches if raw else max(arguments.batches // 4, 2)
    few = max(batches // 8, 2)
    more: dict[str, Any] = {"encoding": encoding, "image_size": size, "batch_size": batch_size}
    more |= {"images": len(images.split), "threads": harness.cores()}
    name = f"{encoding} {size}²"

    cases: dict[str, Callable[[], float]] = {"ours": lambda: our_rate(images, batch_size, batches)}
    if raw:
        wall, target = "memory-map gather, 1 thread", 0.8
        cases["wall"] = lambda: gather_rate(images, batch_size, batches)
    else:
        wall, target = f"{harness.cores()} cores × simplejpeg, 1 thread", 0.9
        cases["wall"] = lambda: harness.cores() * decode_rate(images, batch_size, few)
        cases["at once"] = lambda: decode_rate(images, batch_size, few, harness.cores())
    rates: dict[int, float] = {}
    peers: dict[str, int] = {}
    if torch is not None:
        rates = torch.rates(images)
        peers["torch"] = max(rates, key=rates.__getitem__)
        if not peers["torch"]:
            # Without workers nothing is made ahead: the training loop itself waits for every batch.
            peers["torch, ahead"] = max((key for key in rates if key), key=rates.__getitem__)
        for column, number in peers.items():
            cases[column] = functools.partial(torch.rate, images, number)
    found = harness.interleave(cases, rounds)
    own = found["ours"]
    each: dict[str, Any] = {"ours_per_core": own.median / harness.cores()}
    report.add(harness.row(name, own, found["wall"], wall, "images/s", target=target, **more, **each))
    if not raw:
        what = f"simplejpeg, {harness.cores()} threads at once"
        report.add(harness.row(name, own, found["at once"], what, "images/s", **more, **each))
    if torch is not None:
        tried: dict[str, Any] = {"peer_by_workers": {str(key): value for key, value in rates.items()}}
        target = 10 if raw else 1.4
        for column, number in peers.items():
            what = f"PyTorch DataLoader{'' if raw else ' with Pillow'}, {number} workers"
            tried["peer_workers"] = number
            report.add(harness.row(name, own, found[column], what, "images/s", target=target, **more, **each, **tried))

    cases = {
        "device": lambda: our_rate(images, batch_size, batches, at_device=True),
        "host": lambda: our_rate(images, batch_size, batches),
    }
    found = harness.interleave(cases, rounds)
    what = f"on {jax.default_backend()}"
    report.add(harness.row(f"{name} {what}", found["device"], found["host"], "ours, on the host", "images/s", **more))

    rate, waits = found["host"].median, []

    def consume() -> float:
        got, waited = consumer(images, batch_size, batches, rate)
        waits.append(waited)
        return got

    got = harness.interleave({"consumer": consume}, rounds)["consumer"]
    wanted = harness.Samples((DEMAND * rate,) * rounds)
    waited = harness.Samples(tuple(waits[-rounds:]))
    low, middle, high = (100 * share for share in (waited.spread[0], waited.median, waited.spread[1]))
    percent: dict[str, Any] = {"wait_percent": middle, "wait_percent_spread": (low, high)}
    case = f"{name}, consumer of {DEMAND:.0%}"
    report.add(harness.row(case, got, wanted, "the same, never waiting", "images/s", target=0.97, **more, **percent))
    report.note(f"the consumer of {name} waits {middle:.2f} % of its time ({low:.2f}–{high:.2f}), wanted: under 3")


def main() -> None:
    """Measures, prints, writes."""
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, default=6000, help="in the training split; raw must exceed the caches")
    parser.add_argument("--size", type=int, default=256, help="pixels of their sides")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=0, help="a measurement; a quarter of it for JPEG")
    parser.add_argument("--folder", type=pathlib.Path, help="for temporary files; default: the system's")
    arguments = parser.parse_args()
    arguments.batches = arguments.batches or (80 if arguments.quick else 400)
    rounds = 3 if arguments.quick else 7
    report = harness.Report(
        arguments,
        "Loader: shuffled batches from a prepared folder",
        images=arguments.images,
        size=arguments.size,
        batch_size=arguments.batch_size,
        threads=harness.cores(),
        rounds=rounds,
    )
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
        torch = None
        if importlib.util.find_spec("torch"):
            torch = Torch(arguments.batch_size, max(arguments.batches // 20, 2))
            stack.callback(torch.close)
        else:
            report.note("PyTorch is not installed, so the rows that compare with its DataLoader are left out")
        source = photographs.crops(arguments.images, arguments.size)
        for encoding in ("raw", "jpeg"):
            images = Images(folder / encoding, source, arguments.size, encoding)
            if encoding == "jpeg":
                sizes = np.load(images.sizes)
                report.note(f"the JPEG images have {sizes.mean() / 1000:.1f} kB on average")
            measure(report, images, torch, arguments, rounds)
    report.finish()


if __name__ == "__main__":
    main()
