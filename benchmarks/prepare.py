"""How fast photographs become a prepared folder, against a bare Pillow loop, and by cores.

    python benchmarks/prepare.py [--quick] [--json FILE]

JPEG files of 500 × 375 pixels (random crops of two photographs) lie in class folders, in
the page cache. Ours is everything that `prepare` does until the folder is finished: reading,
checksums, decoding, scaling, cutting, encoding, statistics, writing and waiting for the
disk. The peer only opens each file with Pillow, converts it to RGB, scales the shorter
side to 256 (bilinear), cuts the centre and makes an array, in a pool of as many threads.

The last rows are ours on all cores (threads to match) against ours held to one core. A
figure a second a core stands in the JSON (`ours_per_core`): multiply it by your cores, as
far as the disk follows.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import numpy as np
import photographs
from PIL import Image

from alexnet_jax.data.prepare import QUALITY, prepare
from alexnet_jax.data.sources import Source

SIZE = 256


def our_rate(source: Source, out: pathlib.Path, encoding: str, threads: int) -> float:
    """Images a second from `prepare`, to the finished folder."""
    start = time.perf_counter()
    prepare(source, out, size=SIZE, encoding=encoding, threads=threads)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return sum(map(len, source.splits.values())) / seconds


def one_core(measure: Callable[[], float]) -> float:
    """Measures on one core: the threads that it starts stay there too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        return measure()
    finally:
        os.sched_setaffinity(0, before)


def bare(path: pathlib.Path) -> np.ndarray:
    """One file as an array, by the plainest use of Pillow."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def bare_rate(paths: list[pathlib.Path], threads: int) -> float:
    """Images a second from the bare loop."""
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(bare, paths):
            pass
    return len(paths) / (time.perf_counter() - start)


def main() -> None:
    """Measures, prints, writes."""
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, default=0, help="default: 4,000, or 600 with --quick")
    parser.add_argument("--file-quality", type=int, default=95, help="of the JPEG files that are read")
    parser.add_argument("--folder", type=pathlib.Path, help="for temporary files; default: the system's")
    arguments = parser.parse_args()
    count = arguments.images or (600 if arguments.quick else 4000)
    rounds = 3 if arguments.quick else 5
    cores = harness.cores()
    report = harness.Report(
        arguments,
        "Prepare: JPEG files of 500 × 375 to a prepared folder of 256 × 256",
        images=count,
        threads=cores,
        jpeg_quality=QUALITY,
        rounds=rounds,
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder, out = pathlib.Path(temporary) / "files", pathlib.Path(temporary) / "out"
        paths = photographs.write_files(folder, count, 375, 500, arguments.file_quality)
        size = sum(path.stat().st_size for path in paths) / count
        report.note(f"the files have {size / 1000:.0f} kB on average")
        few = max(count // 20, 2)
        splits = {"train": photographs.Files(paths[few:]), "val": photographs.Files(paths[:few])}
        source = Source("files", photographs.CLASSES, splits, "1")
        more: dict[str, Any] = {"images": count, "image_size": SIZE, "file_bytes": size}
        for encoding in ("raw", "jpeg"):
            cases: dict[str, Callable[[], float]] = {
                "ours": lambda encoding=encoding: our_rate(source, out, encoding, cores),  # type: ignore[misc]
                "pillow": lambda: bare_rate(paths, cores),
            }
            if hasattr(os, "sched_setaffinity"):
                one: Callable[[], float] = lambda encoding=encoding: our_rate(source, out, encoding, 1)  # type: ignore[misc] # noqa: E731
                cases["one"] = lambda one=one: one_core(one)  # type: ignore[misc]
            found = harness.interleave(cases, rounds)
            own = found["ours"]
            about = {**more, "encoding": encoding, "threads": cores, "ours_per_core": own.median / cores}
            what = f"bare Pillow loop, {cores} threads"
            report.add(
                harness.row(f"{encoding}, {cores} threads", own, found["pillow"], what, "images/s", target=1, **about)
            )
            if "one" in found and cores > 1:
                case, what = f"{encoding}, {cores} cores", "ours on one core"
                report.add(harness.row(case, own, found["one"], what, "images/s", target=0.9 * cores, **about))
            report.note(f"{encoding}: {own.median / cores:,.0f} images a second a core")
    report.finish()


if __name__ == "__main__":
    main()
