"""A layer's activations for many image files, against the bare forward pass; and the memory that it takes.

    python benchmarks/features.py [--quick] [--json FILE]

"Ours" is what `alexnet-jax features` does from files to file, decoding, scaling, computing and
writing, with the heap setting of that program (`alexnet_jax.training.devices.keep_heap`). "Bare forward"
is the same compiled computation on a batch that lies on the device, its results left there: in a
process as it is, and in one with the same heap setting. Each figure is a fresh process's, after one
batch. Images are crops of two photographs, JPEG of quality 90, of the size that ImageNet's have in
the mean.

The last row is the most main memory that the process ever held (Linux only), with all the images and
with a quarter of them: flat is a ratio near 1.
"""

from __future__ import annotations

import json
import os
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
from alexnet_jax.training.devices import keep_heap
from alexnet_jax.weights import Weights

HEIGHT, WIDTH, QUALITY = 375, 500, 90
LAYER = "fc7"
STREAM, STOCK, KEPT = "stream", "bare forward", "bare forward, heap kept"
HAS_PEAK = pathlib.Path("/proc/self/status").exists()


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
    side = one.structure.spec.input.resize
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8))
    step = inference.stage_step(one, LAYER)
    jax.block_until_ready(step(images))
    steps = -(-count // batch_size)
    start = time.perf_counter()
    for _ in range(steps):
        found = step(images)
    jax.block_until_ready(found)
    return steps * batch_size / (time.perf_counter() - start)


def child(what: str, folder: str, variant: str, quick: str, count: int, batch_size: int) -> None:
    """What a process measures: prints its rate and the most memory that it held."""
    if what != STOCK:
        keep_heap()
    chosen = pictures.Pictures(pictures.find([folder]).paths[:count])
    one = network(variant, quick == "True")
    steps = -(-count // batch_size)
    size = -(-count // steps)  # as the stream's batches are
    if what == STREAM:
        bare(one, size, size)  # compiles
        rate = stream(one, chosen, batch_size, pathlib.Path(folder).with_name(f"{count}.npz"))
    else:
        rate = bare(one, count, size)
    print(json.dumps({"rate": rate, "peak": harness.peak_mib() if HAS_PEAK else None}))


def main() -> None:
    """Measures, prints, writes."""
    if sys.argv[1:2] == ["--child"]:
        what, place, name, quick, *numbers = sys.argv[2:]
        child(what, place, name, quick, *map(int, numbers))
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or this process leaves a GPU's memory to no child
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
    few = min(count, max(4 * batch_size, count // 4))  # so that as many batches are under way
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = pathlib.Path(temporary) / "images"
        photographs.write_files(folder, count, HEIGHT, WIDTH, QUALITY)

        def measured(what: str, images: int) -> dict[str, float]:
            settings = [str(folder), variant, str(arguments.quick), str(images), str(batch_size)]
            command = [sys.executable, __file__, "--child", what, *settings]
            return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

        found = [
            {
                "stream": measured(STREAM, count),
                "stock": measured(STOCK, count),
                "kept": measured(KEPT, count),
                "few": measured(STREAM, few),
            }
            for _ in range(rounds)
        ]

    def samples(what: str, key: str) -> harness.Samples:
        return harness.Samples(tuple(one[what][key] for one in found))

    case = f"{variant}, {LAYER} of {count:,} JPEG files of {WIDTH}×{HEIGHT}"
    ours = samples("stream", "rate")
    report.add(harness.row(case, ours, samples("stock", "rate"), STOCK, "images/s", target=0.9, **about))
    report.add(harness.row(case, ours, samples("kept", "rate"), KEPT, "images/s", target=0.9, **about))
    if HAS_PEAK:
        case, peaks = f"{variant}, memory for {count:,} images", (samples("stream", "peak"), samples("few", "peak"))
        report.add(harness.row(case, *peaks, f"{few:,} images", "MiB", target=0.95, lower_is_better=True, **about))
    else:
        report.note("without /proc/self/status the memory can't be told")
    report.finish()


if __name__ == "__main__":
    main()
