"""Peak memory of `prepare` and of the loader, by the number of images: it must not grow with the set.

    python benchmarks/data_memory.py [--quick] [--json FILE]

Each figure is the most main memory that a fresh process ever held (VmHWM in
/proc/self/status: Linux only), Python, JAX and all. A pair of processes does the same with
few and with many images: `prepare` makes a folder, raw or JPEG; the loader reads shuffled
batches of 128 from it, as many with few images as with many. The images are random crops
of two photographs, made when they are asked for. "Ours" is the peak with many images, "peer" with few;
flat is a ratio near 1 and a difference of a few MiB.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import harness

BATCH_SIZE = 128
PAIRS = ((64, 1000, 20000), (256, 1000, 5000))  # pixels, few images, many


def child(what: str, folder: pathlib.Path, encoding: str, size: int, count: int, batches: int) -> None:
    """What a measured process does."""
    import jax
    import photographs

    from alexnet_jax.data import loader
    from alexnet_jax.data.prepare import prepare
    from alexnet_jax.data.prepared import open_prepared
    from alexnet_jax.parallel import Layout

    jax.block_until_ready(jax.device_put(0))
    idle = harness.peak_mib()
    if what == "prepare":
        prepare(photographs.crops(count, size), folder, size=size, encoding=encoding)
    else:
        split = open_prepared(folder).splits["train"]
        found = loader.training_batches(
            split,
            min(BATCH_SIZE, count),
            seed=1,
            last_batch="drop",
            first_step=0,
            num_steps=batches,
            place=Layout().place_rows,
        )
        for batch in found:
            jax.block_until_ready(batch.images)
    print(json.dumps([harness.peak_mib(), idle]))


def measure(what: str, folder: pathlib.Path, encoding: str, size: int, count: int, batches: int) -> list[float]:
    """The peak of a fresh process, and what it was before the work, MiB."""
    arguments = ["--child", what, str(folder), encoding, str(size), str(count), str(batches)]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measures, prints, writes."""
    if sys.argv[1:2] == ["--child"]:
        what, folder, encoding, *numbers = sys.argv[2:]
        size, count, batches = map(int, numbers)
        child(what, pathlib.Path(folder), encoding, size, count, batches)
        return
    parser = harness.parser(__doc__)
    parser.add_argument(
        "--pair", type=int, nargs=3, action="append", metavar=("SIZE", "FEW", "MANY"), help="instead of the usual pairs"
    )
    parser.add_argument("--folder", type=pathlib.Path, help="for temporary files; default: the system's")
    arguments = parser.parse_args()
    if not pathlib.Path("/proc/self/status").exists():
        parser.exit(message="This needs Linux: /proc/self/status tells the peak memory of a process.\n")
    pairs = arguments.pair or (((64, 500, 4000),) if arguments.quick else PAIRS)
    rounds = 1 if arguments.quick else 3
    report = harness.Report(
        arguments, "Peak memory by the number of images", threads=harness.cores(), batch_size=BATCH_SIZE, rounds=rounds
    )
    for size, few, many in pairs:
        for encoding in ("raw", "jpeg"):
            _measure_pair(report, arguments.folder, encoding, size, few, many, rounds)
    report.finish()


def _measure_pair(
    report: harness.Report, place: pathlib.Path | None, encoding: str, size: int, few: int, many: int, rounds: int
) -> None:
    batches = -(-many // BATCH_SIZE)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        idle = 0.0

        def peak(what: str, count: int) -> float:
            nonlocal idle
            folder = pathlib.Path(temporary) / str(count)
            if what == "prepare" and folder.exists():
                shutil.rmtree(folder)
            found, idle = measure(what, folder, encoding, size, count, batches)
            return found

        for what in ("prepare", "loader"):
            cases = {str(count): lambda count=count: peak(what, count) for count in (few, many)}  # noqa: B023
            found = harness.interleave(cases, rounds, warm_up=0)
            small, large = found[str(few)], found[str(many)]
            case = f"{what}, {encoding} {size}², {many:,} images"
            more: dict[str, Any] = {"encoding": encoding, "image_size": size, "threads": harness.cores()}
            more |= {"images": many, "peer_images": few, "difference": large.median - small.median}
            more["before_the_work"] = idle
            report.add(
                harness.row(case, large, small, f"{few:,} images", "MiB", lower_is_better=True, **more, target=0.95)
            )
            report.note(
                f"{case}: {large.median - small.median:+.1f} MiB against {few:,} (before the work {idle:.0f} MiB)"
            )


if __name__ == "__main__":
    main()
