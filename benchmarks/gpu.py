"""Everything that a GPU must answer, in one call of under 9 minutes that survives a failing part.

    python benchmarks/gpu.py --json FILE [--seconds 520] [--only training profile] [--quick --device cpu]

Each part is a process with a time limit of its own; the file is written after each. A part that
fails or takes too long keeps the rows that it has made and stands under "parts" of the JSON with
its error; when the time of the whole run is up the rest is skipped, in words. The most important
parts come first:

- training and inference of `paper` and `torchvision` against PyTorch at the same precision (eager, channels-last
  and `torch.compile` in the first comparison, then the last of these alone, which takes a minute to compile), and
  as a share of the matrix product measured in the same rounds;
- a profile of the step: milliseconds by kernel, the 20 longest (`kernels` of the row);
- end to end from a prepared folder in the page cache: loader, copy to the device, step;
- batch sizes: images a second, seconds of the first call (compilation), peak memory;
- candidate forms alone and in the step, each checked against the plain form first (`gpu_forms`);
- the cost of `deterministic`.

Precision is "float32" (true), "tf32" or "bfloat16". `--device cpu` rehearses it all elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import gpu_parts
import harness
import torch_networks

KINDS = ("training", "profile", "alone", "in step", "inference", "end to end", "batches", "deterministic")


class Lines(harness.Report):
    """What a part finds, a line of JSON each, so that nothing is lost when its process ends."""

    def __init__(self, file: pathlib.Path):
        self._file = file

    def add(self, line: dict[str, Any]) -> None:
        """A row."""
        self._write({"row": line})

    def note(self, text: str) -> None:
        """A sentence."""
        self._write({"note": text})

    def _write(self, found: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def plan(options: argparse.Namespace) -> list[tuple[str, list[Any], float]]:
    """The parts, the most important first: kind, arguments, and seconds that it may take."""
    batch = options.batch_size
    best, *others = options.precisions
    first, *more = options.variants
    forms = options.forms
    parts: list[tuple[str, list[Any], float]] = [
        ("training", [first, best, batch, "training", forms], 220),
        ("profile", [first, best, batch], 60),
        ("end to end", [first, best, batch], 75),
    ]
    parts += [("training", [variant, best, batch, "training", forms], 120) for variant in more]
    parts += [("inference", [first, best, batch, "inference", forms], 100)]
    # PyTorch did not compile the step in tf32 within two minutes.
    parts += [("training", [first, precision, batch, "training", forms], 220) for precision in others]
    parts += [("batches", [first, best], 120), ("alone", [best, batch], 75), ("in step", [first, best, batch], 120)]
    parts += [("deterministic", [first, best, batch], 60)]
    parts += [
        ("training", [variant, precision, batch, "training", forms], 120) for precision in others for variant in more
    ]
    parts += [("batches", [variant, best], 60) for variant in more]
    parts += [("batches", [variant, precision], 60) for precision in others for variant in options.variants]
    parts += [("alone", [precision, batch], 60) for precision in others]
    return [part for part in parts if part[0] in options.only]


def run_part(kind: str, given: list[Any], options: argparse.Namespace, file: pathlib.Path) -> None:
    """In the part's own process."""
    import gpu_forms

    functions: dict[str, Callable[..., None]] = {
        "training": gpu_parts.compare,
        "inference": gpu_parts.compare,
        "profile": gpu_parts.profile,
        "end to end": gpu_parts.end_to_end,
        "batches": gpu_parts.batches,
        "deterministic": gpu_parts.deterministic,
        "alone": gpu_forms.alone,
        "in step": gpu_forms.in_step,
    }
    functions[kind](Lines(file), options, *given)


def start(kind: str, given: list[Any], options: argparse.Namespace, file: pathlib.Path, limit: float) -> str:
    """Runs a part in a process of its own and gives its state: "done", or what went wrong."""
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    asked = json.dumps({"kind": kind, "given": given, "options": settings, "file": str(file)})
    environment = os.environ | {
        "JAX_PLATFORMS": options.device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TMPDIR": str(file.parent),  # a part that is stopped cannot tidy up
        "PYTHONPATH": os.pathsep.join([str(harness.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if options.quick or kind != "batches":  # shared by the parts, but for the one that measures compiling
        environment["JAX_COMPILATION_CACHE_DIR"] = str(file.parent / "compiled")
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    errors = file.with_suffix(".err")
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--part", asked],
            env=environment,
            stderr=stream,
            start_new_session=True,  # its workers end with it
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status is None:
        return f"stopped: it took longer than {limit:.0f} s"
    if status:
        said = errors.read_text(errors="replace").strip().splitlines()
        return f"failed with status {status}: {said[-1] if said else 'it said nothing'}"
    return "done"


def collect(report: harness.Report, file: pathlib.Path) -> int:
    """The rows and notes that a part has made; how many rows."""
    rows = 0
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # cut off in the middle
            found = json.loads(text)
            if "row" in found:
                rows += 1
                report.add(found["row"])
            else:
                report.note(found["note"])
    return rows


def main() -> None:
    """Runs the parts, prints, writes."""
    parser = harness.parser(__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=520, help="of the whole run; what does not fit is skipped, in words")
    add("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of parts")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--variants", nargs="+", default=["paper", "torchvision"])
    add("--precisions", nargs="+", choices=("bfloat16", "tf32", "float32"), default=["bfloat16", "tf32", "float32"])
    add("--batch-size", type=int, default=1024, help="of the comparisons")
    add("--batch-sizes", nargs="+", type=int, default=[128, 256, 512, 1024, 2048, 4096], help="of our own step")
    add("--images", type=int, default=8192, help="in the prepared folder")
    add("--image-size", type=int, default=224)
    add("--narrow", type=int, default=1, help="divide every width by this: for a rehearsal")
    add("--classes", type=int, default=1000)
    known = list(torch_networks.FORMS)
    add("--forms", nargs="+", choices=known, default=list(torch_networks.STOCK), help="of PyTorch's")
    add("--rounds", type=int, default=0, help="measurements of each case (5)")
    add("--seconds-each", type=float, default=0, help="that each takes at least (0.4)")
    add("--part", help=argparse.SUPPRESS)
    if "--part" in sys.argv:
        asked = json.loads(sys.argv[sys.argv.index("--part") + 1])
        run_part(asked["kind"], asked["given"], argparse.Namespace(**asked["options"]), pathlib.Path(asked["file"]))
        return
    options = parser.parse_args()
    begun = time.monotonic()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds_each = options.seconds_each or (0.02 if options.quick else 0.4)
    report = harness.Report(options, "GPU", device=options.device, seconds=options.seconds, rounds=options.rounds)
    if not gpu_parts.peers(options):
        report.note("PyTorch is not installed, so the rows that compare with it are left out")
    states: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, given, limit) in enumerate(plan(options)):
            left = options.seconds - (time.monotonic() - begun)
            words = [word for argument in given for word in (argument if isinstance(argument, list) else [argument])]
            name = f"{kind} {' '.join(map(str, words))}"
            file = pathlib.Path(folder) / f"{number}.jsonl"
            since = time.monotonic()
            state = "skipped: the time is up" if left < 5 else start(kind, given, options, file, min(limit, left))
            rows = collect(report, file)
            states.append({"part": name, "state": state, "rows": rows, "seconds": round(time.monotonic() - since, 1)})
            print(f"[{time.monotonic() - begun:.0f} s] {name}: {state}", flush=True)
            if state != "done":
                report.note(f"{name}: {state}")
            report.write(parts=states)
    report.finish(parts=states)


if __name__ == "__main__":
    main()
