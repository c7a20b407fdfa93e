"""A layer's activations for many image files, against the bare forward pass; and the memory that it takes.

    python benchmarks/features.py [--quick] [--json FILE]

The first row: "ours" is what `alexnet-jax features` does from files to file, decoding, scaling,
computing and writing; "bare forward" is the same compiled computation on a batch that lies on the
device, its results left there. Images are crops of two photographs, JPEG of quality 90, of
the size that ImageNet's have in the mean.

The second row is the most main memory that a fresh process ever held (Linux only), with all the images and
with a quarter of them: flat is a ratio near 1.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import harness
import jax
import numpy as np
import photographs

from alexnet_jax import create_model, get_spec, inference
from alexnet_jax.data import pictures
from alexnet_jax.data.rows import writing
from alexnet_jax.weights import Weights

HEIGHT, WIDTH, QUALITY = 375, 500, 90
LAYER = "fc7"


def network(variant: str, quick: bool) -> inference.Network:
    """A variant with fresh weights; a quick one has few hidden units."""
    spec = get_spec(variant)
    model = create_model(spec.with_dense(features=64) if quick else spec, rngs=1)
    return inference.Network.of(Weights(model, "fresh", ()))


def stream(one: inference.Network, chosen: pictures.Pictures, batch_size: int, out: pathlib.Path) -> float:
    """Images a second, from files to file."""
    contract = one.structure.spec.input
    start = time.perf_counter()
    with writing(out, inference.check_layer(one, LAYER), "features", {}) as file:
        read = pictures.batches(chosen, size=contract.resize, rule=contract.resize_rule, batch_size=batch_size)
        for batch, rows in inference.activations(one, read, LAYER):
            file.add([chosen.name(index) for index in batch.indices], rows)
    return len(chosen) / (time.perf_counter() - start)


def bare(one: inference.Network, count: int, batch_size: int) -> float:
    """Images a second of the computation alone."""
    batch_size = min(batch_size, count)
    side = one.structure.spec.input.resize
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8))
    step = inference.stage_step(one, LAYER)
    jax.block_until_ready(images)
    start = time.perf_counter()
    for _ in range(-(-count // batch_size)):
        found = step(images)
    jax.block_until_ready(found)
    return -(-count // batch_size) * batch_size / (time.perf_counter() - start)


def child(folder: str, variant: str, quick: str, count: int, batch_size: int) -> None:
    """What a measured process does."""
    chosen = pictures.find([folder])
    one = network(variant, quick == "True")
    stream(one, pictures.Pictures(chosen.paths[:count]), batch_size, pathlib.Path(folder) / f"{count}.npz")
    print(json.dumps(harness.peak_mib()))


def main() -> None:
    """Measures, prints, writes."""
    if sys.argv[1:2] == ["--child"]:
        place, name, quick, *numbers = sys.argv[2:]
        child(place, name, quick, *map(int, numbers))
        return
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, help="default: 2,000, or 128 with --quick")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--rounds", type=int, help="default: 3, or 1 with --quick")
    parser.add_argument("--folder", type=pathlib.Path, help="for temporary files; default: the system's")
    arguments = parser.parse_args()
    count = arguments.images or (128 if arguments.quick else 2000)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    variant, batch_size = arguments.variant, arguments.batch_size
    about = {"images": count, "batch_size": batch_size, "threads": harness.cores(), "device": jax.devices()[0].platform}
    report = harness.Report(arguments, f"Activations of {LAYER} from JPEG files", **about, rounds=rounds)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = pathlib.Path(temporary)
        photographs.write_files(folder / "images", count, HEIGHT, WIDTH, QUALITY)
        chosen, one = pictures.find([str(folder / "images")]), network(variant, arguments.quick)
        found = harness.interleave(
            {
                "stream": lambda: stream(one, chosen, batch_size, folder / "features.npz"),
                "bare": lambda: bare(one, count, batch_size),
            },
            rounds,
        )
        case = f"{variant}, {LAYER} of {count:,} JPEG files of {WIDTH}×{HEIGHT}"
        report.add(harness.row(case, found["stream"], found["bare"], "bare forward", "images/s", target=0.9, **about))
        if not pathlib.Path("/proc/self/status").exists():
            report.note("without /proc/self/status the memory can't be told")
            report.finish()
            return

        def peak(images: int) -> float:
            command = [sys.executable, __file__, "--child", str(folder / "images"), variant, str(arguments.quick)]
            done = subprocess.run(
                [*command, str(images), str(batch_size)], stdout=subprocess.PIPE, text=True, check=True
            )
            return json.loads(done.stdout)

        few = min(count, max(4 * batch_size, count // 4))  # so that as many batches are under way
        memory = harness.interleave({"many": lambda: peak(count), "few": lambda: peak(few)}, rounds, warm_up=0)
        case = f"{variant}, memory for {count:,} images"
        report.add(
            harness.row(
                case,
                memory["many"],
                memory["few"],
                f"{few:,} images",
                "MiB",
                target=0.95,
                lower_is_better=True,
                **about,
            )
        )
    report.finish()


if __name__ == "__main__":
    main()
